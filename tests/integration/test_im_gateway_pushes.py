"""Backends that push through im-gateway's gRPC port, on one node: section 7 of its contract.

Rule: an ack comes from a device that is told to send it, so each test says who acks and who does not.
"""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # comes without types
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped]  # likewise
    ProtoReflectionDescriptorDatabase,
)

from tests.buses import until
from tests.im import Device, Node, device
from tests.im_backends import ANEW, SERVICES, Pusher
from tests.im_services import ImServices
from tests.im_world import HOP, Counted, World, devices, fresh, gateways_time, ids, outcome, pushing

pytestmark = pytest.mark.timeout(150)  # the first test starts all servers, Kafka with two JVMs

LARGE = 900_000  # bytes of a content: with a dozen of these unread no system's buffers have room left


@pytest.fixture(scope="module")
def process(calm_world: World) -> Iterator[Node]:
    with calm_world.node() as started:
        yield started


@pytest.fixture
def node(process: Node, im_services: ImServices) -> Node:
    return process


# --- PushMessage ------------------------------------------------------------------------------------------------------


async def test_a_message_arrives_as_it_was_pushed(node: Node) -> None:
    user, sender = fresh(), fresh()
    async with pushing(node, user) as (pusher, one):
        fields: dict[str, Any] = {
            "msg_id": "m1",
            "sender_id": sender,
            "sequence_number": 2**53 + 1,
            "timestamp": 1767225600123,
        }
        push = asyncio.create_task(pusher.push(user, 'Hello "\u00e9\U0001f600"\n', **fields))
        assert await one.receives() == {
            "type": "message",
            "msg_id": "m1",
            "sender": sender,
            "content": 'Hello "\u00e9\U0001f600"\n',
            "timestamp": 1767225600123,
            "sequence_number": 2**53 + 1,
        }
        assert outcome(await push) == (True, 1, [])
        bare = asyncio.create_task(pusher.push(user, "", msg_id="m2", sender_id="", message_type=""))
        assert list((await one.receives()).values()) == ["message", "m2", "", "", 0, 0]
        assert outcome(await bare) == (True, 1, [])


async def test_all_devices_of_a_user_get_it_and_the_answer_comes_with_the_last_ack(node: Node) -> None:
    user, counted = fresh(), Counted(node)
    async with Pusher(node.grpc_address) as pusher, devices(node, user, *ids(3)) as three:
        push = asyncio.create_task(pusher.push(user))
        for one in three[:2]:
            await one.receives()
        message = await three[2].hears("message")
        assert not push.done(), "the third has not acked"
        await three[2].ack(message["msg_id"])
        assert outcome(await push) == (True, 3, [])
    assert (counted("ack_pending_total"), counted("ack_success_total"), counted("ack_timeouts_total")) == (3, 3, 0)
    assert (counted("messages_delivered_total"), counted("multi_device_deliveries_total")) == (3, 1)
    assert counted("message_delivery_latency_seconds_count") == 1


async def test_a_push_to_one_device_reaches_that_one_only(node: Node) -> None:
    user, names = fresh(), ids(2)
    async with Pusher(node.grpc_address) as pusher, devices(node, user, *names) as (one, other):
        push = asyncio.create_task(pusher.push(user, device_id=names[1]))
        await other.receives()
        assert outcome(await push) == (True, 1, [])
        await one.heartbeat()
        assert outcome(await pusher.push(user, device_id=(absent := str(uuid.uuid4())))) == (False, 0, [absent])


async def test_a_push_to_nobody_says_so(node: Node) -> None:
    async with Pusher(node.grpc_address) as pusher:
        answer = await pusher.push(fresh())
        assert (outcome(answer), answer.error_message) == ((False, 0, []), "")
        answer = await pusher.push("")
        assert outcome(answer) == (False, 0, [])
        assert answer.error_message
        answer = await pusher.push("user_1/../user_2\x00")
        assert outcome(answer) == (False, 0, [])


async def test_a_push_ends_with_its_callers_time_and_an_ack_after_that_is_late(node: Node) -> None:
    user, counted = fresh(), Counted(node)
    async with pushing(node, user) as (pusher, one):
        assert outcome(await pusher.push(user, msg_id="m1", deadline=1)) == (False, 0, [one.id])
        assert (counted("ack_timeouts_total"), counted("messages_failed_total")) == (1, 1)
        await one.receives()
        await counted.reaches("ack_late_total", 1)
        await one.ack("m1")
        await counted.reaches("ack_unknown_total", 1)
        assert (counted("ack_pending_total"), counted("ack_success_total")) == (1, 0)


async def test_a_message_that_is_pushed_again_while_its_ack_is_awaited_is_sent_once(node: Node) -> None:
    user, counted = fresh(), Counted(node)
    async with pushing(node, user) as (pusher, one):
        first = asyncio.create_task(pusher.push(user, msg_id="m1"))
        await one.hears("message")
        again = asyncio.create_task(pusher.push(user, msg_id="m1"))
        await counted.reaches("duplicate_messages_total", 1)
        await one.heartbeat()
        await one.ack("m1")
        assert [outcome(await push) for push in (first, again)] == [(True, 1, [])] * 2
        later = asyncio.create_task(pusher.push(user, msg_id="m1"))
        assert (await one.receives())["msg_id"] == "m1", "its ack is no longer awaited: it goes out again"
        assert outcome(await later) == (True, 1, [])


async def test_an_ack_of_another_users_message_counts_for_nothing(node: Node) -> None:
    user = fresh()
    async with pushing(node, user) as (pusher, one), device(node, fresh()) as stranger:
        push = asyncio.create_task(pusher.push(user, msg_id="m1", deadline=1))
        await one.hears("message")
        await stranger.ack("m1")
        await stranger.heartbeat()
        assert outcome(await push) == (False, 0, [one.id])


async def test_a_caller_that_hangs_up_leaves_nothing_behind(node: Node) -> None:
    user, counted = fresh(), Counted(node)
    async with pushing(node, user) as (pusher, one):
        push = asyncio.create_task(pusher.push(user, msg_id="m1"))
        await one.hears("message")
        push.cancel()
        async with asyncio.timeout(20):
            while counted("duplicate_messages_total") == (seen := counted("ack_pending_total")) - 1:
                again = await pusher.push(user, msg_id="m1", deadline=0.5)
                assert outcome(again) == (False, 0, [one.id])
                assert counted("ack_pending_total") == seen + 1
        assert (await one.hears("message"))["msg_id"] == "m1", "nobody waited for the first any more"


async def test_pushes_to_a_user_arrive_in_the_order_of_the_calls(node: Node) -> None:
    user = fresh()
    async with pushing(node, user) as (pusher, one):
        for number in range(50):
            push = asyncio.create_task(pusher.push(user, str(number)))
            assert (await one.receives())["content"] == str(number)
            assert (await push).success


async def test_a_push_that_another_node_passed_on_goes_no_further(node: Node) -> None:
    user, counted = fresh(), Counted(node)
    async with pushing(node, user) as (pusher, one):
        absent = str(uuid.uuid4())
        assert outcome(await pusher.push(user, device_id=absent, metadata=HOP)) == (False, 0, [absent])
        push = asyncio.create_task(pusher.push(user, device_id=one.id, metadata=HOP))
        await one.receives()
        assert outcome(await push) == (True, 1, [])
        assert outcome(await pusher.push(fresh(), metadata=HOP)) == (False, 0, [])
    assert counted('cross_gateway_forward_total{kind="message",reason="",result="success"}') == 0


# --- PushReadReceipt, HealthCheck, and what gRPC itself offers --------------------------------------------------------


async def test_a_read_receipt_reaches_all_devices_of_the_sender_and_no_ack_is_awaited(node: Node) -> None:
    user, reader = fresh(), fresh()
    fields: dict[str, Any] = {"msg_id": "m1", "reader_id": reader, "conversation_id": "c7", "read_at": 1767225604}
    async with Pusher(node.grpc_address) as pusher, devices(node, user, *ids(2)) as two:
        assert outcome(await pusher.push_read_receipt(sender_id=user, **fields)) == (True, 2, [])
        for one in two:
            frame = await one.hears("read_receipt")
            gateways_time(frame)
            assert frame == fields | {"type": "read_receipt", "sender": "", "content": "", "sequence_number": 0}


async def test_a_read_receipt_needs_its_sender_and_its_reader(node: Node) -> None:
    async with Pusher(node.grpc_address) as pusher:
        incomplete: list[dict[str, Any]] = [{"sender_id": "user_1"}, {"reader_id": "user_2"}, {}]
        for fields in incomplete:
            answer = await pusher.push_read_receipt(**fields)
            assert outcome(answer) == (False, 0, [])
            assert answer.error_message
        assert outcome(await pusher.push_read_receipt(sender_id=fresh(), reader_id="user_2")) == (False, 0, [])


@pytest.mark.parametrize("service", SERVICES)
async def test_both_names_of_the_service_answer(node: Node, service: str) -> None:
    user = fresh()
    async with Pusher(node.grpc_address, service) as pusher, device(node, user) as one:
        assert await pusher.health() == "OK"
        assert (await pusher.push_read_receipt(sender_id=user, reader_id="user_2")).delivered_count == 1
        await one.hears("read_receipt")
        push = asyncio.create_task(pusher.push(user))
        await one.receives()
        assert (await push).success


async def test_health_and_reflection_are_there(node: Node) -> None:
    async with grpc.aio.insecure_channel(node.grpc_address, options=ANEW) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert set(SERVICES) <= set(await asyncio.to_thread(reflected, node.grpc_address))


def reflected(address: str) -> list[str]:
    with grpc.insecure_channel(address, options=ANEW) as channel:
        return list(ProtoReflectionDescriptorDatabase(channel).get_services())


# --- ACK_MODE=queued --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queueing_process(calm_world: World) -> Iterator[Node]:
    """It counts what it queued, with queues that are soon full, and gives up clients that take nothing."""
    with calm_world.node(ACK_MODE="queued", TIDEGATE_WS_OUTBOX_MESSAGES="4", WRITE_WAIT="4s") as started:
        yield started


@pytest.fixture
def queueing(queueing_process: Node, im_services: ImServices) -> Node:
    return queueing_process


async def test_queued_is_delivered_and_no_ack_is_awaited(queueing: Node) -> None:
    user, counted = fresh(), Counted(queueing)
    async with Pusher(queueing.grpc_address) as pusher, devices(queueing, user, *ids(2)) as two:
        assert outcome(await pusher.push(user, msg_id="m1")) == (True, 2, [])
        for one in two:
            assert (await one.receives())["msg_id"] == "m1"
            await one.heartbeat()
    assert (counted("ack_pending_total"), counted("ack_unknown_total")) == (0, 2)
    assert counted("messages_delivered_total") == 2


async def test_a_device_that_reads_nothing_fails_when_its_queue_is_full_and_is_given_up(queueing: Node) -> None:
    user, (deaf, reading) = fresh(), ids(2)
    async with Pusher(queueing.grpc_address) as pusher, device(queueing, user, reading) as one:
        async with device(queueing, user, deaf, max_queue=1, close_timeout=1) as other:
            await fills(pusher, one, other)
            counted = Counted(queueing)
            push = asyncio.create_task(pusher.push(user, "x" * LARGE, msg_id="m1"))
            assert (await one.hears("message"))["msg_id"] == "m1"
            assert outcome(await push) == (True, 1, [deaf])
            assert counted("messages_failed_total") == 1
            await until(lambda: counted("active_connections") == -1)
        assert outcome(await pusher.push(user, "y")) == (True, 1, [])
        assert (await one.hears("message"))["content"] == "y"


async def fills(pusher: Pusher, one: Device, deaf: Device) -> None:
    """Until there is no room left for the one that does not read."""
    for _ in range(60):
        push = asyncio.create_task(pusher.push(one.user, "x" * LARGE))
        await one.hears("message")
        answer = outcome(await push)
        if answer == (True, 1, [deaf.id]):
            return
        assert answer == (True, 2, [])
    raise AssertionError("60 messages are queued for a client that reads nothing")
