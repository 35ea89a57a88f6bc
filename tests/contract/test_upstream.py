"""What every upstream promises, on each kind: in the process, over HTTP, over gRPC, and a Redis.

What only one kind can do is tested in `tests/integration`, and what the chat backends answer in `test_chat_backend.py`.
"""

import asyncio
import logging
import pkgutil
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import tidegate.upstreams
from tidegate.errors import UpstreamError
from tidegate.upstreams import LATENCY_BOUNDS, Upstream, open_upstream

from tests.upstream_cases import KINDS, SERVED, Case, case_of
from tests.upstreams import WAIT_S_MAX, Settings, ended, opened, until

FAST = 20  # a circuit's pause of seconds passes in some tenths of one
OUTCOMES = {"answer", "unavailable", "timeout", "deadline_exceeded", "circuit_open", "cancelled"}


def fast_clock() -> float:
    return time.monotonic() * FAST


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield from case_of(request.param, request)


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield from case_of(request.param, request)


@pytest.fixture
async def upstream(case: Case) -> AsyncIterator[Upstream]:
    async with opened(case.url) as made:
        yield made


def test_every_kind_there_is_keeps_these_promises() -> None:
    files = [module.name for module in pkgutil.iter_modules(tidegate.upstreams.__path__)]
    assert {kind.partition("-")[0] for kind in KINDS} == {name for name in files if not name.startswith("_")}


# --- counting ---------------------------------------------------------------------------------------------------------


async def test_calls_are_counted_by_method_and_outcome_and_timed(case: Case, upstream: Upstream) -> None:
    for text in ("one", "two", "three"):
        await upstream.call("auth", case.ask(text))
    await upstream.call("other", case.ask("four"))
    stats = upstream.stats()
    assert stats.requests == {("auth", case.word): 3, ("other", case.word): 1}
    assert stats.latency_bounds == LATENCY_BOUNDS
    assert {method: sum(counts) for method, counts in stats.latency_counts.items()} == {"auth": 3, "other": 1}
    assert all(len(counts) == len(LATENCY_BOUNDS) + 1 for counts in stats.latency_counts.values())
    assert stats.latency_sums["auth"] > 0
    assert (stats.in_flight, stats.waiting, stats.circuit_open, stats.circuits) == (0, 0, False, {})
    assert stats.lookups == {"hit": 0, "miss": 0, "merged": 0}


async def test_what_fails_is_counted_as_its_error_says(served: Case) -> None:
    async with opened(served.nowhere) as upstream:
        assert await ended(upstream, served.ask("x"), "auth") == "unavailable"
        assert upstream.stats().requests == {("auth", "unavailable"): 1}
        assert sum(upstream.stats().latency_counts["auth"]) == 1


# --- an answer or UpstreamError, and nothing else ---------------------------------------------------------------------


async def test_whatever_befalls_the_backend_each_call_ends_with_an_answer_or_an_error(served: Case, seed: int) -> None:
    """It is killed, started, frozen and thawed at random under load; afterwards it is found again by itself."""
    chance = random.Random(seed)
    upstream = served.make(fast_clock, 0.3)
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()

    async def ask(number: int) -> None:
        while not stop.is_set():
            outcomes[await ended(upstream, served.ask(f"text {number}"))] += 1
            await asyncio.sleep(chance.random() * 0.02)

    async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(ask(number))
        for _ in range(4):
            await trouble(served, chance)
        answered = outcomes["answer"]
        await until(lambda: outcomes["answer"] >= answered + 100)
        stop.set()
    assert set(outcomes) <= OUTCOMES
    stats = upstream.stats()
    assert sum(stats.requests.values()) == sum(outcomes.values())
    assert (stats.in_flight, stats.waiting, stats.circuit_open) == (0, 0, False)
    await upstream.close(0)


async def trouble(served: Case, chance: random.Random) -> None:
    assert served.server is not None
    await asyncio.sleep(chance.random() * 0.2)
    if chance.random() < 0.5:
        served.server.kill()
        await asyncio.sleep(chance.random() * 0.3)
        await asyncio.to_thread(served.server.start)
    else:
        served.server.freeze()
        await asyncio.sleep(chance.random() * 0.6)
        served.server.thaw()


async def test_a_backend_that_is_not_there_costs_a_call_no_time_out(served: Case) -> None:
    async with opened(served.nowhere, timeout=3600) as upstream:
        async with asyncio.timeout(WAIT_S_MAX):
            assert await ended(upstream, served.ask("x")) == "unavailable"


async def test_a_frozen_backend_costs_the_time_out(served: Case) -> None:
    assert served.server is not None
    upstream = served.make(time.monotonic, 0.3)
    served.server.freeze()
    try:
        assert await ended(upstream, served.ask("x"), "auth") in ("timeout", "deadline_exceeded")
        assert 0.25 < upstream.stats().latency_sums["auth"] < WAIT_S_MAX
    finally:
        served.server.thaw()
        await upstream.close(0)


# --- the circuit ------------------------------------------------------------------------------------------------------


async def test_a_killed_backend_is_left_alone_and_found_again_by_itself(
    served: Case, caplog: pytest.LogCaptureFixture
) -> None:
    assert served.server is not None
    caplog.set_level(logging.INFO, logger="tidegate.upstreams")
    upstream = served.make(fast_clock, 30.0)
    assert await ended(upstream, served.ask("x")) == "answer"
    served.server.kill()
    for _ in range(served.failures_max):
        assert await ended(upstream, served.ask("x")) == "unavailable"
    assert upstream.stats().circuit_open
    async with asyncio.timeout(WAIT_S_MAX):
        while await ended(upstream, served.ask("x")) != "circuit_open":  # one that may try may come between
            assert upstream.stats().circuit_open
    assert not upstream.is_ready()
    await asyncio.to_thread(served.server.start)
    async with asyncio.timeout(WAIT_S_MAX):
        while await ended(upstream, served.ask("x")) != "answer":  # noqa: ASYNC110 - nothing tells but asking
            await asyncio.sleep(0.01)
    assert not upstream.stats().circuit_open
    assert upstream.is_ready()
    told = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert "fail at once for" in told[0]
    assert told[-1].endswith("answers again")
    assert len(told) == 2, "an outage is told once, not at each call"
    await upstream.close(0)


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_so_many_are_on_their_way_at_once_and_the_others_wait(served: Case) -> None:
    """And closing ends them all, which is nobody's failure."""
    assert served.server is not None
    upstream = served.make(time.monotonic, 30.0)
    served.server.freeze()
    try:
        calls = [asyncio.create_task(ended(upstream, served.ask(f"x{n}"))) for n in range(served.bound + 5)]
        await until(lambda: upstream.stats().in_flight == served.bound and upstream.stats().waiting == 5)
        async with asyncio.timeout(WAIT_S_MAX):
            await upstream.close(0)
            assert set(await asyncio.gather(*calls)) == {"unavailable"}
        stats = upstream.stats()
        assert (stats.in_flight, stats.waiting, stats.circuit_open) == (0, 0, False)
    finally:
        served.server.thaw()


async def test_a_burst_beyond_the_bound_is_answered(case: Case, upstream: Upstream) -> None:
    requests = [case.ask(f"user-{number}") for number in range(300)]
    await asyncio.gather(*[upstream.call("auth", request) for request in requests])
    assert upstream.stats().requests == {("auth", case.word): 300}


# --- callers that go away ---------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_harms_nobody(case: Case, upstream: Upstream) -> None:
    await upstream.call("auth", case.ask("before"))
    calls = [asyncio.ensure_future(upstream.call("auth", case.ask(f"user-{number}"))) for number in range(40)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls[1::2])
    await asyncio.wait(calls)
    assert await ended(upstream, case.ask("after")) == "answer"
    stats = upstream.stats()
    assert (stats.in_flight, stats.waiting, stats.circuit_open) == (0, 0, False)


async def test_callers_that_go_away_give_their_places_back(served: Case) -> None:
    assert served.server is not None
    upstream = served.make(time.monotonic, 30.0)
    for _ in range(3):
        served.server.freeze()
        calls = [asyncio.create_task(upstream.call("auth", served.ask("x"))) for _ in range(served.bound + 3)]
        await until(lambda: upstream.stats().in_flight == served.bound)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        served.server.thaw()
        assert (upstream.stats().in_flight, upstream.stats().waiting) == (0, 0)
    async with asyncio.timeout(WAIT_S_MAX):
        while await ended(upstream, served.ask("x")) != "answer":  # noqa: ASYNC110 - it thaws when it is its turn
            await asyncio.sleep(0.01)
    await upstream.close(0)


# --- opening and closing ----------------------------------------------------------------------------------------------


async def test_a_closed_upstream_refuses_and_is_not_ready(case: Case, upstream: Upstream) -> None:
    await upstream.call("auth", case.ask("user-1"))
    assert upstream.is_ready()
    await upstream.close(1)
    assert not upstream.is_ready()
    for _ in range(2):
        with pytest.raises(UpstreamError, match="backend unavailable"):
            await upstream.call("auth", case.ask("user-2"))
    assert upstream.stats().requests["auth", "unavailable"] == 2
    await upstream.close(1)


async def test_one_that_was_never_used_closes(upstream: Upstream) -> None:
    await upstream.close(0)


async def test_opening_connects_nothing_and_needs_no_loop(case: Case) -> None:
    made = await asyncio.to_thread(lambda: open_upstream(case.nowhere or case.url, Settings(), "the test's"))
    assert made.is_ready()
    assert await ended(made, case.ask("user-2")) == ("unavailable" if case.nowhere else "answer")
    await made.close(0)


# --- what nobody is told ----------------------------------------------------------------------------------------------


async def test_no_log_line_and_no_error_holds_what_was_asked(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    upstream = case.make(fast_clock, 0.3)
    await upstream.call("auth", case.ask("sesame"))
    texts = []
    if case.server is not None:
        case.server.kill()
        for _ in range(case.failures_max + 1):
            with pytest.raises(UpstreamError) as raised:
                await upstream.call("auth", case.ask("sesame"))
            texts += [str(raised.value), repr(raised.value)]
    await upstream.close(0)
    texts += [record.getMessage() for record in caplog.records] + [caplog.text, str(upstream.stats())]
    assert not [text for text in texts if "sesame" in text]
