"""Receipts for users who are nowhere (contract of im-gateway, section 9): kept in order, while Redis comes and goes."""

from typing import Any

import pytest
from tidegate.profile import Call, Wait
from tidegate.profiles import _im_receipts as receipts
from tidegate.profiles._im_pushes import Pushes
from tidegate.profiles._im_receipts import PAUSE_S, Receipts

from tests.profiles.im import DOWN, Driven

KEPT = [1, 1]


class Redis:
    """Answers whoever asks, and carries `Wake` to whoever waits for it."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.is_up = True

    def serve(self, runs: list[Driven]) -> None:
        """Until all are served or none goes on without time."""
        while asking := [run for run in runs if isinstance(run.waits_for, Call)]:
            for run in asking:
                run.answer(self._answer(run.waits_for))
                self._wake(runs)

    def _answer(self, call: Any) -> Any:
        if not self.is_up:
            return DOWN
        self.kept.append(call.payload.commands[0][2])
        return KEPT

    def _wake(self, runs: list[Driven]) -> None:
        woken = {ticket for run in runs for ticket in run.woken}
        for run in runs:
            if isinstance(run.waits_for, Wait) and run.waits_for.ticket in woken:
                run.answer(True)


def keeping(to: Receipts, *names: bytes) -> list[Driven]:
    return [Driven(to.keep("user_7", name)) for name in names]


def served(runs: list[Driven]) -> list[bool]:
    return [run.waits_for is None for run in runs]


def payer(runs: list[Driven]) -> Driven:
    """Who tries again after a while."""
    (found,) = [run for run in runs if isinstance(run.waits_for, Wait) and run.waits_for.seconds == PAUSE_S]
    return found


def test_receipts_that_come_at_the_same_time_are_kept_once_each_and_in_order() -> None:
    redis, to = Redis(), Receipts(Pushes())
    runs = keeping(to, b"1", b"2", b"3")
    redis.serve(runs)
    assert redis.kept == [b"1", b"2", b"3"]
    assert served(runs) == [True, True, True]


def test_while_redis_is_down_receipts_wait_and_one_of_them_tries_again() -> None:
    redis, to = Redis(), Receipts(Pushes())
    redis.is_up = False
    runs = keeping(to, b"1", b"2")
    redis.serve(runs)
    payer(runs).answer(None)
    redis.serve(runs)
    assert served(runs) == [False, False]
    assert [run.counted for run in runs] == [["redis", "redis"], []]
    redis.is_up = True
    runs += keeping(to, b"3")
    payer(runs).answer(None)
    redis.serve(runs)
    assert redis.kept == [b"1", b"2", b"3"]
    assert served(runs) == [True, True, True]


def test_where_the_one_that_tries_is_cut_off_another_does() -> None:
    redis, to = Redis(), Receipts(Pushes())
    first, second = keeping(to, b"1", b"2")
    first.hang_up()
    second.answer(None)
    redis.serve([second])
    assert redis.kept == [b"1", b"2"]
    assert served([second]) == [True]


def test_while_redis_is_away_the_oldest_are_given_up_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "OWED_MAX", 2)
    redis, to = Redis(), Receipts(Pushes())
    runs = keeping(to, b"1", b"2", b"3", b"4")
    assert not any(run.counted for run in runs), "nothing is lost while Redis answers"
    redis.is_up = False
    redis.serve(runs)
    assert runs[0].counted == ["redis", "offline_receipt_lost", "offline_receipt_lost"]
    runs += keeping(to, b"5")
    assert runs[-1].counted == ["offline_receipt_lost"]
    redis.is_up = True
    payer(runs).answer(None)
    redis.serve(runs)
    assert redis.kept == [b"4", b"5"]
    assert all(served(runs))


def test_a_receipt_that_was_given_up_while_redis_was_told_of_it_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "OWED_MAX", 1)
    redis, to = Redis(), Receipts(Pushes())
    redis.is_up = False
    runs = keeping(to, b"1")
    redis.serve(runs)
    redis.is_up = True
    payer(runs).answer(None)
    runs += keeping(to, b"2")
    redis.serve(runs)
    assert redis.kept == [b"1", b"2"]
    assert all(served(runs))
