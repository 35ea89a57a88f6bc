"""The app in this process with the real engine, where a test must see both sides: pressure, storms, nodes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tidegate import profiles
from tidegate.app import App
from tidegate.config import Settings
from tidegate.config.settings import Jwt, Metrics, Nats, Server, Ws
from websockets.asyncio.client import ClientConnection, connect

# not HS256: only tokens that take long to verify are remembered
SIGNER = Ed25519PrivateKey.generate()
PUBLIC_KEY = SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
TOKEN = jwt.encode({"user_id": "7", "iss": "attchat"}, SIGNER, "EdDSA")
ANSWER_S_MAX = 40

# Above the 32 members up to which the engine writes at once: only a larger room makes a backlog
MEMBERS = 40
MESSAGES = 400


@contextlib.asynccontextmanager
async def app(bus: str, **ws: Any) -> AsyncIterator[App]:
    settings = Settings(
        server=Server(host="127.0.0.1", port=0),
        metrics=Metrics(enabled=False),
        jwt=Jwt(public_key=PUBLIC_KEY),
        nats=Nats(url=f"memory:{bus}"),
        ws=Ws(**ws),
    )
    async with App(settings, profiles.find("attchat-gateway")) as started:
        yield started


async def member(port: int) -> ClientConnection:
    socket = await connect(f"ws://127.0.0.1:{port}/ws?token={TOKEN}", compression=None, max_queue=None)
    assert orjson.loads(await socket.recv())["type"] == "connected"
    await socket.send('{"type":"join","room":"chat:1"}')
    assert orjson.loads(await socket.recv())["type"] == "joined"
    return socket


@pytest.fixture(params=["64KiB", "64MiB"])
def backlog(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_burst_beyond_the_backlog_reaches_every_member_in_order(backlog: str) -> None:
    filling = "x" * 2000
    async with app(f"burst-{backlog}", backlog_bytes=backlog, outbox_bytes="16MiB") as gateway:
        members = [await member(gateway.port) for _ in range(MEMBERS)]
        bus = gateway.bus
        assert bus is not None
        for number in range(MESSAGES):
            event = {"type": "message", "room": "chat:1", "payload": {"number": number, "filling": filling}}
            await bus.publish("chat.events", orjson.dumps(event))

        async def numbers(socket: ClientConnection) -> list[int]:
            return [orjson.loads(await socket.recv())["payload"]["number"] for _ in range(MESSAGES)]

        async with asyncio.timeout(ANSWER_S_MAX):
            for seen in await asyncio.gather(*[numbers(socket) for socket in members]):
                assert seen == list(range(MESSAGES))
            await asyncio.gather(*[socket.close() for socket in members])
        assert gateway.counters.messages_from_bus == MESSAGES
        assert gateway.stats()["broadcasts"] == MEMBERS * MESSAGES


async def test_a_storm_of_clients_is_admitted_and_each_is_counted_once() -> None:
    async with app("storm") as gateway:
        async with asyncio.timeout(ANSWER_S_MAX):
            members = await asyncio.gather(*[member(gateway.port) for _ in range(200)])
        assert gateway.counters.auth_success == 200
        assert gateway.stats()["connections_now"] == 200
        # one token: verified once, then known
        assert (gateway.auth.misses, gateway.auth.hits) == (1, 199)
        await asyncio.gather(*[socket.close() for socket in members])
        async with asyncio.timeout(ANSWER_S_MAX):
            while gateway.stats()["connections_now"]:  # noqa: ASYNC110 - the engine can't set an event of ours
                await asyncio.sleep(0.005)


async def test_two_nodes_in_one_process_share_typing_but_no_connection() -> None:
    async with app("two-nodes") as here, app("two-nodes") as there:
        one, two = await member(here.port), await member(there.port)
        await one.send('{"type":"typing","room":"chat:1"}')
        async with asyncio.timeout(ANSWER_S_MAX):
            typing = orjson.loads(await two.recv())
            await one.send('{"type":"ping"}')
            assert orjson.loads(await one.recv())["type"] == "pong"  # nothing came to the sender before
        assert (typing["type"], typing["room"]) == ("typing", "chat:1")
        await one.close()
        await two.close()
