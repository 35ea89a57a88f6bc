"""Acks that are awaited: by whom, for how long, and what is known of those that come too late."""

import random

from tidegate.profiles._im_pushes import Key, Push, Pushes

KEY: Key = ("ann", "phone", "m1")
OTHER: Key = ("ann", "laptop", "m1")


def test_the_last_ack_gives_the_ticket_back() -> None:
    pushes = Pushes()
    push, known = pushes.begin([KEY, OTHER])
    assert known == set()
    assert pushes.acked(KEY) == []
    assert pushes.acked(OTHER) == [push.ticket]
    assert (push.acked, pushes.end(push), len(pushes)) == (2, ([], 0), 0)


def test_who_did_not_ack_is_named_once_and_then_late() -> None:
    pushes = Pushes()
    push, _ = pushes.begin([KEY, OTHER])
    pushes.acked(OTHER)
    assert pushes.end(push) == (["phone"], 1)
    assert pushes.end(push) == ([], 0)
    assert len(pushes) == 0
    assert [pushes.acked(KEY), pushes.acked(KEY)] == ["late", "unknown"]


def test_an_ack_counts_once() -> None:
    pushes = Pushes()
    pushes.begin([KEY])
    assert pushes.acked(KEY) != "unknown"
    assert pushes.acked(KEY) == "unknown"


def test_two_pushes_of_one_message_wait_for_one_ack() -> None:
    pushes = Pushes()
    first, _ = pushes.begin([KEY])
    second, known = pushes.begin([KEY, OTHER])
    assert known == {KEY}
    assert pushes.acked(KEY) == [first.ticket]
    assert pushes.acked(OTHER) == [second.ticket]


def test_a_push_that_ends_leaves_another_of_the_same_message_waiting() -> None:
    pushes = Pushes()
    first, _ = pushes.begin([KEY])
    second, _ = pushes.begin([KEY])
    assert pushes.end(first) == (["phone"], 0), "the second still waits"
    assert pushes.acked(KEY) == [second.ticket]
    assert pushes.acked(KEY) == "unknown", "it came in time for one of them"


def test_the_memory_of_late_ones_is_bounded_and_the_oldest_goes_first() -> None:
    pushes = Pushes(late_max=2)
    for number in range(3):
        push, _ = pushes.begin([("ann", "phone", str(number))])
        pushes.end(push)
    assert [pushes.acked(("ann", "phone", str(number))) for number in range(3)] == ["unknown", "late", "late"]


def test_tickets_differ() -> None:
    pushes = Pushes()
    tickets = [pushes.ticket(), pushes.begin([])[0].ticket, pushes.begin([KEY])[0].ticket, pushes.ticket()]
    assert len(set(tickets)) == len(tickets)
    assert min(tickets) > 0


def test_nothing_waits_when_all_pushes_have_ended_whatever_came_between(seed: int) -> None:
    rng, pushes = random.Random(seed), Pushes()
    keys: list[Key] = [(user, device, "m") for user in "ab" for device in ("x", "y")]
    running: list[Push] = []
    for _ in range(3000):
        turn = rng.random()
        if turn < 0.4:
            running.append(pushes.begin(rng.sample(keys, rng.randint(0, 4)))[0])
        elif turn < 0.7:
            pushes.acked(rng.choice(keys))
        elif running:
            push = running.pop(rng.randrange(len(running)))
            missing = {device for _, device, _ in push.waiting}
            assert set(pushes.end(push)[0]) == missing
    for push in running:
        pushes.end(push)
    assert len(pushes) == 0
