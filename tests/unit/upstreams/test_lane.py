"""The way to a backend: who goes, who waits, and what the circuit is told; answered by hand, by the test's clock."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from tidegate.errors import UpstreamError
from tidegate.upstreams._circuit import Circuit
from tidegate.upstreams._lane import STOPPING, Lane, NoSignError, no_answer

from tests.upstreams import until

log = logging.getLogger("tidegate.tests.lane")
LONG_S = 3600.0


class Bench:
    """`asked` holds a future for each call that came through."""

    def __init__(self, slots: int = 2, failures_max: int = 2) -> None:
        self.now = 0.0
        self.asked: list[asyncio.Future[str | UpstreamError]] = []
        self.lane = Lane(
            "the backend",
            "there",
            slots=asyncio.Semaphore(slots),
            circuit=Circuit(failures_max, 5.0),
            clock=lambda: self.now,
            log=log,
            bound="two places",
            too_slow="too_slow",
        )

    def exchange(self) -> Awaitable[str | UpstreamError]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def call(self, seconds: float = LONG_S) -> asyncio.Task[str]:
        async def call() -> str:
            return await self.lane.call(self.exchange, seconds)

        return asyncio.create_task(call())

    async def came(self, count: int) -> None:
        await until(lambda: len(self.asked) == count)

    async def end(self, call: asyncio.Task[str], how: str | UpstreamError | NoSignError) -> str:
        """The call that came last ends so. Its answer, or the outcome of its error."""
        if isinstance(how, NoSignError):
            self.asked[-1].set_exception(how)
        else:
            self.asked[-1].set_result(how)
        return await outcome(call)


async def outcome(call: asyncio.Task[str]) -> str:
    try:
        return await call
    except UpstreamError as error:
        return error.outcome


def dead() -> NoSignError:
    return NoSignError("unavailable", "it is dead")


async def fail(bench: Bench) -> str:
    call = bench.call()
    await bench.came(len(bench.asked) + 1)
    return await bench.end(call, dead())


async def test_as_many_as_there_are_places_go_and_the_others_wait_in_order() -> None:
    bench = Bench(slots=2)
    calls = [bench.call() for _ in range(4)]
    await bench.came(2)
    assert (bench.lane.in_flight, bench.lane.waiting) == (2, 2)
    bench.asked[0].set_result("first")
    await bench.came(3)
    bench.asked[2].set_result("third")
    assert [await calls[0], await calls[2]] == ["first", "third"]
    await bench.lane.close(0)
    assert [await outcome(calls[1]), await outcome(calls[3])] == ["unavailable"] * 2


async def test_failures_open_it_and_one_answer_closes_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench(failures_max=2)
    assert [await fail(bench), await fail(bench)] == ["unavailable"] * 2
    assert bench.lane.is_open() and not bench.lane.is_ready()
    assert await outcome(bench.call()) == "circuit_open"
    bench.now = 5.0
    assert bench.lane.is_open() and bench.lane.is_ready(), "one may try"
    probe = bench.call()
    await bench.came(3)
    assert await outcome(bench.call()) == "circuit_open", "and only one"
    assert await bench.end(probe, "well") == "well"
    assert not bench.lane.is_open()
    assert [record.message for record in caplog.records] == [
        "calls to the backend at there fail at once for 5 s: it is dead",
        "the backend at there answers again",
    ]


async def test_an_answer_that_cannot_be_used_is_a_sign_of_life() -> None:
    bench = Bench(failures_max=2)
    for _ in range(3):
        await fail(bench)
        call = bench.call()
        await bench.came(len(bench.asked) + 1)
        assert await bench.end(call, no_answer("too_large", "It is too large.")) == "too_large"
    assert not bench.lane.is_open()


async def test_whoever_only_waited_says_nothing_about_the_backend() -> None:
    bench = Bench(slots=1, failures_max=2)
    held = bench.call()
    await bench.came(1)
    for _ in range(5):
        with pytest.raises(UpstreamError, match="waited for a place all the time: two places") as raised:
            await bench.call(0.001)
        assert raised.value.outcome == "too_slow"
    assert not bench.lane.is_open()
    assert await bench.end(held, "well") == "well"


async def test_a_probe_that_is_cancelled_lets_the_next_one_try() -> None:
    bench = Bench(failures_max=1)
    await fail(bench)
    bench.now = 5.0
    probe = bench.call()
    await bench.came(2)
    probe.cancel()
    await asyncio.wait([probe])
    again = bench.call()
    await bench.came(3)
    assert await bench.end(again, "well") == "well"


async def test_closing_waits_for_calls_on_their_way_and_then_ends_them() -> None:
    bench = Bench(slots=1)
    calls = [bench.call() for _ in range(2)]
    await bench.came(1)
    closing = asyncio.create_task(bench.lane.close(LONG_S))
    await until(lambda: not bench.lane.is_ready())
    with pytest.raises(UpstreamError, match=STOPPING):
        await bench.call()
    bench.asked[0].set_result("well")
    await closing
    assert [await outcome(call) for call in calls] == ["well", "unavailable"]
    assert (bench.lane.in_flight, bench.lane.waiting, bench.lane.is_open()) == (0, 0, False)


async def test_what_nobody_expected_goes_through_and_gives_its_place_back() -> None:
    bench = Bench(slots=1)

    def mistake() -> Callable[[], Awaitable[str]]:
        raise KeyError("a mistake")

    for _ in range(3):
        with pytest.raises(KeyError):
            await bench.lane.call(mistake, LONG_S)  # type: ignore[arg-type]  # it never returns
    call = bench.call()
    await bench.came(1)
    assert await bench.end(call, "well") == "well"
