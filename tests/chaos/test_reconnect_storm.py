"""Everybody is cut at once and comes back at once; and code of a profile that raises while others talk.

Rule: what must have happened before the next step is asked of the other process (the stream's consumer, the gateway's
stats), never waited for by time.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from tidegate.app import App
from tidegate.config import Settings
from tidegate.config.settings import Metrics, Server
from tidegate.profile import Admit, Reply, Session, Steps, Upgrade
from tidegate.profiles.echo import PROFILE, Echo
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.buses import NatsBackend, until
from tests.chaos.crowd import Readers, enter, event, leave, on_the_wire, up_to
from tests.gateways import Gateway, running
from tests.servers import free_port
from tests.wire.client import Raw

ANSWER_S_MAX = 30
CLIENTS = 2000
ROOM = "chat:storm"


# --- a gateway that dies ----------------------------------------------------------------------------------------------


async def is_ready(gateway: Gateway) -> None:
    await until(lambda: gateway.get("/ready")[0] == 200)


async def all_acknowledged(backend: NatsBackend, count: int) -> None:
    """The one durable of this stream has taken `count` messages, and owes nothing for any of them."""
    stream = (await backend.client()).jetstream(timeout=ANSWER_S_MAX)
    async with asyncio.timeout(ANSWER_S_MAX):
        while True:
            (durable,) = await stream.consumers_info(backend.stream)
            behind = durable.num_pending or durable.num_ack_pending
            if not behind and durable.delivered is not None and durable.delivered.stream_seq == count:
                return
            await asyncio.sleep(0.01)  # another process's state can only be asked


def all_read(clients: Sequence[Raw], events: Sequence[bytes]) -> None:
    """Exactly these, once and in this order, at every client."""
    readers = Readers(clients)
    readers.read_all(on_the_wire(events))
    readers.close()


async def publish_to(clients: Sequence[Raw], backend: NatsBackend, events: Sequence[bytes]) -> None:
    await asyncio.gather(backend.publish(events), asyncio.to_thread(all_read, clients, events))


def events_from(first: int, count: int) -> list[bytes]:
    return [event(ROOM, number, 100) for number in range(first, first + count)]


async def test_2000_clients_cut_by_a_kill_come_back_and_get_what_is_published_after_once_and_in_order(
    calm_nats: NatsBackend,
) -> None:
    settings: dict[str, Any] = {"NATS_URL": calm_nats.server.url, "NATS_STREAMS": calm_nats.stream}
    settings |= {"NODE_ID": "storm", "port": free_port(), "NATS_CLIENT_ID": calm_nats.stream.lower()}
    with running("attchat-gateway", **settings) as first:
        await is_ready(first)
        clients = enter(first, ROOM, CLIENTS)
        await publish_to(clients, calm_nats, events_from(0, 20))
        await all_acknowledged(calm_nats, 20)
        await asyncio.to_thread(first.kill)
        assert all(client.ended() for client in clients)
        leave(clients)
    await calm_nats.publish(events_from(20, 30))  # kept by the stream, while nobody is connected
    with running("attchat-gateway", **settings) as second:
        await is_ready(second)
        await all_acknowledged(calm_nats, 50)
        assert second.metrics()["gateway_messages_from_nats_total"] == 30
        assert second.metrics()["gateway_messages_sent_total"] == 0
        clients = enter(second, ROOM, CLIENTS)
        stats = second.get("/stats")[1]
        assert (stats["current_connections"], stats["total_connections"]) == (CLIENTS, CLIENTS)
        await publish_to(clients, calm_nats, events_from(50, 20))
        # no history came before, none comes behind: whatever is sent next is next
        await publish_to(clients, calm_nats, events_from(70, 1))
        assert second.metrics()["gateway_messages_sent_total"] == 21 * CLIENTS
        leave(clients)
        await until(lambda: second.get("/stats")[1]["current_connections"] == 0)


async def test_clients_that_come_while_the_bus_catches_up_get_a_run_without_gaps(calm_nats: NatsBackend) -> None:
    """Whoever joins in the middle of what the stream kept starts in the middle, and misses nothing from there."""
    settings: dict[str, Any] = {"NATS_URL": calm_nats.server.url, "NATS_STREAMS": calm_nats.stream}
    settings |= {"NODE_ID": "storm", "port": free_port(), "NATS_CLIENT_ID": calm_nats.stream.lower()}
    with running("attchat-gateway", **settings) as first:
        await is_ready(first)
        await asyncio.to_thread(first.kill)
    kept = 3000
    await calm_nats.publish(events_from(0, kept))
    with running("attchat-gateway", **settings) as second:
        clients = enter(second, ROOM, 50)
        await calm_nats.publish(events_from(kept, 1))
        try:
            for client in clients:
                numbers = await asyncio.to_thread(up_to, client, kept)
                assert numbers == list(range(numbers[0], kept + 1))
        finally:
            leave(clients)


# --- a profile that raises --------------------------------------------------------------------------------------------


class Faulty(Echo):
    """Raises where it is told to, before or after it has done something."""

    def on_open(self, upgrade: Upgrade) -> Steps:
        if upgrade.query.get("fault") == "open":
            raise ZeroDivisionError
        yield Admit(session=b"")
        if upgrade.query.get("fault") == "admitted":
            raise ZeroDivisionError

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps:
        if payload == b"raise":
            raise ZeroDivisionError
        yield Reply(payload, text)
        if payload == b"answer and raise":
            raise ZeroDivisionError

    def on_close(self, session: Session, code: int) -> Steps:
        yield from ()
        raise ZeroDivisionError


def faulty_app() -> App:
    settings = Settings(server=Server(host="127.0.0.1", port=0), metrics=Metrics(enabled=False))
    return App(settings, dataclasses.replace(PROFILE, build=lambda settings: Faulty()))


async def echoes(socket: ClientConnection, text: str) -> None:
    await socket.send(text)
    assert await asyncio.wait_for(socket.recv(), ANSWER_S_MAX) == text


async def end_of(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(ANSWER_S_MAX):
        with pytest.raises(ConnectionClosed):
            while True:
                await socket.recv()
    return socket.close_code


async def test_an_exception_in_a_profile_costs_its_connection_and_no_other() -> None:
    async with faulty_app() as app:
        url = f"ws://127.0.0.1:{app.port}/ws"
        innocent = [await connect(url, compression=None) for _ in range(10)]
        for message in ("raise", "answer and raise"):
            guilty = [await connect(url, compression=None) for _ in range(10)]
            await asyncio.gather(*[socket.send(message) for socket in guilty], *[echoes(one, "a") for one in innocent])
            assert await asyncio.gather(*[end_of(socket) for socket in guilty]) == [1011] * 10
        with pytest.raises(InvalidStatus, match="500"):
            await connect(f"{url}?fault=open")
        assert await end_of(await connect(f"{url}?fault=admitted", compression=None)) == 1011
        # each raised once, and once more when it was closed
        await until(lambda: app.counters.profile_errors == (20 * 2) + 1 + 2)
        await asyncio.gather(*[echoes(one, "still here") for one in innocent])
        assert app.stats()["connections_now"] == len(innocent)
        await asyncio.gather(*[socket.close() for socket in innocent])
        assert [socket.close_code for socket in innocent] == [1000] * 10
