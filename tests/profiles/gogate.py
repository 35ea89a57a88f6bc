"""What tests of the gogate profile share: settings, sessions, a backend that is a dict, steps run to their end."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import orjson
from pydantic import SecretStr
from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import UpstreamError
from tidegate.profile import Action, Add, Call, Identify, PublishRooms, Reply, Session, SetSession, Steps
from tidegate.profiles.gogate import Gogate

NOW = 1_765_506_605.25
JANE = b"2\x1fJane Smith\x1ftoken-of-jane"
MESSAGE = b'{"id":124,"chat_id":1,"user":{"id":2,"name":"Jane Smith"},"text":"Hello back!","reply_to":null}'


def settings(**changed: Any) -> Any:
    """As `config` gives them: `body_style="snake"`, `redis="redis://x"`, ..."""
    style, ttl = changed.pop("body_style", "camel"), changed.pop("ttl", 2.0)
    key = SecretStr("internal-key")
    return SimpleNamespace(
        backend=SimpleNamespace(key=key, body_style=style, members_cache_ttl=ttl),
        redis=SimpleNamespace(url=changed.pop("redis", "")),
        ws=SimpleNamespace(
            allowed_origins=changed.pop("origins", ()), message_rate_per_user=changed.pop("user_rate", 0)
        ),
        node_id=changed.pop("node", "n1"),
    )


def profile(**changed: Any) -> Gogate:
    return Gogate(settings(**changed))


def session(data: bytes = JANE, conn: int = 1, now: float = NOW) -> Session:
    return Session(conn, data, now, lambda of: f"uuid-{of}")


def answer(status: int = 200, body: object = None) -> HttpAnswer:
    return HttpAnswer(status, body if isinstance(body, bytes) else orjson.dumps(body))


def members(*ids: object) -> HttpAnswer:
    return answer(200, {"chat_id": 1, "members": [one if isinstance(one, dict) else {"user_id": one} for one in ids]})


class Run:
    """The steps of one event, carried out: `backend` answers each call by its word."""

    def __init__(self, steps: Steps, backend: Mapping[str, HttpAnswer | None] | None = None, *, has_room: bool = True):
        self.actions: list[Action] = []
        self.calls: list[tuple[str, HttpRequest]] = []
        self._backend, self._has_room = backend or {}, has_room
        self._carry_out(steps)

    def _carry_out(self, steps: Steps) -> None:
        reply: Any = None
        failed = False
        while True:
            try:
                action = steps.throw(UpstreamError("backend unavailable")) if failed else steps.send(reply)
            except StopIteration:
                return
            reply, failed = None, False
            if isinstance(action, Call):
                self.calls.append((action.method, action.payload))
                reply = self._backend[action.method]
                failed = reply is None
            elif isinstance(action, Identify):
                reply = self._has_room
                self.actions.append(action)
            else:
                self.actions.append(action)

    @property
    def asked(self) -> list[str]:
        return [method for method, _ in self.calls]

    @property
    def replies(self) -> list[Any]:
        return [orjson.loads(action.payload) for action in self.actions if isinstance(action, Reply)]

    @property
    def published(self) -> list[tuple[list[str], Any]]:
        """Rooms and frame of each broadcast."""
        return [(list(a.rooms), orjson.loads(a.payload)) for a in self.actions if isinstance(a, PublishRooms)]

    @property
    def error(self) -> tuple[str, str]:
        (reply,) = self.replies
        assert reply["event"] == "error"
        return reply["data"]["message"], reply["data"]["code"]

    @property
    def session(self) -> bytes:
        (made,) = (action.data for action in self.actions if isinstance(action, SetSession))
        return made

    def counted(self, family: str) -> list[str]:
        return [action.label for action in self.actions if isinstance(action, Add) and action.family == family]


def said(
    event: str,
    data: object = None,
    *,
    backend: Mapping[str, HttpAnswer | None] | None = None,
    to: Gogate | None = None,
    by: bytes = JANE,
    now: float = NOW,
    has_room: bool = True,
) -> Run:
    """A client sends an event."""
    frame = orjson.dumps({"event": event} if data is None else {"event": event, "data": data})
    return Run((to or profile()).on_message(session(by, now=now), frame, True), backend, has_room=has_room)
