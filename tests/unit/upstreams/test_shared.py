"""Who shares an answer with whom, and for how long it is kept: with an upstream that the test answers by hand."""

import asyncio
from collections.abc import Awaitable

import pytest
from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams._meter import Meter
from tidegate.upstreams._shared import Shared

MEMBERS = HttpRequest("GET", "/chats/1/members", shared_s=2.0)
OTHERS = HttpRequest("GET", "/chats/2/members", shared_s=2.0)


class Bench:
    """`asked` holds a future for each request that came through."""

    def __init__(self, **bounds: int) -> None:
        self.now = 0.0
        self.asked: list[asyncio.Future[HttpAnswer]] = []
        self.meter = Meter()
        self.shared = Shared(self._ask, self.meter, lambda: self.now, **bounds)

    async def _ask(self, _method: str, _request: HttpRequest) -> HttpAnswer:
        future = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return await future

    def begin(self, request: HttpRequest = MEMBERS) -> "asyncio.Task[HttpAnswer]":
        return asyncio.ensure_future(self.shared.call("members", request))

    async def answered(self, request: HttpRequest, status: int = 200, body: bytes = b"") -> HttpAnswer:
        """One call from its beginning to its end."""
        before = len(self.asked)
        call = self.begin(request)
        await turns()
        if len(self.asked) > before:
            self.asked[-1].set_result(HttpAnswer(status, body))
        return await call

    @property
    def lookups(self) -> tuple[int, int, int]:
        return self.meter.hits, self.meter.misses, self.meter.merged


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def failures(calls: list[Awaitable[HttpAnswer]]) -> list[object]:
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def test_requests_that_overlap_share_one_answer():
    bench = Bench()
    calls = [bench.begin() for _ in range(100)]
    await turns()
    assert len(bench.asked) == 1
    bench.asked[0].set_result(HttpAnswer(200, b"members"))
    assert {answer.body for answer in await asyncio.gather(*calls)} == {b"members"}
    assert bench.lookups == (0, 1, 99)


async def test_requests_that_overlap_share_one_failure_and_the_next_asks_anew():
    bench = Bench()
    calls = [bench.begin() for _ in range(3)]
    await turns()
    bench.asked[0].set_exception(UpstreamError("backend unavailable", "start it"))
    errors = await failures(calls)
    assert [str(error) for error in errors] == ["backend unavailable. start it"] * 3
    assert len(set(map(id, errors))) == 3, "a traceback grows with every raise of one and the same error"
    assert (await bench.answered(MEMBERS)).status == 200
    assert bench.lookups == (0, 2, 2)


async def test_a_200_is_kept_for_its_time_and_no_longer():
    bench = Bench()
    await bench.answered(MEMBERS, body=b"old")
    bench.now = 1.99
    assert (await bench.shared.call("members", MEMBERS)).body == b"old"
    bench.now = 2.0
    assert (await bench.answered(MEMBERS, body=b"new")).body == b"new"
    assert bench.lookups == (1, 2, 0)


@pytest.mark.parametrize("status", [201, 204, 302, 404, 500])
async def test_any_other_status_is_shared_but_not_kept(status: int):
    bench = Bench()
    calls = [bench.begin(), bench.begin()]
    await turns()
    bench.asked[0].set_result(HttpAnswer(status, b""))
    assert [answer.status for answer in await asyncio.gather(*calls)] == [status, status]
    await bench.answered(MEMBERS)
    assert len(bench.asked) == 2


async def test_what_is_not_to_be_shared_is_asked_each_time_and_counts_as_no_lookup():
    bench = Bench()
    alone = HttpRequest("GET", "/chats/1/members")
    await bench.answered(MEMBERS)
    await bench.answered(alone)
    await bench.answered(alone)
    assert len(bench.asked) == 3
    assert bench.lookups == (0, 1, 0)


async def test_another_path_or_verb_is_another_answer():
    bench = Bench()
    await bench.answered(MEMBERS, body=b"one")
    assert (await bench.answered(OTHERS, body=b"two")).body == b"two"
    assert (await bench.answered(HttpRequest("HEAD", MEMBERS.path, shared_s=2.0), body=b"")).body == b""
    assert len(bench.asked) == 3


async def test_a_caller_that_is_cancelled_takes_the_answer_from_nobody():
    bench = Bench()
    first, second, third = (bench.begin() for _ in range(3))
    await turns()
    first.cancel()
    third.cancel()
    await turns()
    bench.asked[0].set_result(HttpAnswer(200, b"members"))
    assert (await second).body == b"members"
    assert first.cancelled()
    assert third.cancelled()


async def test_when_all_callers_are_gone_a_failure_is_nobodys_and_an_answer_is_kept(
    caplog: pytest.LogCaptureFixture,
):
    bench = Bench()
    for request in (MEMBERS, OTHERS):
        call = bench.begin(request)
        await turns()
        call.cancel()
        await turns()
    bench.asked[0].set_result(HttpAnswer(200, b"members"))
    bench.asked[1].set_exception(UpstreamError("backend unavailable"))
    await turns()
    assert (await bench.shared.call("members", MEMBERS)).body == b"members"
    assert not caplog.records


async def test_the_oldest_answer_goes_when_there_are_too_many():
    bench = Bench(answers_max=2)
    requests = [HttpRequest("GET", f"/{number}", shared_s=60.0) for number in range(3)]
    for request in requests:
        await bench.answered(request)
    await bench.answered(requests[2])
    await bench.answered(requests[1])
    assert len(bench.asked) == 3
    await bench.answered(requests[0])
    assert len(bench.asked) == 4


async def test_large_answers_push_out_older_ones():
    bench = Bench(bytes_max=100)
    requests = [HttpRequest("GET", f"/{number}", shared_s=60.0) for number in range(3)]
    for request in requests:
        await bench.answered(request, body=b"x" * 50)
    await bench.answered(requests[1])
    await bench.answered(requests[2])
    assert len(bench.asked) == 3
    await bench.answered(HttpRequest("GET", "/huge", shared_s=60.0), body=b"x" * 101)
    await bench.answered(HttpRequest("GET", "/huge", shared_s=60.0), body=b"x" * 101)
    assert len(bench.asked) == 5, "what is larger than all there is room for is not kept"


async def test_answers_asked_for_again_and_again_take_the_room_of_one():
    bench = Bench(bytes_max=100)
    for _ in range(10):
        await bench.answered(MEMBERS, body=b"x" * 40)
        bench.now += 3.0
    await bench.answered(MEMBERS, body=b"x" * 40)
    await bench.answered(OTHERS, body=b"x" * 40)
    asked = len(bench.asked)
    await bench.shared.call("members", MEMBERS)
    await bench.shared.call("members", OTHERS)
    assert len(bench.asked) == asked


async def test_closing_waits_for_what_is_shared_and_forgets_what_is_kept():
    bench = Bench()
    await bench.answered(OTHERS)
    call = bench.begin()
    await turns()
    closing = asyncio.ensure_future(bench.shared.close())
    await turns()
    assert not closing.done()
    bench.asked[1].set_exception(UpstreamError("backend unavailable"))
    await closing
    assert isinstance((await failures([call]))[0], UpstreamError)
    await bench.answered(OTHERS)
    assert len(bench.asked) == 3
