"""The HTTP upstream beside a real backend that dies, freezes, is slow, lies, or is asked too much at once.

Figures of time are settings of the test; the circuit's pause goes by a clock that runs faster.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tidegate.errors import UpstreamError
from tidegate.upstreams import Upstream
from tidegate.upstreams._circuit import FAILURES_MAX
from tidegate.upstreams.http import HttpUpstream, checked_url

from tests.rest_backend import RestBackend
from tests.upstreams import WAIT_S_MAX, Backend, auth, members, opened, outcome, react, read, said, send, until

FAST = 20  # the circuit's 5 s pass in a quarter of one


def fast_clock() -> float:
    return time.monotonic() * FAST


@pytest.fixture
async def upstream(rest_backend: RestBackend) -> AsyncIterator[Upstream]:
    async with opened(rest_backend.url) as made:
        yield made


@pytest.fixture
async def quick(rest_backend: RestBackend) -> AsyncIterator[HttpUpstream]:
    """One whose circuit is tried again soon."""
    made = HttpUpstream(checked_url(rest_backend.url), Backend(timeout=0.5), clock=fast_clock)
    yield made
    await made.close(0)


async def answers_again(upstream: Upstream) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while await outcome(upstream, "auth", auth("user-1")) != "200":  # noqa: ASYNC110 - nothing tells but asking
            await asyncio.sleep(0.01)


def texts(backend: RestBackend) -> list[str]:
    return [request.json["text"] for request in backend.requests("send")]


# --- a backend that goes away -----------------------------------------------------------------------------------------


async def test_a_killed_backend_is_left_alone_and_found_again_by_itself(
    rest_backend: RestBackend, quick: HttpUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tidegate.upstreams.http")
    assert await outcome(quick, "auth", auth("user-1")) == "200"
    rest_backend.kill()
    for _ in range(FAILURES_MAX):
        assert await outcome(quick, "auth", auth("user-1")) == "unavailable"
    assert quick.stats().circuit_open
    assert not quick.is_ready()
    while ("auth", "circuit_open") not in quick.stats().requests:  # one that may try may come between
        assert await outcome(quick, "auth", auth("user-1")) == "unavailable"
    rest_backend.start()
    await answers_again(quick)
    assert not quick.stats().circuit_open
    assert quick.is_ready()
    told = [record.message for record in caplog.records]
    assert "fail at once for 5 s" in told[0]
    assert told[-1] == f"the backend at {rest_backend.url} answers again"
    assert len(told) == 2, "an outage is told once, not at each call"


async def test_an_outage_under_load_sends_no_message_twice(rest_backend: RestBackend, quick: HttpUpstream) -> None:
    """Sent before, during and after: each call ends, and the backend that came back got each text at most once."""
    sent = 0
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()

    async def talk() -> None:
        nonlocal sent
        while not stop.is_set():
            sent += 1
            outcomes[await outcome(quick, "send", send(f"text {sent}"))] += 1
            await asyncio.sleep(0.002)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(talk())
        await until(lambda: outcomes["201"] >= 100)
        before = texts(rest_backend)
        rest_backend.kill()
        await until(lambda: quick.stats().circuit_open)
        answered = outcomes["201"]
        await asyncio.to_thread(rest_backend.start)
        await until(lambda: outcomes["201"] >= answered + 100)
        stop.set()
    after = texts(rest_backend)
    assert len(set(before + after)) == len(before + after)
    assert sum(outcomes.values()) == sent
    assert (quick.stats().in_flight, quick.stats().waiting) == (0, 0)


async def test_a_frozen_backend_times_out_and_is_used_again_when_it_thaws(
    rest_backend: RestBackend, quick: HttpUpstream
) -> None:
    rest_backend.freeze()
    assert {await outcome(quick, "auth", auth("user-1")) for _ in range(2)} == {"unavailable"}
    assert quick.stats().requests == {("auth", "timeout"): 2}
    rest_backend.thaw()
    await answers_again(quick)


# --- a slow backend ---------------------------------------------------------------------------------------------------


async def test_a_slow_answer_is_waited_for_and_a_too_slow_one_is_not(rest_backend: RestBackend) -> None:
    rest_backend.tell(slow={"auth": 0.2, "send": 3600})
    async with opened(rest_backend.url, timeout=1.0) as upstream:
        assert await outcome(upstream, "auth", auth("user-1")) == "200"
        with pytest.raises(UpstreamError, match="did not answer within 1 s; see why it is slow"):
            await upstream.call("send", send("hi"))
        stats = upstream.stats()
        assert stats.requests == {("auth", "200"): 1, ("send", "timeout"): 1}
        assert stats.latency_sums["send"] >= 1.0
    assert texts(rest_backend) == ["hi"], "what timed out is not sent again"


async def test_time_outs_open_the_circuit(rest_backend: RestBackend, quick: HttpUpstream) -> None:
    rest_backend.tell(hold=["all"])
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(outcome(quick, "auth", auth("user-1"))) for _ in range(FAILURES_MAX)]
    assert {call.result() for call in calls} == {"unavailable"}
    assert quick.stats().circuit_open
    rest_backend.tell(hold=[])
    await answers_again(quick)


async def test_waiting_counts_into_the_time_out_but_not_against_the_backend(rest_backend: RestBackend) -> None:
    """Whoever never got its turn says nothing that those on their way do not say."""
    async with opened(rest_backend.url, timeout=0.2, max_requests=1) as upstream:
        assert isinstance(upstream, HttpUpstream)
        await upstream._slots.acquire()  # somebody who is on his way and stays there
        calls = [asyncio.create_task(outcome(upstream, "auth", auth("user-1"))) for _ in range(2 * FAILURES_MAX)]
        await until(lambda: upstream.stats().waiting == 2 * FAILURES_MAX)
        assert set(await asyncio.gather(*calls)) == {"unavailable"}
        assert upstream.stats().requests == {("auth", "timeout"): 2 * FAILURES_MAX}
        assert (upstream.stats().in_flight, upstream.stats().waiting) == (0, 0)
        assert not upstream.stats().circuit_open
        with pytest.raises(UpstreamError, match="waited for a place all the time"):
            await upstream.call("auth", auth("user-1"))
        upstream._slots.release()
        assert await outcome(upstream, "auth", auth("user-1")) == "200"
    assert len(rest_backend.requests()) == 1


# --- too much at once -------------------------------------------------------------------------------------------------


async def test_a_thousand_calls_at_once_are_answered_32_at_a_time(rest_backend: RestBackend) -> None:
    rest_backend.tell(slow={"auth": 0.005})
    async with opened(rest_backend.url, max_requests=32) as upstream:
        tokens = [f"user-{number}" for number in range(1000)]
        answers = await asyncio.gather(*[upstream.call("auth", auth(token)) for token in tokens])
        assert upstream.stats().requests == {("auth", "200"): 1000}
    assert [said(answer)["user"]["user_id"] for answer in answers] == list(range(1000))
    assert rest_backend.together() == 32


async def test_calls_that_wait_go_in_order(rest_backend: RestBackend) -> None:
    rest_backend.tell(hold=["send"])
    async with opened(rest_backend.url, max_requests=1) as upstream:
        calls = [asyncio.create_task(upstream.call("send", send(str(number)))) for number in range(20)]
        await until(lambda: rest_backend.inside() == 1)
        rest_backend.tell(hold=[])
        await asyncio.gather(*calls)
    assert texts(rest_backend) == [str(number) for number in range(20)]


async def test_callers_that_go_away_give_their_places_back(rest_backend: RestBackend) -> None:
    rest_backend.tell(hold=["send"])
    async with opened(rest_backend.url, max_requests=4) as upstream:
        for _ in range(10):
            calls = [asyncio.create_task(upstream.call("send", send("hi"))) for _ in range(12)]
            await until(lambda: upstream.stats().in_flight == 4)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert (upstream.stats().in_flight, upstream.stats().waiting) == (0, 0)
        rest_backend.tell(hold=[])
        answers = await asyncio.gather(*[upstream.call("send", send("hi")) for _ in range(20)])
        assert {answer.status for answer in answers} == {201}
        assert not upstream.stats().circuit_open


# --- a backend that lies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "status"),
    [
        ("bad_json", 200),
        ("wrong_types", 200),
        ("not_an_object", 200),
        ("empty", 200),
        ("no_content", 204),
        ("accepted", 202),
        ("server_error", 500),
    ],
)
async def test_whatever_it_says_is_handed_on_and_the_circuit_stays_closed(
    rest_backend: RestBackend, upstream: Upstream, lie: str, status: int
) -> None:
    rest_backend.tell(lie={"all": lie})
    for method, request in CALLS.items():
        for _ in range(6):
            assert (await upstream.call(method, request)).status == status
    assert not upstream.stats().circuit_open
    rest_backend.tell(lie={})
    assert await outcome(upstream, "auth", auth("user-1")) == "200"


async def test_an_answer_beyond_the_bound_is_none(rest_backend: RestBackend, upstream: Upstream) -> None:
    rest_backend.tell(lie={"members": "too_large"})
    for _ in range(FAILURES_MAX + 5):
        with pytest.raises(UpstreamError, match="more than 1048576 bytes"):
            await upstream.call("members", members())
    assert upstream.stats().requests == {("members", "too_large"): FAILURES_MAX + 5}
    assert not upstream.stats().circuit_open, "the backend is there"
    assert await outcome(upstream, "auth", auth("user-1")) == "200"


async def test_a_refusal_is_handed_on_with_its_reason(rest_backend: RestBackend, upstream: Upstream) -> None:
    rest_backend.tell(refuse={"send": [403, {"error": "x"}]})
    answer = await upstream.call("send", send("hi"))
    assert (answer.status, said(answer)) == (403, {"error": "x"})


async def test_members_come_in_each_form_that_backends_have(rest_backend: RestBackend, upstream: Upstream) -> None:
    rest_backend.tell(members={"7": [2, 3]})
    for form in ("user_id", "id", "userId"):
        rest_backend.tell(member_form=form)
        answer = await upstream.call("members", members(7))
        assert said(answer) == {"chat_id": 7, "members": [{form: 2}, {form: 3}]}


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_closing_ends_calls_on_their_way_within_its_time(rest_backend: RestBackend) -> None:
    rest_backend.tell(hold=["all"])
    async with opened(rest_backend.url, max_requests=8) as upstream:
        calls = [asyncio.create_task(outcome(upstream, "send", send("hi"))) for _ in range(20)]
        calls += [asyncio.create_task(outcome(upstream, "members", members(shared_s=2))) for _ in range(5)]
        await until(lambda: upstream.stats().in_flight == 8)
        async with asyncio.timeout(10):
            await upstream.close(0.1)
            assert set(await asyncio.gather(*calls)) == {"unavailable"}
        assert (upstream.stats().in_flight, upstream.stats().waiting) == (0, 0)
        assert upstream.stats().requests["send", "unavailable"] == 20
        assert not upstream.stats().circuit_open, "we gave up, not the backend"


async def test_closing_gives_calls_on_their_way_time_to_be_answered(rest_backend: RestBackend) -> None:
    rest_backend.tell(hold=["send"])
    async with opened(rest_backend.url) as upstream:
        calls = [asyncio.create_task(upstream.call("send", send("hi"))) for _ in range(20)]
        await until(lambda: rest_backend.inside() == 20)
        closing = asyncio.create_task(upstream.close(30))
        await asyncio.sleep(0)
        assert await outcome(upstream, "auth", auth("user-1")) == "unavailable", "nobody new"
        rest_backend.tell(hold=[])
        assert {answer.status for answer in await asyncio.gather(*calls)} == {201}
        await closing


CALLS: dict[str, Any] = {
    "auth": auth("user-1"),
    "members": members(),
    "send": send("hi"),
    "react": react(1),
    "read": read([1]),
}
