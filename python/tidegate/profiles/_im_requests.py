"""What backends and other nodes ask of im-gateway: PushMessage with its acks, PushReadReceipt, HealthCheck.

Devices on this node get the message at once; meanwhile the registry says where others are, and their nodes are asked.
Rule: an application's error is an answer, never an error of gRPC; a request that another node passed on is not passed
on again (contract im-gateway, section 7).
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import tidegate.profiles._im_services as services
from tidegate.errors import UpstreamError
from tidegate.profile import Action, Add, Call, Log, Now, Observe, Request, Send, Span, Together, Wait
from tidegate.profiles._im_devices import Device, Devices
from tidegate.profiles._im_frames import message_frame, receipt_frame
from tidegate.profiles._im_pushes import Push, Pushes

# Of a caller's deadline, for the answer's way back: the contract's
MARGIN_S = 0.2
# What a call to another node gets at least: 0 would be the upstream's own time
CALL_S_MIN = 0.001
# A device whose queue is full is asked again until then: the contract's second, in steps that a client needs to read on
FULL_S = 1.0
FULL_PAUSE_S = 0.1
FULL_TRIES = 10
# Metadata of a call that another node has passed on
HOP = "x-gateway-hop"

Fields: TypeAlias = Mapping[str, Any]
Asked: TypeAlias = Generator[Action, Any, Fields]
Doing: TypeAlias = Generator[Action, Any, None]


@dataclass(slots=True)
class Delivery:
    """A message on its way to a user's devices, and what has become of it, summed over them."""

    request: Request
    here: Sequence[Device] = ()
    push: Push | None = None  # whose acks are awaited; None = nobody's
    delivered: int = 0
    failed: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def said(self) -> Any:
        return self.request.message

    def fields(self) -> Fields:
        return {
            "success": self.delivered > 0,
            "delivered_count": self.delivered,
            "failed_devices": sorted(self.failed),
            "error_message": self.problem,
        }


class Requests:
    def __init__(self, settings: Any, node: str, devices: Devices, pushes: Pushes) -> None:
        self._node = node
        self._devices = devices
        self._pushes = pushes
        self._waits_for_acks = settings.im.ack_mode == "ack"
        self._ack_s = settings.im.ack_timeout
        self._addresses = dict(entry.split("=", 1) for entry in settings.im.nodes)

    def serve(self, request: Request) -> Asked:
        if request.method == "PushMessage":
            return (yield from self._push(request))
        if request.method == "PushReadReceipt":
            return (yield from self._receipt(request))
        return {"status": "OK"}

    # --- PushMessage -------------------------------------------------------------------------------------------------

    def _push(self, request: Request) -> Asked:
        said, delivery = request.message, Delivery(request)
        if not said.recipient_id:
            delivery.problem = "recipient_id is required"
            return delivery.fields()
        devices = self._devices.of(said.recipient_id)
        delivery.here = [device for device in devices if said.device_id in ("", device.name)]
        try:
            yield from self._deliver(delivery)
        finally:
            # a caller that hangs up ends the steps wherever they wait
            if delivery.push is not None:
                self._pushes.end(delivery.push)
        yield from _tell(delivery)
        return delivery.fields()

    def _deliver(self, delivery: Delivery) -> Doing:
        if self._waits_for_acks:
            yield from self._send(delivery)
        elsewhere = yield from self._elsewhere(delivery)
        if len(delivery.here) + len(elsewhere) > 1:
            yield Add("im_gateway_multi_device_deliveries_total")
        if not self._waits_for_acks:
            yield from self._queue(delivery)
        yield from self._gather(delivery, elsewhere)

    def _send(self, delivery: Delivery) -> Doing:
        """To those who have not got it by an earlier call whose ack is still awaited."""
        said = delivery.said
        keys = {(said.recipient_id, device.name, said.msg_id): device for device in delivery.here}
        delivery.push, known = self._pushes.begin(keys)
        for key, device in keys.items():
            if key in known:
                yield Add("im_gateway_duplicate_messages_total")
            else:
                yield Send(device.conn, _frame(said, device))
        if fresh := len(keys) - len(known):
            yield Add("im_gateway_ack_pending_total", amount=fresh)
            yield _span("im-gateway.ack.register", delivery.request, 0.0, devices=fresh)

    def _elsewhere(self, delivery: Delivery) -> Generator[Action, Any, dict[str, str]]:
        """Device -> node, of devices that are not here. One that should be here and is not has failed."""
        said, names = delivery.said, {device.name for device in delivery.here}
        if delivery.request.metadata.get(HOP) or (said.device_id and names):
            delivery.failed += [said.device_id] if said.device_id and not names else []
            return {}
        places = yield from self._places(delivery, said.recipient_id)
        if said.device_id:
            places = {said.device_id: places.get(said.device_id, self._node)}
        others = {device: node for device, node in places.items() if device not in names}
        delivery.failed += [device for device, node in others.items() if node == self._node]
        return {device: node for device, node in others.items() if node != self._node}

    def _places(self, delivery: Delivery, user: str) -> Generator[Action, Any, Mapping[str, str]]:
        try:
            places: Mapping[str, str] = yield Call("registry", "devices", user)
            return places
        except UpstreamError:
            delivery.problem = "the registry did not say where the user's devices are"
            return {}

    def _gather(self, delivery: Delivery, elsewhere: Mapping[str, str]) -> Doing:
        """Acks of those here and answers of other nodes, all within the caller's time."""
        request, push = delivery.request, delivery.push
        now: float = yield Now()
        ends = request.now + min(self._ack_s, request.seconds - MARGIN_S)
        left = max(0.0, ends - now)
        calls = [
            self._forward("PushMessage", node, _copied(delivery.said) | {"device_id": device}, request, left)
            for device, node in elsewhere.items()
        ]
        own = [Wait(push.ticket, left)] if push is not None and push.waiting else []
        answers: list[Any] = (yield Together([*own, *calls])) if own or calls else []
        took: float = (yield Now()) - now
        yield from self._end(delivery)
        for (device, node), answer in zip(elsewhere.items(), answers[len(own) :], strict=True):
            yield from _forwarded("message", request, node, took, answer)
            count = 0 if isinstance(answer, Exception) else answer.delivered_count
            delivery.delivered += count
            delivery.failed += [] if count else [device]

    def _end(self, delivery: Delivery) -> Doing:
        if delivery.push is None:
            return
        silent, given_up = self._pushes.end(delivery.push)
        delivery.delivered += delivery.push.acked
        delivery.failed += silent
        if given_up:
            yield Add("im_gateway_ack_timeouts_total", amount=given_up)
            yield _span("im-gateway.ack.timeout", delivery.request, 0.0, devices=given_up)

    def _queue(self, delivery: Delivery) -> Doing:
        """`ACK_MODE=queued`: delivered is what waits for its client, as in the original."""
        left = list(delivery.here)
        for _ in range(FULL_TRIES):
            said = yield from self._offer(delivery, left)
            delivery.delivered += list(said.values()).count("queued")
            delivery.failed += [name for name, outcome in said.items() if outcome not in ("queued", "full")]
            left = [device for device in left if said[device.name] == "full"]
            if not left:
                return
            yield Wait(0, FULL_PAUSE_S)
        delivery.failed += [device.name for device in left]

    def _offer(self, delivery: Delivery, devices: Sequence[Device]) -> Generator[Action, Any, dict[str, str]]:
        tickets = [self._pushes.ticket() for _ in devices]
        for device, ticket in zip(devices, tickets, strict=True):
            yield Send(device.conn, _frame(delivery.said, device), ticket)
        answers: list[Any] = yield Together([Wait(ticket, FULL_S) for ticket in tickets])
        return {device.name: answer for device, answer in zip(devices, answers, strict=True)}

    # --- PushReadReceipt ---------------------------------------------------------------------------------------------

    def _receipt(self, request: Request) -> Asked:
        said, delivery = request.message, Delivery(request)
        if not said.sender_id or not said.reader_id:
            delivery.problem = "sender_id and reader_id are required"
            return delivery.fields()
        fields = {name: getattr(said, name) for name in RECEIPT_FIELDS}
        for device in self._devices.of(said.sender_id):
            yield Send(device.conn, receipt_frame(fields, request.now, sdk=device.sdk))
            delivery.delivered += 1
        if not request.metadata.get(HOP):
            yield from self._forward_receipt(delivery, fields | {"sender_id": said.sender_id})
        return delivery.fields()

    def _forward_receipt(self, delivery: Delivery, fields: Fields) -> Doing:
        request = delivery.request
        places = yield from self._places(delivery, request.message.sender_id)
        nodes = sorted(set(places.values()) - {self._node})
        left = max(0.0, request.seconds - MARGIN_S)
        began: float = yield Now()
        calls = [self._forward("PushReadReceipt", node, fields, request, left) for node in nodes]
        answers: list[Any] = (yield Together(calls)) if calls else []
        took: float = (yield Now()) - began
        for node, answer in zip(nodes, answers, strict=True):
            yield from _forwarded("read_receipt", request, node, took, answer)
            if isinstance(answer, Exception):
                delivery.failed += [device for device, at in places.items() if at == node]
            else:
                delivery.delivered += answer.delivered_count

    def _forward(self, method: str, node: str, fields: Fields, request: Request, seconds: float) -> Call:
        address, within = self._addresses.get(node, node), max(CALL_S_MIN, seconds)
        return services.forward(method, address, fields, within, request.metadata.get("traceparent", ""))


MESSAGE_FIELDS = (
    "msg_id",
    "recipient_id",
    "sender_id",
    "content",
    "message_type",
    "sequence_number",
    "timestamp",
)
RECEIPT_FIELDS = ("msg_id", "reader_id", "conversation_id", "read_at")


def _frame(said: Any, device: Device) -> bytes:
    shown = {
        "msg_id": said.msg_id,
        "sender": said.sender_id,
        "content": said.content,
        "timestamp": said.timestamp,
        "sequence_number": said.sequence_number,
    }
    return message_frame(shown, sdk=device.sdk, recipient=said.recipient_id)


def _copied(said: Any) -> dict[str, Any]:
    return {name: getattr(said, name) for name in MESSAGE_FIELDS}


def _tell(delivery: Delivery) -> Doing:
    request, said = delivery.request, delivery.said
    took: float = (yield Now()) - request.now
    yield Observe("im_gateway_message_delivery_latency_seconds", took)
    if delivery.delivered:
        yield Add("im_gateway_messages_delivered_total", amount=delivery.delivered)
    if delivery.failed:
        yield Add("im_gateway_messages_failed_total", amount=len(delivery.failed))
    figures = {"delivered": delivery.delivered, "failed": len(delivery.failed)}
    yield _span("im-gateway.push.message", request, took, **figures)
    yield Log("pushed", {"user": said.recipient_id, "msg_id": said.msg_id} | figures)


def _forwarded(kind: str, request: Request, node: str, took: float, answer: Any) -> Doing:
    reason = _reason(answer)
    result = "failure" if reason else "success"
    yield Add("im_gateway_cross_gateway_forward_total", f"{kind},{result},{reason}")
    yield _span(f"im-gateway.forward.{kind}", request, took, node=node, result=result)


def _reason(answer: Any) -> str:
    """The contract's word for why a forward failed; empty if it did not."""
    if isinstance(answer, UpstreamError):
        return REASONS.get(answer.outcome, "transport_error")
    if isinstance(answer, Exception):
        return "transport_error"
    if answer.success:
        return "" if answer.delivered_count else "zero_delivered"
    if answer.error_message:
        return "remote_error"
    return "not_delivered" if answer.failed_devices else "empty_response"


REASONS = {
    "timeout": "timeout",
    "deadline_exceeded": "timeout",
    "unavailable": "unavailable",
    "circuit_open": "unavailable",
}


def _span(name: str, request: Request, seconds: float, **attributes: str | int) -> Span:
    said = request.message
    ids = {"msg_id": said.msg_id, "user": getattr(said, "recipient_id", "") or said.sender_id}
    return Span(name, seconds, ids | attributes, request.metadata.get("traceparent", ""))
