"""attchat-gateway on Redis instead of NATS: the same profile, the same promises, one URL changed."""

import asyncio
import json

from tidegate.buses import open_bus
from tidegate.config import Settings
from websockets.asyncio.client import connect

from tests.buses import until
from tests.gateways import running, token
from tests.servers import RedisServer

EVENT_S_MAX = 20


async def test_a_backends_event_reaches_its_room_and_typing_the_other_node(redis_server: RedisServer) -> None:
    with (
        running("attchat-gateway", NATS_URL=redis_server.url, NODE_ID="n1") as one,
        running("attchat-gateway", NATS_URL=redis_server.url, NODE_ID="n2") as two,
    ):
        await until(lambda: all(node.get("/ready")[0] == 200 for node in (one, two)))
        async with (
            asyncio.timeout(EVENT_S_MAX),
            connect(f"{one.url}?token={token(user_id='a')}&room_id=chat:1", compression=None) as a,
            connect(f"{two.url}?token={token(user_id='b')}&room_id=chat:1", compression=None) as b,
        ):
            for client in (a, b):
                assert json.loads(await client.recv())["type"] == "connected"
            publisher = open_bus(redis_server.url, Settings(), node_id="backend")
            await publisher.publish("chat.events", b'{"type":"message","room":"chat:1","payload":{"n":1}}')
            await publisher.close()
            for client in (a, b):
                assert json.loads(await client.recv())["payload"] == {"n": 1}
            await a.send('{"type":"typing","room":"chat:1"}')
            assert json.loads(await b.recv())["payload"]["user_id"] == "a"
