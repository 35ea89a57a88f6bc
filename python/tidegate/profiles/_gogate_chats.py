"""Which chat a message belongs to, and what nodes tell each other: what gogate remembers beside sessions.

Reactions and read receipts name messages, not chats. A backend's answer may say the chat; else the newest messages that
passed through any node are known here. Rule: everything is bounded, and forgetting costs a broadcast, never an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import orjson

from tidegate.calls import HttpAnswer
from tidegate.profiles._gogate_backend import json_object

# The contract's figure; some 100 MB when full
MESSAGES_MAX = 1_000_000
# Events of other nodes that may come twice: a repeated publish follows within five seconds, and more than this come in
# none of them
NEWS_MAX = 65_536
NAMESPACE = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")  # OIDs: RFC 9562 section 6.6
VERSION = 1


class Chats:
    """Message id -> chat id, of the newest messages."""

    def __init__(self, messages_max: int = MESSAGES_MAX) -> None:
        self._chats: dict[int, int] = {}
        self._messages_max = messages_max

    def of(self, message: int) -> int | None:
        return self._chats.get(message)

    def named_by(self, answer: HttpAnswer | None) -> int | None:
        return None if answer is None else _chat_in(json_object(answer.body))

    def grouped(self, messages: Sequence[int]) -> dict[int | None, list[int]]:
        groups: dict[int | None, list[int]] = {}
        for message in messages:
            groups.setdefault(self.of(message), []).append(message)
        return groups or {None: []}

    def learn_message(self, body: bytes, chat: int) -> None:
        """What the backend made of a message that was sent to `chat`."""
        self._learn(json_object(body), chat)

    def learn_frame(self, frame: bytes, chat: int) -> None:
        """A broadcast of another node: how nodes share what they know."""
        if frame.startswith(b'{"event":"new_message"'):
            data = json_object(frame).get("data")
            self._learn(data if isinstance(data, dict) else {}, chat)

    def _learn(self, message: dict[str, Any], chat: int) -> None:
        number, named = message.get("id"), _chat_in(message)
        if type(number) is not int:
            return
        if len(self._chats) >= self._messages_max and number not in self._chats:
            del self._chats[next(iter(self._chats))]
        self._chats[number] = chat if named is None else named


def _chat_in(said: dict[str, Any]) -> int | None:
    return next((said[name] for name in ("chat_id", "chatId") if type(said.get(name)) is int), None)


@dataclass(slots=True)
class Mail:
    """A broadcast as another node wrote it."""

    frame: bytes
    chat: int
    users: list[int]
    exclude: int | None
    is_news: bool  # false for our own and for what came before


class NodeMail:
    """The envelope of the contract's section 9, both ways."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._sent = 0
        self._seen: dict[str, None] = {}

    def pack(self, frame: bytes, chat: int, users: Sequence[int], exclude: int | None, now: float) -> bytes:
        """The id is made of what never repeats: the node, the time and a counter."""
        self._sent += 1
        event_id = str(uuid5(NAMESPACE, f"{self._node} {now!r} {self._sent}"))
        envelope = {"v": VERSION, "node": self._node, "event_id": event_id, "chat_id": chat, "users": users}
        return orjson.dumps(envelope | {"exclude_user_id": exclude, "frame": frame.decode()})

    def unpack(self, data: bytes, now: float) -> Mail | None:
        """None for what no node of ours wrote."""
        said = json_object(data)
        node, event_id, frame = said.get("node"), said.get("event_id"), said.get("frame")
        users, exclude = said.get("users"), said.get("exclude_user_id")
        chat = said.get("chat_id")
        if said.get("v") != VERSION or type(chat) is not int or not isinstance(users, list):
            return None
        if not (isinstance(node, str) and isinstance(event_id, str) and isinstance(frame, str)):
            return None
        if not all(type(user) is int for user in (*users, 0 if exclude is None else exclude)):
            return None
        return Mail(frame.encode(), chat, users, exclude, node != self._node and self._is_news(event_id))

    def _is_news(self, event_id: str) -> bool:
        if event_id in self._seen:
            return False
        if len(self._seen) >= NEWS_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[event_id] = None
        return True
