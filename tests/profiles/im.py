"""What tests of im-gateway share: settings as `config` gives them, answers of services, steps driven by hand.

Rule: services answer with the messages of the contract, and what is asked of them must fit into those, so a wrong field
fails here as it would on the wire.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import orjson
from tidegate.calls import RpcRequest
from tidegate.config import Settings, load
from tidegate.errors import UpstreamError
from tidegate.profile import (
    Action,
    Add,
    BusMessage,
    Call,
    Claims,
    Close,
    Count,
    Join,
    Leave,
    Now,
    Publish,
    PublishRooms,
    Rejected,
    Reply,
    Request,
    Send,
    Session,
    Span,
    Together,
    Upgrade,
    Verify,
    Wait,
    Wake,
)
from tidegate.profiles.im_gateway import PROFILE, ImGateway
from tidegate.protos import auth_pb2, im_gateway_pb2, im_pb2, user_pb2
from tidegate.protos.methods import method_named

NOW = 1_767_225_600.25
NODE = "10.0.3.7:9093"
OTHER = "10.0.3.8:9093"
PHONE = "5f0c2c9e-8a39-4c2e-9d0b-2f7a3a1b0001"
LAPTOP = "5f0c2c9e-8a39-4c2e-9d0b-2f7a3a1b0002"
TABLET = "5F0C2C9E-8A39-4C2E-9D0B-2F7A3A1B0003"
DOWN = UpstreamError("the service is unavailable")
# A folder that is not there: no file of this machine counts
NOWHERE = ("there-is-no-such-folder",)

# More than `with_users` takes for a small group
CROWD = [f"user_{number}" for number in range(1, 8)]

Waits: TypeAlias = Call | Wait | Together
Answers: TypeAlias = Mapping[str, Any]


def settings(**environ: str) -> Settings:
    """The contract's defaults, and what variables say: `ACK_MODE="queued"`, ..."""
    return load(PROFILE, environ={"GATEWAY_NODE_ID": NODE} | environ, search=NOWHERE).settings


def profile(**environ: str) -> ImGateway:
    return ImGateway(settings(**environ))


# --- driving ----------------------------------------------------------------------------------------------------------


class Clock:
    """The test moves it; a `Wait` for nothing but time moves it too."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now


class Driven:
    """Steps, carried out up to what they wait for; then it is the test's turn to `answer`."""

    def __init__(
        self, steps: Generator[Action, Any, Any], clock: Clock | None = None, verified: Claims | Rejected | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.actions: list[Action] = []
        self.asked: list[Waits] = []
        self.waits_for: Waits | None = None
        self.returned: Any = None
        self._steps = steps
        self._verified = verified
        self.answer(None)

    def answer(self, answer: Any) -> "Driven":
        """An Exception is raised where they wait."""
        try:
            action = self._steps.throw(answer) if isinstance(answer, Exception) else self._steps.send(answer)
            while not isinstance(action, Call | Wait | Together):
                action = self._steps.send(self._at_once(action))
        except StopIteration as end:
            self.waits_for, self.returned = None, end.value
        else:
            self.waits_for = action
            self.asked.append(action)
            fits(action)
        return self

    def hang_up(self) -> None:
        """Whoever asked has gone."""
        self._steps.close()

    def _at_once(self, action: Action) -> Any:
        if isinstance(action, Now):
            return self.clock.now
        self.actions.append(action)
        return self._verified if isinstance(action, Verify) else None

    def only(self, kind: type) -> Any:
        """The one action of that kind."""
        (found,) = self.all(kind)
        return found

    def all(self, kind: type) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    @property
    def replies(self) -> list[Any]:
        return [orjson.loads(reply.payload) for reply in self.all(Reply)]

    @property
    def sent(self) -> list[tuple[int, Any]]:
        """Connection and frame of each."""
        return [(send.conn, orjson.loads(send.payload)) for send in self.all(Send)]

    @property
    def published(self) -> list[tuple[list[str], Any]]:
        """Rooms and frame of each broadcast."""
        return [
            (list(action.rooms) if isinstance(action, PublishRooms) else [action.room], orjson.loads(action.payload))
            for action in self.actions
            if isinstance(action, Publish | PublishRooms)
        ]

    @property
    def closed(self) -> list[tuple[int | None, int]]:
        return [(close.conn, close.code) for close in self.all(Close)]

    @property
    def moves(self) -> list[Join | Leave]:
        return [action for action in self.actions if isinstance(action, Join | Leave)]

    @property
    def counted(self) -> list[str]:
        return [count.name for count in self.all(Count)]

    @property
    def woken(self) -> list[int]:
        return [wake.ticket for wake in self.all(Wake)]

    @property
    def spans(self) -> list[str]:
        return [span.name for span in self.all(Span)]

    def added(self, family: str) -> int:
        return sum(add.amount for add in self.all(Add) if add.family == f"im_gateway_{family}")

    def labels(self, family: str) -> list[str]:
        return [add.label for add in self.all(Add) if add.family == f"im_gateway_{family}"]

    @property
    def calls(self) -> list[str]:
        """`upstream.method` of each, also of those that were asked together."""
        return [f"{call.upstream}.{call.method}" for call in self.requests]

    @property
    def requests(self) -> list[Call]:
        found: list[Call] = []
        for asked in self.asked:
            each = asked.waits if isinstance(asked, Together) else [asked]
            found += [one for one in each if isinstance(one, Call)]
        return found


def fits(waits: Waits) -> None:
    """Raises where a field is none of the message."""
    for call in waits.waits if isinstance(waits, Together) else [waits]:
        if isinstance(call, Call) and isinstance(call.payload, RpcRequest):
            method_named(call.payload.method).message(call.payload.fields)


def carried_out(
    steps: Generator[Action, Any, Any],
    answers: Answers | None = None,
    clock: Clock | None = None,
    verified: Claims | Rejected | None = None,
) -> Driven:
    """To the end. `answers`: `upstream.method` -> an answer, an Exception, or a function of the payload."""
    driven = Driven(steps, clock, verified)
    while driven.waits_for is not None:
        waits = driven.waits_for
        if isinstance(waits, Together):
            driven.answer([answered(each, answers or {}, driven.clock) for each in waits.waits])
        else:
            driven.answer(answered(waits, answers or {}, driven.clock))
    return driven


def answered(waits: Call | Wait, answers: Answers, clock: Clock) -> Any:
    if isinstance(waits, Wait):
        if "wait" in answers:
            return answers["wait"](waits)
        clock.now += waits.seconds
        return None
    answer = answers[f"{waits.upstream}.{waits.method}"]
    return answer(waits.payload) if callable(answer) else answer


# --- clients ----------------------------------------------------------------------------------------------------------


def session(
    user: str = "user_7", device: str = PHONE, conn: int = 1, *, sdk: bool = False, now: float = NOW
) -> Session:
    return Session(conn, f"{user}\x1f{device}\x1f{'sdk' if sdk else ''}".encode(), now, lambda of: f"uuid-{of}")


def upgrade(conn: int = 1, query: Mapping[str, str] | None = None, **headers: str) -> Upgrade:
    return Upgrade(conn, f"uuid-{conn}", "192.0.2.1", "/ws", {"token": "jwt"} if query is None else query, headers, NOW)


def validated(user: str = "user_7", device: str = PHONE, *, valid: bool = True) -> Any:
    return auth_pb2.ValidateTokenResponse(valid=valid, user_id=user, device_id=device)


def connected(to: ImGateway, user: str = "user_7", device: str = PHONE, conn: int = 1, *, sdk: bool = False) -> Driven:
    """A client comes in."""
    query = {"token": "jwt"} | ({"dialect": "sdk"} if sdk else {})
    answers = {"auth.validate": validated(user, device), "registry.register": True}
    return carried_out(to.on_open(upgrade(conn, query)), answers)


def with_users(*users: str, large: int = 5, **environ: str) -> ImGateway:
    """A gateway to which these are connected, in this order from connection 1 on."""
    to = profile(LARGE_GROUP_THRESHOLD=str(large), **environ)
    for conn, user in enumerate(users, 1):
        connected(to, user, conn=conn)
    return to


def gone(to: ImGateway, user: str = "user_7", device: str = PHONE, conn: int = 1) -> Driven:
    return carried_out(to.on_close(session(user, device, conn), 1000), {"registry.unregister": None})


def said(
    to: ImGateway, frame: object, answers: Answers | None = None, by: Session | None = None, clock: Clock | None = None
) -> Driven:
    """A client sends a frame."""
    payload = frame if isinstance(frame, bytes) else orjson.dumps(frame)
    return carried_out(to.on_message(by or session(), payload, True), answers, clock)


def acked(to: ImGateway, msg_id: str, user: str = "user_7", device: str = PHONE) -> Driven:
    return said(to, {"type": "ack", "msg_id": msg_id}, by=session(user, device))


# --- backends and other nodes -----------------------------------------------------------------------------------------


def routed(sequence: int = 12345, **fields: Any) -> Any:
    return im_pb2.RoutePrivateMessageResponse(sequence_number=sequence, **fields)


def pushed(delivered: int = 1, **fields: Any) -> Any:
    """Another node's answer."""
    return im_gateway_pb2.PushMessageResponse(delivered_count=delivered, **{"success": delivered > 0} | fields)


def push_request(*, seconds: float = 60.0, metadata: Mapping[str, str] | None = None, **fields: Any) -> Request:
    given: dict[str, Any] = {
        "msg_id": "m1",
        "recipient_id": "user_7",
        "sender_id": "user_9",
        "content": "Hello",
        "sequence_number": 12,
        "timestamp": 1_767_225_600_123,
    }
    message = im_gateway_pb2.PushMessageRequest(**given | fields)
    return Request("PushMessage", message, seconds, metadata or {}, NOW)


def receipt_request(*, metadata: Mapping[str, str] | None = None, seconds: float = 3.0, **fields: Any) -> Request:
    given: dict[str, Any] = {
        "msg_id": "m1",
        "sender_id": "user_7",
        "reader_id": "user_9",
        "conversation_id": "c",
        "read_at": 1_767_225_604,
    }
    message = im_gateway_pb2.PushReadReceiptRequest(**given | fields)
    return Request("PushReadReceipt", message, seconds, metadata or {}, NOW)


def record(topic: str, value: object, key: str = "") -> BusMessage:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return BusMessage(topic, key, data, 1, 0.0)


def group_record(group: str = "group_456", **changed: Any) -> BusMessage:
    value = {"msg_id": "m1", "group_id": group, "sender_id": "user_7", "content": "hi", "message_type": "text"}
    return record("group_msg", value | {"sequence_number": 12, "timestamp": 1_767_225_600_123} | changed, group)


def membership_record(user: str, event: str, group: str = "group_456", **changed: Any) -> BusMessage:
    value = {"group_id": group, "user_id": user, "event_type": event, "timestamp": 1_767_225_600}
    return record("group_membership_change", value | changed, group)


def page(*users: str, following: str = "", error: Any = 0) -> Any:
    """Of the user service."""
    members = [user_pb2.GroupMember(user_id=user) for user in users]
    return user_pb2.GetGroupMembersResponse(members=members, next_cursor=following, error_code=error)


def is_member(yes: bool, error: Any = 0) -> Any:
    return user_pb2.ValidateGroupMembershipResponse(is_member=yes, error_code=error)


def scanned(*users: str, following: int = 0) -> Any:
    """Redis' answer to SSCAN."""
    return [[b"%d" % following, [user.encode() for user in users]]]


def group_of(users: Sequence[str]) -> dict[str, Any]:
    """Answers where Redis knows nothing and the user service all."""
    return {
        "redis.members": scanned(),
        "user.members": page(*users),
        "redis.cache": [0, len(users), 1, True],
        "redis.forget": [1],
        "redis.is_member": lambda request: [0] * len(request.commands),
        "user.is_member": lambda request: is_member(request.fields["user_id"] in users),
    }


def served(to: ImGateway, message: BusMessage, answers: Answers | None = None, clock: Clock | None = None) -> Driven:
    return carried_out(to.on_record(message), answers, clock)


Script: TypeAlias = Callable[[Any], Any]


def one_by_one(*answers: Any) -> Script:
    """An answer that differs each time; the last stays."""
    left = list(answers)

    def answer(_payload: Any) -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def told(run: Driven) -> set[str]:
    """Rooms that got the message."""
    return {room for rooms, _ in run.published for room in rooms}
