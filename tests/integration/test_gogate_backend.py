"""gogate before a backend that is slow, gone or lying: it costs who asked, and nobody else notices."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from tests.gateways import Gateway
from tests.gogate import EVENT_S_MAX, Person, begun, node, person
from tests.rest_backend import RestBackend

OTHERS = 1000
AT_ONCE = 50  # log-ins under way together: what a backend of one process takes


@pytest.fixture
def gateway(rest_backend: RestBackend) -> Iterator[Gateway]:
    with node(rest_backend, BACKEND_TIMEOUT="5") as started:
        yield started


@contextlib.asynccontextmanager
async def crowd(gateway: Gateway, count: int) -> AsyncIterator[list[Person]]:
    turns = asyncio.Semaphore(AT_ONCE)
    async with contextlib.AsyncExitStack() as stack:

        async def enter(number: int) -> Person:
            async with turns:
                return await stack.enter_async_context(person(gateway, f"user-{number}"))

        yield await asyncio.gather(*[enter(number) for number in range(10, 10 + count)])


async def chats(sender: Person, everybody: list[Person], text: str, chat: int = 1) -> None:
    """One message, to everybody."""
    await sender.say("send_message", chat_id=chat, text=text)
    assert {(await one.hears("new_message"))["text"] for one in everybody} == {text}


@pytest.mark.timeout(180)
async def test_a_thousand_chat_on_while_the_backend_holds_delays_and_fails_calls_of_others(
    gateway: Gateway, rest_backend: RestBackend
) -> None:
    async with crowd(gateway, OTHERS) as everybody:
        await chats(everybody[0], everybody, "before")
        rest_backend.tell(hold=["react"])
        await everybody[1].say("add_reaction", message_id=1, emoji="+1")
        await everybody[1].say("send_message", chat_id=1, text="behind the reaction")
        await begun(rest_backend)
        for number in range(3):
            await chats(everybody[0], everybody, f"meanwhile {number}")
        rest_backend.tell(hold=[])
        assert (await everybody[1].hears("new_reaction"))["user_id"] == everybody[1].id
        for one in everybody:
            if one is not everybody[1]:
                await one.hears("new_reaction")
            assert (await one.hears("new_message"))["text"] == "behind the reaction"
        rest_backend.tell(slow={"read": 2.0}, lie={"react": "server_error"})
        await everybody[2].say("mark_read", message_ids=[10**12])
        for _ in range(5):
            await everybody[3].say("add_reaction", message_id=1, emoji="+1")
        assert {(await everybody[3].error())[1] for _ in range(5)} == {"REACTION_FAILED"}
        await chats(everybody[0], everybody, "beside slow and failing calls")
        assert (await everybody[2].hears("message_read"))["message_ids"] == [10**12]


async def test_a_slow_backend_delays_who_asks_and_loses_nothing(gateway: Gateway, rest_backend: RestBackend) -> None:
    async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
        rest_backend.tell(slow={"send": 2.0})
        await a.say("send_message", chat_id=1, text="slow")
        await begun(rest_backend)
        rest_backend.tell(slow={})
        await b.say("send_message", chat_id=1, text="quick")
        assert [(await b.hears("new_message"))["text"] for _ in range(2)] == ["quick", "slow"]


@pytest.mark.parametrize("lie", ["bad_json", "not_an_object", "empty", "no_content", "server_error", "too_large"])
async def test_a_backend_that_lies_about_a_message_is_told_to_its_sender_only(
    gateway: Gateway, rest_backend: RestBackend, lie: str
) -> None:
    async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
        rest_backend.tell(lie={"send": lie})
        await a.say("send_message", chat_id=1, text="x")
        message, code = await a.error()
        assert (message.partition(":")[0], code) == ("Failed to send message", "SEND_FAILED")
        rest_backend.tell(lie={})
        await b.hears_nothing_before(a)


@pytest.mark.parametrize("lie", ["bad_json", "wrong_types", "not_an_object", "empty", "server_error", "accepted"])
async def test_a_backend_that_lies_about_everything_closes_nobody(
    gateway: Gateway, rest_backend: RestBackend, lie: str
) -> None:
    async with person(gateway, "user-1") as a, person(gateway) as stranger:
        rest_backend.tell(lie={"all": lie})
        await stranger.say("auth", token="user-9")
        assert (await stranger.error())[1] == "AUTH_FAILED"
        for event, data in (
            ("typing", {"chat_id": 1, "is_typing": True}),
            ("add_reaction", {"message_id": 1, "emoji": "+1", "chat_id": 1}),
            ("mark_read", {"message_ids": [1], "chat_id": 1}),
            ("send_message", {"chat_id": 1, "text": "x"}),
        ):
            await a.say(event, **data)
        await a.say("nonsense")
        heard = ""
        while heard != "UNKNOWN_EVENT":
            heard = orjson.loads(await a.raw())["data"].get("code", "")
        rest_backend.tell(lie={})
        await chats(a, [a], "after")


async def test_a_backend_that_is_gone_is_said_at_once_and_found_again(
    gateway: Gateway, rest_backend: RestBackend
) -> None:
    async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
        rest_backend.kill()
        for _ in range(30):  # beyond the 20 that open the circuit
            await a.say("send_message", chat_id=1, text="x")
            assert await a.error() == ("Failed to send message: backend unavailable", "SEND_FAILED")
        assert gateway.metrics()['gogate_backend_requests_total{call="send",status="circuit_open"}'] > 0
        assert gateway.get("/health")[0] == 200
        rest_backend.start()
        rest_backend.tell(members={"1": [1, 2]})
        async with asyncio.timeout(EVENT_S_MAX):
            while True:
                await a.say("send_message", chat_id=1, text="back")
                if orjson.loads(await a.raw())["event"] == "new_message":
                    break
                await asyncio.sleep(0.1)  # the circuit closes by itself; nobody tells when
        assert (await b.hears("new_message"))["text"] == "back"


async def test_a_frozen_backend_costs_a_time_out(gateway: Gateway, rest_backend: RestBackend) -> None:
    async with person(gateway, "user-1") as a:
        rest_backend.freeze()
        await a.say("send_message", chat_id=1, text="x")
        assert await a.error() == ("Failed to send message: backend unavailable", "SEND_FAILED")
        rest_backend.thaw()
        await chats(a, [a], "after")


async def test_look_ups_of_one_chat_at_the_same_time_are_one(rest_backend: RestBackend) -> None:
    with node(rest_backend, MEMBERS_CACHE_TTL_MS="60000") as gateway:
        async with crowd(gateway, 20) as everybody:
            await asyncio.gather(*[one.say("typing", chat_id=1, is_typing=True) for one in everybody])
            for one in everybody:
                assert {(await one.hears("user_typing"))["user_id"] for _ in range(19)} == {
                    other.id for other in everybody if other is not one
                }
            assert len(rest_backend.requests("members")) == 1
            found = gateway.metrics()
            results = {name: found[f'gogate_members_cache_total{{result="{name}"}}'] for name in ("miss", "hit")}
            assert results["miss"] == 1
