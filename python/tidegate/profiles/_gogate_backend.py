"""What gogate asks its REST backend, and how the answers are read.

Original and published backend disagree on names, so requests have three styles and users are read in all of theirs.
Rule: the internal key goes out with calls 1 and 2 only, a user's token with 3 to 5 only; neither is ever in an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from tidegate.calls import HttpAnswer, HttpRequest

# A reason goes to a client in one frame: what a backend means to say fits; a page of HTML does not
REASON_CHARS_MAX = 500
UNAVAILABLE = "backend unavailable"
NAMES_OF_ID = ("user_id", "userId", "id")
NAMES_OF_NAME = ("name", "full_name", "fullName")
# Separates the fields of a session; no field may hold it
FIELD = "\x1f"


@dataclass(slots=True)
class User:
    """As the backend knows somebody."""

    user_id: int
    name: str
    phone: str

    def pack(self, token: str) -> bytes:
        """What the connection's session keeps."""
        return FIELD.join((str(self.user_id), self.name.replace(FIELD, " "), token)).encode("utf-8", "replace")


@dataclass(slots=True)
class Identity:
    """Who is on a connection, as its session carries it."""

    user_id: int
    name: str
    token: str

    @classmethod
    def unpack(cls, session: bytes) -> "Identity":
        user_id, name, token = session.decode().split(FIELD)
        return cls(int(user_id), name, token)


class BackendCalls:
    """The five requests of the contract's section 7."""

    def __init__(self, backend: Any) -> None:
        self._internal = {"X-Internal-API-Key": backend.key.get_secret_value()}
        self._camel = backend.body_style in ("camel", "both")
        self._snake = backend.body_style in ("snake", "both")
        self._shared_s = backend.members_cache_ttl

    def validate(self, token: str) -> HttpRequest:
        return HttpRequest("POST", "/api/internal/v1/auth/validate", self._internal, orjson.dumps({"token": token}))

    def members(self, chat: int) -> HttpRequest:
        path = f"/api/internal/v1/chats/{chat}/members"
        return HttpRequest("GET", path, self._internal, shared_s=self._shared_s)

    def send(
        self, token: str, chat: int, text: str, reply_to: int | None, attachments: Sequence[int] | None
    ) -> HttpRequest:
        camel = {"chatId": chat, "text": text, "replyToId": reply_to, "attachmentIds": attachments}
        snake = {"chat_id": chat, "content": text, "reply_to_id": reply_to, "attachment_ids": attachments or []}
        return HttpRequest("POST", "/api/v1/messages", _bearer(token), self._styled(camel, snake))

    def react(self, token: str, message: int, emoji: str) -> HttpRequest:
        path = f"/api/v1/messages/{quote(str(message))}/reactions"
        return HttpRequest("POST", path, _bearer(token), orjson.dumps({"emoji": emoji}))

    def read(self, token: str, messages: Sequence[int] | None) -> HttpRequest:
        body = self._styled({"messageIds": messages}, {"message_ids": messages or []})
        return HttpRequest("POST", "/api/v1/messages/read", _bearer(token), body)

    def _styled(self, camel: dict[str, Any], snake: dict[str, Any]) -> bytes:
        return orjson.dumps((camel if self._camel else {}) | (snake if self._snake else {}))


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def json_object(data: bytes) -> dict[str, Any]:
    """Empty for what is none."""
    try:
        value = orjson.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def reason_of(answer: HttpAnswer | None, *, own: bool = False) -> str:
    """What a client is told. `own` = for the log, which gets no words of others."""
    if answer is None:
        return UNAVAILABLE
    said = json_object(answer.body)
    for name in () if own else ("error", "message"):
        if isinstance(said.get(name), str) and said[name]:
            return str(said[name])[:REASON_CHARS_MAX]
    return f"status {answer.status}"


def user_of(answer: HttpAnswer | None) -> User | str:
    """Who a token belongs to, or why it is refused."""
    if answer is None or answer.status != 200:
        return reason_of(answer)
    said = json_object(answer.body)
    found = said.get("user")
    user = found if isinstance(found, dict) else {}
    user_id = _id_of(user)
    if said.get("valid") is not True or user_id is None:
        reason = reason_of(answer)
        return "Invalid token" if reason == "status 200" else reason
    return User(user_id, _name_of(user), _text(user.get("phone")))


def member_ids(answer: HttpAnswer | None) -> list[int] | None:
    """Each member once; None if the backend did not say."""
    members = json_object(answer.body).get("members") if answer is not None and answer.status == 200 else None
    if not isinstance(members, list):
        return None
    return list(dict.fromkeys(user_id for member in members if (user_id := _id_of(member)) is not None))


def _id_of(user: object) -> int | None:
    """The first of the names under which backends have it."""
    if not isinstance(user, Mapping):
        return None
    return next((user[name] for name in NAMES_OF_ID if type(user.get(name)) is int), None)


def _name_of(user: Mapping[str, Any]) -> str:
    for name in NAMES_OF_NAME:
        if text := _text(user.get(name)):
            return text
    return f"{_text(user.get('first_name'))} {_text(user.get('last_name'))}".strip()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
