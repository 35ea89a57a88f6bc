"""Two nodes of im-gateway: pushes that are passed on, groups and receipts on both, and devices that change nodes.

Sections 7 to 9 of its contract, and checks 2 and 7 of its section 14. Rule: that something came once is shown by what
came after it.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
import redis.asyncio

from tests.im import Node, device, free_ports, refused
from tests.im_backends import Pusher, Records, registered
from tests.im_services import ImServices
from tests.im_traffic import nodes
from tests.im_world import HOP, RECEIPTS, Counted, World, devices, fresh, gateways_time, ids, outcome
from tests.servers import free_port

pytestmark = pytest.mark.timeout(150)  # the first test starts all servers, Kafka with two JVMs

Pair = tuple[Node, Node]
FORWARDED = "cross_gateway_forward_total"
OFFLINE_TTL_S = 7 * 86400


@pytest.fixture(scope="module")
def processes(calm_world: World) -> Iterator[Pair]:
    """A group of more than ten is a large one here."""
    with nodes(calm_world, 2, LARGE_GROUP_THRESHOLD="10") as (a, b):
        yield a, b


@pytest.fixture
def pair(processes: Pair, im_services: ImServices) -> Pair:
    return processes


@pytest.fixture(scope="module")
def records(calm_world: World) -> Records:
    return calm_world.records()


@pytest.fixture
async def lists(calm_world: World) -> AsyncIterator["redis.asyncio.Redis"]:
    async with redis.asyncio.Redis.from_url(calm_world.redis.url) as client:
        yield client


async def writes(world: World, user: str, name: str, node: str) -> None:
    """A place in etcd that no gateway wrote, as one that crashed leaves it."""
    async with world.etcd.client() as etcd:
        await etcd.put(f"/registry/users/{user}/{name}".encode(), f"{node}|{int(time.time())}".encode())


def forwards(result: str, reason: str = "", kind: str = "message") -> str:
    return f'{FORWARDED}{{kind="{kind}",reason="{reason}",result="{result}"}}'


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [2, 30])
async def test_one_record_reaches_the_members_on_both_nodes_once_each(
    pair: Pair, im_services: ImServices, records: Records, others: int
) -> None:
    """14.2, for a small group and for a large one."""
    group, both, left, right = fresh("group"), fresh(), fresh(), fresh()
    im_services.user.tell(groups={group: [both, left, right, *(f"user_{number}" for number in range(others))]})
    a, b = pair
    async with (
        device(a, both) as both_a,
        device(b, both) as both_b,
        device(a, left) as on_a,
        device(b, right) as on_b,
    ):
        for number in range(20):
            await records.group_message(group, left, str(number))
        for one in (both_a, both_b, on_a, on_b):
            assert [(await one.hears("message"))["content"] for _ in range(20)] == [str(n) for n in range(20)]
            await one.heartbeat()


async def test_a_member_added_by_a_membership_event_receives_the_next_group_message(
    pair: Pair, im_services: ImServices, records: Records
) -> None:
    """14.7; whoever was there before is told on either node, the newcomer on none."""
    group, before, newcomer = fresh("group"), fresh(), fresh()
    im_services.user.tell(groups={group: [before]})
    a, b = pair
    async with device(a, before) as old_a, device(b, before) as old_b, device(b, newcomer) as new:
        await records.group_message(group, before, "first")
        for one in (old_a, old_b):
            assert (await one.hears("message"))["content"] == "first"
        im_services.user.tell(groups={group: [before, newcomer]})
        await records.membership(group, newcomer, "join")
        for one in (old_a, old_b):
            told = await one.hears("membership_change")
            assert (told["sender"], told["content"], told["group_id"]) == (newcomer, "join", group)
        await records.group_message(group, before, "second")
        for one in (old_a, old_b, new):
            assert (await one.hears("message"))["content"] == "second"


# --- pushes that are passed on ----------------------------------------------------------------------------------------


async def test_a_push_reaches_the_devices_on_both_nodes_whichever_is_asked(pair: Pair) -> None:
    user, names = fresh(), ids(2)
    async with device(pair[0], user, names[0]) as one, device(pair[1], user, names[1]) as other:
        for node in pair:
            counted = Counted(node)
            async with Pusher(node.grpc_address) as pusher:
                push = asyncio.create_task(pusher.push(user, "hi", sequence_number=7, timestamp=5))
                assert await one.receives() == await other.receives()
                assert outcome(await push) == (True, 2, [])
            assert counted(forwards("success")) == 1
            assert counted("multi_device_deliveries_total") == 1
            assert counted('cross_gateway_forward_latency_seconds_count{kind="message"}') == 1


async def test_a_device_on_the_other_node_that_does_not_ack_is_named_within_the_callers_time(pair: Pair) -> None:
    user, names, counted = fresh(), ids(3), Counted(pair[0])
    async with (
        device(pair[0], user, names[0]) as one,
        devices(pair[1], user, *names[1:]) as (acking, silent),
        Pusher(pair[0].grpc_address) as pusher,
    ):
        push = asyncio.create_task(pusher.push(user, deadline=2))
        for each in (one, acking):
            await each.receives()
        assert outcome(await push) == (True, 2, [silent.id])
    assert counted(forwards("failure", "not_delivered")) == 1


async def test_an_ack_on_the_other_node_may_take_as_long_as_one_on_this(pair: Pair) -> None:
    """The original IM service gives a push three seconds."""
    user = fresh()
    async with device(pair[1], user) as other, Pusher(pair[0].grpc_address) as pusher:
        push = asyncio.create_task(pusher.push(user, deadline=3))
        message = await other.hears("message")
        await asyncio.sleep(1.2)  # a slow client; no condition to wait for
        await other.ack(message["msg_id"])
        assert outcome(await push) == (True, 1, [])


async def test_a_push_to_one_device_goes_to_its_node_only(pair: Pair) -> None:
    user, names = fresh(), ids(2)
    async with (
        device(pair[0], user, names[0]) as one,
        device(pair[1], user, names[1]) as other,
        Pusher(pair[0].grpc_address) as pusher,
    ):
        push = asyncio.create_task(pusher.push(user, device_id=names[1]))
        await other.receives()
        assert outcome(await push) == (True, 1, [])
        await one.heartbeat()


async def test_a_call_that_was_passed_on_already_is_not_passed_on_again(pair: Pair) -> None:
    user, counted = fresh(), [Counted(node) for node in pair]
    async with device(pair[1], user) as one, Pusher(pair[0].grpc_address) as pusher:
        assert outcome(await pusher.push(user, device_id=one.id, metadata=HOP)) == (False, 0, [one.id])
        assert outcome(await pusher.push(user, metadata=HOP)) == (False, 0, [])
        await one.heartbeat()
    assert [each(forwards("success")) for each in counted] == [0, 0]


async def test_a_stale_place_in_the_registry_ends_among_the_failed_devices(pair: Pair, calm_world: World) -> None:
    """Of a node that has not that device, of one that is gone, and of the one that is asked."""
    user, (there, gone, here, real) = fresh(), ids(4)
    counted = Counted(pair[0])
    await writes(calm_world, user, there, pair[1].grpc_address)
    await writes(calm_world, user, gone, f"127.0.0.1:{free_port()}")
    await writes(calm_world, user, here, pair[0].grpc_address)
    async with device(pair[0], user, real) as one, Pusher(pair[0].grpc_address) as pusher:
        push = asyncio.create_task(pusher.push(user))
        await one.receives()
        assert outcome(await push) == (True, 1, sorted([there, gone, here]))
    assert counted(forwards("failure", "unavailable")) == 1
    assert counted(forwards("failure", "not_delivered")) == 1


async def test_a_device_is_found_as_soon_as_it_is_on_the_other_node(pair: Pair) -> None:
    """Even if its user was just known to be nowhere: the watch on etcd says so."""
    user = fresh()
    async with Pusher(pair[0].grpc_address) as pusher:
        for _ in range(2):
            await until_pushed(pusher, user, (False, 0, []))
            async with device(pair[1], user) as one:
                push = asyncio.create_task(until_pushed(pusher, user, (True, 1, [])))
                await one.receives()
                await push


async def until_pushed(pusher: Pusher, user: str, wanted: tuple[bool, int, list[str]]) -> None:
    """Pushes till that is what becomes of it."""
    async with asyncio.timeout(20):
        while outcome(await pusher.push(user, deadline=2)) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_private_message_goes_from_node_to_node_by_way_of_the_im_service(
    pair: Pair, im_services: ImServices, calm_world: World
) -> None:
    im_services.im.tell(mode="push", etcd=calm_world.etcd.url.replace("etcd:", "http:"))
    user = fresh()
    async with device(pair[0], fresh()) as sender, devices(pair[1], user, *ids(2)) as two:
        msg_id = await sender.send_msg(user, "over there", timestamp=1767225600)
        first, second = await asyncio.gather(*(one.receives() for one in two))
        assert first == second
        assert (first["msg_id"], first["sender"], first["timestamp"]) == (msg_id, sender.user, 1767225600000)
        assert (await sender.hears("ack"))["msg_id"] == msg_id
    assert {push["node"] for push in im_services.im.pushes()} == {pair[1].grpc_address}


async def test_nodes_with_names_find_each_other_by_gateway_nodes(calm_world: World, im_services: ImServices) -> None:
    ports = free_ports(2)
    table = ",".join(f"gw-{port}=127.0.0.1:{port}" for port in ports)
    named = [{"GRPC_PORT": str(port), "GATEWAY_NODE_ID": f"gw-{port}", "GATEWAY_NODES": table} for port in ports]
    user, name = fresh(), str(uuid.uuid4())
    with calm_world.node(**named[0]) as a, calm_world.node(**named[1]) as b:
        async with device(b, user, name) as one, Pusher(a.grpc_address) as pusher:
            assert (await registered(calm_world.etcd.url, user))[name].startswith(f"gw-{ports[1]}|")
            push = asyncio.create_task(pusher.push(user))
            await one.receives()
            assert outcome(await push) == (True, 1, [])


# --- devices that change nodes ----------------------------------------------------------------------------------------


async def test_a_device_that_connects_on_the_other_node_is_closed_on_the_first_and_gets_the_pushes(
    pair: Pair, calm_world: World
) -> None:
    user, name = fresh(), str(uuid.uuid4())
    sdk = {"dialect": "sdk"}
    async with device(pair[0], user, name, query=sdk) as first, Pusher(pair[0].grpc_address) as pusher:
        async with device(pair[1], user, name) as second:
            (_, goodbye), code = await first.ends()
            gateways_time(goodbye, 1000)
            assert (goodbye["type"], goodbye["error_code"], code) == ("close", "REPLACED", 4409)
            await until_at(calm_world, user, {name: pair[1]})
            push = asyncio.create_task(until_pushed(pusher, user, (True, 1, [])))
            await second.receives()
            await push
            async with device(pair[0], user, name) as third:
                assert (await second.ends())[1] == 4409
                await until_at(calm_world, user, {name: pair[0]})
                last = asyncio.create_task(pusher.push(user))
                await third.receives()
                assert outcome(await last) == (True, 1, [])
        await until_at(calm_world, user, {})


async def until_at(world: World, user: str, places: dict[str, Node]) -> None:
    """What etcd has of a user, soon."""
    wanted = {name: node.grpc_address for name, node in places.items()}
    async with asyncio.timeout(20):
        while True:
            values = await registered(world.etcd.url, user)
            if {name: value.partition("|")[0] for name, value in values.items()} == wanted:
                return
            await asyncio.sleep(0.02)


async def test_a_users_devices_are_counted_on_all_nodes_together(pair: Pair) -> None:
    user, names = fresh(), ids(6)
    async with devices(pair[0], user, *names[:3]), devices(pair[1], user, *names[3:5]):
        for node in pair:
            assert await refused(node.door(user, names[5])) == 429
        async with device(pair[1], user, names[0]) as moved:
            await moved.heartbeat()


# --- read receipts ----------------------------------------------------------------------------------------------------


async def test_a_pushed_read_receipt_reaches_the_devices_on_both_nodes(pair: Pair) -> None:
    user, counted = fresh(), Counted(pair[0])
    async with (
        device(pair[0], user) as one,
        devices(pair[1], user, *ids(2)) as two,
        Pusher(pair[0].grpc_address) as pusher,
    ):
        fields: dict[str, Any] = {"msg_id": "m1", "reader_id": "user_9", "conversation_id": "c", "read_at": 5}
        assert outcome(await pusher.push_read_receipt(sender_id=user, **fields)) == (True, 3, [])
        for each in (one, *two):
            frame = await each.hears("read_receipt")
            assert {name: frame[name] for name in fields} == fields
            await each.heartbeat()
    assert counted(forwards("success", kind="read_receipt")) == 1


@pytest.mark.parametrize("topic", [RECEIPTS, "read_receipt_events"])
async def test_a_read_receipt_from_kafka_reaches_the_senders_devices_and_is_not_kept(
    pair: Pair, records: Records, lists: "redis.asyncio.Redis", topic: str
) -> None:
    user = fresh()
    async with device(pair[0], user) as one, device(pair[1], user) as other:
        record = await records.read_receipt(user, "user_9", topic)
        for each in (one, other):
            frame = await each.hears("read_receipt")
            gateways_time(frame)
            shown = {name: record[name] for name in ("msg_id", "reader_id", "read_at", "conversation_id")}
            assert frame == shown | {"type": "read_receipt", "sender": "", "content": "", "sequence_number": 0}
    for node in pair:
        away = fresh()
        async with device(node, away) as each:
            await records.read_receipt(away, "user_9", topic)
            await each.hears("read_receipt")
            # connected until both nodes have seen it: the other one asks the registry
            await kept_after(records, lists, topic)
        assert await lists.llen(f"offline_read_receipt:{away}") == 0


@pytest.mark.parametrize("topic", [RECEIPTS, "read_receipt_events"])
async def test_a_read_receipt_of_somebody_who_is_nowhere_is_kept_once(
    pair: Pair, records: Records, lists: "redis.asyncio.Redis", topic: str
) -> None:
    user, counted = fresh(), [Counted(node) for node in pair]
    key = f"offline_read_receipt:{user}"
    sent = [await records.read_receipt(user, reader, topic) for reader in ("user_8", "user_9")]
    async with asyncio.timeout(20):
        while await lists.llen(key) < len(sent):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await kept_after(records, lists, topic)
    kept = await lists.lrange(key, 0, -1)
    assert [orjson.loads(each) for each in kept] == sent
    assert OFFLINE_TTL_S - 60 < await lists.ttl(key) <= OFFLINE_TTL_S
    assert sum(each("offline_queue_size") for each in counted) == 3


async def kept_after(records: Records, lists: "redis.asyncio.Redis", topic: str) -> None:
    """Whatever came on the topic before has had its effect on both nodes."""
    user = fresh()
    await records.read_receipt(user, "user_9", topic)
    async with asyncio.timeout(20):
        while not await lists.exists(f"offline_read_receipt:{user}"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
