"""Bus messages that need a look-up before it is known who gets them: a batch in, and back when all of it was served.

A message that waits holds up those behind it with the same key only; the rest of the batch goes on. Rule: within a
stream and subject everything is served in order, and what the profile fails on is skipped and counted.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeAlias

from tidegate.gateway.faults import Faults
from tidegate.gateway.steps import Ended, Running, StepRunner
from tidegate.profile import BusMessage, HasRecords

Key: TypeAlias = tuple[str, str]


class Records:
    def __init__(self, profile: HasRecords, steps: StepRunner, faults: Faults) -> None:
        self._profile = profile
        self._steps = steps
        self._faults = faults

    async def serve(self, batch: Sequence[BusMessage]) -> None:
        """As many tasks at once as the batch has messages that wait; batches are bounded by the bus."""
        queues: dict[Key, asyncio.Task[None]] = {}
        try:
            for message in batch:
                self._serve_one(message, queues)
            self._steps.flush()
            while waiting := [task for task in queues.values() if not task.done()]:
                await asyncio.wait(waiting)
        finally:
            for task in queues.values():
                task.cancel()

    def _serve_one(self, message: BusMessage, queues: dict[Key, asyncio.Task[None]]) -> None:
        key = (message.stream, message.subject)
        before = queues.get(key)
        if before is not None:
            queues[key] = asyncio.get_running_loop().create_task(self._after(before, message))
            return
        try:
            steps = self._profile.on_record(message)
            reached = self._steps.begin(steps)
        except Exception as error:
            self._faults.profile(error)
            return
        if not isinstance(reached, Ended):
            queues[key] = asyncio.get_running_loop().create_task(self._guarded(self._steps.finish(steps, reached)))

    async def _after(self, before: asyncio.Task[None], message: BusMessage) -> None:
        await before
        await self._guarded(self._run(message))

    async def _run(self, message: BusMessage) -> None:
        steps: Running = self._profile.on_record(message)
        await self._steps.run(steps)

    async def _guarded(self, running: Coroutine[Any, Any, Any]) -> None:
        try:
            await running
        except Exception as error:
            self._faults.profile(error)
