"""Carries out what a profile's steps yield for one connection: each kind of action has one method of a line or two.

Rule: actions become commands in the order of the decisions; nothing is submitted or awaited here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

from tidegate._core import ADMIT, CLOSE, HOLD, JOIN, LEAVE, PUBLISH, PUBLISH_ROOMS, REFUSE, SEND, SESSION, USER
from tidegate.buses import Bus
from tidegate.counters import GatewayCounters
from tidegate.engine import Command
from tidegate.errors import BusError
from tidegate.gateway import broadcast
from tidegate.gateway.faults import Faults, ProfileError
from tidegate.gateway.handover import INTERNAL_ERROR
from tidegate.gateway.sessions import FreshSessions
from tidegate.profile import (
    Action,
    Add,
    Admit,
    Call,
    Claims,
    Close,
    Count,
    Identify,
    Join,
    Leave,
    Log,
    Now,
    Observe,
    Publish,
    PublishRooms,
    Refuse,
    Rejected,
    Reply,
    Send,
    SetSession,
    Span,
    ToBus,
    Together,
    ToNodes,
    Verify,
    Wait,
    Wake,
)

log = logging.getLogger("tidegate.gateway")

# Messages for backends that are not confirmed yet: 64 MiB of the longest, a million a second at 1 ms a confirmation
PUBLISHES_MAX = 1024
# The label that the attchat contract gives to a message that no backend confirmed
PUBLISH_ERROR = "nats_publish"
# No connection has this number: the engine's have a shard and a generation in them
NOBODY: Final = -1
# The answer to `Call` and its like: the steps must wait
WAIT: Final = object()

Act: TypeAlias = Callable[[int, Any], Any]


class Verifier(Protocol):
    def verify(self, token: str) -> Claims | Rejected: ...


class Recorder(Protocol):
    """Who traces."""

    def record(self, span: Span) -> None: ...


class Actions:
    def __init__(
        self,
        uuid_of: Callable[[int], str],
        claim_user: Callable[[str], bool],
        auth: Verifier,
        bus: Bus | None,
        *,
        counters: GatewayCounters,
        faults: Faults,
        wake: Callable[[int, Any], None],
        tracer: Recorder | None = None,
    ) -> None:
        self._uuid_of = uuid_of
        self._claim_user = claim_user
        self._auth = auth
        self._bus = bus
        self._counters = counters
        self._faults = faults
        self._wake_up = wake
        self._tracer = tracer
        self._commands: list[Command] = []
        self._unanswered: dict[int, bool] = {}  # upgrades without Admit or Refuse; True = a token was accepted
        self._publishing: set[asyncio.Task[None]] = set()
        self.fresh = FreshSessions()
        self.tells = False  # whether each connection's fate is logged; the pump sets it once a batch
        # what steps may do that no client's event began: nothing to "the connection that is being served"
        self.unbound: dict[type, Act] = {
            Send: self._send,
            Join: self._named(self._join),
            Leave: self._named(self._leave),
            Close: self._named(self._close),
            Publish: self._publish,
            PublishRooms: self._publish_rooms,
            ToNodes: self._to_nodes,
            ToBus: self._to_bus,
            Count: self._count,
            Add: self._add,
            Observe: self._observe,
            Span: self._span,
            Log: self._log,
            Wake: self._wake,
            Now: lambda _conn, _action: time.time(),
            Call: _wait,
            Wait: _wait,
            Together: _wait,
        }
        self.by_type: dict[type, Act] = self.unbound | {
            Reply: self._reply,
            Join: self._join,
            Leave: self._leave,
            Close: self._close,
            Identify: self._identify,
            Admit: self._admit,
            Refuse: self._refuse,
            SetSession: self._set_session,
            Verify: self._verify,
        }

    def take(self) -> list[Command]:
        """All commands since the last time."""
        commands, self._commands = self._commands, []
        return commands

    def carry_out(self, actions: Iterable[Action]) -> None:
        """Of no connection, and none of them waits."""
        for action in actions:
            act = self.unbound.get(type(action))
            if act is None or act(NOBODY, action) is WAIT:
                raise ProfileError(f"what no client began may not lead to {type(action).__name__}")

    def expect_answer(self, conn: int) -> None:
        self._unanswered[conn] = False

    def owes_answer(self, conn: int) -> bool:
        return conn in self._unanswered

    def abort(self, conn: int) -> None:
        """The profile failed on this connection: it ends, and the client learns no details."""
        if self._unanswered.pop(conn, None) is not None:
            self._commands.append((REFUSE, conn, 500, INTERNAL_ERROR, None))
        else:
            self.close(conn, 1011, "internal error")

    def close(self, conn: int, code: int, reason: str) -> None:
        self._commands.append((CLOSE, conn, code, reason))

    def hold(self, conn: int, on: bool) -> None:
        self._commands.append((HOLD, conn, on))

    def _admit(self, conn: int, action: Admit) -> None:
        verified = self._unanswered.pop(conn, None)
        if verified is None:
            raise ProfileError("Admit answers an upgrade, once")
        if verified and action.close is None:
            self._counters.auth_success += 1
        if self.tells:
            log.debug("connection %d: admitted as %s, close %s", conn, action.user, action.close)
        self._commands.append(
            (
                ADMIT,
                conn,
                action.session,
                action.user,
                action.rooms,
                action.texts,
                action.subprotocol,
                action.close,
                action.dialect,
            )
        )

    def _refuse(self, conn: int, action: Refuse) -> None:
        if self._unanswered.pop(conn, None) is None:
            raise ProfileError("Refuse answers an upgrade, once")
        log.debug("connection %d: refused with %d", conn, action.status)
        self._commands.append((REFUSE, conn, action.status, action.body, action.retry_after_s))

    def _reply(self, conn: int, action: Reply) -> None:
        self._commands.append((SEND, conn, action.payload, action.text, 0))

    def _send(self, _conn: int, action: Send) -> None:
        self._commands.append((SEND, action.conn, action.payload, True, action.ticket))

    def _join(self, conn: int, action: Join) -> None:
        self._commands.append((JOIN, conn if action.conn is None else action.conn, action.room))

    def _leave(self, conn: int, action: Leave) -> None:
        self._commands.append((LEAVE, conn if action.conn is None else action.conn, action.room))

    def _set_session(self, conn: int, action: SetSession) -> None:
        self.fresh.set(conn, action.data)
        self._commands.append((SESSION, conn, action.data))

    def _close(self, conn: int, action: Close) -> None:
        self._commands.append((CLOSE, conn if action.conn is None else action.conn, action.code, action.reason))

    def _named(self, act: Act) -> Act:
        def checked(conn: int, action: Any) -> None:
            if action.conn is None:
                raise ProfileError(f"{type(action).__name__} without a conn, where no connection is being served")
            act(conn, action)

        return checked

    def _publish(self, _conn: int, action: Publish) -> None:
        exclude = action.exclude
        self._commands.append((PUBLISH, action.room, action.payload, True, exclude))
        self._counters.broadcasts += 1
        if action.all_nodes and self._bus is not None:
            uuid = self._uuid_of(exclude) if isinstance(exclude, int) else exclude
            self._bus.broadcast(broadcast.encode(action.room, action.payload, uuid))

    def _publish_rooms(self, _conn: int, action: PublishRooms) -> None:
        self._commands.append((PUBLISH_ROOMS, action.rooms, action.payload, True))
        self._counters.broadcasts += 1

    def _to_nodes(self, _conn: int, action: ToNodes) -> None:
        if self._bus is not None:
            self._bus.broadcast(action.data)

    def _identify(self, conn: int, action: Identify) -> bool:
        if not self._claim_user(action.user):
            return False
        if self.tells:
            log.debug("connection %d: is user %s", conn, action.user)
        self._commands.append((USER, conn, action.user))
        return True

    def _add(self, _conn: int, action: Add) -> None:
        self._counters.add(action.family, action.label, action.amount)

    def _observe(self, _conn: int, action: Observe) -> None:
        self._counters.observe(action.family, action.seconds, action.label)

    def _span(self, _conn: int, action: Span) -> None:
        if self._tracer is not None:
            self._tracer.record(action)

    def _log(self, _conn: int, action: Log) -> None:
        log.debug("%s", action.text, extra={"fields": action.fields})

    def _wake(self, _conn: int, action: Wake) -> None:
        self._wake_up(action.ticket, action.answer)

    def _count(self, _conn: int, action: Count) -> None:
        self.count(action)

    def count(self, action: Count) -> None:
        if action.name == "auth_failure":
            self._counters.auth_failure += 1
            self._faults.tell(action.name, action.detail)
        else:
            self._faults.count(action.label or action.name, action.detail)

    def _verify(self, conn: int, action: Verify) -> Claims | Rejected:
        answer = self._auth.verify(action.token)
        if isinstance(answer, Rejected):
            self._counters.auth_failure += 1
            self._faults.tell("auth_failure", answer.reason)
            log.debug("connection %d: token refused: %s", conn, answer.reason)
        elif conn in self._unanswered:
            self._unanswered[conn] = True
        return answer

    def _to_bus(self, _conn: int, action: ToBus) -> None:
        if self._bus is None:
            self._faults.count(PUBLISH_ERROR, "a client's message is for the backends, and no bus is configured")
        elif len(self._publishing) >= PUBLISHES_MAX:
            self._faults.count(PUBLISH_ERROR, f"{PUBLISHES_MAX} messages wait to be confirmed; a client's was dropped")
        else:
            task = asyncio.get_running_loop().create_task(self._confirm(self._bus, action))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def _confirm(self, bus: Bus, action: ToBus) -> None:
        try:
            await bus.publish(action.subject, action.data)
        except BusError as error:
            self._faults.count(PUBLISH_ERROR, str(error))
        except Exception as error:
            # a bus that breaks its contract must not vanish in a task that nobody awaits
            self._faults.count(PUBLISH_ERROR, f"the bus raised {type(error).__name__}")

    async def settle(self, within_s: float) -> None:
        """Waits until backends have confirmed what clients sent them, then gives up."""
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=within_s)
        left = list(self._publishing)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _wait(_conn: int, _action: Any) -> Any:
    return WAIT
