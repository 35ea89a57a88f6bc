"""The services inside the process: whose a token is, what becomes of a message, who is in the group."""

import asyncio
import contextlib
import gc
import secrets
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from tidegate.buses import memory as memory_bus
from tidegate.buses.memory import MemoryBus, open_bus
from tidegate.calls import Enter, Place, RpcRequest
from tidegate.errors import UpstreamError
from tidegate.profiles import _im_services as services
from tidegate.registries.memory import open_registry
from tidegate.upstreams import Upstream, _books
from tidegate.upstreams._books import BOOKS, Books

from tests.buses import Gateway, consuming
from tests.buses import Settings as BusSettings
from tests.registries import Ttl
from tests.servers import free_port
from tests.upstreams import opened, until

DEVICE = "0a1b2c3d-0000-4000-8000-000000000001"
NOW_S_MIN = 1_700_000_000
UNKNOWN, INVALID_TOKEN, MALFORMED = 2, 7, 3


@pytest.fixture
def url() -> str:
    return f"memory:{secrets.token_hex(4)}"


@pytest.fixture
async def upstream(url: str) -> AsyncIterator[Upstream]:
    async with opened(url) as made:
        yield made


async def ask(upstream: Upstream, call: Any) -> Any:
    """As a profile does."""
    return await upstream.call(call.method, call.payload)


async def come(upstream: Upstream, *users: str) -> None:
    for user in users:
        assert (await ask(upstream, services.validate(f"{user}/{DEVICE}"))).valid


def bus_of(url: str) -> MemoryBus:
    return open_bus(url, BusSettings(), "the gateway")


@contextlib.asynccontextmanager
async def reading(url: str) -> AsyncIterator[Gateway]:
    gateway = Gateway()
    async with consuming(bus_of(url), gateway):
        yield gateway


def group_call(sender: str = "user_An", msg_id: str = "m1", content: str = "hello", group: str = "group_1") -> Any:
    said = {"msg_id": msg_id, "content": content, "metadata": {}}
    return services.route(sender, group, "group", said, {"seconds": 5, "nanos": 0})


def private_call(sender: str = "user_An", recipient: str = "user_Binh", msg_id: str = "m1") -> Any:
    said = {"msg_id": msg_id, "content": "psst", "metadata": {"a": "b"}}
    return services.route(sender, recipient, "user", said, None)


# --- auth -------------------------------------------------------------------------------------------------------------


async def test_a_token_says_whose_it_is(upstream: Upstream) -> None:
    said = await ask(upstream, services.validate(f"user_An/{DEVICE}"))
    assert (said.valid, said.user_id, said.device_id, said.error_code) == (True, "user_An", DEVICE, 0)
    assert said.expires_at.seconds > NOW_S_MIN


@pytest.mark.parametrize(
    "token", ["", "user_An", "/x", "x/", "a/b/c", "a b/c", "a/b\n", "a/\x00", "é/x", "x" * 65 + "/d"]
)
async def test_what_is_no_user_and_device_is_no_token(upstream: Upstream, token: str) -> None:
    said = await ask(upstream, services.validate(token))
    assert (said.valid, said.user_id, said.error_code) == (False, "", MALFORMED)


async def test_somebody_bad_is_refused_and_in_no_group(upstream: Upstream) -> None:
    assert (await ask(upstream, services.validate("bad_one/phone"))).error_code == INVALID_TOKEN
    assert (await ask(upstream, services.members_page("group_1", ""))).total_count == 0


# --- user -------------------------------------------------------------------------------------------------------------


async def test_whoever_came_is_a_member_of_the_only_group(upstream: Upstream) -> None:
    await come(upstream, "user_An", "user_Binh", "user_An")
    page = await ask(upstream, services.members_page("group_1", ""))
    assert [member.user_id for member in page.members] == ["user_An", "user_Binh"]
    assert (page.total_count, page.has_more, page.next_cursor, page.error_code) == (2, False, "", 0)
    answers = [await ask(upstream, services.is_member("group_1", user)) for user in ("user_An", "user_Chi")]
    assert [answer.is_member for answer in answers] == [True, False]
    assert (answers[0].member.user_id, answers[0].member.role) == ("user_An", 1)


async def test_there_is_no_other_group(upstream: Upstream) -> None:
    for call in (services.members_page("group_2", ""), services.is_member("group_2", "user_An")):
        assert (await ask(upstream, call)).error_code == UNKNOWN


async def test_pages_hold_everybody_once(upstream: Upstream) -> None:
    sent = [f"user_{number}" for number in range(25)]
    await come(upstream, *sent)
    found: list[str] = []
    cursor = ""
    for _ in range(3):
        fields = {"group_id": "group_1", "cursor": cursor, "limit": 10}
        page = await upstream.call("members", RpcRequest("user.v1.UserService/GetGroupMembers", fields))
        found += [member.user_id for member in page.members]
        cursor = page.next_cursor
        assert page.has_more == bool(cursor)
    assert (found, cursor) == (sent, "")


@pytest.mark.parametrize("cursor", ["x", "-1", "²", "9" * 400])
async def test_a_cursor_that_nobody_gave_does_no_harm(upstream: Upstream, cursor: str) -> None:
    await come(upstream, "user_An")
    page = await ask(upstream, services.members_page("group_1", cursor))
    assert (list(page.members), page.next_cursor) == ([], "")


async def test_who_comes_is_announced_once(upstream: Upstream, url: str) -> None:
    async with reading(url) as gateway:
        await come(upstream, "user_An", "user_An", "user_Binh")
        await gateway.has(2)
    assert {message.stream for message in gateway.messages} == {"group_membership_change"}
    events = [orjson.loads(data) for data in gateway.payloads]
    assert [(one["group_id"], one["user_id"], one["event_type"]) for one in events] == [
        ("group_1", "user_An", "join"),
        ("group_1", "user_Binh", "join"),
    ]


# --- im: groups -------------------------------------------------------------------------------------------------------


async def test_a_group_message_is_numbered_and_published_as_the_contract_has_it(upstream: Upstream, url: str) -> None:
    await come(upstream, "user_An")
    async with reading(url) as gateway:
        answers = [await ask(upstream, group_call(msg_id=msg_id)) for msg_id in ("m1", "m2")]
        await gateway.has(2)
    assert [(answer.sequence_number, answer.error_code) for answer in answers] == [(1, 0), (2, 0)]
    assert {message.stream for message in gateway.messages} == {"group_msg"}
    record = orjson.loads(gateway.payloads[0])
    assert record.pop("timestamp") > NOW_S_MIN * 1000
    said = {"msg_id": "m1", "group_id": "group_1", "sender_id": "user_An", "content": "hello"}
    assert record == said | {"message_type": "text", "sequence_number": 1}


async def test_a_message_that_comes_again_is_not_published_again(upstream: Upstream, url: str) -> None:
    async with reading(url) as gateway, opened(url) as another:
        first = await ask(upstream, group_call())
        again = await ask(another, group_call())
        other = await ask(another, group_call(sender="user_Binh"))
        await gateway.until(lambda: len(of_topic(gateway, "group_msg")) == 2)
    assert [said.sequence_number for said in (first, again, other)] == [1, 1, 2], "an id is one's own"
    assert [one["sender_id"] for one in of_topic(gateway, "group_msg")] == ["user_An", "user_Binh"]


def of_topic(gateway: Gateway, topic: str) -> list[Any]:
    return [orjson.loads(message.data) for message in gateway.messages if message.stream == topic]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (group_call(msg_id=""), "IM_ERROR_CODE_INVALID_MESSAGE"),
        (group_call(sender=""), "IM_ERROR_CODE_SENDER_NOT_FOUND"),
        (group_call(group=""), "IM_ERROR_CODE_GROUP_NOT_FOUND"),
        (group_call(group="group_2"), "IM_ERROR_CODE_GROUP_NOT_FOUND"),
        (group_call(content="é" * 5_001), "IM_ERROR_CODE_CONTENT_TOO_LONG"),
        (private_call(recipient=""), "IM_ERROR_CODE_RECIPIENT_NOT_FOUND"),
        (private_call(msg_id=""), "IM_ERROR_CODE_INVALID_MESSAGE"),
    ],
)
async def test_what_the_original_refuses_is_refused(upstream: Upstream, url: str, call: Any, code: str) -> None:
    async with reading(url) as gateway:
        answer = await ask(upstream, call)
    assert (services.im_error(answer.error_code), answer.sequence_number) == (code, 0)
    assert of_topic(gateway, "group_msg") == []


async def test_what_could_not_be_published_may_be_sent_again(
    upstream: Upstream, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await come(upstream, "user_An")
    nobody = await ask(upstream, group_call())
    assert services.im_error(nobody.error_code) == "IM_ERROR_CODE_DELIVERY_FAILED"
    assert f"nobody reads the bus {url}" in nobody.error_message
    monkeypatch.setattr(memory_bus, "LOG_MESSAGES_MAX", 0)
    monkeypatch.setattr(memory_bus, "PUBLISH_TIMEOUT_S", 0.01)
    bus, gateway = bus_of(url), Gateway()
    async with consuming(bus, gateway):
        assert "full" in (await ask(upstream, group_call())).error_message
        monkeypatch.setattr(memory_bus, "LOG_MESSAGES_MAX", 10)
        assert (await ask(upstream, group_call())).error_code == 0
        await gateway.has(1)


# --- im: to one person ------------------------------------------------------------------------------------------------


async def test_who_is_nowhere_is_offline(upstream: Upstream) -> None:
    answer = await ask(upstream, private_call())
    assert (answer.sequence_number, answer.delivery_status, answer.error_code) == (1, 5, 0)
    back = await ask(upstream, private_call(sender="user_Binh", recipient="user_An"))
    assert back.sequence_number == 2, "a conversation is of two, whoever talks"
    assert (await ask(upstream, private_call())).sequence_number == 1


async def test_who_is_at_a_node_that_does_not_answer_is_offline(upstream: Upstream, url: str) -> None:
    registry = open_registry(url, Ttl(), f"127.0.0.1:{free_port()}")
    assert await registry.call("register", Enter(Place("user_Binh", DEVICE, 1, NOW_S_MIN), 4))
    assert (await ask(upstream, private_call())).delivery_status == 5


async def test_a_push_under_way_is_pending_and_one_whose_caller_went_away_may_be_sent_again(
    upstream: Upstream, url: str
) -> None:
    """The node takes the connection and says nothing."""
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    registry = open_registry(url, Ttl(), f"127.0.0.1:{silent.sockets[0].getsockname()[1]}")
    assert await registry.call("register", Enter(Place("user_Binh", DEVICE, 1, NOW_S_MIN), 4))
    first = asyncio.ensure_future(ask(upstream, private_call()))
    await asyncio.sleep(0)
    again = await ask(upstream, private_call())
    assert (again.sequence_number, again.delivery_status) == (1, 1)
    first.cancel()
    await asyncio.wait([first])
    anew = asyncio.ensure_future(ask(upstream, private_call()))
    await asyncio.sleep(0)
    await upstream.close(0)
    assert ((await anew).sequence_number, (await anew).delivery_status) == (2, 5)
    silent.close()


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_a_full_group_takes_nobody_else(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_books, "MEMBERS_MAX", 2)
    await come(upstream, "user_An", "user_Binh", "user_Chi")
    assert (await ask(upstream, services.members_page("group_1", ""))).total_count == 2
    answer = await ask(upstream, group_call(sender="user_Chi"))
    assert services.im_error(answer.error_code) == "IM_ERROR_CODE_NOT_GROUP_MEMBER"


def test_what_was_said_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_books, "SAID_MAX", 3)
    monkeypatch.setattr(_books, "CONVERSATIONS_MAX", 2)
    books = Books()
    for number in range(4):
        books.enter("a", "user_An", f"m{number}")
    assert not books.enter("a", "user_An", "m1")[1]
    said, is_new = books.enter("a", "user_An", "m0")
    assert (said.number, is_new) == (5, True)
    for conversation in ("b", "a", "c"):
        books.enter(conversation, "user_Binh", conversation)
    assert [books.enter(conversation, "user_Chi", conversation)[0].number for conversation in ("a", "c", "b")] == [
        7,
        2,
        1,
    ]


async def test_another_name_is_another_world_and_it_goes_with_its_last_upstream(url: str) -> None:
    async with opened(url) as one, opened(f"{url}-other") as other:
        await come(one, "user_An")
        assert (await ask(other, services.members_page("group_1", ""))).total_count == 0
        assert url.partition(":")[2] in BOOKS
        del one, other
    gc.collect()
    await until(lambda: url.partition(":")[2] not in BOOKS)


async def test_a_method_that_nobody_has_here_is_no_answer(upstream: Upstream) -> None:
    with pytest.raises(UpstreamError) as refused:
        await upstream.call("push", RpcRequest("im_gateway_servicepb.GatewayService/HealthCheck"))
    assert refused.value.outcome == "unimplemented"
