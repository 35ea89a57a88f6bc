"""Budgets of many keys, and windows: each key its own, renewed by time, and forgotten when it means nothing more."""

import random
from collections import deque

from tidegate.rates import FORGET_EVERY_S, WINDOW_S, Rates, Windows


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    rates = Rates(10, 20)
    assert sum(rates.take("a", 100.0) for _ in range(50)) == 20
    assert sum(rates.take("a", 100.5) for _ in range(50)) == 5
    assert sum(rates.take("a", 200.0) for _ in range(50)) == 20


def test_each_key_has_its_own_budget() -> None:
    rates = Rates(1, 1)
    assert [rates.take(key, 0.0) for key in (1, 2, 1, 2)] == [True, True, False, False]


def test_a_rate_of_zero_limits_nothing_and_remembers_nobody() -> None:
    rates = Rates(0, 0)
    assert all(rates.take(1, 0.0) for _ in range(1000))
    assert len(rates) == 0


def test_who_was_not_busy_for_a_while_is_forgotten() -> None:
    rates = Rates(10, 20)
    for key in range(1000):
        rates.take(key, 0.0)
    assert len(rates) == 1000
    rates.take("new", FORGET_EVERY_S + 1)
    assert len(rates) == 1


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    rates = Rates(1, 2)
    assert [rates.take(1, 100.0) for _ in range(3)] == [True, True, False]
    assert not rates.take(1, 50.0)


# --- windows ---------------------------------------------------------------------------------------------------------

NOW = 1_767_225_600.0


def test_a_window_takes_its_number_and_the_next_one_takes_as_many() -> None:
    windows = Windows(3)
    assert [windows.take("a", NOW + 0.2 * turn) for turn in range(5)] == [True, True, True, False, False]
    assert [windows.take("a", NOW + WINDOW_S) for _ in range(4)] == [True, True, True, False]


def test_a_window_begins_with_the_keys_first() -> None:
    windows = Windows(1)
    assert windows.take("a", NOW + 0.9)
    assert not windows.take("a", NOW + 1.8)
    assert windows.take("a", NOW + 1.9)


def test_each_key_has_a_window_of_its_own() -> None:
    windows = Windows(1)
    assert [windows.take(key, NOW) for key in ("a", "b", "a", "b")] == [True, True, False, False]


def test_a_window_of_zero_limits_nothing_and_remembers_nobody() -> None:
    windows = Windows(0)
    assert all(windows.take("a", NOW) for _ in range(1000))
    assert not windows._began


def test_whose_window_is_over_is_forgotten_and_the_others_are_not() -> None:
    windows = Windows(1)
    for key in range(1000):
        windows.take(str(key), NOW)
    windows.take("busy", NOW + FORGET_EVERY_S - 0.5)
    windows.take("new", NOW + FORGET_EVERY_S)
    assert set(windows._began) == set(windows._taken) == {"busy", "new"}
    assert not windows.take("busy", NOW + FORGET_EVERY_S)


def test_windows_agree_with_a_list_of_what_happened(seed: int) -> None:
    rng, now, windows = random.Random(seed), NOW, Windows(5)
    began: dict[str, float] = {}
    happened: dict[str, deque[float]] = {}
    for _ in range(5000):
        now += rng.choice((0.0, 0.01, 0.1, 1.5))
        key = rng.choice("abc")
        if key not in began or now >= began[key] + WINDOW_S:
            began[key], happened[key] = now, deque()
        happened[key].append(now)
        assert windows.take(key, now) == (len(happened[key]) <= 5)
