"""Drop-in for gogate: JSON frames with `event` and `data`, log-in by a message, and a REST backend that decides.

The backend knows tokens, members and messages; the gateway asks it, in the order in which a client asked, and carries
the answer to everybody who may have it. Where the original kept silent or lost something, contracts/gogate.md says what
is done instead; docs/profiles.md lists it.
Rule: what a client, a backend or another node sends may be anything at all; none of it raises here.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import UpstreamError
from tidegate.origins import Origins
from tidegate.profile import (
    Action,
    Add,
    Admit,
    BackendMetrics,
    BusMessage,
    Call,
    Close,
    Count,
    Family,
    Identify,
    Join,
    Leave,
    Notices,
    ProfileSpec,
    PublishRooms,
    Refuse,
    Reply,
    Session,
    SetSession,
    Steps,
    ToNodes,
    Upgrade,
)
from tidegate.profiles._gogate_backend import BackendCalls, Identity, member_ids, reason_of, user_of
from tidegate.profiles._gogate_chats import Chats, NodeMail
from tidegate.profiles._gogate_environment import read_environment
from tidegate.profiles._gogate_frames import (
    INVALID_DATA,
    BadDataError,
    error_frame,
    event_frame,
    message_frame,
    parse,
    read_flag,
    read_id,
    read_ids,
    read_optional_id,
    read_text,
)
from tidegate.rates import Rates

# What may be sent; other names come from clients and are no label
EVENTS = ("auth", "send_message", "typing", "add_reaction", "mark_read")
# A token goes into a header of each request: what HTTP servers take there is 8 KiB, and each connection keeps its own
TOKEN_BYTES_MAX = 4096
# A user's events may come at once as often as two seconds allow, as on one connection
BURST_S = 2

Answer: TypeAlias = Generator[Action, Any, HttpAnswer | None]
Chat: TypeAlias = Generator[Action, Any, int | None]


class Gogate:
    """The decisions of the protocol."""

    def __init__(self, settings: Any) -> None:
        self._origins = Origins(settings.ws.allowed_origins)
        self._backend = BackendCalls(settings.backend)
        rate = settings.ws.message_rate_per_user
        self._rates = Rates(rate, BURST_S * rate)
        self._chats = Chats()
        self._mail = NodeMail(settings.node_id) if settings.redis.url else None
        self._handlers = {
            "send_message": self._on_send_message,
            "typing": self._on_typing,
            "add_reaction": self._on_add_reaction,
            "mark_read": self._on_mark_read,
        }

    def on_open(self, upgrade: Upgrade) -> Steps:
        if self._origins.allows(upgrade.headers.get("origin", "")):
            yield Admit(b"")
        else:
            yield Refuse(403, b'{"error":"origin_not_allowed"}')

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps:
        """Binary frames that hold JSON count like text, as in the original."""
        frame = parse(payload)
        if frame is None:
            yield from _error("Invalid message format", "INVALID_FORMAT")
            return
        event, data = frame
        yield Add("gogate_events_received_total", event if event in EVENTS else "unknown")
        if event == "auth":
            yield from self._on_auth(session, data)
        elif not session.data:
            yield from _error("Authentication required", "AUTH_REQUIRED")
        else:
            yield from self._on_event(session, event, data)

    def _on_event(self, session: Session, event: str, data: object) -> Steps:
        who, handler = Identity.unpack(session.data), self._handlers.get(event)
        if not self._rates.take(who.user_id, session.now):
            yield Add("gogate_rate_limited_total", "user")
            yield from _error("Rate limit exceeded", "RATE_LIMITED")
            return
        if handler is None:
            yield from _error("Unknown event type", "UNKNOWN_EVENT")
            return
        try:
            yield from handler(session, who, data if isinstance(data, dict) else _bad())
        except BadDataError:
            yield from _error(INVALID_DATA[event], "INVALID_DATA")

    def on_overdue(self, session: Session) -> Steps:
        if not session.data:
            yield from _error("Authentication timeout", "AUTH_TIMEOUT")
            yield Close(4401, "authentication timeout")

    def on_close(self, session: Session, code: int) -> Steps:
        """Nobody is told."""
        yield from ()

    def on_bus(self, message: BusMessage) -> Iterable[Action]:
        return ()

    # --- log-in ------------------------------------------------------------------------------------------------------

    def _on_auth(self, session: Session, data: object) -> Steps:
        token = (data.get("token") or "") if isinstance(data, dict) else None
        if not isinstance(token, str):
            yield from _error("Invalid auth data", "INVALID_AUTH")
        elif not token:
            yield from _error("Token is required", "INVALID_AUTH")
        elif not (token.isascii() and token.isprintable() and len(token) <= TOKEN_BYTES_MAX):
            # no token that a header could carry: the backend need not be asked
            yield from _auth_failed("Invalid token")
        else:
            yield from self._validate(session, token)

    def _validate(self, session: Session, token: str) -> Steps:
        answer = yield from _ask("auth", self._backend.validate(token))
        user = user_of(answer)
        if isinstance(user, str):
            yield from _auth_failed(user)
            return
        before = Identity.unpack(session.data) if session.data else None
        is_new = before is None or before.user_id != user.user_id
        if is_new and not (yield Identify(str(user.user_id))):
            yield from _error("Too many connections", "TOO_MANY_CONNECTIONS")
            yield Close(4429, "too many connections")
            return
        if before is not None and is_new:
            yield Leave(_room(before.user_id))
        yield SetSession(user.pack(token))
        yield Join(_room(user.user_id))
        yield Add("gogate_auth_total", "success")
        yield from _reply("auth_success", {"user_id": user.user_id, "name": user.name, "phone": user.phone})

    # --- events ------------------------------------------------------------------------------------------------------

    def _on_send_message(self, session: Session, who: Identity, data: dict[str, Any]) -> Steps:
        chat, text = read_id(data, "chat_id"), read_text(data, "text")
        reply_to, attachments = read_optional_id(data, "reply_to_id"), read_ids(data, "attachment_ids")
        if chat <= 0:
            yield from _error("Invalid chat_id", "INVALID_CHAT")
            return
        answer = yield from _ask("send", self._backend.send(who.token, chat, text, reply_to, attachments))
        frame = message_frame(answer) if _is_status(answer, 200, 201) else None
        if answer is None or frame is None:
            yield from _error(f"Failed to send message: {reason_of(answer)}", "SEND_FAILED")
            return
        self._chats.learn_message(answer.body, chat)
        yield from self._broadcast(session, "new_message", frame, chat)

    def _on_typing(self, session: Session, who: Identity, data: dict[str, Any]) -> Steps:
        chat, is_typing = read_id(data, "chat_id"), read_flag(data, "is_typing")
        members = yield from self._members(chat)
        if who.user_id not in members:
            yield Add("gogate_events_dropped_total", "not_a_member")
            return
        typing = {"chat_id": chat, "user_id": who.user_id, "name": who.name, "is_typing": is_typing}
        frame = event_frame("user_typing", typing)
        yield from self._deliver(session, "user_typing", frame, chat=chat, members=members, exclude=who.user_id)

    def _on_add_reaction(self, session: Session, who: Identity, data: dict[str, Any]) -> Steps:
        message, emoji = read_id(data, "message_id"), read_text(data, "emoji")
        named = read_optional_id(data, "chat_id")
        answer = yield from _ask("react", self._backend.react(who.token, message, emoji))
        if not _is_status(answer, 200, 201):
            yield from _error(f"Failed to add reaction: {reason_of(answer)}", "REACTION_FAILED")
            return
        chat = yield from self._chat_of_all(answer, who, named)
        if chat is None:
            chat = self._chats.of(message)
        reaction = {"message_id": message, "user_id": who.user_id, "name": who.name, "emoji": emoji}
        yield from self._to_chat_or_self(session, "new_reaction", reaction, chat)

    def _on_mark_read(self, session: Session, who: Identity, data: dict[str, Any]) -> Steps:
        messages, named = read_ids(data, "message_ids"), read_optional_id(data, "chat_id")
        answer = yield from _ask("read", self._backend.read(who.token, messages))
        if not _is_status(answer, 200):
            yield from _error(f"Failed to mark as read: {reason_of(answer)}", "READ_FAILED")
            return
        chat = yield from self._chat_of_all(answer, who, named)
        groups = {chat: messages or []} if chat is not None else self._chats.grouped(messages or [])
        for of, some in groups.items():
            read = {"message_ids": some, "user_id": who.user_id, "name": who.name}
            yield from self._to_chat_or_self(session, "message_read", read, of)

    # --- who gets it -------------------------------------------------------------------------------------------------

    def _chat_of_all(self, answer: HttpAnswer | None, who: Identity, named: int | None) -> Chat:
        """The chat that the backend's answer names, else the one the client names if its user is a member."""
        chat = self._chats.named_by(answer)
        if chat is None and named is not None:
            members = yield from self._members(named)
            chat = named if who.user_id in members else None
        return chat

    def _to_chat_or_self(self, session: Session, event: str, data: Mapping[str, Any], chat: int | None) -> Steps:
        """Without a chat the acting connection alone learns of it, as in the original."""
        if chat is None:
            yield from _reply(event, data)
        else:
            yield from self._broadcast(session, event, event_frame(event, data), chat)

    def _broadcast(self, session: Session, event: str, frame: bytes, chat: int) -> Steps:
        members = yield from self._members(chat)
        yield from self._deliver(session, event, frame, chat=chat, members=members)

    def _members(self, chat: int) -> Generator[Action, Any, list[int]]:
        """Nobody if the backend does not say: logged and counted only, as in the original."""
        answer = yield from _ask("members", self._backend.members(chat))
        members = member_ids(answer)
        if members is None:
            yield Count(
                "members_failed", detail="the backend did not say who is in a chat: " + reason_of(answer, own=True)
            )
        return members or []

    def _deliver(
        self,
        session: Session,
        event: str,
        frame: bytes,
        *,
        chat: int,
        members: Sequence[int],
        exclude: int | None = None,
    ) -> Steps:
        rooms = [_room(user) for user in members if user != exclude]
        if rooms:
            yield Add("gogate_events_sent_total", event)
            yield PublishRooms(rooms, frame)
            if self._mail is not None:
                yield ToNodes(self._mail.pack(frame, chat, members, exclude, session.now))

    def on_node(self, data: bytes, now: float) -> Iterable[Action]:
        """Its own messages come back from Redis too; a publish that was repeated comes twice."""
        mail = self._mail.unpack(data, now) if self._mail is not None else None
        if mail is None:
            return (Count("node_message", detail="what another node sent was not understood"),)
        if not mail.is_news:
            return ()
        self._chats.learn_frame(mail.frame, mail.chat)
        users = [user for user in mail.users if user != mail.exclude]
        return (PublishRooms([_room(user) for user in users], mail.frame),) if users else ()


def _room(user: int) -> str:
    return f"user:{user}"


def _bad() -> dict[str, Any]:
    raise BadDataError


def _ask(call: str, request: HttpRequest) -> Answer:
    """None where no answer came, which the upstream logs."""
    try:
        answer: HttpAnswer = yield Call("backend", call, request)
    except UpstreamError:
        return None
    if answer.status >= 500:
        yield Count("backend_error", detail=f"the backend answered a {call} call with status {answer.status}")
    return answer


def _is_status(answer: HttpAnswer | None, *good: int) -> bool:
    return answer is not None and answer.status in good


def _reply(event: str, data: Mapping[str, Any]) -> Steps:
    yield Add("gogate_events_sent_total", event)
    yield Reply(event_frame(event, data))


def _error(message: str, code: str) -> Steps:
    yield Add("gogate_errors_total", code)
    yield Add("gogate_events_sent_total", "error")
    yield Reply(error_frame(message, code))


def _auth_failed(reason: str) -> Steps:
    yield Add("gogate_auth_total", "failure")
    yield Count("auth_failure", detail="a client's token was not accepted by the backend")
    yield from _error(f"Authentication failed: {reason}", "AUTH_FAILED")


PROFILE = ProfileSpec(
    name="gogate",
    summary="JSON frames with event and data, log-in by a message, a REST backend that decides",
    ws_paths=("/ws",),
    headers=("origin",),
    env_prefix="TIDEGATE_",
    env_names={},
    read_environment=read_environment,
    dotenv=True,
    defaults={
        "server.port": 8080,
        "metrics.shared": True,
        "backend.url": "http://localhost:8000",
        "redis.streams": [],
        "redis.channel": "gogate:broadcast",
        "ws.max_connections": 1_000_000,
        "ws.max_message_size": 512_000,
        "ws.message_rate": 20,
        "ws.message_burst": 40,
        "ws.message_rate_per_user": 50,
        "ws.auth_timeout": "10s",
        "ws.ping_interval": "54s",
        "ws.pong_timeout": "6s",
        "ws.unanswered_pings": 1,
        "ws.outbox_policy": "drop",
    },
    bus="redis.url",
    upstreams={"backend": "backend.url"},
    needs_token=False,
    required={"backend.key": "INTERNAL_API_KEY"},
    metrics=None,
    build=Gogate,
    families=(
        Family("gogate_connections", "Open connections.", engine={"": "connections_now"}),
        Family("gogate_users_online", "Users with a connection.", engine={"": "rooms_now"}),
        Family("gogate_connections_total", "Connections accepted.", engine={"": "connections"}),
        Family("gogate_auth_total", "Log-ins, by result.", "result", known=("success", "failure")),
        Family("gogate_events_received_total", "Events from clients.", "event", known=(*EVENTS, "unknown")),
        Family("gogate_events_sent_total", "Events to clients; one for many recipients counts once.", "event"),
        Family(
            "gogate_events_dropped_total",
            "Events that somebody did not get, by reason.",
            "reason",
            engine={"queue_full": "refused.queue_full"},
            known=("not_a_member",),
        ),
        Family("gogate_errors_total", "Errors sent, by code.", "code", engine={"RATE_LIMITED": "refused.message_rate"}),
        Family(
            "gogate_rate_limited_total",
            "Events refused, by limit.",
            "scope",
            ("user",),
            {"connection": "refused.message_rate"},
        ),
    ),
    backend_metrics=BackendMetrics(
        requests="gogate_backend_requests_total",
        seconds="gogate_backend_request_seconds",
        lookups="gogate_members_cache_total",
        published="gogate_redis_published_total",
        received="gogate_redis_received_total",
    ),
    notices=(Notices(excess=error_frame("Rate limit exceeded", "RATE_LIMITED")),),
    pages={
        "/health": ("application/json", b'{"status":"ok","service":"gogate"}'),
        "/": ("text/plain; charset=utf-8", b"gogate\n\nWebSocket: /ws\nHealth: /health\n"),
    },
    upgrade_required=400,
)
