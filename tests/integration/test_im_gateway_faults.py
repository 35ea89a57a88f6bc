"""im-gateway under traffic while etcd, Kafka or Redis is killed, frozen or wiped, and comes back.

Nothing that was promised is lost, and nobody who is connected notices more than a pause. Rule: nothing here tells a
node that something happened; it has to notice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import redis.asyncio as redis

from tests.etcd_server import EtcdServer
from tests.im import refused
from tests.im_backends import Pusher
from tests.im_services import ImServices
from tests.im_traffic import Traffic, becomes, door, is_ready, is_registered, nodes, people, person, stored
from tests.im_world import World
from tests.kafka_server import KafkaServer
from tests.servers import RedisServer

TTL_S = 4.0
# A node that dies is forgotten soon, and an ack that does not come is not waited for long
QUICK = {"REGISTRY_TTL": "4s", "REGISTRY_RENEW_INTERVAL": "1s", "ACK_TIMEOUT": "2s"}
GROUPS = {"group_1": ["user_1", "user_2", "user_3", "user_4"], "group_2": ["user_1", "user_4", "user_9"]}
# Some seconds each on a quiet machine; several processes start in each, and the first one starts Kafka too
pytestmark = pytest.mark.timeout(150)


# --- etcd -------------------------------------------------------------------------------------------------------------


def killed(etcd: EtcdServer) -> Callable[[], None]:
    etcd.kill()
    return etcd.start


def wiped(etcd: EtcdServer) -> Callable[[], None]:
    etcd.kill()
    etcd.wipe()
    return etcd.start


def frozen(etcd: EtcdServer) -> Callable[[], None]:
    etcd.freeze()
    return etcd.thaw


@pytest.mark.parametrize("fault", [killed, wiped, frozen])
async def test_etcd_comes_back_and_nobody_was_disconnected_and_all_are_registered_where_they_are(
    frail_world: World, fault: Callable[[EtcdServer], Callable[[], None]]
) -> None:
    frail_world.services.user.tell(groups=GROUPS)
    with nodes(frail_world, 2, **QUICK) as (one, two):
        async with people((one, "user_1"), (two, "user_2"), (one, "user_3"), (two, "user_4")) as persons:
            async with Traffic(frail_world, [one, two], persons, GROUPS) as traffic:
                async with person(one, "user_6"):
                    heal = fault(frail_world.etcd)
                    await traffic.goes_on()
                    assert set(await asyncio.gather(refused(door(one)), refused(door(two)))) == {503}
                await traffic.goes_on_for(2 * TTL_S if fault is frozen else 0)
                await asyncio.to_thread(heal)
                await becomes(lambda: is_ready(one) and is_ready(two))
                places = list(zip((one, two, one, two), persons, strict=True))
                await is_registered(frail_world, *places)
                async with person(one, "user_1") as second, Pusher(two.grpc_address) as pusher:
                    await is_registered(frail_world, *places, (one, second))
                    answer = await pusher.push("user_1", msg_id="to both")
                    assert (answer.delivered_count, list(answer.failed_devices)) == (2, []), answer
                await traffic.goes_on()
            persons[0].got["push"].remove("to both")
            await traffic.settled()


# --- Kafka ------------------------------------------------------------------------------------------------------------


async def test_kafka_is_killed_and_every_member_gets_every_record_that_it_confirmed_in_order(
    im_services: ImServices, etcd_server: EtcdServer, kafka_server: KafkaServer, redis_server: RedisServer
) -> None:
    world = World(im_services, etcd_server, kafka_server, redis_server)
    world.makes_topics()
    world.services.user.tell(groups=GROUPS)
    with nodes(world, 2) as (one, two):
        async with people((one, "user_1"), (two, "user_2"), (one, "user_3"), (two, "user_4")) as persons:
            async with Traffic(world, [one, two], persons, GROUPS) as traffic:
                await asyncio.to_thread(kafka_server.kill)
                await becomes(lambda: not is_ready(one) and not is_ready(two))
                await traffic.goes_on("push", "send")
                await asyncio.to_thread(kafka_server.start)
                await becomes(lambda: is_ready(one) and is_ready(two))
                await traffic.goes_on()
            # a record that was kept before the crash and not confirmed was written again
            await traffic.settled("group_1", "group_2", "read_receipt")


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def kept(frail_world: World) -> AsyncIterator["redis.Redis"]:
    """Who looks at what Redis has."""
    async with redis.from_url(frail_world.redis.url) as client:
        yield client


async def test_groups_work_without_redis_and_receipts_of_the_absent_are_stored_once_when_it_is_back(
    frail_world: World, kept: "redis.Redis"
) -> None:
    groups = GROUPS | {"group_new": ["user_1", "user_2"]}
    frail_world.services.user.tell(groups=groups)
    records, sent = frail_world.records(), [f"kept:{number}" for number in range(5)]
    with nodes(frail_world, 2) as (one, two):
        async with people((one, "user_1"), (two, "user_2")) as persons:
            async with Traffic(frail_world, [one, two], persons, GROUPS) as traffic:
                await asyncio.to_thread(frail_world.redis.kill)
                for msg_id in sent:
                    await records.read_receipt("user_away", "user_0", msg_id=msg_id)
                await records.group_message("group_new", "user_0", "hello", msg_id="new")
                await asyncio.gather(*(each.has("group_new", ["new"]) for each in persons))
                await traffic.goes_on()
                await traffic.arrives()
                await asyncio.to_thread(frail_world.redis.start)
                await stored(kept, "user_away", *sent)
                await traffic.goes_on()
            await traffic.settled()
            assert await stored(kept, "user_away") == sent
            assert 0 < await kept.ttl("offline_read_receipt:user_away") <= 7 * 86400


async def test_who_joined_while_redis_was_away_gets_messages_although_redis_comes_back_with_the_old_members(
    frail_world: World, kept: "redis.Redis"
) -> None:
    services, records = frail_world.services, frail_world.records()
    services.user.tell(groups={"group_1": ["user_1", "user_2"]})
    with nodes(frail_world, 2) as (one, two):
        async with people((one, "user_1"), (two, "user_2"), (two, "user_3")) as persons:
            await records.group_message("group_1", "user_0", "before", msg_id="before")
            await asyncio.gather(*(each.has("group_1", ["before"]) for each in persons[:2]))
            assert await kept.smembers("group_members:group_1") == {b"user_1", b"user_2"}, "and they are on disk"
            await asyncio.to_thread(frail_world.redis.kill)
            services.user.tell(groups={"group_1": ["user_1", "user_2", "user_3"]}, status={"all": "UNAVAILABLE"})
            asked = services.user.count()
            await records.membership("group_1", "user_3", "join")
            await becomes(lambda: services.user.count() > asked)
            await asyncio.to_thread(frail_world.redis.start)
            asked = services.user.count()
            await becomes(lambda: services.user.count() > asked)
            assert persons[0].got["membership_change"] == [], "the old members were believed"
            services.user.tell(status={})
            await asyncio.gather(*(each.has("membership_change", [""]) for each in persons[:2]))
            await records.group_message("group_1", "user_0", "after", msg_id="after")
            await asyncio.gather(*(each.has("group_1", ["after"]) for each in persons))
            assert [each.got["group_1"] for each in persons] == [["before", "after"]] * 2 + [["after"]]
            assert [each.got["membership_change"] for each in persons] == [[""], [""], []]
