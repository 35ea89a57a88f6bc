"""What the IM service of `tests/im_app.py` does with a message: numbers it, and records, pushes or publishes it.

Routes as the original does: a private message goes to each device that etcd shows, by PushMessage at its node; a group
message goes to Kafka. Rule: every call out has the original's deadline, and an answer always comes; what could not be
delivered counts as stored offline.
"""

import asyncio
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc
from confluent_kafka import KafkaError, KafkaException, Producer
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tidegate.protos import im_gateway_pb2, im_pb2

from tests.im_app import Answer, Role, State
from tests.im_backends import addresses

PUSH_S = 3.0  # the original's, for a push and its retries
LOOKUP_S = 2.0  # the original's
RETRIES = 2
RETRY_PAUSE_S = 0.05
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
CONTENT_MAX = 10_000
# Duplicates come within seconds: at a few thousand messages a second this is a minute
REMEMBERED_MAX = 200_000
PUSH_METHOD = "/im_gateway_servicepb.UimUgatewayUserviceService/PushMessage"
# A node that was restarted must be found in less time than a push has
CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
MESSAGE_TIMEOUT_MS = 3000  # the gateway waits for no longer either
POLL_S = 0.2


class Im(Role):
    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._publisher: Publisher | None = None
        self._forget()

    def _forget(self) -> None:
        self._sequences: Counter[str] = Counter()
        self._answered: dict[str, asyncio.Task[Any]] = {}  # by msg_id, so that a repeated one gets the same answer
        self._pushes: deque[dict[str, Any]] = deque(maxlen=REMEMBERED_MAX)
        self._offline: deque[tuple[str, str]] = deque(maxlen=REMEMBERED_MAX)

    def answers(self) -> dict[str, Answer]:
        return {
            "RoutePrivateMessage": partial(self._once, self._private),
            "RouteGroupMessage": partial(self._once, self._group),
        }

    def lists(self) -> dict[str, Callable[[], list[Any]]]:
        return {"pushes": lambda: list(self._pushes), "offline": lambda: list(self._offline)}

    async def retold(self, *, reset: bool) -> None:
        """Connections are made anew: other servers may listen where they lead."""
        if reset:
            self._forget()
            channels, self._channels = self._channels, {}
            for channel in channels.values():
                await channel.close()
        if self._publisher is not None and self._publisher.brokers != self._state.behaviour["brokers"]:
            publisher, self._publisher = self._publisher, None
            await asyncio.to_thread(publisher.close)

    async def _once(self, route: Any, request: Any) -> Message:
        key = request.msg_id
        if (task := self._answered.get(key)) is None:
            task = self._answered[key] = asyncio.ensure_future(route(request))
            if len(self._answered) > REMEMBERED_MAX:
                del self._answered[next(iter(self._answered))]
        answer = await asyncio.shield(task)
        if answer.error_code:
            self._answered.pop(key, None)  # only what was routed is done
        return answer  # type: ignore[no-any-return]

    # --- private -------------------------------------------------------------------------------------------------

    async def _private(self, request: im_pb2.RoutePrivateMessageRequest) -> Message:
        answer = im_pb2.RoutePrivateMessageResponse()
        if wrong(request, answer, "recipient_id", "IM_ERROR_CODE_RECIPIENT_NOT_FOUND"):
            return answer
        answer.sequence_number = self._numbered("_".join(sorted((request.sender_id, request.recipient_id))))
        answer.server_timestamp.CopyFrom(now())
        answer.delivery_status = im_pb2.DELIVERY_STATUS_DELIVERED
        if self._state.behaviour["mode"] == "push":
            try:
                places = await self._places(request.recipient_id)
            except grpc.aio.AioRpcError as error:
                return failed(answer, "IM_ERROR_CODE_REGISTRY_ERROR", f"failed to lookup recipient: {error.code()}")
            if not await self._delivered(request, places, answer.sequence_number):
                self._offline.append((request.recipient_id, request.msg_id))
                answer.delivery_status = im_pb2.DELIVERY_STATUS_OFFLINE
        return answer

    def _numbered(self, conversation: str) -> int:
        self._sequences[conversation] += 1
        return self._sequences[conversation]

    async def _places(self, user: str) -> dict[str, str]:
        """Device -> node, as the registry's values say."""
        prefix = f"/registry/users/{user}/".encode()
        wanted = rpc_pb2.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0")
        endpoints = [addresses(url) for url in self._state.behaviour["etcd"].split(",")]
        for attempt in range(RETRIES + 1):
            stub = rpc_pb2_grpc.KVStub(self._channel(endpoints[attempt % len(endpoints)]))
            try:
                found = await stub.Range(wanted, timeout=LOOKUP_S)
            except grpc.aio.AioRpcError as error:
                if attempt == RETRIES or error.code() not in RETRIED:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                return {kv.key[len(prefix) :].decode(): kv.value.decode().split("|")[0] for kv in found.kvs}
        raise AssertionError("the last attempt returns or raises")

    async def _delivered(self, request: Any, places: Mapping[str, str], number: int) -> bool:
        """To each device with a call of its own; the next one waits for the one before it, as in the original."""
        pushes = [self._pushed(message(request, device, number), node) for device, node in places.items()]
        if self._state.behaviour["push"] == "together":
            return any(await asyncio.gather(*pushes))
        return any([await push for push in pushes])

    async def _pushed(self, request: im_gateway_pb2.PushMessageRequest, node: str) -> bool:
        entry: dict[str, Any] = {"msg_id": request.msg_id, "device": request.device_id, "node": node}
        self._pushes.append(entry)
        try:
            async with asyncio.timeout(PUSH_S):
                answer = await self._push(request, node)
        except TimeoutError:
            entry["status"] = "DEADLINE_EXCEEDED"
        except grpc.aio.AioRpcError as error:
            entry["status"] = error.code().name
        else:
            entry |= {"status": "OK", "success": answer.success, "delivered_count": answer.delivered_count}
            entry |= {"failed_devices": list(answer.failed_devices), "error_message": answer.error_message}
        return bool(entry.get("success") and entry["delivered_count"] > 0)

    async def _push(self, request: Message, node: str) -> im_gateway_pb2.PushMessageResponse:
        until = time.monotonic() + PUSH_S
        push = self._channel(node).unary_unary(
            PUSH_METHOD,
            request_serializer=im_gateway_pb2.PushMessageRequest.SerializeToString,
            response_deserializer=im_gateway_pb2.PushMessageResponse.FromString,
        )
        for _ in range(RETRIES):
            try:
                return await push(request, timeout=max(0.0, until - time.monotonic()))
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED:
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)
        return await push(request, timeout=max(0.0, until - time.monotonic()))

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=CHANNEL)
        return self._channels[address]

    # --- group ---------------------------------------------------------------------------------------------------

    async def _group(self, request: im_pb2.RouteGroupMessageRequest) -> Message:
        answer = im_pb2.RouteGroupMessageResponse()
        if wrong(request, answer, "group_id", "IM_ERROR_CODE_GROUP_NOT_FOUND"):
            return answer
        answer.sequence_number = self._numbered(request.group_id)
        answer.server_timestamp.CopyFrom(now())
        if brokers := self._state.behaviour["brokers"]:
            if self._publisher is None:
                self._publisher = Publisher(brokers)
            record = self._record(request, answer.sequence_number)
            try:
                await self._publisher.publish(self._state.behaviour["topic"], request.group_id, record)
            except (KafkaException, BufferError) as error:
                return failed(answer, "IM_ERROR_CODE_DELIVERY_FAILED", f"failed to publish group message: {error}")
        return answer

    def _record(self, request: im_pb2.RouteGroupMessageRequest, number: int) -> dict[str, Any]:
        """As the contract has it, or with `group_shape="event"` as the original IM service's own event does."""
        record = {"msg_id": request.msg_id, "sender_id": request.sender_id, "content": request.content}
        numbered = {"sequence_number": number, "timestamp": time.time_ns() // 1_000_000}
        group = request.group_id
        if self._state.behaviour["group_shape"] == "event":
            return record | {"user_id": group, "conversation_id": group, "conversation_type": "group"} | numbered
        return record | {"group_id": group, "message_type": "text"} | numbered


class Publisher:
    """A record is published when the broker says so."""

    def __init__(self, brokers: str) -> None:
        self.brokers = brokers
        # linger.ms: for tests of one message, and enough to fill a batch under load
        self._producer = Producer(
            {"bootstrap.servers": addresses(brokers), "linger.ms": 1, "message.timeout.ms": MESSAGE_TIMEOUT_MS}
        )
        self._closed = False
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._closed:
            self._producer.poll(POLL_S)

    async def publish(self, topic: str, key: str, record: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        confirmed: asyncio.Future[None] = loop.create_future()

        def told(error: KafkaError | None, _message: Any) -> None:
            loop.call_soon_threadsafe(settled, confirmed, error)

        self._producer.produce(topic, json.dumps(record).encode(), key.encode(), on_delivery=told)
        await confirmed

    def close(self) -> None:
        self._closed = True
        self._poller.join()
        self._producer.flush(MESSAGE_TIMEOUT_MS / 1000)


def settled(confirmed: "asyncio.Future[None]", error: KafkaError | None) -> None:
    if confirmed.done():
        return
    if error is None:
        confirmed.set_result(None)
    else:
        confirmed.set_exception(KafkaException(error))


def message(request: im_pb2.RoutePrivateMessageRequest, device: str, number: int) -> im_gateway_pb2.PushMessageRequest:
    """The kind goes by its enum's name and a time that was not set is 0, as in the original."""
    return im_gateway_pb2.PushMessageRequest(
        msg_id=request.msg_id,
        recipient_id=request.recipient_id,
        device_id=device,
        sender_id=request.sender_id,
        content=request.content,
        message_type=im_pb2.MessageType.Name(request.message_type),
        sequence_number=number,
        timestamp=request.client_timestamp.ToMilliseconds(),
    )


def wrong(request: Any, answer: Any, target: str, code: str) -> bool:
    """What the original checks, in its order."""
    if not request.msg_id:
        failed(answer, "IM_ERROR_CODE_INVALID_MESSAGE", "msg_id is required")
    elif not request.sender_id:
        failed(answer, "IM_ERROR_CODE_SENDER_NOT_FOUND", "sender_id is required")
    elif not getattr(request, target):
        failed(answer, code, f"{target} is required")
    elif len(request.content.encode()) > CONTENT_MAX:
        failed(answer, "IM_ERROR_CODE_CONTENT_TOO_LONG", f"content exceeds {CONTENT_MAX} bytes")
    return bool(answer.error_code)


def failed(answer: Any, code: str, text: str) -> Message:
    answer.Clear()
    answer.error_code, answer.error_message = im_pb2.IMErrorCode.Value(code), text
    return answer  # type: ignore[no-any-return]


def now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp
