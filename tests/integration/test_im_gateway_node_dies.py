"""im-gateway whose nodes die or stand still: that costs others little, and who comes back goes on where it was.

Rule: nothing here tells the other node; it has to notice.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis.asyncio as redis
from confluent_kafka import Consumer, TopicPartition

from tests.gateways import stop
from tests.im import Node, await_ready
from tests.im_backends import Pusher, below
from tests.im_traffic import Person, Traffic, becomes, comes_in, is_registered, nodes, people, person, stored
from tests.im_world import GROUPS, RECEIPTS, World

# A node that dies is forgotten soon, and an ack that does not come is not waited for long
QUICK = {"REGISTRY_TTL": "4s", "REGISTRY_RENEW_INTERVAL": "1s", "ACK_TIMEOUT": "2s"}
MEMBERS = {"group_1": ["user_1", "user_2"]}
GATEWAYS = "/registry/gateways/"
FORWARDED = "im_gateway_cross_gateway_forward_total"
# Some seconds each on a quiet machine; several processes start in each, and the first one starts Kafka too
pytestmark = pytest.mark.timeout(150)


def killed(node: Node) -> None:
    node.kill()


def frozen(node: Node) -> None:
    node.signal(signal.SIGSTOP)


async def until_forgotten(world: World, node: Node) -> None:
    async with asyncio.timeout(20):
        while node.grpc_address in await below(world.etcd.url, GATEWAYS):  # noqa: ASYNC110 - it can only be asked
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def again(world: World, node: Node, **environ: str) -> Iterator[Node]:
    """The same node, in a new process that has just begun."""
    ports = {"PORT": node.port, "GRPC_PORT": node.grpc_port, "METRICS_PORT": node.metrics_port}
    back = world.starting(**{name: str(port) for name, port in ports.items()}, **environ)
    try:
        yield back
    finally:
        stop(back)


@contextlib.asynccontextmanager
async def person_again(world: World, node: Node, user: str) -> AsyncIterator[tuple[Node, Person]]:
    """And somebody on it, as soon as it lets people in: it is not ready yet."""
    with again(world, node) as back:
        await becomes(lambda: back.get("/health")[0] == 200)
        await comes_in(back)
        async with person(back, user) as after:
            yield back, after


@pytest.mark.parametrize(("fault", "reason"), [(killed, "unavailable"), (frozen, "timeout")])
async def test_pushes_to_a_node_that_died_fail_for_its_devices_alone_until_it_is_forgotten(
    frail_world: World, fault: Callable[[Node], None], reason: str
) -> None:
    frail_world.services.user.tell(groups=MEMBERS)
    with nodes(frail_world, 2, **QUICK) as (one, two):
        async with (
            people((two, "user_1"), (two, "user_2")) as persons,
            person(one, "user_1") as lost,
            Pusher(two.grpc_address) as pusher,
        ):
            answer = await pusher.push("user_1", msg_id="before")
            assert (answer.delivered_count, list(answer.failed_devices)) == (2, [])
            fault(one)
            answer = await pusher.push("user_1", msg_id="while it is dead", deadline=3)
            assert (answer.success, answer.delivered_count) == (True, 1)
            assert list(answer.failed_devices) == [lost.device.id]
            failures = f'{FORWARDED}{{kind="message",reason="{reason}",result="failure"}}'
            assert two.metrics()[failures] == 1
            persons[0].got["push"].clear()
            async with Traffic(frail_world, [two], persons, MEMBERS) as traffic:
                await until_forgotten(frail_world, one)
                await is_registered(frail_world, (two, persons[0]), (two, persons[1]))
                answer = await pusher.push("user_2", msg_id="forgotten")
                assert (answer.delivered_count, list(answer.failed_devices)) == (1, [])
                persons[1].got["push"].remove("forgotten")
                if fault is frozen:
                    one.signal(signal.SIGCONT)
                    await is_registered(frail_world, (one, lost), (two, persons[0]), (two, persons[1]))
                    assert await lost.is_alive()
                await traffic.goes_on()
            await traffic.settled()


async def test_receipts_of_the_absent_are_stored_by_whoever_is_first_among_the_living_and_none_is_lost(
    frail_world: World,
) -> None:
    records = frail_world.records()
    with nodes(frail_world, 2, **QUICK) as (first, second):
        first.kill()
        await records.read_receipt("user_away", "user_0", msg_id="while the other still counts")
        await until_forgotten(frail_world, first)
        await records.read_receipt("user_away", "user_0", msg_id="after")
        async with redis.from_url(frail_world.redis.url) as kept:
            await stored(kept, "user_away", "after")
            with again(frail_world, first, **QUICK) as back:
                await_ready(back)
                print(await stored(kept, "user_away", "while the other still counts", "after"))
                await records.read_receipt("user_away", "user_0", msg_id="the first again")
                found = await stored(kept, "user_away", "the first again")
                assert found.count("the first again") == 1
                assert second.is_alive()


async def test_receipts_that_waited_for_redis_in_a_node_that_is_killed_are_stored_when_both_are_back(
    frail_world: World,
) -> None:
    records, sent = frail_world.records(), [f"kept:{number}" for number in range(5)]
    with nodes(frail_world, 1) as (first,):
        await asyncio.to_thread(frail_world.redis.kill)
        for msg_id in sent:
            await records.read_receipt("user_away", "user_0", msg_id=msg_id)
        await becomes(lambda: first.metrics().get('tidegate_errors_total{type="redis"}'))
        first.kill()
    with again(frail_world, first) as back:
        await becomes(lambda: back.metrics().get('tidegate_errors_total{type="redis"}'))
        await asyncio.to_thread(frail_world.redis.start)
        async with redis.from_url(frail_world.redis.url) as kept:
            assert await stored(kept, "user_away", *sent) == sent
        await becomes(lambda: committed(frail_world, back, RECEIPTS) == written(frail_world, RECEIPTS))


async def test_a_node_that_was_killed_goes_on_with_the_records_that_came_meanwhile(frail_world: World) -> None:
    """Whoever is back before their messages are handed over gets them: here the user service holds these up."""
    services, records = frail_world.services, frail_world.records()
    services.user.tell(groups=MEMBERS | {"group_new": ["user_1"]})
    with nodes(frail_world, 1) as (first,):
        async with person(first, "user_1") as before:
            sent = [f"before:{number}" for number in range(50)]
            for msg_id in sent:
                await records.group_message("group_1", "user_0", "hello", msg_id=msg_id)
            await before.has("group_1", sent)
            await becomes(lambda: committed(frail_world, first) == written(frail_world))
            first.kill()
        services.user.tell(hold=["GetGroupMembers"])
        sent = [f"meanwhile:{number}" for number in range(50)]
        for msg_id in sent:
            await records.group_message("group_new", "user_0", "hello", msg_id=msg_id)
        async with person_again(frail_world, first, "user_1") as (back, after):
            services.user.tell(hold=[])
            await after.has("group_new", sent)
            assert (after.got["group_new"], after.got["group_1"]) == (sent, [])
            counted = back.metrics()
            looked_up = (f"im_gateway_cache_{how}_total" for how in ("hits", "misses"))
            assert sum(counted[name] for name in looked_up) == len(sent), "only what came meanwhile"


async def test_a_node_that_is_killed_while_groups_wait_for_the_user_service_loses_none_of_their_messages(
    frail_world: World,
) -> None:
    """Others go on meanwhile, beyond what waits: they come again, under the same id."""
    services, records = frail_world.services, frail_world.records()
    services.user.tell(groups=MEMBERS | {"group_new": ["user_1"]})
    with nodes(frail_world, 1) as (first,):
        async with person(first, "user_1") as before:
            await records.group_message("group_1", "user_0", "hello", msg_id="known")
            await before.has("group_1", ["known"])
            await becomes(lambda: committed(frail_world, first) == written(frail_world))
            services.user.tell(hold=["GetGroupMembers"])
            waiting = [f"waits:{number}" for number in range(5)]
            for msg_id in waiting:
                await records.group_message("group_new", "user_0", "hello", msg_id=msg_id)
            later = [f"later:{number}" for number in range(5)]
            for msg_id in later:
                await records.group_message("group_1", "user_0", "hello", msg_id=msg_id)
            await before.has("group_1", later)
            await records.read_receipt("user_1", "user_0", msg_id="kept")
            # offsets of all topics are committed together
            await becomes(lambda: committed(frail_world, first, RECEIPTS) == written(frail_world, RECEIPTS))
            assert written(frail_world) - committed(frail_world, first) == len(waiting) + len(later)
            assert before.got["group_new"] == []
            first.kill()
        async with person_again(frail_world, first, "user_1") as (back, after):
            services.user.tell(hold=[])
            await after.has("group_new", waiting)
            await after.has("group_1", later)
            assert (after.got["group_new"], after.got["group_1"]) == (waiting, later)
            await becomes(lambda: committed(frail_world, back) == written(frail_world))


def committed(world: World, node: Node, topic: str = GROUPS) -> int:
    return offset(world, node, topic, lambda consumer, place: consumer.committed([place], timeout=5)[0].offset)


def written(world: World, topic: str = GROUPS) -> int:
    return offset(world, None, topic, lambda consumer, place: consumer.get_watermark_offsets(place, timeout=5)[1])


def offset(world: World, node: Node | None, topic: str, ask: Callable[[Consumer, TopicPartition], int]) -> int:
    """As anybody sees it who asks the broker."""
    group = f"im-gateway-service-{node.grpc_address if node else 'nobody'}"
    consumer = Consumer({"bootstrap.servers": world.kafka.address, "group.id": group})
    try:
        return ask(consumer, TopicPartition(topic, 0))
    finally:
        consumer.close()
