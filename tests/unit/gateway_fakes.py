"""Stand-ins for what surrounds the gateway: an engine that records, a bus, and profiles made of one function."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from tidegate._core import CLOSED, MESSAGE, SEND, UPGRADE, Messages, Rule
from tidegate.counters import GatewayCounters
from tidegate.engine import Command, Event
from tidegate.errors import BusError
from tidegate.gateway import Gateway
from tidegate.profile import (
    Action,
    Admit,
    BusMessage,
    BusRule,
    Claims,
    ProfileSpec,
    Rejected,
    Request,
    Session,
    Span,
    Steps,
    Upgrade,
)

GOOD_TOKEN = "good"


def sent(conn: int, payload: bytes, *, text: bool = True, ticket: int = 0) -> Command:
    """A message to a connection, as the engine is told of it."""
    return (SEND, conn, payload, text, ticket)


class FakeEngine:
    """Refuses what the real one refuses, by types."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.commands: list[Command] = []
        self.batches = 0
        self.is_pressed = False
        self.claimed: list[str] = []
        self.full: set[str] = set()  # users who may have no connection more

    def drain(self, limit: int) -> list[Event]:
        taken, self.events = self.events[:limit], self.events[limit:]
        return taken

    def submit(self, commands: Sequence[Command]) -> bool:
        for command in commands:
            if any(isinstance(field, bytearray) for field in command):
                raise TypeError("bytes expected")
        self.commands.extend(commands)
        self.batches += 1
        return self.is_pressed

    def publish(self, messages: Messages, first: int, rule: Rule) -> tuple[int, int, int, bool]:
        raise AssertionError("none of these profiles has a rule")

    def pressed(self) -> bool:
        return self.is_pressed

    def uuid(self, conn: int) -> str:
        return f"uuid-{conn}"

    def claim_user(self, user: str) -> bool:
        if user in self.full:
            return False
        self.claimed.append(user)
        return True

    def taken(self) -> list[Command]:
        commands, self.commands = self.commands, []
        return commands


class FakeBus:
    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.broadcasts: list[bytes] = []
        self.fails = False

    def is_ready(self) -> bool:
        return True

    async def run(self, deliver: Any, receive: Any, offer: Any = None) -> None: ...

    async def publish(self, subject: str, data: bytes) -> None:
        if self.fails:
            raise BusError("not confirmed")
        self.published.append((subject, data))

    def broadcast(self, data: bytes) -> None:
        self.broadcasts.append(data)

    def stats(self) -> dict[str, int]:
        return {}

    async def close(self) -> None: ...


class FakeAuth:
    def verify(self, token: str) -> Claims | Rejected:
        return Claims({"user_id": "7"}) if token == GOOD_TOKEN else Rejected("bad signature")


class Backend:
    """An upstream whose calls wait until the test answers them, by what was asked."""

    def __init__(self) -> None:
        self.calls: dict[object, asyncio.Future[Any]] = {}

    async def __call__(self, _method: str, payload: Any) -> Any:
        self.calls[payload] = asyncio.get_running_loop().create_future()
        return await self.calls[payload]


class FakeTracer:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def record(self, span: Span) -> None:
        self.spans.append(span)


class FakeProfile:
    """Each test replaces the methods that it is about."""

    def on_open(self, upgrade: Upgrade) -> Steps:
        yield Admit(b"session")

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps:
        yield from ()

    def on_bus(self, message: BusMessage) -> Iterable[Action]:
        return ()

    def on_close(self, session: Session, code: int) -> Steps:
        yield from ()


SPEC = ProfileSpec(
    name="fake",
    summary="",
    ws_paths=("/ws",),
    headers=("authorization", "origin"),
    env_prefix="",
    env_names={},
    defaults={},
    bus=None,
    needs_token=False,
    metrics=None,
    build=lambda _settings: FakeProfile(),
)


class Bench:
    """A gateway between fakes. What a client does returns the commands that were made of it."""

    def __init__(
        self,
        *,
        on_open: Callable[[Upgrade], Any] | None = None,
        on_message: Callable[[Session, bytes, bool], Any] | None = None,
        on_bus: Callable[[BusMessage], Any] | None = None,
        on_close: Callable[[Session, int], Any] | None = None,
        bus_rule: Callable[[], BusRule] | None = None,
        on_overdue: Callable[[Session], Any] | None = None,
        on_node: Callable[[bytes, float], Any] | None = None,
        on_request: Callable[[Request], Any] | None = None,
        on_record: Callable[[BusMessage], Any] | None = None,
        on_taken: Callable[[int, float], Any] | None = None,
        is_urgent: Callable[[bytes], bool] | None = None,
        engine: FakeEngine | None = None,
        upstreams: dict[str, Callable[[str, Any], Awaitable[Any]]] | None = None,
    ) -> None:
        self.engine, self.bus, self.counters = engine or FakeEngine(), FakeBus(), GatewayCounters()
        self.tracer = FakeTracer()
        profile = FakeProfile()
        replaced = {
            "on_open": on_open,
            "on_message": on_message,
            "on_bus": on_bus,
            "on_close": on_close,
            "bus_rule": bus_rule,
            "on_overdue": on_overdue,
            "on_node": on_node,
            "on_request": on_request,
            "on_record": on_record,
            "on_taken": on_taken,
            "is_urgent": is_urgent,
        }
        for name, method in replaced.items():
            if method is not None:
                setattr(profile, name, method)
        self.gateway = Gateway(
            self.engine,
            SPEC,
            profile,
            auth=FakeAuth(),
            bus=self.bus,
            counters=self.counters,
            upstreams=upstreams,
            tracer=self.tracer,
        )

    def serve(self, *events: Event) -> list[Command]:
        self.engine.events.extend(events)
        self.gateway.pump()
        return self.engine.taken()

    def upgrade(self, target: bytes = b"/ws", headers: tuple[bytes | None, ...] = (None, None)) -> list[Command]:
        return self.serve((UPGRADE, 1, "192.0.2.1", target, headers))

    def message(self, payload: bytes, conn: int = 1, session: bytes = b"session") -> list[Command]:
        return self.serve((MESSAGE, conn, session, payload, True))

    def closed(self, code: int = 1000) -> list[Command]:
        return self.serve((CLOSED, 1, b"session", code))


def bus_message(data: bytes = b"{}", received_at: float = 0.0, subject: str = "chat.events") -> BusMessage:
    return BusMessage("CHAT", subject, data, 1, received_at)


def answering(*actions: Action) -> Any:
    """A profile's method that yields these."""

    def steps(*_: object) -> Steps:
        yield from actions

    return steps


async def settled() -> None:
    """Until nothing else is ready to run: every task here waits on tasks only, never on time."""
    for _ in range(20):
        await asyncio.sleep(0)
