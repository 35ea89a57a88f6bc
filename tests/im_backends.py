"""Backends of an im-gateway as tests play them: who pushes by gRPC, who writes to Kafka, and who reads etcd.

Rule: written from the contract, with no code of the gateway but the definitions of its messages, so that it does not
share its mistakes. Every call is bounded.
"""

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import grpc
import orjson
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc
from confluent_kafka import KafkaError, Producer
from google.protobuf.message_factory import GetMessageClass
from tidegate.protos import auth_pb2, im_pb2, user_pb2
from tidegate.protos import im_gateway_pb2 as pb

if TYPE_CHECKING:  # the IM service's process imports this file too, and needs no pytest
    from tests.im_services import ImService

CALL_S_MAX = 20  # milliseconds on a quiet machine
ASKED = {
    "auth": auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    "im": im_pb2.DESCRIPTOR.services_by_name["IMService"],
    "user": user_pb2.DESCRIPTOR.services_by_name["UserService"],
}
# Else a new channel inherits the pauses between attempts of an earlier one to a server that was down
ANEW = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))
# The two names of one service
SERVICES = ("im_gateway_servicepb.UimUgatewayUserviceService", "im_gateway_servicepb.GatewayService")


async def ask(service: "ImService", method: str, *, deadline: float = CALL_S_MAX, **fields: Any) -> Any:
    """A call to one of the services, as a gateway makes it, with a mark in its metadata."""
    shape = ASKED[service.role].methods_by_name[method]
    async with grpc.aio.insecure_channel(service.address, options=ANEW) as channel:
        call = channel.unary_unary(
            f"/{ASKED[service.role].full_name}/{method}",
            request_serializer=GetMessageClass(shape.input_type).SerializeToString,
            response_deserializer=GetMessageClass(shape.output_type).FromString,
        )
        return await call(GetMessageClass(shape.input_type)(**fields), timeout=deadline, metadata=(("x-test", "yes"),))


class Pusher:
    """A backend that pushes; `deadline` is the call's, in seconds."""

    def __init__(self, address: str, service: str = SERVICES[0]) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=ANEW)
        calls = pb.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name
        self._calls = {name: self._multicallable(f"/{service}/{name}", name) for name in calls}

    def _multicallable(self, path: str, name: str) -> Any:
        asked = pb.HealthCheckRequest if name == "HealthCheck" else getattr(pb, f"{name}Request")
        answered = pb.HealthCheckResponse if name == "HealthCheck" else pb.PushMessageResponse
        return self._channel.unary_unary(
            path, request_serializer=asked.SerializeToString, response_deserializer=answered.FromString
        )

    async def push(
        self,
        recipient: str,
        content: str = "hello",
        *,
        deadline: float = CALL_S_MAX,
        metadata: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> pb.PushMessageResponse:
        """`fields`: msg_id, device_id, sender_id, message_type, sequence_number, timestamp; a msg_id is made up."""
        made = {"msg_id": str(uuid.uuid4()), "sender_id": "user_0", "message_type": "text"} | fields
        request = pb.PushMessageRequest(recipient_id=recipient, content=content, **made)
        answer: pb.PushMessageResponse = await self._call("PushMessage", request, deadline, metadata)
        return answer

    async def push_read_receipt(
        self, *, deadline: float = CALL_S_MAX, metadata: Mapping[str, str] | None = None, **fields: Any
    ) -> pb.PushMessageResponse:
        """`fields`: msg_id, sender_id, reader_id, conversation_id, read_at."""
        request = pb.PushReadReceiptRequest(**fields)
        answer: pb.PushMessageResponse = await self._call("PushReadReceipt", request, deadline, metadata)
        return answer

    async def health(self) -> str:
        answer: pb.HealthCheckResponse = await self._call("HealthCheck", pb.HealthCheckRequest(), CALL_S_MAX, None)
        return answer.status

    async def _call(self, name: str, request: Any, deadline: float, metadata: Mapping[str, str] | None) -> Any:
        return await self._calls[name](request, timeout=deadline, metadata=tuple((metadata or {}).items()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()


class Records:
    """Who writes to Kafka what nodes consume. Each call returns when the broker has the record."""

    def __init__(self, kafka: str, confirmed_within: float = CALL_S_MAX) -> None:
        self._confirmed_within = confirmed_within
        self._producer = Producer({"bootstrap.servers": addresses(kafka), "linger.ms": 1})

    async def group_message(
        self, group: str, sender: str, content: str, topic: str = "group_msg", **fields: Any
    ) -> dict[str, Any]:
        said = {"group_id": group, "sender_id": sender, "content": content, "message_type": "text"}
        record = {"msg_id": str(uuid.uuid4()), **said, "sequence_number": 1, "timestamp": now_ms(), **fields}
        await self.put(topic, (group, record))
        return record

    async def read_receipt(
        self, sender: str, reader: str, topic: str = "read_receipt", **fields: Any
    ) -> dict[str, Any]:
        read = {"sender_id": sender, "reader_id": reader, "conversation_id": "c", "read_at": int(time.time())}
        record = {"msg_id": str(uuid.uuid4()), "device_id": str(uuid.uuid4()), **read, **fields}
        await self.put(topic, (sender, record))
        return record

    async def membership(
        self, group: str, user: str, change: str, topic: str = "group_membership_change"
    ) -> dict[str, Any]:
        """`change` is "join" or "leave"."""
        record = {"group_id": group, "user_id": user, "event_type": change, "timestamp": int(time.time())}
        await self.put(topic, (group, record))
        return record

    async def put(self, topic: str, *records: tuple[str, Mapping[str, Any] | bytes]) -> None:
        """Keys and values; bytes go as they are, for what is no JSON."""
        await asyncio.to_thread(self._put, topic, records)

    def _put(self, topic: str, records: Iterable[tuple[str, Mapping[str, Any] | bytes]]) -> None:
        errors: list[KafkaError] = []

        def told(error: KafkaError | None, _message: Any) -> None:
            if error is not None:
                errors.append(error)

        for key, value in records:
            body = value if isinstance(value, bytes) else orjson.dumps(value)
            self._producer.produce(topic, body, key.encode(), on_delivery=told)
            self._producer.poll(0)
        left = self._producer.flush(self._confirmed_within)
        assert not left and not errors, f"{left} records were not confirmed, {errors[:3]}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def registered(etcd_url: str, user: str) -> dict[str, str]:
    """Device -> value, as any reader of the registry sees it."""
    return await below(etcd_url, f"/registry/users/{user}/")


async def below(etcd_url: str, prefix: str) -> dict[str, str]:
    """What etcd has under keys that begin with `prefix`, which ends in a slash."""
    key = prefix.encode()
    assert key.endswith(b"/"), prefix
    wanted = rpc_pb2.RangeRequest(key=key, range_end=key[:-1] + b"0")
    async with grpc.aio.insecure_channel(addresses(etcd_url).partition(",")[0], options=ANEW) as channel:
        found = await rpc_pb2_grpc.KVStub(channel).Range(wanted, timeout=CALL_S_MAX)
    return {kv.key[len(key) :].decode(): kv.value.decode() for kv in found.kvs}


def addresses(urls: str) -> str:
    """host:port of each URL, as the original's variables have them: no scheme, no path."""
    return ",".join(url.strip().rpartition("//")[2].partition("/")[0] for url in urls.split(","))
