"""im-gateway under traffic while its auth, IM or user service is away: who needs it is told or waits, nobody else.

Rule: a service that is back is found again without anybody's help.
"""

import asyncio

import pytest

from tests.im import refused
from tests.im_backends import Pusher
from tests.im_traffic import Traffic, comes_in, door, nodes, people, person
from tests.im_world import World

GROUPS = {"group_1": ["user_1", "user_2", "user_3"], "group_2": ["user_1", "user_2", "user_9"]}
TRIES_MAX = 20  # three failures open the circuit
# Some seconds each on a quiet machine; several processes start in each, and the first one starts Kafka too
pytestmark = pytest.mark.timeout(150)


async def test_without_the_auth_service_nobody_new_comes_in_and_whoever_is_in_goes_on(frail_world: World) -> None:
    auth = frail_world.services.auth
    frail_world.services.user.tell(groups=GROUPS)
    with nodes(frail_world, 1) as (one,):
        async with people((one, "user_1"), (one, "user_2")) as persons:
            async with Traffic(frail_world, [one], persons, GROUPS) as traffic:
                await asyncio.to_thread(auth.kill)
                for _ in range(5):
                    assert await refused(door(one)) == 503
                await traffic.goes_on()
                await asyncio.to_thread(auth.start)
                await comes_in(one)
                await traffic.goes_on()
            await traffic.settled()


async def test_without_the_im_service_senders_are_told_so_and_everything_else_goes_on(frail_world: World) -> None:
    im = frail_world.services.im
    frail_world.services.user.tell(groups=GROUPS)
    with nodes(frail_world, 2) as (one, two):
        async with people((one, "user_1"), (two, "user_2")) as persons:
            async with Traffic(frail_world, [one, two], persons, GROUPS) as traffic, person(two, "user_3") as sender:
                await asyncio.to_thread(im.kill)
                codes: list[str] = []
                while "SERVICE_UNAVAILABLE" not in codes and len(codes) < TRIES_MAX:
                    answer = await sender.send("user_2", f"try:{len(codes)}")
                    codes.append(answer["error_code"])
                print(codes)
                assert codes[0] == "ROUTING_ERROR"
                assert codes[-1] == "SERVICE_UNAVAILABLE"
                assert await sender.is_alive()
                await traffic.goes_on("group", "receipt", "push")
                await traffic.arrives()
                await asyncio.to_thread(im.start)
                await traffic.goes_on()
                answer = await sender.send("user_2", "after")
                assert answer["type"] == "ack", answer
            await traffic.settled()


async def test_while_the_im_service_is_frozen_devices_whose_messages_wait_for_it_still_ack(frail_world: World) -> None:
    im = frail_world.services.im
    frail_world.services.user.tell(groups=GROUPS)
    with nodes(frail_world, 1) as (one,):
        async with people((one, "user_1"), (one, "user_2")) as persons, Pusher(one.grpc_address) as pusher:
            im.freeze()
            waiting = [asyncio.create_task(each.send("user_0", f"from:{each.user}", 20)) for each in persons]
            pushed = [pusher.push(each.user, msg_id="push", deadline=3) for each in persons]
            assert [answer.delivered_count for answer in await asyncio.gather(*pushed)] == [1, 1]
            assert not any(task.done() for task in waiting), "they did not wait any more"
            im.thaw()
            print([frame["type"] for frame in await asyncio.gather(*waiting)])
            async with Traffic(frail_world, [one], persons, GROUPS) as traffic:
                await traffic.goes_on()
            for each in persons:
                each.got["push"].remove("push")
            await traffic.settled()


async def test_without_the_user_service_known_groups_go_on_and_an_unknown_one_waits_for_it(frail_world: World) -> None:
    user, records = frail_world.services.user, frail_world.records()
    user.tell(groups=GROUPS | {"group_new": ["user_1", "user_2"]})
    with nodes(frail_world, 2) as (one, two):
        async with people((one, "user_1"), (two, "user_2"), (two, "user_3")) as persons:
            async with Traffic(frail_world, [one, two], persons, GROUPS) as traffic:
                await traffic.arrives()
                await asyncio.to_thread(user.kill)
                await traffic.goes_on()
                await traffic.arrives()
                sent = [f"new:{number}" for number in range(5)]
                for msg_id in sent:
                    await records.group_message("group_new", "user_0", "hello", msg_id=msg_id)
                await traffic.goes_on()
                assert persons[0].got["group_new"] == []
                await asyncio.to_thread(user.start)
                await asyncio.gather(*(each.has("group_new", sent) for each in persons[:2]))
                await traffic.goes_on()
            await traffic.settled()
            assert [each.got["group_new"] for each in persons] == [sent, sent, []]
