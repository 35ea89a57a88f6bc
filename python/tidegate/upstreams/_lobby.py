"""A small chat that answers the five requests of the gogate contract's section 7: one chat for all, kept in memory.

For first runs and demos: whoever names himself is let in, so there is nothing to set up. Shapes and statuses are those
of the published backend. Rules: the time is an argument and there is no I/O; members and messages are bounded, the
oldest go first. A message is kept to be replied and reacted to; nobody can ask for one, so no more is kept of it.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import orjson

from tidegate.calls import HttpAnswer, HttpRequest

CHAT = 1
# As many connections as a gateway takes by default
MEMBERS_MAX = 10_000
# What a demo shows on its screen many times over; with the longest texts 40 MB
MESSAGES_MAX = 1_000
# The published backend's limits
TEXT_CHARS_MAX = 10_000
EMOJI_CHARS_MAX = 20
READ_MAX = 100
ATTACHMENTS_MAX = 100
NAME_CHARS_MAX = 64

Fields: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Person:
    """A token is a name, so it says all about its bearer."""

    name: str

    @property
    def id(self) -> int:
        """The same at each start; 48 bits, so that two of 10,000 names share one in a run of five million."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:6], "big") + 1

    def brief(self) -> Fields:
        return {"id": self.id, "name": self.name}

    def full(self) -> Fields:
        first, _, last = self.name.partition(" ")
        return {
            "id": self.id,
            "email": f"user-{self.id}@example.org",
            "phone": f"+1555{self.id % 10**7:07}",
            "first_name": first,
            "last_name": last,
            "full_name": self.name,
            "roles": ["ROLE_USER"],
            "is_active": True,
        }


@dataclass(frozen=True, slots=True)
class Message:
    id: int
    author: Person
    text: str | None

    def quoted(self) -> Fields:
        return {"id": self.id, "user": self.author.brief(), "text": self.text, "type": "text"}


class RefusedError(Exception):
    def __init__(self, status: int, **said: str) -> None:
        super().__init__(status)
        self.answer = _json(status, said)


class Lobby:
    def __init__(self, key: str = "", members_max: int = MEMBERS_MAX, messages_max: int = MESSAGES_MAX) -> None:
        self._key = key.encode()
        self._members_max = members_max
        self._messages_max = messages_max
        self._members: dict[int, bytes] = {}  # as JSON: a large list is asked for often; who came last is last
        self._messages: dict[int, Message] = {}
        self._sent = 0

    def answer(self, request: HttpRequest, now: float) -> HttpAnswer:
        """`now` is in seconds since the epoch."""
        try:
            for verb, path, serve in ROUTES:
                if (found := path.fullmatch(request.path)) is not None:
                    if verb != request.verb:
                        raise RefusedError(405, error="Method not allowed")
                    return serve(self, request, now, *found.groups())
        except RefusedError as refused:
            return refused.answer
        return _json(404, {"error": "Not found"})

    # --- internal: the gateway's key ---------------------------------------------------------------------------------

    def _validate(self, request: HttpRequest, _now: float) -> HttpAnswer:
        self._check_key(request)
        token = _object(request).get("token")
        if not token:
            raise RefusedError(400, error="Token required")
        person = _person(token)
        if person is None:
            raise RefusedError(401, error="Invalid token")
        user = person.full()
        self._members.pop(person.id, None)
        self._members[person.id] = orjson.dumps(user)
        if len(self._members) > self._members_max:
            del self._members[next(iter(self._members))]
        return _json(200, {"valid": True, "user": user})

    def _list_members(self, request: HttpRequest, _now: float, chat: str) -> HttpAnswer:
        self._check_key(request)
        _check_chat(int(chat))
        return HttpAnswer(200, b'{"chat_id":%d,"members":[%b]}' % (CHAT, b",".join(self._members.values())))

    def _check_key(self, request: HttpRequest) -> None:
        if self._key and not hmac.compare_digest(_header(request, "X-Internal-API-Key").encode(), self._key):
            raise RefusedError(401, error="Invalid API key")

    # --- the user's: a bearer token ----------------------------------------------------------------------------------

    def _send(self, request: HttpRequest, now: float) -> HttpAnswer:
        author, said = _bearer(request), _object(request)
        _check_chat(_either(said, "chatId", "chat_id"))
        text, attachments = _content(said)
        replied = self._replied(_either(said, "replyToId", "reply_to_id"))
        return _json(201, _shown(self._keep(author, text), replied, attachments, now))

    def _keep(self, author: Person, text: str | None) -> Message:
        self._sent += 1
        message = self._messages[self._sent] = Message(self._sent, author, text)
        if len(self._messages) > self._messages_max:
            del self._messages[next(iter(self._messages))]
        return message

    def _replied(self, number: object) -> Message | None:
        if number is None:
            return None
        if type(number) is not int:
            raise RefusedError(422, message="reply_to_id must be an integer")
        return self._message(number)

    def _message(self, number: int) -> Message:
        if (message := self._messages.get(number)) is None:
            raise RefusedError(404, error="Message not found")
        return message

    def _react(self, request: HttpRequest, _now: float, number: str) -> HttpAnswer:
        _bearer(request)
        emoji = _object(request).get("emoji")
        if not (isinstance(emoji, str) and 1 <= len(emoji) <= EMOJI_CHARS_MAX):
            raise RefusedError(422, message=f"emoji must have 1 to {EMOJI_CHARS_MAX} characters")
        self._message(int(number))
        # the published backend does not say the chat; the contract lets one that does
        return _json(200, {"success": True, "message": "Reaction added successfully", "chat_id": CHAT})

    def _read(self, request: HttpRequest, _now: float) -> HttpAnswer:
        _bearer(request)
        numbers = _either(_object(request), "messageIds", "message_ids")
        if not numbers or not _are_ids(numbers, READ_MAX):
            raise RefusedError(422, message=f"message_ids must be 1 to {READ_MAX} integers")
        return _json(200, {"success": True, "message": "Messages marked as read", "chat_id": CHAT})


def _json(status: int, value: object) -> HttpAnswer:
    return HttpAnswer(status, orjson.dumps(value))


def _header(request: HttpRequest, name: str) -> str:
    return next((value for key, value in request.headers.items() if key.lower() == name.lower()), "")


def _object(request: HttpRequest) -> Fields:
    try:
        said = orjson.loads(request.body or b"")
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict):
        raise RefusedError(400, error="Invalid JSON")
    return said


def _person(token: object) -> Person | None:
    """Who calls himself something bad shows what a refused client looks like."""
    if not isinstance(token, str) or not 1 <= len(token) <= NAME_CHARS_MAX:
        return None
    return Person(token) if token.isprintable() and token.strip() and not token.startswith("bad") else None


def _bearer(request: HttpRequest) -> Person:
    scheme, _, token = _header(request, "Authorization").partition(" ")
    if scheme != "Bearer" or not token:
        raise RefusedError(401, message="Authentication required")
    if (person := _person(token)) is None:
        raise RefusedError(401, error="Invalid token")
    return person


def _either(said: Mapping[str, Any], camel: str, snake: str) -> Any:
    return said.get(snake) if said.get(camel) is None else said[camel]


def _are_ids(values: object, most: int) -> bool:
    return isinstance(values, list) and len(values) <= most and all(type(value) is int for value in values)


def _content(said: Fields) -> tuple[str | None, list[int]]:
    text = _either(said, "text", "content")
    attachments = _either(said, "attachmentIds", "attachment_ids") or []
    if text is not None and not (isinstance(text, str) and len(text) <= TEXT_CHARS_MAX):
        raise RefusedError(422, message=f"text must be a string of at most {TEXT_CHARS_MAX} characters")
    if not _are_ids(attachments, ATTACHMENTS_MAX):
        raise RefusedError(422, message=f"attachment_ids must be at most {ATTACHMENTS_MAX} integers")
    if not text and not attachments:
        raise RefusedError(422, message="a message needs text or attachments")
    return text, attachments


def _check_chat(chat: object) -> None:
    if type(chat) is not int or chat < 1:
        raise RefusedError(422, message="chat_id must be a positive integer")
    if chat != CHAT:
        raise RefusedError(404, error=f"Chat not found: chat {CHAT} is the only one here")


def _shown(message: Message, replied: Message | None, attachments: list[int], now: float) -> Fields:
    """As a new message looks: nobody has reacted to it or read it."""
    author = message.author
    return {
        "id": message.id,
        "chat_id": CHAT,
        "user": author.brief() | {"phone": author.full()["phone"]},
        "type": "text",
        "text": message.text,
        "reply_to": replied.quoted() if replied else None,
        "attachments": [{"id": number} for number in attachments],
        "reactions": [],
        "read_count": 0,
        "mentions": None,
        "created_at": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "edited_at": None,
        "is_edited": False,
    }


Route: TypeAlias = tuple[str, re.Pattern[str], Callable[..., HttpAnswer]]
# Ids of at most 18 digits: more fit no backend's integers
ROUTES: tuple[Route, ...] = (
    ("POST", re.compile("/api/internal/v1/auth/validate"), Lobby._validate),
    ("GET", re.compile("/api/internal/v1/chats/([0-9]{1,18})/members"), Lobby._list_members),
    ("POST", re.compile("/api/v1/messages"), Lobby._send),
    ("POST", re.compile("/api/v1/messages/([0-9]{1,18})/reactions"), Lobby._react),
    ("POST", re.compile("/api/v1/messages/read"), Lobby._read),
)
