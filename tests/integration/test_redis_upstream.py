"""The Redis upstream beside a real server that dies, freezes, loads, refuses, or wants a password."""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator

import pytest
from tidegate.buses._redis_link import parse_server
from tidegate.calls import RedisRequest
from tidegate.errors import ConfigError, UpstreamError
from tidegate.upstreams import Upstream, open_upstream
from tidegate.upstreams.redis import CONNECTIONS, FAILURES_MAX, RedisUpstream

from tests.cutter import Cutter
from tests.servers import RedisServer
from tests.upstreams import WAIT_S_MAX, Settings, ended, opened, until


@pytest.fixture
async def upstream(redis_server: RedisServer) -> AsyncIterator[Upstream]:
    async with opened(redis_server.url) as made:
        yield made


def asked(*commands: tuple[str | bytes | int, ...], is_atomic: bool = False) -> RedisRequest:
    return RedisRequest(commands, is_atomic)


PING = asked(("PING",))


async def answers_again(upstream: Upstream) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while await ended(upstream, PING) != "answer":  # noqa: ASYNC110 - nothing tells but asking
            await asyncio.sleep(0.01)


# --- commands and replies ---------------------------------------------------------------------------------------------


async def test_replies_come_in_order_as_bytes_numbers_lists_and_none(upstream: Upstream) -> None:
    replies = await upstream.call(
        "cache",
        asked(
            ("SADD", "group_members:1", "user_1", b"user_2"),
            ("EXPIRE", "group_members:1", 300),
            ("SMEMBERS", "group_members:1"),
            ("SISMEMBER", "group_members:1", "user_9"),
            ("GET", "nothing"),
            ("RPUSH", "offline", '{"a":"\r\nGrüße"}'),
            ("LRANGE", "offline", 0, -1),
        ),
    )
    assert [*replies[:2], sorted(replies[2]), *replies[3:]] == [
        2,
        1,
        [b"user_1", b"user_2"],
        0,
        None,
        1,
        ['{"a":"\r\nGrüße"}'.encode()],
    ]
    assert await upstream.call("cache", asked()) == []


async def test_an_atomic_request_is_done_as_a_whole_and_answers_as_others_do(upstream: Upstream) -> None:
    wanted = [("DEL", "s"), ("SADD", "s", "a", "b"), ("EXPIRE", "s", 300), ("SCARD", "s")]
    assert await upstream.call("cache", asked(*wanted, is_atomic=True)) == [0, 2, 1, 2]
    assert await upstream.call("cache", asked(is_atomic=True)) == []

    async def fill(number: int) -> None:
        members = [f"{number}-{m}" for m in range(50)]
        await upstream.call("cache", asked(("DEL", "s"), ("SADD", "s", *members), is_atomic=True))

    async def look() -> None:
        for _ in range(50):
            members = (await upstream.call("cache", asked(("SMEMBERS", "s"))))[0]
            assert len(members) in (2, 50)
            assert len({member.partition(b"-")[0] for member in members}) <= 2

    await asyncio.gather(*[fill(number) for number in range(50)], look(), look())


async def test_a_mistake_of_the_profile_is_raised_plainly(upstream: Upstream) -> None:
    with pytest.raises(Exception, match="Invalid input of type"):
        await upstream.call("cache", RedisRequest([("SET", "key", None)]))  # type: ignore[list-item]  # the mistake
    assert await ended(upstream, PING) == "answer"


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_is_no_answer_but_a_sign_of_life(upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await upstream.call("cache", asked(("SET", "text", "x")))
    for _ in range(FAILURES_MAX + 1):
        with pytest.raises(UpstreamError, match=r"refused SADD: WRONGTYPE\. Something else") as raised:
            await upstream.call("cache", asked(("INCR", "count"), ("SADD", "text", "sesame"), ("INCR", "count")))
        assert raised.value.outcome == "refused"
    with pytest.raises(UpstreamError, match="refused FLY: ERR") as raised:
        await upstream.call("cache", asked(("FLY", "sesame")))
    assert "sesame" not in str(raised.value) + repr(raised.value) + caplog.text, "Redis repeats arguments"
    assert not upstream.stats().circuit_open
    assert await upstream.call("cache", asked(("GET", "count"))) == [b"8"], "those beside it were done"
    assert upstream.stats().requests["cache", "refused"] == FAILURES_MAX + 2


@pytest.mark.parametrize(
    ("commands", "words", "left"),
    [
        ([("SET", "a", 1), ("FLY",), ("SET", "b", 1)], "refused FLY: ERR", [None, None]),
        ([("SET", "a", 1), ("SADD", "text", "x"), ("SET", "b", 1)], "refused SADD: WRONGTYPE", [b"1", b"1"]),
    ],
)
async def test_a_refusal_within_an_atomic_request_is_told_by_its_command(
    upstream: Upstream, commands: list[tuple[str | int, ...]], words: str, left: list[bytes | None]
) -> None:
    await upstream.call("cache", asked(("SET", "text", "x")))
    with pytest.raises(UpstreamError, match=words):
        await upstream.call("cache", asked(*commands, is_atomic=True))
    assert await upstream.call("cache", asked(("GET", "a"), ("GET", "b"))) == left


async def test_a_full_redis_refuses_to_write_and_says_the_cure(servers_wanted: None) -> None:
    with RedisServer("--maxmemory", "1").running() as server:
        async with opened(server.url) as upstream:
            with pytest.raises(UpstreamError, match="Redis is full: raise its maxmemory"):
                await upstream.call("cache", asked(("SET", "a", "b")))
            assert await ended(upstream, PING) == "answer"


# --- passwords --------------------------------------------------------------------------------------------------------


async def test_a_password_is_needed_and_shown_nowhere(servers_wanted: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer("--requirepass", "hunter2").running() as server:
        place = f"127.0.0.1:{server.port}/0"
        async with opened(f"redis://:hunter2@{place}") as upstream:
            assert await ended(upstream, PING) == "answer"
            server.kill()
            told = [await failure(upstream) for _ in range(FAILURES_MAX + 1)]
        server.start()
        async with opened(f"redis://:hunter3@{place}") as upstream:
            told.append(await failure(upstream))
        assert "Correct the user and password" in told[-1]
        async with opened(f"redis://{place}") as upstream:
            told.append(await failure(upstream))
        assert "Redis wants a password" in told[-1]
    shown = "".join(told) + caplog.text
    assert not [word for word in ("hunter2", "hunter3") if word in shown]


async def failure(upstream: Upstream) -> str:
    error = await failed(upstream, PING)
    assert error is not None
    return str(error) + repr(error)


@pytest.mark.parametrize("url", ["redis://", "redis://:hunter2@", "redis://:hunter2@h:x/0", "redis://u:hunter2@h?x=1"])
def test_a_url_that_cannot_be_right_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_upstream(url, Settings())
    assert "hunter2" not in str(refused.value) + repr(refused.value)


# --- a server that goes away ------------------------------------------------------------------------------------------


async def test_a_server_that_was_restarted_while_nobody_asked_costs_nobody_an_answer(
    redis_server: RedisServer, upstream: Upstream
) -> None:
    """The kept connections are dead, and that is noticed before anything is sent on one."""
    await asyncio.gather(*[upstream.call("cache", PING) for _ in range(CONNECTIONS)])
    redis_server.kill()
    await asyncio.to_thread(redis_server.start)
    for _ in range(2 * CONNECTIONS):
        await upstream.call("cache", PING)
    assert upstream.stats().requests == {("cache", "ok"): 3 * CONNECTIONS}


async def test_an_outage_under_load_appends_nothing_twice(redis_server: RedisServer) -> None:
    upstream = RedisUpstream(parse_server(redis_server.url), clock=lambda: asyncio.get_running_loop().time() * 20)
    sent = answered = 0
    stop = asyncio.Event()

    async def append() -> None:
        nonlocal sent, answered
        while not stop.is_set():
            sent += 1
            answered += await ended(upstream, asked(("RPUSH", "list", sent))) == "answer"
            await asyncio.sleep(0.002)

    async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(append())
        await until(lambda: answered >= 100)
        redis_server.kill()
        await until(lambda: upstream.stats().circuit_open)
        await asyncio.to_thread(redis_server.start)
        before = answered
        await until(lambda: answered >= before + 100)
        stop.set()
    kept = (await upstream.call("cache", asked(("LRANGE", "list", 0, -1))))[0]
    assert len(kept) == len(set(kept)) >= answered
    await upstream.close(0)


async def test_an_answer_that_is_cut_off_is_none_and_the_next_is_right(redis_server: RedisServer) -> None:
    async with Cutter(redis_server.port) as cutter, opened(f"redis://127.0.0.1:{cutter.port}/0") as upstream:
        await upstream.call("cache", asked(("SET", "a", "x" * 1000), ("SET", "b", "2")))
        for cut_after in (0, 1, 5, 500):
            cutter.cut_after(cut_after)
            assert await ended(upstream, asked(("GET", "a"))) == "unavailable"
            assert await upstream.call("cache", asked(("GET", "b"))) == [b"2"]
        assert cutter.cuts == 4


async def test_a_frozen_server_times_out_opens_the_circuit_and_is_used_again_when_it_thaws(
    redis_server: RedisServer, upstream: Upstream
) -> None:
    await upstream.call("cache", PING)
    redis_server.freeze()
    together = await asyncio.gather(*[ended(upstream, PING) for _ in range(FAILURES_MAX)])
    assert together == ["timeout"] * FAILURES_MAX
    assert await ended(upstream, PING) == "circuit_open"
    redis_server.thaw()
    await answers_again(upstream)


async def test_a_server_that_is_loading_is_left_alone_until_it_has_loaded(servers_wanted: None) -> None:
    with SlowLoadingServer().running() as server:
        async with opened(server.url) as upstream:
            for first in range(0, 20_000, 1000):
                await upstream.call("cache", asked(*[("SET", f"key {first + n}", "x") for n in range(1000)]))
            server.kill()
            await asyncio.to_thread(server.start)
            told = []
            async with asyncio.timeout(WAIT_S_MAX):
                while (error := await failed(upstream, PING)) is not None:
                    told.append(f"{error.outcome}: {error.cure}")
                    await asyncio.sleep(0.01)
            assert [text for text in told if text.startswith("unavailable") and "loading the dataset" in text]
            assert await upstream.call("cache", asked(("GET", "key 19999"))) == [b"x"]


async def failed(upstream: Upstream, request: RedisRequest) -> UpstreamError | None:
    try:
        await upstream.call("cache", request)
    except UpstreamError as error:
        return error
    return None


class SlowLoadingServer(RedisServer):
    """It reads what it kept slowly, and counts as started when it says so."""

    def __init__(self) -> None:
        super().__init__("--appendfsync", "no", "--key-load-delay", "20")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=10) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(8)[:5] in (b"+PONG", b"-LOAD")
        return False


# --- callers that go away ---------------------------------------------------------------------------------------------


async def test_nobody_gets_the_answer_of_one_who_went_away(upstream: Upstream, seed: int) -> None:
    chance = random.Random(seed)

    async def ask(number: int) -> None:
        text = f"{number}" * (1 + number % 500)
        replies = await upstream.call("cache", asked(("SET", f"key {number}", text), ("GET", f"key {number}")))
        assert replies == [b"OK", text.encode()]

    for _ in range(20):
        calls = [asyncio.create_task(ask(number)) for number in range(50)]
        for call in chance.sample(calls, 20):
            await asyncio.sleep(chance.random() * 0.002)
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert (upstream.stats().in_flight, upstream.stats().waiting) == (0, 0)


async def test_no_more_than_the_bound_are_connected(redis_server: RedisServer, upstream: Upstream) -> None:
    await asyncio.gather(*[upstream.call("cache", PING) for _ in range(500)])
    clients = (await upstream.call("cache", asked(("CLIENT", "LIST"))))[0]
    assert clients.count(b"name=tidegate") == CONNECTIONS
