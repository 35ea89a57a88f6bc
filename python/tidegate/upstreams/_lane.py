"""The way to one backend: how many go at once, how long a try may take, and when nobody goes at all.

A slow backend is not buried: so many calls at once, the others wait in order, and the waiting counts into the time. One
that fails is left alone by the circuit. Closing ends whoever is still on the way. Rules: what is sent and read is no
business of a lane; no text of it shows what was asked or answered.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from tidegate.errors import UpstreamError
from tidegate.upstreams import UNAVAILABLE
from tidegate.upstreams._circuit import Circuit
from tidegate.upstreams._meter import CIRCUIT_OPEN, NO_ANSWER, TIMEOUT

Answer = TypeVar("Answer")

STOPPING = "The gateway is stopping."
# After the calls were ended there is nothing to wait for but their callers' turns of the loop
ENDING_S = 1.0


class NoSignError(Exception):
    """Nothing shows that the backend is there; an exchange raises it. Counts for the circuit."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome
        self.why = why


def no_answer(outcome: str, cure: str) -> UpstreamError:
    return UpstreamError(UNAVAILABLE, cure, outcome)


class Lane:
    """`title` and `place` are what logs call the backend: "the backend" and "http://localhost:8000"."""

    def __init__(
        self,
        title: str,
        place: str,
        *,
        slots: asyncio.Semaphore,
        circuit: Circuit,
        clock: Callable[[], float],
        log: logging.Logger,
        bound: str,  # how a person calls the number of slots
        too_slow: str = TIMEOUT,  # the outcome of what took too long
    ) -> None:
        self._title = title
        self._place = place
        self._slots = slots
        self._circuit = circuit
        self._clock = clock
        self._log = log
        self._bound = bound
        self._too_slow = too_slow
        self._deadlines: set[asyncio.Timeout] = set()  # one of each call that has begun
        self._idle = asyncio.Event()
        self._is_closed = False
        self.in_flight = 0

    @property
    def waiting(self) -> int:
        return len(self._deadlines) - self.in_flight

    def is_open(self) -> bool:
        """The circuit is: calls fail at once."""
        return self._circuit.is_open()

    def is_ready(self) -> bool:
        return not self._is_closed and self._circuit.lets_through(self._clock())

    async def call(self, exchange: Callable[[], Awaitable[Answer | UpstreamError]], timeout_s: float) -> Answer:
        """One try: waits for a place, asks, and tells the circuit how it went.

        An answer that cannot be used is returned by `exchange` as UpstreamError, not raised: the backend is there.
        """
        if not self.is_ready():
            raise self._left_alone()
        ticket: int | None = None
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                with self._begun(deadline):
                    async with self._slots:
                        ticket = self._admitted()
                        with self._under_way():
                            answer = await exchange()
        except (NoSignError, TimeoutError) as error:
            raise self._failed(ticket, error, timeout_s) from None
        except BaseException:
            if ticket is not None:
                self._circuit.abandoned(ticket)
            raise
        if self._circuit.answered():
            self._log.info("%s at %s answers again", self._title, self._place)
        if isinstance(answer, UpstreamError):
            raise answer
        return answer

    async def close(self, within_s: float) -> None:
        self._is_closed = True
        try:
            async with asyncio.timeout(within_s):
                await self._until_idle()
        except TimeoutError:
            now = asyncio.get_running_loop().time()
            for deadline in self._deadlines:
                if not deadline.expired():
                    deadline.reschedule(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING_S):
                    await self._until_idle()

    async def _until_idle(self) -> None:
        self._idle.clear()
        if self._deadlines:
            await self._idle.wait()

    @contextlib.contextmanager
    def _begun(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """So that `close` can end it."""
        self._deadlines.add(deadline)
        try:
            yield
        finally:
            self._deadlines.discard(deadline)
            if not self._deadlines:
                self._idle.set()

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _admitted(self) -> int:
        ticket = None if self._is_closed else self._circuit.admit(self._clock())
        if ticket is None:
            raise self._left_alone()
        return ticket

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def _left_alone(self) -> UpstreamError:
        if self._is_closed:
            return no_answer(NO_ANSWER, STOPPING)
        failures, pause = self._circuit.failures_max, self._circuit.open_s
        why = f"{failures} calls to {self._place} failed in a row; one is tried every {pause:.0f} s."
        return no_answer(CIRCUIT_OPEN, why)

    def _failed(self, ticket: int | None, error: NoSignError | TimeoutError, timeout_s: float) -> UpstreamError:
        """Without a ticket it was still waiting, which says nothing that those on their way don't say."""
        if self._is_closed:
            return no_answer(NO_ANSWER, STOPPING)
        outcome, why = self._reason(ticket, error, timeout_s)
        was_open = self._circuit.is_open()
        if ticket is not None and self._circuit.failed(ticket, self._clock()):
            level = logging.DEBUG if was_open else logging.WARNING
            told: tuple[Any, ...] = (self._title, self._place, self._circuit.open_s, why)
            self._log.log(level, "calls to %s at %s fail at once for %.0f s: %s", *told)
        return no_answer(outcome, why)

    def _reason(self, ticket: int | None, error: NoSignError | TimeoutError, timeout_s: float) -> tuple[str, str]:
        if isinstance(error, NoSignError):
            return error.outcome, error.why
        waited = f" (it waited for a place all the time: {self._bound})" if ticket is None else ""
        return self._too_slow, f"{self._place} did not answer within {timeout_s:.3g} s{waited}; see why it is slow."
