"""The pump from clients to the profile: a batch of events in, a batch of commands out.

Steps run to their end without a task of their own; only a `Call` makes one, and what its connection sends meanwhile
waits in a bounded queue, and beyond that in its socket. Rules: an exception in a profile costs its connection only;
commands are submitted before anything is awaited, so their order is the order of the decisions.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

from tidegate._core import CLOSED, FAILED, MESSAGE, OVERDUE, TOLD, UPGRADE
from tidegate.engine import ClosedEvent, Event, FailedEvent, MessageEvent, OverdueEvent, ToldEvent, UpgradeEvent
from tidegate.gateway.actions import Actions
from tidegate.gateway.asking import Asking, Waits
from tidegate.gateway.faults import Faults, ProfileError
from tidegate.gateway.handover import EngineLike, HandOver
from tidegate.gateway.steps import advance
from tidegate.gateway.waiting import Waiting
from tidegate.profile import Close, HasOverdue, HasUrgent, Profile, ProfileSpec, Refuse, Session, Steps, Upgrade

log = logging.getLogger("tidegate.gateway")

# Events a batch: half a millisecond of messages, three of upgrades with a new token each: so long may the bus wait for
# its turn while a crowd comes back. What a batch costs by itself is spread over enough of them
BATCH_MAX = 64
# Query fields looked at: the longest contract knows eleven, and 16 KiB of "&" must not cost a millisecond
QUERY_FIELDS_MAX = 64


# What became of a `Send` with a ticket, by the engine's number
FATES = ("queued", "full", "gone")


def _nothing() -> Steps:
    yield from ()


class Clients:
    def __init__(
        self,
        engine: EngineLike,
        spec: ProfileSpec,
        profile: Profile,
        *,
        actions: Actions,
        handover: HandOver,
        faults: Faults,
        asking: Asking,
    ) -> None:
        self._engine = engine
        self._header_names = spec.headers
        self._profile = profile
        self._actions = actions
        self._handover = handover
        self._faults = faults
        self._asking = asking
        self._waiting: dict[int, Waiting] = {}  # connections whose steps wait
        self._is_urgent = profile.is_urgent if isinstance(profile, HasUrgent) else None
        self._closing = False
        self._calls: set[asyncio.Task[None]] = set()
        self._now = 0.0
        self._tells = False  # whether each connection's fate is logged; asked once a batch
        self._begin: dict[int, Callable[[Any], Steps]] = {
            UPGRADE: self._begin_upgrade,
            MESSAGE: self._begin_message,
            CLOSED: self._begin_close,
            FAILED: self._begin_failure,
            OVERDUE: self._begin_overdue,
            TOLD: self._begin_told,
        }

    def pump(self) -> None:
        """Serves one batch of events."""
        self._now = time.time()
        self._tells = self._actions.tells = log.isEnabledFor(logging.DEBUG)
        if self._actions.fresh.any:
            self._actions.fresh.age(time.monotonic())
        for event in self._engine.drain(BATCH_MAX):
            queue = self._waiting.get(event[1])
            if queue is None:
                self._serve(event)
            else:
                self._defer(queue, event)
        self._handover.flush()

    def _serve(self, event: Event) -> None:
        waits = self._start(event)
        if waits is not None:
            self._waiting[event[1]] = Waiting()
            task = asyncio.get_running_loop().create_task(self._converse(event[1], *waits))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    def _start(self, event: Event) -> tuple[Steps, Waits] | None:
        conn = event[1]
        try:
            steps = self._begin[event[0]](event)
        except Exception as error:
            self._blame(conn, error)
            return None
        waits = self._run(conn, steps)
        return None if waits is None else (steps, waits)

    def _begin_upgrade(self, event: UpgradeEvent) -> Steps:
        _, conn, peer, target, values = event
        self._actions.expect_answer(conn)
        if self._closing:
            return _turn_away()
        if self._tells:
            log.debug("connection %d: upgrade from %s", conn, peer)
        path, query = split_target(target)
        headers: dict[str, str] = {}
        for name, value in zip(self._header_names, values, strict=True):
            if value is not None:
                headers[name] = value.decode("latin-1")
        return self._profile.on_open(Upgrade(conn, self._engine.uuid(conn), peer, path, query, headers, self._now))

    def _begin_message(self, event: MessageEvent) -> Steps:
        _, conn, data, payload, text = event
        return self._profile.on_message(self._session(conn, data), payload, text)

    def _begin_close(self, event: ClosedEvent) -> Steps:
        _, conn, data, code = event
        if self._tells:
            log.debug("connection %d: closed with %d", conn, code)
        return self._profile.on_close(self._session(conn, data), code)

    def _begin_failure(self, event: FailedEvent) -> Steps:
        """The client's turn to be closed comes after its messages, so what it sent before its mistake is answered."""
        yield Close(event[2], event[3])

    def _begin_overdue(self, event: OverdueEvent) -> Steps:
        _, conn, data = event
        if isinstance(self._profile, HasOverdue):
            return self._profile.on_overdue(self._session(conn, data))
        raise ProfileError("ws.auth_timeout is set, and the profile has no on_overdue")

    def _begin_told(self, event: ToldEvent) -> Steps:
        """Of nobody's connection: who sent it waits with that ticket."""
        self._asking.wake(event[2], FATES[event[3]])
        return _nothing()

    def _session(self, conn: int, data: bytes) -> Session:
        fresh = self._actions.fresh
        return Session(conn, fresh.get(conn, data) if fresh.any else data, self._now, self._engine.uuid)

    def _run(self, conn: int, steps: Steps, answer: Any = None, error: Exception | None = None) -> Waits | None:
        """Carries out steps up to their end, or up to what they wait for, which is returned."""
        try:
            return advance(self._actions.by_type, conn, steps, answer, error)
        except StopIteration:
            if self._actions.owes_answer(conn):
                self._blame(conn, ProfileError("on_open ended without Admit or Refuse"))
        except Exception as failure:
            self._blame(conn, failure)
        return None

    def _blame(self, conn: int, error: Exception) -> None:
        self._faults.profile(error)
        self._actions.abort(conn)

    def _defer(self, waiting: Waiting, event: Event) -> None:
        if event[0] == TOLD:
            self._begin_told(event)
        elif event[0] == MESSAGE and self._is_urgent is not None and self._is_urgent(event[3]):
            self._serve_urgent(event)
        elif not waiting.add(event):
            self._actions.close(event[1], 1008, "too many messages before an answer")
            self._faults.count("flood")
        elif waiting.must_hold():
            self._actions.hold(event[1], True)

    def _serve_urgent(self, event: MessageEvent) -> None:
        if self._start(event) is not None:
            self._blame(event[1], ProfileError("an urgent message may wait for nothing"))

    async def _converse(self, conn: int, steps: Steps, reached: Waits) -> None:
        """Asks until the steps end, then serves what the connection sent meanwhile, in order."""
        waiting = self._waiting[conn]
        waits: tuple[Steps, Waits] | None = (steps, reached)
        while waits is not None:
            steps, reached = waits
            answer, error = await self._asking.ask(reached)
            self._now = time.time()
            further = self._run(conn, steps, answer, error)
            waits = None if further is None else (steps, further)
            while waits is None and waiting.queue:
                waits = self._start(waiting.take())
            if waiting.may_let_go():
                self._actions.hold(conn, False)
            if waits is None:
                del self._waiting[conn]
            self._handover.flush_soon()

    async def finish(self, within_s: float) -> None:
        """Takes on nobody new and waits until calls under way are answered and what waited for them is served."""
        self._closing = True
        if self._calls:
            await asyncio.wait(self._calls, timeout=within_s)

    async def close(self) -> None:
        """Gives up on upstreams that have not answered."""
        left = list(self._calls)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _turn_away() -> Steps:
    yield Refuse(503, b'{"error":"draining"}', 1)


def split_target(target: bytes) -> tuple[str, dict[str, str]]:
    """Path and query of a request target. A name with two values has none: nobody may choose which one counts."""
    path, _, rest = target.decode("utf-8", "replace").partition("?")
    is_quoted = "%" in rest or "+" in rest
    query: dict[str, str] = {}
    for field in rest.split("&", QUERY_FIELDS_MAX)[:QUERY_FIELDS_MAX]:
        name, _, value = field.partition("=")
        if name:
            if is_quoted:
                name, value = _unquote(name), _unquote(value)
            query[name] = value if query.get(name, value) == value else ""
    return path, query


def _unquote(text: str) -> str:
    return unquote_plus(text) if "%" in text or "+" in text else text
