"""Groups of im-gateway on one node: records from Kafka, who is in a group, and what is kept of that (sections 9, 10).

Rule: that a record does nothing is shown by the one behind it; topics keep their order.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import orjson
import pytest
import redis.asyncio

from tests.buses import until
from tests.im import Device, Node, device
from tests.im_backends import Records
from tests.im_services import ImServices
from tests.im_world import GROUPS, MEMBERSHIP, Counted, World, devices, fresh, ids

pytestmark = pytest.mark.timeout(150)  # the first test starts all servers, Kafka with two JVMs

BAD = (
    b"",
    b"no json",
    b"\xff\xfe",
    b"[]",
    b"7",
    b"{}",
    b'{"group_id":""}',
    b'{"group_id":7,"content":"x"}',
    b'{"group_id":"group_1","content":{"a":1}}',
    b'{"group_id":"group_1","sequence_number":"12"}',
    b'{"conversation_id":"user_1_user_2","conversation_type":"private","content":"x"}',
)


@pytest.fixture(scope="module")
def process(calm_world: World) -> Iterator[Node]:
    """A group of more than ten is a large one here."""
    with calm_world.node(LARGE_GROUP_THRESHOLD="10") as started:
        yield started


@pytest.fixture
def node(process: Node, im_services: ImServices) -> Node:
    return process


@pytest.fixture(scope="module")
def records(calm_world: World) -> Records:
    return calm_world.records()


@pytest.fixture
async def sets(calm_world: World) -> AsyncIterator["redis.asyncio.Redis"]:
    """Redis, as anybody sees it."""
    async with redis.asyncio.Redis.from_url(calm_world.redis.url, decode_responses=True) as client:
        yield client


async def members_in(sets: "redis.asyncio.Redis", group: str) -> set[str]:
    return {str(member) for member in await sets.smembers(f"group_members:{group}")}


async def hears(one: Device, *contents: str) -> None:
    """These messages next, in this order."""
    assert [(await one.hears("message"))["content"] for _ in contents] == list(contents)


# --- messages ---------------------------------------------------------------------------------------------------------


async def test_a_record_reaches_each_device_of_each_member_as_it_is(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, sender, member, stranger = fresh("group"), fresh(), fresh(), fresh()
    im_services.user.tell(groups={group: [sender, member, "user_elsewhere"]})
    counted = Counted(node)
    async with (
        devices(node, member, *ids(2)) as two,
        device(node, sender) as own,
        device(node, stranger) as outside,
        device(node, member, query={"dialect": "sdk"}) as sdk,
    ):
        await sdk.hears("auth_response")
        record = await records.group_message(group, sender, "hi \u00e9", sequence_number=12)
        frame = {
            "type": "message",
            "msg_id": record["msg_id"],
            "sender": sender,
            "content": "hi \u00e9",
            "timestamp": record["timestamp"],
            "sequence_number": 12,
            "group_id": group,
        }
        for one in (*two, own):
            assert await one.hears("message") == frame
        more = {"sender_id": sender, "recipient_id": group, "recipient_type": "group"}
        assert await sdk.hears("message") == frame | more
        await outside.heartbeat()
        await two[0].ack(record["msg_id"])
        await two[0].heartbeat()
    assert counted("group_messages_delivered_total") == counted("group_members_fanout_total") == 2
    assert counted("messages_delivered_total") == 0, "that is for pushes"


async def test_the_original_im_services_own_record_is_understood(
    node: Node, im_services: ImServices, calm_world: World
) -> None:
    """From a client's message to the members, by way of the IM service and Kafka."""
    group, sender, member = fresh("group"), fresh(), fresh()
    im_services.user.tell(groups={group: [sender, member]})
    im_services.im.tell(brokers=calm_world.kafka.address, group_shape="event")
    async with device(node, sender) as own, device(node, member) as one:
        msg_id = await own.send_msg(group, "hello group")
        message = await one.hears("message")
        assert (message["msg_id"], message["sender"], message["group_id"]) == (msg_id, sender, group)
        kinds = {orjson.loads(await own.raw())["type"] for _ in range(2)}
        assert kinds == {"ack", "message"}, "who sends to a group that it is in receives it as well"


async def test_bad_records_are_skipped_and_counted_and_the_next_is_served(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, member = fresh("group"), fresh()
    im_services.user.tell(groups={group: [member]})
    counted = Counted(node)
    async with device(node, member) as one:
        await records.put(GROUPS, *[(group, value) for value in BAD])
        await records.group_message(group, "user_7", "good")
        await hears(one, "good")
        await counted.reaches(f'kafka_consumer_errors_total{{topic="{GROUPS}"}}', len(BAD))
        for topic in ("read_receipt", MEMBERSHIP):
            await records.put(topic, *[(group, value) for value in (*BAD[:6], b'{"group_id":"g","user_id":"u"}')])
            await counted.reaches(f'kafka_consumer_errors_total{{topic="{topic}"}}', 7)
        await one.heartbeat()
    assert "consumer_lag" in "".join(node.metrics())
    await until(lambda: node.metrics()[f'im_gateway_kafka_consumer_lag{{topic="{GROUPS}"}}'] == 0)


async def test_records_of_a_group_arrive_in_their_order(node: Node, im_services: ImServices, records: Records) -> None:
    group, member = fresh("group"), fresh()
    im_services.user.tell(groups={group: [member]}, slow={"GetGroupMembers": 0.3})
    texts = [str(number) for number in range(300)]
    async with device(node, member) as one:
        await records.put(GROUPS, *[(group, {"group_id": group, "content": text}) for text in texts])
        await hears(one, *texts)


# --- look-ups ---------------------------------------------------------------------------------------------------------


async def test_the_user_service_is_asked_once_for_a_group_and_redis_has_the_answer(
    node: Node, im_services: ImServices, records: Records, sets: "redis.asyncio.Redis"
) -> None:
    group, member = fresh("group"), fresh()
    im_services.user.tell(groups={group: [member, "user_b"]}, slow={"GetGroupMembers": 0.3})
    counted = Counted(node)
    async with device(node, member) as one:
        for number in range(5):
            await records.group_message(group, "user_7", str(number))
        await hears(one, *"01234")
    assert im_services.user.count("GetGroupMembers") == 1
    assert await members_in(sets, group) == {member, "user_b"}
    assert 0 < await sets.ttl(f"group_members:{group}") <= 300
    assert counted("cache_hits_total") + counted("cache_misses_total") == 5
    assert counted("cache_misses_total") >= 1


async def test_what_redis_has_is_believed_without_asking_the_user_service(
    node: Node, im_services: ImServices, records: Records, sets: "redis.asyncio.Redis"
) -> None:
    group, member = fresh("group"), fresh()
    await sets.sadd(f"group_members:{group}", member)
    async with device(node, member) as one:
        await records.group_message(group, "user_7", "by redis")
        await hears(one, "by redis")
    assert im_services.user.count() == 0


async def test_the_pages_of_the_user_service_are_followed_to_the_end(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, members = fresh("group"), sorted(fresh() for _ in range(9))
    im_services.user.tell(groups={group: members}, page_max=2)
    async with device(node, members[0]) as first, device(node, members[-1]) as last:
        await records.group_message(group, "user_7", "x")
        await hears(first, "x")
        await hears(last, "x")
    asked = [request["fields"] for request in im_services.user.requests("GetGroupMembers")]
    assert [one["cursor"] for one in asked] == ["", *members[1:8:2]]
    assert {one["limit"] for one in asked} == {1000}


async def test_a_group_that_nobody_knows_holds_up_no_other(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, member = fresh("group"), fresh()
    im_services.user.tell(groups={group: [member]})
    async with device(node, member) as one:
        await records.group_message(fresh("group"), "user_7", "to nobody")
        await records.group_message(group, "user_7", "x")
        await hears(one, "x")
    assert node.metrics()['tidegate_errors_total{type="group_unknown"}'] >= 1


async def test_a_message_to_a_group_that_is_not_known_yet_waits_while_the_user_service_is_away(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, member = fresh("group"), fresh()
    im_services.user.tell(groups={group: [member]}, status={"all": "UNAVAILABLE"})
    async with device(node, member) as one:
        await records.group_message(group, "user_7", "waits")
        await until(lambda: im_services.user.count("GetGroupMembers") >= 2)
        await one.heartbeat()
        im_services.user.tell(status={})
        await hears(one, "waits")


# --- who joins and leaves ---------------------------------------------------------------------------------------------


def change(user: str, event: str, group: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "membership_change",
        "msg_id": "",
        "sender": user,
        "content": event,
        "timestamp": record["timestamp"],
        "sequence_number": 0,
        "group_id": group,
    }


@pytest.mark.parametrize("topic", [MEMBERSHIP, "membership_change"])
async def test_who_joins_gets_the_next_message_and_the_others_are_told(
    node: Node, im_services: ImServices, records: Records, sets: "redis.asyncio.Redis", topic: str
) -> None:
    """14.7 on one node, in both spellings of the topic."""
    group, member, newcomer = fresh("group"), fresh(), fresh()
    im_services.user.tell(groups={group: [member]})
    async with device(node, member) as old, device(node, newcomer) as new:
        await records.group_message(group, "user_7", "before")
        await hears(old, "before")
        await until_members(sets, group, {member})
        im_services.user.tell(groups={group: [member, newcomer]})
        record = await records.membership(group, newcomer, "join", topic)
        assert await old.hears("membership_change") == change(newcomer, "join", group, record)
        await records.group_message(group, "user_7", "after")
        await hears(old, "after")
        await hears(new, "after")
        await until_members(sets, group, {member, newcomer})
        im_services.user.tell(groups={group: [member]})
        record = await records.membership(group, newcomer, "leave", topic)
        assert await old.hears("membership_change") == change(newcomer, "leave", group, record)
        await records.group_message(group, "user_7", "without you")
        await hears(old, "without you")
        await new.heartbeat()
        await until_members(sets, group, {member})


async def until_members(sets: "redis.asyncio.Redis", group: str, members: set[str]) -> None:
    async with asyncio.timeout(20):
        while await members_in(sets, group) != members:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# --- large groups -----------------------------------------------------------------------------------------------------


async def test_a_large_group_is_read_once_and_reaches_who_is_here_and_who_comes_later(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, member, later, stranger = fresh("group"), fresh(), fresh(), fresh()
    im_services.user.tell(groups={group: [member, later, *(f"user_{number}" for number in range(40))]})
    async with device(node, member) as one, device(node, stranger) as outside:
        await records.group_message(group, "user_7", "first")
        await hears(one, "first")
        async with devices(node, later, *ids(2)) as two, device(node, member) as second:
            await records.group_message(group, "user_7", "second")
            for each in (one, second, *two):
                await hears(each, "second")
        async with device(node, fresh()) as another:
            await records.group_message(group, "user_7", "third")
            await hears(one, "third")
            await another.heartbeat()
        await outside.heartbeat()
    assert im_services.user.count("GetGroupMembers") == 1


async def test_each_dialect_of_a_large_group_has_its_frames(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, member = fresh("group"), fresh()
    im_services.user.tell(groups={group: [member, *(f"user_{number}" for number in range(40))]})
    async with device(node, member) as seed, device(node, member, query={"dialect": "sdk"}) as sdk:
        await sdk.hears("auth_response")
        await records.group_message(group, "user_7", "x")
        assert "recipient_id" not in await seed.hears("message")
        assert (await sdk.hears("message"))["recipient_id"] == group


async def test_who_joins_or_leaves_a_large_group_is_in_or_out_with_the_next_message(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group, member, other = fresh("group"), fresh(), fresh()
    crowd = [f"user_{number}" for number in range(40)]
    im_services.user.tell(groups={group: [member, *crowd]})
    async with device(node, member) as one, device(node, other) as two:
        await records.group_message(group, "user_7", "first")
        await hears(one, "first")
        im_services.user.tell(groups={group: [member, other, *crowd]})
        record = await records.membership(group, other, "join")
        assert await one.hears("membership_change") == change(other, "join", group, record)
        await records.group_message(group, "user_7", "second")
        await hears(one, "second")
        await hears(two, "second")
        im_services.user.tell(groups={group: [member, *crowd]})
        record = await records.membership(group, other, "leave")
        assert await one.hears("membership_change") == change(other, "leave", group, record)
        async with device(node, other) as again:
            await records.group_message(group, "user_7", "third")
            await hears(one, "third")
            await again.heartbeat()
        await two.heartbeat()


async def test_a_group_of_a_hundred_thousand_reaches_its_members_here(
    node: Node, im_services: ImServices, records: Records
) -> None:
    group = fresh("group")
    im_services.user.tell(large={group: 100_000})
    async with device(node, "user_99999") as last, device(node, "user_100000") as outside:
        before, began = node.memory_bytes(), time.monotonic()
        await records.group_message(group, "user_7", "x")
        await hears(last, "x")
        grown = (node.memory_bytes() - before) >> 20
        print(f"loaded in {time.monotonic() - began:.1f} s, memory grew by {grown} MiB")
        async with device(node, "user_5") as later:
            await records.group_message(group, "user_7", "y")
            await hears(last, "y")
            await hears(later, "y")
        await outside.heartbeat()
