"""When a backend is left alone and when it is tried again, by the clock of the test."""

import random

from tidegate.upstreams._circuit import ORDINARY, Circuit


def opened(now: float = 0.0, failures_max: int = 3, open_s: float = 5.0) -> Circuit:
    circuit = Circuit(failures_max, open_s)
    for _ in range(failures_max):
        ticket = circuit.admit(now)
        assert ticket is not None
        circuit.failed(ticket, now)
    assert circuit.is_open()
    return circuit


def test_the_contracts_twentieth_failure_in_a_row_opens_it():
    circuit = Circuit()
    assert [circuit.failed(circuit.admit(0.0), 0.0) for _ in range(20)] == [False] * 19 + [True]
    assert circuit.admit(4.9) is None
    assert circuit.admit(5.0) is not None


def test_an_answer_between_failures_starts_the_count_anew():
    circuit = Circuit(failures_max=3)
    for _ in range(10):
        circuit.failed(ORDINARY, 0.0)
        circuit.failed(ORDINARY, 0.0)
        assert not circuit.answered()
    assert not circuit.is_open()


def test_while_it_is_open_nobody_is_admitted():
    circuit = opened(now=10.0)
    assert not circuit.lets_through(14.9)
    assert circuit.admit(14.9) is None


def test_after_the_pause_one_call_decides_and_the_others_wait_for_it():
    circuit = opened()
    assert circuit.lets_through(5.0)
    probe = circuit.admit(5.0)
    assert probe is not None
    assert not circuit.lets_through(6.0)
    assert circuit.admit(6.0) is None
    assert circuit.answered()
    assert not circuit.is_open()
    assert circuit.admit(6.0) == ORDINARY


def test_a_probe_that_fails_opens_it_for_another_pause():
    circuit = opened()
    assert circuit.failed(circuit.admit(5.0), 7.0)
    assert circuit.admit(11.9) is None
    assert circuit.admit(12.0) is not None


def test_a_probe_that_was_abandoned_lets_the_next_call_decide():
    circuit = opened()
    circuit.abandoned(circuit.admit(5.0))
    assert circuit.is_open()
    assert circuit.admit(5.0) is not None


def test_late_failures_of_calls_from_before_do_not_prolong_the_pause():
    circuit = opened()
    assert not circuit.failed(ORDINARY, 4.0)
    assert circuit.admit(5.0) is not None


def test_a_late_answer_closes_it():
    circuit = opened()
    assert circuit.answered()
    assert circuit.admit(0.1) == ORDINARY


def test_an_old_probe_decides_nothing_for_a_new_one():
    circuit = opened()
    old = circuit.admit(5.0)
    circuit.answered()  # a call from before came through after all
    for _ in range(3):
        circuit.failed(ORDINARY, 6.0)
    new = circuit.admit(11.0)
    assert new not in (None, old)
    circuit.abandoned(old)
    assert not circuit.failed(old, 11.5)
    assert circuit.admit(11.5) is None, "the new probe is still on its way"
    assert circuit.failed(new, 12.0)


def test_whatever_happens_it_never_stays_open_for_ever(seed: int):
    """Random fates: once calls are answered again, it closes after one pause."""
    chance = random.Random(seed)
    circuit, now = Circuit(failures_max=3, open_s=1.0), 0.0
    under_way: list[int] = []
    for _ in range(20_000):
        now += chance.random() * 0.2
        if (ticket := circuit.admit(now)) is not None:
            under_way.append(ticket)
        if under_way and chance.random() < 0.6:
            ticket = under_way.pop(chance.randrange(len(under_way)))
            if (fate := chance.random()) < 0.1:
                circuit.answered()
            elif fate < 0.6:
                circuit.failed(ticket, now)
            else:
                circuit.abandoned(ticket)
    for ticket in under_way:
        circuit.abandoned(ticket)
    assert circuit.admit(now + 1.0) is not None
    circuit.answered()
    assert not circuit.is_open()
