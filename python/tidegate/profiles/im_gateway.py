"""Drop-in for im-gateway: tokens of an auth service, messages that an IM service routes, pushes that wait for acks.

Who is connected where is in a registry that all nodes share; backends push by gRPC, groups come by Kafka. What backends
ask is in `_im_requests.py`, what Kafka brings in `_im_records.py`. contracts/im-gateway.md is what this keeps to, and
docs/profiles.md says where it differs from the original, and why.
Rule: what a client, a service or another node sends may be anything at all; none of it raises here.
"""

import re
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Literal

import tidegate.profiles._im_services as services
from tidegate.calls import Enter, Place
from tidegate.errors import UpstreamError
from tidegate.origins import Origins
from tidegate.profile import (
    Action,
    Add,
    Admit,
    BusMessage,
    Call,
    Claims,
    Close,
    Count,
    Log,
    Now,
    RecordSteps,
    Refuse,
    Rejected,
    Reply,
    Request,
    Send,
    Session,
    Span,
    Steps,
    Upgrade,
    Verify,
    Wake,
)
from tidegate.profiles._im_devices import Device, Devices
from tidegate.profiles._im_frames import (
    ClientFrame,
    ack_frame,
    auth_frame,
    client_time,
    close_frame,
    error_frame,
    heartbeat_frame,
    parse,
)
from tidegate.profiles._im_groups import Groups
from tidegate.profiles._im_members import Members
from tidegate.profiles._im_pushes import Pushes
from tidegate.profiles._im_receipts import Receipts
from tidegate.profiles._im_records import Records, user_room
from tidegate.profiles._im_requests import Requests
from tidegate.profiles._im_spec import spec
from tidegate.rates import Windows

# RFC 9562 section 5.4, in any case
DEVICE = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")
# A user's id is part of keys that others read: no slash, nothing that can't be seen or has no UTF-8
USER = re.compile(r"[^\s/\x00-\x1f\x7f\ud800-\udfff]{1,255}")
# A token goes into one field of a request; servers take 8 KiB in a header
TOKEN_BYTES_MAX = 8192
FIELD = "\x1f"
# Connections whose device was elsewhere before the registry's answer was heard here: each is looked at within a turn or
# two of the loop. What stays longer has ended meanwhile, and its number never comes again.
OVERTAKEN_MAX = 64

Who = tuple[str, str, bool]


class ImGateway:
    """The decisions of the protocol."""

    def __init__(self, settings: Any) -> None:
        self._origins = Origins(settings.ws.allowed_origins)
        self._allow_empty_origin = settings.ws.allow_empty_origin
        self._verifies = bool(settings.jwt.secret_key.get_secret_value())
        self._sdk = settings.im.dialect == "sdk"
        self._strict_ack = settings.im.strict_ack
        self._others_max = settings.im.devices_per_user
        self._message_bytes_max = settings.ws.max_message_size // 2
        self._limit = Windows(settings.ws.message_rate_per_user)
        self._overtaken: deque[int] = deque(maxlen=OVERTAKEN_MAX)
        node = settings.registry.node or settings.node_id
        self._devices = Devices()
        self._pushes = Pushes()
        groups = Groups(settings.im.large_group)
        members = Members(groups, self._devices, self._pushes, node)
        self._requests = Requests(settings, node, self._devices, self._pushes)
        self._records = Records(
            settings, node, self._devices, groups=groups, members=members, receipts=Receipts(self._pushes)
        )

    # --- connecting --------------------------------------------------------------------------------------------------

    def on_open(self, upgrade: Upgrade) -> Steps:
        if not self._may_come_from(upgrade.headers.get("origin", "")):
            yield _refusal(403, "origin not allowed")
            return
        token = upgrade.query.get("token") or _bearer(upgrade.headers.get("authorization", ""))
        if not token or len(token) > TOKEN_BYTES_MAX:
            yield _refusal(401, "missing authentication token")
            return
        try:
            who = yield from self._who(token)
        except UpstreamError:
            yield _refusal(503, "the auth service is unavailable", retry=True)
            return
        if who is None:
            yield Add("im_gateway_connection_errors_total")
            yield _refusal(401, "invalid token")
        elif not DEVICE.fullmatch(who[1]):
            yield _refusal(400, "device_id is no UUID v4")
        else:
            yield from self._enter(upgrade, *who)

    def _may_come_from(self, origin: str) -> bool:
        return self._origins.allows(origin) if origin else self._allow_empty_origin

    def _who(self, token: str) -> Generator[Action, Any, tuple[str, str] | None]:
        """User and device. Checked here where the secret is known, else asked for."""
        if self._verifies:
            checked: Claims | Rejected = yield Verify(token)
            claims: Mapping[str, Any] = checked.values if isinstance(checked, Claims) else {}
            user, device = claims.get("user_id"), claims.get("device_id")
        else:
            said: services.Validated = yield services.validate(token)
            user, device = (said.user_id, said.device_id) if said.valid else (None, None)
            if not said.valid:
                yield Count("auth_failure", detail="the auth service did not accept a client's token")
        if isinstance(user, str) and USER.fullmatch(user):
            return user, device if isinstance(device, str) else ""
        return None

    def _enter(self, upgrade: Upgrade, user: str, name: str) -> Steps:
        place = Place(user, name, upgrade.conn, int(upgrade.now))
        try:
            is_in = yield Call("registry", "register", Enter(place, self._others_max))
        except UpstreamError as error:
            if error.outcome == "invalid_argument":
                yield _refusal(401, "invalid token")
            else:
                yield _refusal(503, "the registry is unavailable", retry=True)
            return
        if not is_in:
            yield _refusal(429, f"{self._others_max} other devices are connected")
            return
        device = Device(name, upgrade.conn, self._speaks_sdk(upgrade.query))
        replaced = self._devices.add(user, device)
        if replaced is not None:
            yield from self._replace(replaced, upgrade.now)
        texts = [auth_frame(user, name, upgrade.now)] if device.sdk else []
        rooms = [user_room(user, sdk=device.sdk)]
        yield Admit(_pack(user, device), rooms=rooms, texts=texts, dialect=int(device.sdk))
        if upgrade.conn in self._overtaken:
            yield from self._replace(device, upgrade.now)
        yield Log("connected", {"user": user, "device": name, "peer": upgrade.peer})

    def _speaks_sdk(self, query: Mapping[str, str]) -> bool:
        return query.get("dialect", "sdk" if self._sdk else "seed") == "sdk"

    def _replace(self, device: Device, now: float) -> Iterable[Action]:
        """The newest connection of a device counts."""
        yield Send(device.conn, close_frame("REPLACED", "this device has connected again", now, sdk=device.sdk))
        yield Close(4409, "replaced", device.conn)

    def on_close(self, session: Session, code: int) -> Steps:
        user, name, _ = _unpack(session.data)
        yield Log("disconnected", {"user": user, "device": name, "code": code})
        if self._devices.remove(user, name, session.conn):
            yield from _tried(Call("registry", "unregister", Place(user, name, session.conn, 0)))

    def on_taken(self, place: Place, now: float) -> Iterable[Action]:
        device = self._devices.find(place.user, place.device)
        if device is not None and device.conn == place.conn:
            yield from self._replace(device, now)
        else:
            self._overtaken.append(place.conn)

    # --- what clients send -------------------------------------------------------------------------------------------

    def is_urgent(self, payload: bytes) -> bool:
        """Acks: two users whose messages wait for each other's ack would both wait in vain."""
        if b'"ack"' not in payload:
            return False
        frame = parse(payload)
        return frame is not None and frame.type == "ack"

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps:
        who = _unpack(session.data)
        frame = parse(payload)
        if len(payload) > self._message_bytes_max:
            msg_id = frame.msg_id if frame else ""
            yield _error(session, who, "MESSAGE_TOO_LARGE", f"more than {self._message_bytes_max} bytes", msg_id)
        elif frame is None:
            yield _error(session, who, "INVALID_MESSAGE", "Invalid message format")
        elif frame.type == "send_msg":
            yield from self._send_msg(session, who, frame)
        elif frame.type == "ack":
            yield from self._ack(session, who, frame)
        elif frame.type == "heartbeat":
            yield Reply(heartbeat_frame(session.now, sdk=who[2]))
        else:
            yield _error(session, who, "UNKNOWN_MESSAGE_TYPE", "Unknown message type", frame.msg_id)

    def _send_msg(self, session: Session, who: Who, frame: ClientFrame) -> Steps:
        recipient, kind = _recipient(frame)
        if not self._limit.take(who[0], session.now):
            yield Add("im_gateway_rate_limited_total")
            yield _error(session, who, "RATE_LIMIT_EXCEEDED", "Too many messages", frame.msg_id)
        elif kind is None:
            yield _error(session, who, "INVALID_RECIPIENT", "Invalid recipient", frame.msg_id)
        else:
            yield from self._route(session, who, frame, recipient, kind)

    def _route(
        self, session: Session, who: Who, frame: ClientFrame, recipient: str, kind: Literal["user", "group"]
    ) -> Steps:
        said = {"msg_id": frame.msg_id, "content": frame.content, "metadata": frame.extra}
        try:
            answer = yield services.route(who[0], recipient, kind, said, client_time(frame.timestamp))
        except UpstreamError as error:
            is_open = error.outcome == "circuit_open"
            code = "SERVICE_UNAVAILABLE" if is_open else "ROUTING_ERROR"
            yield _error(session, who, code, "the message could not be routed", frame.msg_id)
            return
        now: float = yield Now()
        yield Span("im-gateway.route", now - session.now, {"user": who[0], "msg_id": frame.msg_id, "kind": kind})
        if answer.error_code:
            code = services.im_error(answer.error_code)
            yield _error(session, who, code, answer.error_message, frame.msg_id)
            return
        delivered = getattr(answer, "delivery_status", 0) in services.DELIVERED
        yield Reply(ack_frame(frame.msg_id, answer.sequence_number, now, sdk=who[2], delivered=delivered))

    def _ack(self, session: Session, who: Who, frame: ClientFrame) -> Steps:
        user, device, _ = who
        found = self._pushes.acked((user, device, frame.msg_id))
        if isinstance(found, list):
            yield Add("im_gateway_ack_success_total")
            yield Span("im-gateway.ack.resolve", 0.0, {"user": user, "device": device, "msg_id": frame.msg_id})
            yield from [Wake(ticket) for ticket in found]
            return
        yield Add(f"im_gateway_ack_{found}_total")
        if self._strict_ack and found == "unknown":
            yield _error(session, who, "ACK_NOT_FOUND", "no delivery waits for this ack", frame.msg_id)

    # --- what backends and nodes send --------------------------------------------------------------------------------

    def on_request(self, request: Request) -> Generator[Action, Any, Mapping[str, Any]]:
        return self._requests.serve(request)

    def on_record(self, message: BusMessage) -> RecordSteps:
        return self._records.serve(message)

    def on_bus(self, message: BusMessage) -> Iterable[Action]:
        return ()


def _recipient(frame: ClientFrame) -> tuple[str, Literal["user", "group"] | None]:
    """By its prefix, or as the SDK says it."""
    if frame.recipient_id and frame.recipient_type in ("user", "group"):
        return frame.recipient_id, "group" if frame.recipient_type == "group" else "user"
    if frame.recipient.startswith("user_"):
        return frame.recipient, "user"
    return frame.recipient, "group" if frame.recipient.startswith("group_") else None


def _bearer(authorization: str) -> str:
    """What other schemes carry is no token, and may be a password."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _pack(user: str, device: Device) -> bytes:
    return FIELD.join((user, device.name, "sdk" if device.sdk else "")).encode()


def _unpack(session: bytes) -> Who:
    user, device, dialect = session.decode().split(FIELD)
    return user, device, bool(dialect)


def _refusal(status: int, reason: str, *, retry: bool = False) -> Refuse:
    return Refuse(status, b'{"error":"%b"}' % reason.encode(), 1 if retry else None)


def _error(session: Session, who: Who, code: str, text: str, msg_id: str = "") -> Reply:
    return Reply(error_frame(code, text, session.now, sdk=who[2], msg_id=msg_id))


def _tried(call: Call) -> Steps:
    try:
        yield call
    except UpstreamError:
        yield Count("unregister", detail="the registry did not take back a device; it is told again when it answers")


PROFILE = spec(ImGateway)
