"""Two nodes of gogate behind a real Redis: what one hears the other hears, once, whatever becomes of Redis."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from tests.gateways import Gateway
from tests.gogate import EVENT_S_MAX, Person, node, person
from tests.rest_backend import RestBackend
from tests.servers import RedisServer

Nodes = tuple[Gateway, Gateway]


@pytest.fixture
def nodes(rest_backend: RestBackend, redis_server: RedisServer) -> Iterator[Nodes]:
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(node(rest_backend, REDIS_URL=redis_server.url, NODE_ID=name)) for name in ("n1", "n2")
        ]
        yield made[0], made[1]


async def ready(nodes: Nodes, status: int = 200) -> None:
    """Both nodes know by now how Redis is."""
    async with asyncio.timeout(EVENT_S_MAX):
        for one in nodes:
            while one.get("/ready")[0] != status:  # noqa: ASYNC110 - another process's state can only be asked
                await asyncio.sleep(0.02)


async def says(sender: Person, text: str) -> None:
    await sender.say("send_message", chat_id=1, text=text)
    assert (await sender.hears("new_message"))["text"] == text


async def test_a_message_reaches_the_members_on_every_node_once(nodes: Nodes) -> None:
    await ready(nodes)
    async with person(nodes[0], "user-1") as a, person(nodes[1], "user-2") as b, person(nodes[1], "user-1") as a2:
        for number in range(20):
            await says(a, str(number))
        for one in (b, a2):
            assert [(await one.hears("new_message"))["text"] for _ in range(20)] == [str(n) for n in range(20)]
        await says(b, "back")
        assert (await a.hears("new_message"))["text"] == "back"
        published, received = (one.metrics() for one in nodes)
        assert published["gogate_redis_published_total"] == 20
        assert received["gogate_redis_received_total"] >= 20


async def test_typing_leaves_out_the_typist_on_every_node(nodes: Nodes) -> None:
    await ready(nodes)
    async with person(nodes[0], "user-1") as a, person(nodes[1], "user-1") as a2, person(nodes[1], "user-2") as b:
        await a.say("typing", chat_id=1, is_typing=True)
        assert (await b.hears("user_typing"))["user_id"] == a.id
        await says(b, "marker")
        assert (await a2.hears("new_message"))["text"] == "marker"


async def test_a_node_knows_the_chats_of_messages_that_others_sent(nodes: Nodes) -> None:
    await ready(nodes)
    async with person(nodes[0], "user-1") as a, person(nodes[1], "user-2") as b:
        await a.say("send_message", chat_id=1, text="x")
        message = (await a.hears("new_message"))["id"]
        await b.hears("new_message")
        await b.say("add_reaction", message_id=message, emoji="+1")
        for one in (a, b):
            assert (await one.hears("new_reaction"))["message_id"] == message


async def test_without_redis_each_node_goes_on_alone_and_with_it_again_together(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    await ready(nodes)
    async with person(nodes[0], "user-1") as a, person(nodes[0], "user-3") as c, person(nodes[1], "user-2") as b:
        redis_server.kill()
        await ready(nodes, 503)
        await says(a, "alone")
        assert (await c.hears("new_message"))["text"] == "alone"
        redis_server.start()
        await ready(nodes)
        await says(a, "together")
        assert (await c.hears("new_message"))["text"] == "together"
        # what was said meanwhile comes too if Redis was back in time, and then before
        heard = [(await b.hears("new_message"))["text"]]
        if heard == ["alone"]:
            heard.append((await b.hears("new_message"))["text"])
        assert heard[-1] == "together"
        await says(b, "once")
        assert (await a.hears("new_message"))["text"] == "once"


async def test_junk_on_the_channel_harms_nobody(nodes: Nodes, redis_server: RedisServer) -> None:
    import redis

    await ready(nodes)
    with redis.Redis.from_url(redis_server.url) as client:
        for junk in (
            b"",
            b"\xff\xfe",
            b"[]",
            b'{"v":1}',
            b'{"v":1,"node":"x","event_id":"e","chat_id":1,"users":["a"]}',
        ):
            assert client.publish("gogate:broadcast", junk) >= len(nodes)
    async with person(nodes[0], "user-1") as a, person(nodes[1], "user-2") as b:
        await says(a, "still here")
        assert (await b.hears("new_message"))["text"] == "still here"
    assert nodes[1].metrics()['tidegate_errors_total{type="node_message"}'] == 5
