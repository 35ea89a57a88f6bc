"""Drop-in for attchat-gateway: JSON frames with `type` and `room`, a JWT in the URL, events from NATS JetStream.

Serves both generations of the original at once: string user ids under HS256, numeric ones under RS256. It deviates on
purpose: nobody joins a room that is not theirs (`rooms.join_policy`), and what only the query says shows in `connected`
but opens no room unless the policy is `open`.
Rule: what a client or a backend sends may be anything at all; none of it raises here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import orjson

from tidegate.origins import Origins
from tidegate.profile import (
    Action,
    Admit,
    BusMessage,
    BusRule,
    Claims,
    Count,
    Join,
    Leave,
    MetricNames,
    ProfileSpec,
    Publish,
    Refuse,
    Reply,
    Session,
    SetSession,
    Steps,
    ToBus,
    Upgrade,
    Verify,
)

JoinPolicy: TypeAlias = Literal["member-prefix", "open", "claims"]

# Of the newer generation: no NATS wildcard, no blank, nothing that a log or a URL must escape
ROOM_NAME = re.compile(r"[A-Za-z0-9:_-]{1,128}")
# What a query may choose of a NATS subject: one token, no dot and no wildcard
SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A user, brand or type is a key in every event; 256 holds an e-mail address (254) and any UUID
ID_CHARS_MAX = 256
# Rooms that a token may name: more would make the session of one client larger than the buffers of a hundred
CLAIM_ROOMS_MAX = 256
# Frames that only the gateway may send: a client that could publish them would speak in its name
SERVER_TYPES = frozenset({"connected", "error", "joined", "left", "pong", "typing"})
# The payload of `connected`, in the original's order
NOTHING_SHOWN = dict.fromkeys(
    ("conn_id", "user_id", "brand_id", "role", "user_type", "device", "tags", "tz", "channel", "room_id"), ""
)
# Shown from the token if it says something, else from the query: name in the payload and the query, name of the claim
SHOWN_CLAIMS = (("brand_id", "brand_id"), ("role", "role"), ("user_type", "type"))
SHOWN_QUERY = ("device", "tags", "tz", "channel")
# `isinstance` builds nothing for a tuple; `str | None` would be made anew for each message
TEXT_OR_NONE = (str, type(None))
NO_ROOMS: frozenset[str] = frozenset()
# Separates the fields of a session. No field may hold a control character
FIELD = "\x1f"
# No client can name these rooms (see ROOM_NAME): who has left `user:7` is in `@7` and still gets what is for user 7.
# Under the policy `open` strangers may sit in `user:7`, so everybody is in a room of this kind from the start.
USER_ROOM = "@"

INVALID_ROOM = b'{"type":"error","code":"INVALID_ROOM","message":"invalid room_id"}'
ROOM_FORBIDDEN = b'{"type":"error","code":"ROOM_FORBIDDEN","message":"not allowed in this room"}'


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that decide something here."""

    join_policy: JoinPolicy = "member-prefix"
    typing_requires_join: bool = False
    publish_unknown: bool = False
    allowed_origins: frozenset[str] = frozenset()


@dataclass(slots=True)
class Identity:
    """Who a client is, as its session carries it. `brand` and `agent` are the token's unless the policy is `open`."""

    user: str
    brand: str = ""
    kind: str = ""  # user type as shown to others
    agent: bool = False  # may see the folders of its brand
    subject: str = ""  # first token of the NATS subject for what it publishes
    granted: frozenset[str] = frozenset()  # rooms in the token that the policy would not admit by itself
    joined: frozenset[str] = frozenset()  # kept only for `rooms.typing_requires_join`

    def pack(self) -> bytes:
        granted = " ".join(sorted(self.granted)) if self.granted else ""
        joined = " ".join(sorted(self.joined)) if self.joined else ""
        agent = "1" if self.agent else ""
        return FIELD.join((self.user, self.brand, self.kind, agent, self.subject, granted, joined)).encode()

    @classmethod
    def unpack(cls, session: bytes) -> "Identity":
        user, brand, kind, agent, subject, granted, joined = session.decode().split(FIELD)
        granted_rooms = frozenset(granted.split()) if granted else NO_ROOMS
        joined_rooms = frozenset(joined.split()) if joined else NO_ROOMS
        return cls(user, brand, kind, agent == "1", subject, granted_rooms, joined_rooms)

    def default_rooms(self) -> list[str]:
        rooms = [f"user:{self.user}"]
        if self.brand:
            rooms.append(f"brand:{self.brand}")
        if self.agent:
            rooms += [f"folder:{self.brand}:{folder}" for folder in ("all", "waiting", "active")]
        return rooms


class AttchatGateway:
    """The decisions of the protocol."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._origins = Origins(rules.allowed_origins)
        self._pong_second = -1
        self._pong = b""
        self._stamp_second = -1
        self._stamp = ""

    def on_open(self, upgrade: Upgrade) -> Steps:
        if not self._origins.allows(upgrade.headers.get("origin", "")):
            yield Refuse(403, b'{"error":"origin_not_allowed"}')
            return
        token = _token_of(upgrade)
        verified = (yield Verify(token)) if token else None
        claims = verified.values if isinstance(verified, Claims) else {}
        user = _user_id(claims.get("user_id"))
        if not user:
            yield from _reject_token(upgrade, verified)
            return
        yield self._admit(upgrade, claims, user)

    def _admit(self, upgrade: Upgrade, claims: Mapping[str, Any], user: str) -> Admit:
        room = upgrade.query.get("room_id", "")
        if room and not ROOM_NAME.fullmatch(room):
            return _rejection("INVALID_ROOM", "invalid room_id", upgrade.now)
        shown = _shown(upgrade, claims, user)
        who = self._identify(upgrade, claims, shown)
        granted = _claim_rooms(claims.get("rooms"))
        rooms = who.default_rooms()
        texts = [_frame("connected", shown, self._stamp_at(upgrade.now))]
        if room and (room in rooms or room in granted or self._admits(who, room)):
            rooms.append(room)
        elif room:
            texts.append(ROOM_FORBIDDEN)
        if granted:
            who.granted = frozenset(name for name in granted if not self._admits(who, name))
        rooms = list(dict.fromkeys(rooms + granted))
        if self._rules.typing_requires_join:
            who.joined = frozenset(rooms)
        if self._rules.join_policy == "open":
            rooms.append(USER_ROOM + user)
        return Admit(who.pack(), rooms, texts, user)

    def _stamp_at(self, now: float) -> str:
        """One text serves all who come in a second."""
        if (second := int(now)) != self._stamp_second:
            self._stamp_second, self._stamp = second, _seconds(now)
        return self._stamp

    def _identify(self, upgrade: Upgrade, claims: Mapping[str, Any], shown: Mapping[str, str]) -> Identity:
        is_open = self._rules.join_policy == "open"
        brand = shown["brand_id"] if is_open else _id(claims.get("brand_id"))
        kind = shown["user_type"] if is_open else _id(claims.get("type"))
        subject = _subject(upgrade.query.get("type", ""), shown["user_type"]) if self._rules.publish_unknown else ""
        return Identity(shown["user_id"], brand, shown["user_type"], kind == "cskh", subject)

    def _admits(self, who: Identity, room: str) -> bool:
        """Whether the policy lets this client into a room with a well-formed name."""
        if not room:
            return False
        policy = self._rules.join_policy
        if policy == "open" or (policy != "claims" and room.startswith("chat:")):
            return True
        if room in who.granted or room in who.default_rooms():
            return True
        return policy != "claims" and who.agent and _is_folder_of(who.brand, room)

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps:
        """Binary messages that hold JSON count like text, as in the original."""
        try:
            message = orjson.loads(payload)
            kind, room = message.get("type"), message.get("room")
        except (ValueError, AttributeError):
            return _steps(Count("bad_json"))
        if not (isinstance(kind, TEXT_OR_NONE) and isinstance(room, TEXT_OR_NONE)):
            return _steps(Count("bad_json"))
        if kind == "ping":
            return self._on_ping(session)
        if kind in ("join", "leave", "typing"):
            return self._on_room(session, kind, room) if room else _steps()
        if kind and self._rules.publish_unknown:
            return self._on_unknown(session, kind, room or "", message.get("payload"))
        return _steps()

    def _on_room(self, session: Session, kind: str, room: str) -> Steps:
        if kind == "leave":
            return self._on_leave(session, room)
        if not ROOM_NAME.fullmatch(room):
            return _steps(Reply(INVALID_ROOM))
        who = Identity.unpack(session.data)
        if not self._admits(who, room):
            return _steps(Reply(ROOM_FORBIDDEN))
        return self._on_join(who, room) if kind == "join" else self._on_typing(session, who, room)

    def _on_ping(self, session: Session) -> Steps:
        yield Reply(self._pong_at(session.now))

    def _pong_at(self, now: float) -> bytes:
        """One encoding serves all pongs of a second."""
        if (second := int(now)) != self._pong_second:
            self._pong_second = second
            self._pong = b'{"type":"pong","timestamp":"%b"}' % _seconds(now).encode()
        return self._pong

    def _on_join(self, who: Identity, room: str) -> Steps:
        yield Join(room)
        if self._is_own_user_room(who, room):
            yield Leave(USER_ROOM + who.user)
        if self._rules.typing_requires_join and room not in who.joined:
            who.joined |= {room}
            yield SetSession(who.pack())
        yield Reply(b'{"type":"joined","room":"%b"}' % room.encode())

    def _on_leave(self, session: Session, room: str) -> Steps:
        if not room.startswith(USER_ROOM):
            yield Leave(room)
            who = Identity.unpack(session.data)
            if self._is_own_user_room(who, room):
                yield Join(USER_ROOM + who.user)
            if self._rules.typing_requires_join:
                who.joined -= {room}
                yield SetSession(who.pack())
        yield Reply(orjson.dumps({"type": "left", "room": room}))

    def _is_own_user_room(self, who: Identity, room: str) -> bool:
        return self._rules.join_policy != "open" and room == f"user:{who.user}"

    def _on_typing(self, session: Session, who: Identity, room: str) -> Steps:
        if self._rules.typing_requires_join and room not in who.joined:
            yield Reply(ROOM_FORBIDDEN)
            return
        typing = {
            "type": "typing",
            "room": room,
            "payload": {"user_id": who.user, "type": who.kind},
            "timestamp": self._stamp_at(session.now),
        }
        yield Publish(room, orjson.dumps(typing), exclude=session.conn, all_nodes=True)

    def _on_unknown(self, session: Session, kind: str, room: str, payload: Any) -> Steps:
        """To the backends. An event comes back to the room it names, so the join policy holds here too."""
        who = Identity.unpack(session.data)
        if kind in SERVER_TYPES or (room and not (ROOM_NAME.fullmatch(room) and self._admits(who, room))):
            yield Count("publish_refused")
            return
        event = {"type": kind, "room": room, "user_id": who.user}
        if who.brand:
            event["brand_id"] = who.brand
        event |= {"payload": payload, "timestamp": self._stamp_at(session.now), "exclude_conn_id": session.uuid}
        try:
            yield ToBus(f"{who.subject or 'chat'}.events", orjson.dumps(event))
        except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
            yield Count("bad_json")

    def bus_rule(self) -> BusRule:
        rooms = (USER_ROOM,) if self._rules.join_policy == "open" else ("user:", USER_ROOM)
        return BusRule(room="room", user="user_id", exclude="exclude_conn_id", user_rooms=rooms)

    def on_bus(self, message: BusMessage) -> Iterable[Action]:
        """The publisher's bytes go out unchanged: they were parsed, so they are one JSON object in UTF-8."""
        try:
            event = orjson.loads(message.data)
            room, user = event.get("room") or "", event.get("user_id") or ""
            exclude = event.get("exclude_conn_id") or None
        except (ValueError, AttributeError):
            return (Count("nats_decode", detail=message.subject),)
        if type(user) is int:
            user = str(user)
        if type(room) is not str or type(user) is not str or not (exclude is None or type(exclude) is str):
            return (Count("nats_decode", detail=message.subject),)
        if room:
            return (Publish(room, message.data, exclude),)
        if user:
            return self._to_user(user, message.data, exclude)
        return (Count("no_target", detail=message.subject),)

    def _to_user(self, user: str, data: bytes, exclude: str | None) -> Iterable[Action]:
        """To all connections of a user; each is in exactly one of these rooms."""
        hidden = Publish(USER_ROOM + user, data, exclude)
        if self._rules.join_policy == "open":
            return (hidden,)
        return (Publish(f"user:{user}", data, exclude), hidden)

    def on_close(self, session: Session, code: int) -> Steps:
        """Nobody is told."""
        yield from ()

    def welcome(self, health: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `/` and `/health` say. The original claims `ok` whatever happens; here it is what is so."""
        bus = "ok" if health.get("ready") else "down"
        return {
            "architecture": "stateless websocket gateway",
            "jetstream": bus,
            "jetstream_info": {"consumers": health.get("consumers", 0), "streams": health.get("streams", 0)},
            "message": "ATTChat gateway is running",
            "nats": bus,
            "status": "healthy" if health.get("ready") else "degraded",
            "version": "2.0",
            "stats": health.get("stats", {}),
            "system": health.get("system", {}),
        }


def _steps(*actions: Action) -> Steps:
    yield from actions


def _is_folder_of(brand: str, room: str) -> bool:
    """`folder:b1:x:all` belongs to the brand `b1:x`, not to `b1`."""
    prefix = f"folder:{brand}:"
    return bool(brand) and room.startswith(prefix) and ":" not in room[len(prefix) :]


def _token_of(upgrade: Upgrade) -> str:
    """Two different tokens are no token: which of them was checked must not depend on who asks."""
    query = upgrade.query.get("token", "")
    scheme, _, rest = upgrade.headers.get("authorization", "").strip().partition(" ")
    bearer = rest.strip() if scheme.lower() == "bearer" else ""
    if query and bearer and query != bearer:
        return ""
    return query or bearer


def _reject_token(upgrade: Upgrade, verified: object) -> Steps:
    if isinstance(verified, Claims):
        yield Count("auth_failure", detail="the token has no usable user_id")
    elif verified is None:
        yield Count("auth_failure", detail="no token, or two different ones")
    yield _rejection("AUTH_FAILED", "Invalid token", upgrade.now)


def _rejection(code: str, message: str, now: float) -> Admit:
    """The socket is upgraded even so: browsers hide the status of a refused upgrade from the page."""
    stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    frame = _frame("error", {"code": code, "message": message}, stamp)
    return Admit(b"", texts=[frame], close=(1008, code))


def _shown(upgrade: Upgrade, claims: Mapping[str, Any], user: str) -> dict[str, str]:
    """The payload of `connected`: every value a string, claims before the query."""
    query = upgrade.query
    shown = {**NOTHING_SHOWN, "conn_id": upgrade.uuid, "user_id": user, "room_id": query.get("room_id", "")}
    for key, claim in SHOWN_CLAIMS:
        if claim in claims or key in query:
            shown[key] = _id(claims.get(claim)) or _id(query.get(key))
    for key in SHOWN_QUERY:
        if key in query:
            shown[key] = _id(query[key])
    return shown


def _user_id(claim: object) -> str:
    """A string, or the integer of the newer generation; `""` for what identifies nobody."""
    if type(claim) is int and claim != 0 and claim.bit_length() <= 64:
        return str(claim)
    return _id(claim)


def _id(value: object) -> str:
    """Junk in an optional field is no reason to refuse a client: it counts as absent."""
    if isinstance(value, str) and len(value) <= ID_CHARS_MAX and value.isprintable():
        return value
    return ""


def _claim_rooms(claim: object) -> list[str]:
    names = claim[:CLAIM_ROOMS_MAX] if isinstance(claim, list) else []
    return [name for name in names if isinstance(name, str) and ROOM_NAME.fullmatch(name)]


def _subject(query_type: str, user_type: str) -> str:
    """A client chooses one token of a subject, never a subject."""
    chosen = (query_type or user_type).lower()
    return chosen if SUBJECT_TOKEN.fullmatch(chosen) else "chat"


def _frame(kind: str, payload: Mapping[str, str], stamp: str) -> bytes:
    return orjson.dumps({"type": kind, "payload": payload, "timestamp": stamp})


def _seconds(now: float) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def build(settings: Any) -> AttchatGateway:
    return AttchatGateway(
        Rules(
            join_policy=settings.rooms.join_policy,
            typing_requires_join=settings.rooms.typing_requires_join,
            publish_unknown=settings.nats.publish_unknown,
            allowed_origins=frozenset(settings.ws.allowed_origins),
        )
    )


PROFILE = ProfileSpec(
    name="attchat-gateway",
    summary="JSON frames with type and room, JWT in the URL, events from NATS JetStream",
    ws_paths=("/ws",),
    headers=("authorization", "origin"),
    env_prefix="GATEWAY_",
    env_names={"LOG_LEVEL": "log.level", "APP_ENV": "log.production", "GATEWAY_NODE_ID": "node_id"},
    defaults={},
    bus="nats.url",
    needs_token=True,
    metrics=MetricNames(
        connections_current="gateway_connections_current",
        connections_total="gateway_connections_total",
        rooms="gateway_rooms_total",
        messages_received="gateway_messages_received_total",
        messages_sent="gateway_messages_sent_total",
        messages_from_bus="gateway_messages_from_nats_total",
        auth_success="gateway_auth_success_total",
        auth_failure="gateway_auth_failure_total",
        latency="gateway_message_latency_seconds",
        latency_buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
        errors="gateway_errors_total",
    ),
    build=build,
)
