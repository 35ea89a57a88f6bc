"""`tidegate serve --profile echo` as a real process: one port, drain, signals, both event loops."""

import asyncio
import http.client
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateways import Gateway, running

ANSWER_S_MAX = 15


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    os.environ["TIDEGATE_LOOP"] = request.param
    try:
        with running("echo") as started:
            yield started
    finally:
        del os.environ["TIDEGATE_LOOP"]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[ClientConnection]:
    async with connect(gateway.url, compression=None, max_size=None) as opened:
        yield opened


async def test_every_message_comes_back_in_order(client: ClientConnection) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    sizes = [0, 1, 125, 126, 65535, 65536, *[source.randrange(2000) for _ in range(300)]]
    sent = [source.randbytes(size) if source.random() < 0.5 else "\u00e9" * (size // 2) for size in sizes]
    for message in sent:
        await client.send(message)
    async with asyncio.timeout(ANSWER_S_MAX):
        assert [await client.recv() for _ in sent] == sent


async def test_a_fragmented_message_comes_back_whole(client: ClientConnection) -> None:
    await client.send(["one ", "two ", "three"])
    assert await asyncio.wait_for(client.recv(), ANSWER_S_MAX) == "one two three"


async def test_many_clients_get_their_own_messages(gateway: Gateway) -> None:
    async def one(number: int) -> None:
        async with connect(gateway.url, compression=None) as socket:
            for turn in range(20):
                await socket.send(f"{number}.{turn}")
            assert [await socket.recv() for _ in range(20)] == [f"{number}.{turn}" for turn in range(20)]

    async with asyncio.timeout(ANSWER_S_MAX):
        await asyncio.gather(*[one(number) for number in range(50)])


async def test_a_ping_is_answered_and_a_close_is_returned(client: ClientConnection) -> None:
    await asyncio.wait_for(await client.ping(), ANSWER_S_MAX)
    await client.close(4321, "enough")
    assert client.close_code == 4321


def test_http_is_served_on_the_same_port(gateway: Gateway) -> None:
    status, health = gateway.get("/health")
    assert status == 200
    assert (health["status"], health["profile"]) == ("healthy", "echo")
    assert gateway.get("/ready") == (200, {"status": "ready"})
    assert gateway.get("/no-such-path")[0] == 404
    assert set(gateway.get("/stats")[1]) == {"total_connections", "current_connections", "total_rooms"}


def test_a_plain_request_on_the_websocket_path_gets_426(gateway: Gateway) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5)
    plain.request("GET", "/ws")
    answer = plain.getresponse()
    assert answer.status == 426
    assert answer.headers["Sec-WebSocket-Version"] == "13"
    plain.close()


def test_publishing_over_http_is_off_without_a_key(gateway: Gateway) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5)
    plain.request("POST", "/api/publish", body=b"{}", headers={"Authorization": "Bearer x"})
    assert plain.getresponse().status == 404
    plain.close()


async def test_the_stats_follow_the_clients(gateway: Gateway) -> None:
    before = gateway.get("/stats")[1]
    async with connect(gateway.url) as socket:
        await socket.send("x")
        await socket.recv()
        during = await asyncio.to_thread(gateway.get, "/stats")
    assert during[1]["current_connections"] >= 1
    assert during[1]["total_connections"] == before["total_connections"] + 1


# --- signals ----------------------------------------------------------------------------------------------------------


async def test_sigterm_refuses_newcomers_tells_everybody_1001_and_exits_0() -> None:
    with running("echo", WS_SHUTDOWN_GRACE="20s") as gateway:
        async with connect(gateway.url) as staying:
            # a client that does not answer the close keeps the drain going while the test looks
            first, second = [await connect(gateway.url) for _ in range(2)]
            gateway.signal(signal.SIGTERM)
            async with asyncio.timeout(ANSWER_S_MAX):
                for socket in (staying, first, second):
                    with pytest.raises(ConnectionClosed):
                        await socket.recv()
                    assert socket.close_code == 1001
        assert await asyncio.to_thread(gateway.wait, 25) == 0


async def test_while_draining_the_node_is_not_ready_and_refuses_upgrades() -> None:
    with running("echo", WS_SHUTDOWN_GRACE="20s", WS_CLOSE_TIMEOUT="20s") as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        gateway.signal(signal.SIGTERM)
        # the close frame came, and is not answered: the drain waits for this client
        assert (await asyncio.wait_for(reader.readexactly(4), ANSWER_S_MAX))[2:] == (1001).to_bytes(2, "big")
        assert await asyncio.to_thread(gateway.get, "/ready") == (503, {"status": "not_ready", "reason": "draining"})
        with pytest.raises(InvalidStatus) as refused:
            await connect(gateway.url)
        assert refused.value.response.status_code == 503
        assert "Retry-After" in refused.value.response.headers
        gateway.signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.wait, 10) == 143
        writer.close()


def test_ctrl_c_is_a_drain_too() -> None:
    with running("echo") as gateway:
        gateway.signal(signal.SIGINT)
        assert gateway.wait(10) == 0
    assert "Traceback" not in gateway.log_text()


async def test_hangup_keeps_every_client_and_says_what_was_reloaded() -> None:
    with running("echo") as gateway:
        async with connect(gateway.url) as socket:
            gateway.signal(signal.SIGHUP)
            while "reloaded the log level" not in gateway.log_text():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            await socket.send("still here")
            assert await asyncio.wait_for(socket.recv(), ANSWER_S_MAX) == "still here"


def test_logs_are_json_lines_in_production() -> None:
    with running("echo", APP_ENV="production") as gateway:
        pass
    lines = gateway.log_text().splitlines()
    assert lines
    assert {"time", "level", "logger", "message"} <= set(json.loads(lines[0]))
