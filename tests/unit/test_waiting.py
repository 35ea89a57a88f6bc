"""What waits behind a call: in order, bounded, and held back once each time."""

from tidegate._core import CLOSED, MESSAGE, OVERDUE
from tidegate.engine import Event
from tidegate.gateway.waiting import BYTES_MAX, HOLD_AT, LET_GO_AT, MESSAGES_MAX, Waiting


def message(size: int = 1) -> Event:
    return (MESSAGE, 1, b"", b"x" * size, True)


def test_the_socket_is_held_once_and_let_go_once_with_a_few_left() -> None:
    waiting = Waiting()
    held = []
    for _ in range(HOLD_AT + 3):
        waiting.add(message())
        held.append(waiting.must_hold())
    assert held == [False] * (HOLD_AT - 1) + [True] + [False] * 3
    let_go = []
    while waiting.queue:
        waiting.take()
        let_go.append(waiting.may_let_go())
    assert let_go.index(True) == HOLD_AT + 3 - LET_GO_AT - 1
    assert let_go.count(True) == 1


def test_messages_are_bounded_and_last_words_are_not() -> None:
    waiting = Waiting()
    assert all(waiting.add(message(0)) for _ in range(MESSAGES_MAX))
    assert not waiting.add(message(0))
    assert waiting.add((OVERDUE, 1, b""))
    assert waiting.add((CLOSED, 1, b"", 1000))


def test_bytes_are_bounded_and_given_back() -> None:
    waiting = Waiting()
    assert waiting.add(message(BYTES_MAX))
    assert not waiting.add(message())
    waiting.take()
    assert waiting.add(message())
