"""Bus messages that need a look-up before it is known who gets them: a batch in, and back when it was served.

A message that waits holds up those behind it with the same key only. The rest of its batch goes on, and so does the bus
after HELD_S: a service that is away must not silence groups that are known. Rule: within a stream and subject all is
served in order, and what the profile fails on is skipped and counted; a batch counts as served when all of it is.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeAlias

from tidegate.buses import IsServed
from tidegate.gateway.faults import Faults
from tidegate.gateway.handover import HandOver
from tidegate.gateway.steps import Running, StepRunner
from tidegate.profile import BusMessage, HasRecords

Key: TypeAlias = tuple[str, str]

# So long the bus waits for a batch's look-ups, which take milliseconds where the services are there
HELD_S = 1.0
# Messages that wait beyond their batch, some 10 MB; with more of them the bus is held back
WAITING_MAX = 10_000


class Records:
    def __init__(self, profile: HasRecords, steps: StepRunner, handover: HandOver, faults: Faults) -> None:
        self._profile = profile
        self._steps = steps
        self._handover = handover
        self._faults = faults
        self._last: dict[Key, asyncio.Task[None]] = {}  # of each key that waits, the newest message's
        self._waiting: set[asyncio.Task[None]] = set()

    async def serve(self, batch: Sequence[BusMessage]) -> IsServed | None:
        """Says how to learn whether all is served, if some of it still waits."""
        began = set(self._waiting)
        for message in batch:
            self._serve_one(message)
        self._handover.flush()
        left = await self._hold(self._waiting - began)
        while len(self._waiting) > WAITING_MAX:
            await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
        return (lambda: all(map(_is_served, left))) if left else None

    async def _hold(self, ours: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """What still waits after a while."""
        if not ours:
            return ours
        try:
            _, left = await asyncio.wait(ours, timeout=HELD_S)
            return left
        except asyncio.CancelledError:
            # not handed over: the bus repeats all of it
            for task in ours:
                task.cancel()
            raise

    async def close(self, within_s: float) -> None:
        """Gives what waits so long, then gives it up."""
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=within_s)
        left = list(self._waiting)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _serve_one(self, message: BusMessage) -> None:
        key = (message.stream, message.subject)
        before = self._last.get(key)
        if before is not None:
            self._wait(key, self._after(before, message))
            return
        try:
            steps = self._profile.on_record(message)
            reached = self._steps.begin(steps)
        except StopIteration:
            return
        except Exception as error:
            self._faults.profile(error)
            return
        self._wait(key, self._guarded(self._steps.finish(steps, reached)))

    def _wait(self, key: Key, serving: Coroutine[Any, Any, None]) -> None:
        task = self._last[key] = asyncio.get_running_loop().create_task(serving)
        self._waiting.add(task)
        task.add_done_callback(lambda ended: self._ended(key, ended))

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        if self._last.get(key) is task:
            del self._last[key]

    async def _after(self, before: asyncio.Task[None], message: BusMessage) -> None:
        await asyncio.wait((before,))
        await self._guarded(self._run(message))

    async def _run(self, message: BusMessage) -> None:
        steps: Running = self._profile.on_record(message)
        await self._steps.run(steps)

    async def _guarded(self, running: Coroutine[Any, Any, Any]) -> None:
        try:
            await running
        except Exception as error:
            self._faults.profile(error)


def _is_served(task: asyncio.Task[None]) -> bool:
    """And not given up."""
    return task.done() and not task.cancelled()
