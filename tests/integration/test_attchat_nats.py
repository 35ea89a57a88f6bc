"""The contract of attchat-gateway with a real nats-server: two gateways, real streams, restarts under traffic."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
from nats.js.api import StorageType, StreamConfig
from nats.js.client import JetStreamContext

from tests.gateways import Gateway, running
from tests.integration.client import Chat
from tests.servers import NatsServer

CATCH_UP_S_MAX = 45  # reconnects back off up to seconds on a machine this busy


@pytest.fixture
def pair(nats_server: NatsServer) -> Iterator[tuple[Gateway, Gateway]]:
    """Two nodes with the defaults of the contract, on one server."""
    settings = {"NATS_URL": nats_server.url, "NATS_STREAMS": "CHAT,NOTIFY", "NATS_RECONNECT_WAIT": "100ms"}
    with (
        running("attchat-gateway", NODE_ID="one", **settings) as one,
        running("attchat-gateway", NODE_ID="two", **settings) as two,
    ):
        yield one, two


@contextlib.asynccontextmanager
async def jetstream(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        yield client.jetstream(timeout=5)
    finally:
        await client.close()


async def ready(*gateways: Gateway) -> None:
    deadline = time.monotonic() + CATCH_UP_S_MAX
    for gateway in gateways:
        while (await asyncio.to_thread(gateway.get, "/ready"))[0] != 200:
            assert time.monotonic() < deadline, gateway.log_text()
            await asyncio.sleep(0.02)  # readiness of another process can only be asked


def event(room: str, number: int, **more: Any) -> bytes:
    return json.dumps({"type": "message", "room": room, "payload": {"n": number}} | more).encode()


async def publish_until_kept(stream: JetStreamContext, subject: str, data: bytes) -> None:
    """Repeats with one message id until the server confirms: what is confirmed is kept exactly once."""
    headers = {"Nats-Msg-Id": str(hash((subject, data)))}
    async with asyncio.timeout(CATCH_UP_S_MAX):
        while True:
            try:
                await stream.publish(subject, data, headers=headers)
                return
            except (nats.errors.Error, OSError, TimeoutError):
                await asyncio.sleep(0.05)


async def numbers(chat: Chat, count: int) -> list[int]:
    async with asyncio.timeout(CATCH_UP_S_MAX):
        return [(await chat.receive())["payload"]["n"] for _ in range(count)]


async def test_both_nodes_deliver_one_event_to_their_members(
    pair: tuple[Gateway, Gateway], nats_server: NatsServer
) -> None:
    one, two = pair
    await ready(one, two)
    async with Chat(one.authenticated()) as a, Chat(two.authenticated()) as b, jetstream(nats_server) as stream:
        await a.join("chat:both")
        await b.join("chat:both")
        await stream.publish("CHAT.events", event("chat:both", 1, exclude_conn_id=a.conn_id))
        await stream.publish("chat.events", event("chat:both", 2))
        assert await numbers(a, 1) == [2]
        assert await numbers(b, 2) == [1, 2]
        assert one.metrics()["gateway_messages_from_nats_total"] == 2


async def test_the_sister_publishers_stream_and_subject_are_delivered(nats_server: NatsServer) -> None:
    """`chat.events` on a stream CHAT that somebody else made with subjects `chat.>`."""
    async with jetstream(nats_server) as stream:
        await stream.add_stream(StreamConfig(name="CHAT", subjects=["chat.>"], storage=StorageType.FILE))
        with running("attchat-gateway", NATS_URL=nats_server.url, NATS_STREAMS="CHAT") as gateway:
            await ready(gateway)
            async with Chat(gateway.authenticated()) as chat:
                await chat.join("chat:sister")
                await stream.publish("chat.events", event("chat:sister", 7))
                assert await numbers(chat, 1) == [7]


async def test_typing_reaches_members_on_the_other_node(pair: tuple[Gateway, Gateway]) -> None:
    one, two = pair
    await ready(one, two)
    async with (
        Chat(one.authenticated(user_id="t")) as a,
        Chat(two.authenticated()) as b,
        Chat(one.authenticated()) as c,
    ):
        for chat in (a, b, c):
            await chat.join("chat:typing")
        await a.send(type="typing", room="chat:typing")
        for chat in (b, c):
            assert (await chat.receive())["payload"]["user_id"] == "t"
        await a.nothing_came()


async def test_junk_on_the_bus_is_counted_and_stalls_nothing(
    pair: tuple[Gateway, Gateway], nats_server: NatsServer
) -> None:
    one, two = pair
    await ready(one, two)
    async with Chat(one.authenticated()) as chat, jetstream(nats_server) as stream:
        await chat.join("chat:junk")
        for junk in (b"", b"{nope", b"\xff\xfe", b"[1]", b"[" * 5000, b'{"room":7}', b'{"type":"x"}', b'{"room":null}'):
            await stream.publish("CHAT.events", junk)
        await stream.publish("CHAT.events", event("chat:junk", 1))
        assert await numbers(chat, 1) == [1]
        samples = one.metrics()
        assert samples['gateway_errors_total{type="nats_decode"}'] >= 5
        assert samples['gateway_errors_total{type="no_target"}'] >= 1


@pytest.mark.timeout(180)
async def test_killing_nats_in_the_middle_loses_nothing_that_it_kept(
    pair: tuple[Gateway, Gateway], nats_server: NatsServer
) -> None:
    one, two = pair
    await ready(one, two)
    count = 600
    async with Chat(one.authenticated()) as a, Chat(two.authenticated()) as b, jetstream(nats_server) as stream:
        await a.join("chat:kill")
        await b.join("chat:kill")

        async def backend() -> None:
            for number in range(count):
                await publish_until_kept(stream, "CHAT.events", event("chat:kill", number))
                if number in {150, 350}:
                    await asyncio.to_thread(nats_server.kill)
                    await asyncio.to_thread(nats_server.start)

        publishing = asyncio.create_task(backend())
        assert await asyncio.gather(numbers(a, count), numbers(b, count)) == [list(range(count))] * 2
        await publishing
        await a.nothing_came()
        await ready(one, two)


@pytest.mark.timeout(120)
async def test_a_gateway_that_starts_before_nats_is_alive_not_ready_and_catches_up(nats_server: NatsServer) -> None:
    await asyncio.to_thread(nats_server.kill)
    with running("attchat-gateway", NATS_URL=nats_server.url, NATS_RECONNECT_WAIT="100ms") as gateway:
        assert gateway.get("/ready") == (503, {"status": "not_ready", "reason": "nats"})
        assert gateway.get("/health")[1]["status"] == "degraded"
        async with Chat(gateway.authenticated()) as chat:
            await chat.join("chat:late")
            await asyncio.to_thread(nats_server.start)
            await ready(gateway)
            async with jetstream(nats_server) as stream:
                await stream.publish("CHAT.events", event("chat:late", 1))
            assert await numbers(chat, 1) == [1]


@pytest.mark.timeout(120)
async def test_sigterm_under_traffic_delivers_what_was_accepted_and_the_next_process_gets_the_rest(
    nats_server: NatsServer,
) -> None:
    settings = {"NATS_URL": nats_server.url, "NODE_ID": "only", "WS_SHUTDOWN_GRACE": "2s", "NATS_STREAMS": "CHAT"}
    count, seen = 2000, []
    async with jetstream(nats_server) as stream:
        with running("attchat-gateway", **settings) as first:
            await ready(first)
            async with Chat(first.authenticated()) as chat:
                await chat.join("chat:drain")

                async def backend() -> None:
                    for number in range(count):
                        await stream.publish("CHAT.events", event("chat:drain", number))

                publishing = asyncio.create_task(backend())
                seen = await numbers(chat, 300)
                first.signal(signal.SIGTERM)
                async for message in chat.socket:
                    seen.append(json.loads(message)["payload"]["n"])
                assert chat.socket.close_code == 1001
            assert await asyncio.to_thread(first.wait) == 0
            await publishing
        assert seen == list(range(len(seen)))
        await the_rest_is_with_jetstream(stream, seen)


async def the_rest_is_with_jetstream(stream: JetStreamContext, seen: list[int]) -> None:
    """What the gateway acknowledged is what the client saw: the consumer's floor is not beyond it."""
    consumers = await stream.consumers_info("CHAT")
    floors = [info.ack_floor.stream_seq for info in consumers if info.ack_floor]
    assert floors
    assert max(floors) <= len(seen)


@pytest.mark.timeout(120)
async def test_unknown_types_are_published_for_backends_when_asked(nats_server: NatsServer) -> None:
    settings = {"NATS_URL": nats_server.url, "NATS_PUBLISH_UNKNOWN": "true", "NATS_STREAMS": "CHAT"}
    with running("attchat-gateway", **settings) as gateway:
        await ready(gateway)
        async with Chat(gateway.authenticated(user_id="p1")) as chat, jetstream(nats_server) as stream:
            listener = await stream.subscribe("chat.events")
            await chat.send(type="dance", room="chat:1", payload={"step": 1}, user_id="forged")
            heard = json.loads((await listener.next_msg(timeout=10)).data)
            assert (heard["type"], heard["user_id"], heard["payload"]) == ("dance", "p1", {"step": 1})
            assert heard["exclude_conn_id"] == chat.conn_id
            await chat.nothing_came()
