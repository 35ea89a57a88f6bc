"""The IM service that stands beside im-gateway in tests numbers, pushes and publishes messages as the original's does.

Rule: what other tests build on is proved here alone: a real etcd, a real Kafka, and no gateway in between.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import orjson
import pytest
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc
from confluent_kafka import Consumer, TopicPartition
from tidegate.protos import im_gateway_pb2, im_pb2

from tests.etcd_server import EtcdServer
from tests.im_backends import SERVICES, addresses, ask, below, registered
from tests.im_services import ImService
from tests.kafka_server import KafkaServer
from tests.servers import free_port

CALL_S_MAX = 20  # milliseconds on a quiet machine


@pytest.fixture(scope="module")
def process(servers_wanted: None) -> Iterator[ImService]:
    with ImService("im").running() as service:
        yield service


@pytest.fixture
def im(process: ImService) -> ImService:
    process.renew()
    return process


@pytest.fixture(scope="module")
def etcd(servers_wanted: None) -> Iterator[EtcdServer]:
    with EtcdServer().running() as server:
        yield server


@pytest.fixture(scope="module")
def kafka(servers_wanted: None) -> Iterator[KafkaServer]:
    with KafkaServer().running() as server:
        yield server


async def route(service: ImService, msg_id: str, *, sender: str = "user_1", to: str = "user_2", **fields: Any) -> Any:
    said: dict[str, Any] = {"msg_id": msg_id, "sender_id": sender, "recipient_id": to, "content": "hello"}
    return await ask(service, "RoutePrivateMessage", **said | {"message_type": im_pb2.MESSAGE_TYPE_TEXT} | fields)


async def test_messages_are_numbered_by_conversation_and_a_repeated_one_gets_its_number_again(
    im: ImService,
) -> None:
    assert (await route(im, "a")).sequence_number == 1
    assert (await route(im, "b", sender="user_2", to="user_1")).sequence_number == 2
    assert (await route(im, "c", to="user_3")).sequence_number == 1
    repeated = await route(im, "a")
    assert (repeated.sequence_number, repeated.delivery_status) == (1, im_pb2.DELIVERY_STATUS_DELIVERED)
    assert (await route(im, "d")).sequence_number == 3
    group = await ask(im, "RouteGroupMessage", msg_id="e", sender_id="user_1", group_id="group_1", content="x")
    assert group.sequence_number == 1


async def test_what_the_original_would_not_route_has_its_error_code(im: ImService) -> None:
    assert (await route(im, "")).error_code == im_pb2.IM_ERROR_CODE_INVALID_MESSAGE
    assert (await route(im, "a", sender="")).error_code == im_pb2.IM_ERROR_CODE_SENDER_NOT_FOUND
    assert (await route(im, "b", to="")).error_code == im_pb2.IM_ERROR_CODE_RECIPIENT_NOT_FOUND
    assert (await route(im, "c", content="x" * 10_001)).error_code == im_pb2.IM_ERROR_CODE_CONTENT_TOO_LONG
    im.tell(refuse={"RoutePrivateMessage": ["IM_ERROR_CODE_SENSITIVE_CONTENT", "not here"]})
    answer = await route(im, "d")
    assert (answer.error_code, answer.error_message) == (im_pb2.IM_ERROR_CODE_SENSITIVE_CONTENT, "not here")


class FakeNode:
    """What an IM service sees of a gateway node: who was pushed to, and an answer that the test chose."""

    def __init__(self) -> None:
        self.pushed: list[im_gateway_pb2.PushMessageRequest] = []
        self.deadlines: list[float] = []
        self.delivers: set[str] = set()
        self.unavailable = 0  # so many calls are refused first

    async def push(
        self, request: im_gateway_pb2.PushMessageRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> im_gateway_pb2.PushMessageResponse:
        self.deadlines.append(context.time_remaining() or 0.0)
        if self.unavailable:
            self.unavailable -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        self.pushed.append(request)
        ok = request.device_id in self.delivers
        return im_gateway_pb2.PushMessageResponse(success=ok, delivered_count=int(ok))

    async def serve(self) -> tuple[grpc.aio.Server, str]:
        server, address = grpc.aio.server(), f"127.0.0.1:{free_port()}"
        push = grpc.unary_unary_rpc_method_handler(
            self.push,
            request_deserializer=im_gateway_pb2.PushMessageRequest.FromString,
            response_serializer=im_gateway_pb2.PushMessageResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICES[0], {"PushMessage": push}),))
        server.add_insecure_port(address)
        await server.start()
        return server, address


class Town:
    """A user whose devices etcd shows at one node."""

    def __init__(self, etcd: EtcdServer, node: FakeNode, address: str) -> None:
        self.etcd, self.node, self.address, self.user = etcd, node, address, f"user_{uuid.uuid4().hex}"

    async def enter(self, device: str) -> None:
        value = f"{self.address}|{int(time.time())}".encode()
        put = rpc_pb2.PutRequest(key=f"/registry/users/{self.user}/{device}".encode(), value=value)
        async with grpc.aio.insecure_channel(addresses(self.etcd.url)) as channel:
            await rpc_pb2_grpc.KVStub(channel).Put(put, timeout=CALL_S_MAX)


@pytest.fixture
async def town(im: ImService, etcd: EtcdServer) -> AsyncIterator[Town]:
    im.tell(mode="push", etcd=etcd.url)
    node = FakeNode()
    server, address = await node.serve()
    yield Town(etcd, node, address)
    await server.stop(0)


async def test_a_message_is_pushed_to_each_device_that_etcd_shows_at_its_node(im: ImService, town: Town) -> None:
    town.node.delivers = {"phone"}
    await town.enter("phone")
    await town.enter("tablet")
    stamp = im_pb2.RoutePrivateMessageRequest().client_timestamp
    stamp.FromMilliseconds(1_767_225_600_123)
    answer = await route(im, "m1", to=town.user, content="hi", client_timestamp=stamp)
    assert answer.delivery_status == im_pb2.DELIVERY_STATUS_DELIVERED
    assert {one.device_id for one in town.node.pushed} == {"phone", "tablet"}
    one = town.node.pushed[0]
    assert (one.msg_id, one.recipient_id, one.sender_id, one.content) == ("m1", town.user, "user_1", "hi")
    assert (one.message_type, one.sequence_number, one.timestamp) == ("MESSAGE_TYPE_TEXT", 1, 1_767_225_600_123)
    assert all(0 < left < 3.5 for left in town.node.deadlines)  # on the wire a deadline is rounded up
    assert {(entry["device"], entry["success"]) for entry in im.pushes()} == {
        ("phone", True),
        ("tablet", False),
    }
    assert im.offline() == []
    assert set(await registered(town.etcd.url, town.user)) == {"phone", "tablet"}


async def test_who_is_not_registered_or_has_no_device_that_took_it_is_offline(im: ImService, town: Town) -> None:
    assert (await route(im, "m1", to=town.user)).delivery_status == im_pb2.DELIVERY_STATUS_OFFLINE
    await town.enter("phone")
    assert (await route(im, "m2", to=town.user)).delivery_status == im_pb2.DELIVERY_STATUS_OFFLINE
    assert im.offline() == [(town.user, "m1"), (town.user, "m2")]


async def test_one_users_devices_are_not_those_of_a_user_whose_name_begins_alike(im: ImService, town: Town) -> None:
    await town.enter("phone")
    town.node.delivers = {"phone"}
    assert (await route(im, "m1", to=town.user[:-1])).delivery_status == im_pb2.DELIVERY_STATUS_OFFLINE
    assert await below(town.etcd.url, f"/registry/users/{town.user[:-1]}/") == {}


async def test_a_push_is_repeated_twice_while_its_node_is_unavailable(im: ImService, town: Town) -> None:
    await town.enter("phone")
    town.node.delivers, town.node.unavailable = {"phone"}, 2
    assert (await route(im, "m1", to=town.user)).delivery_status == im_pb2.DELIVERY_STATUS_DELIVERED
    assert len(town.node.deadlines) == 3
    town.node.unavailable = 3
    im.tell(push="together")
    assert (await route(im, "m2", to=town.user)).delivery_status == im_pb2.DELIVERY_STATUS_OFFLINE
    assert im.pushes()[-1]["status"] == "UNAVAILABLE"


async def test_without_a_registry_a_message_is_not_routed_and_may_come_again(im: ImService, town: Town) -> None:
    im.tell(etcd=f"http://127.0.0.1:{free_port()}")
    assert (await route(im, "m1", to=town.user)).error_code == im_pb2.IM_ERROR_CODE_REGISTRY_ERROR
    im.tell(etcd=town.etcd.url)
    await town.enter("phone")
    town.node.delivers = {"phone"}
    assert (await route(im, "m1", to=town.user)).delivery_status == im_pb2.DELIVERY_STATUS_DELIVERED


@pytest.mark.timeout(180)
async def test_a_group_message_is_a_record_keyed_by_its_group(im: ImService, kafka: KafkaServer) -> None:
    topic = f"group-{uuid.uuid4().hex}"
    im.tell(brokers=kafka.url, topic=topic)
    message: dict[str, Any] = {"msg_id": "m1", "sender_id": "user_1", "group_id": "group_1", "content": "hi"}
    answer = await ask(im, "RouteGroupMessage", **message)
    assert (answer.error_code, answer.sequence_number) == (0, 1)
    im.tell(group_shape="event")
    await ask(im, "RouteGroupMessage", **message | {"msg_id": "m2"})
    await ask(im, "RouteGroupMessage", **message)
    (first_key, first), (second_key, second) = await asyncio.to_thread(consumed, kafka, topic, 2)
    assert first_key == second_key == "group_1"
    assert first.pop("timestamp") <= time.time() * 1000
    assert first == message | {"message_type": "text", "sequence_number": 1}
    assert (second["msg_id"], second["sequence_number"], second["conversation_type"]) == ("m2", 2, "group")
    assert (second["conversation_id"], "group_id" in second) == ("group_1", False)


def consumed(kafka: KafkaServer, topic: str, count: int) -> list[tuple[str, Any]]:
    """All records of the topic's one partition; more than `count` would be seen too."""
    consumer = Consumer({"bootstrap.servers": addresses(kafka.url), "group.id": "test"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found = consumer.consume(count, timeout=CALL_S_MAX)
        found += consumer.consume(1, timeout=0.5)
        assert len(found) == count, found
        return [((record.key() or b"").decode(), orjson.loads(record.value() or b"")) for record in found]
    finally:
        consumer.close()
