"""Bus messages that need a look-up before it is known who gets them: a batch in, and back when it was served.

A message that waits holds up those behind it with the same key only. The rest of its batch goes on, and so does the bus
after HELD_S: a service that is away must not silence groups that are known. What a message leads to beyond that (steps
that its steps return) holds up nothing. Rule: within a stream and subject all is served in order, and what the profile
fails on is skipped and counted; a batch counts as served when all of it is.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeAlias

from tidegate.buses import IsServed
from tidegate.gateway.faults import Faults
from tidegate.gateway.handover import HandOver
from tidegate.gateway.steps import StepRunner
from tidegate.profile import BusMessage, HasRecords, Steps

Key: TypeAlias = tuple[str, str]
# Ends with what goes on by itself, if anything does
Serving: TypeAlias = asyncio.Task["Serving | None"]

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
        self._last: dict[Key, Serving] = {}  # of each key that waits, the newest message's
        self._waiting: set[Serving] = set()

    async def serve(self, batch: Sequence[BusMessage]) -> IsServed | None:
        """Says how to learn whether all is served, if some of it still waits."""
        began = [serving for message in batch if (serving := self._serve_one(message)) is not None]
        self._handover.flush()
        if began:
            await self._hold(began)
        while len(self._waiting) > WAITING_MAX:
            await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
        left = [serving for serving in began if not _is_served(serving)]
        return (lambda: all(map(_is_served, left))) if left else None

    async def _hold(self, ours: Iterable[Serving]) -> None:
        try:
            await asyncio.wait(ours, timeout=HELD_S)
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

    def _serve_one(self, message: BusMessage) -> Serving | None:
        """What waits, if anything does."""
        key = (message.stream, message.subject)
        before = self._last.get(key)
        if before is not None:
            return self._wait(key, self._after(before, message))
        try:
            steps = self._profile.on_record(message)
            reached = self._steps.begin(steps)
        except StopIteration as end:
            return None if end.value is None else self._begin(self._guarded(_ended(end.value)))
        except Exception as error:
            self._faults.profile(error)
            return None
        return self._wait(key, self._guarded(self._steps.finish(steps, reached)))

    def _wait(self, key: Key, running: Coroutine[Any, Any, Serving | None]) -> Serving:
        serving = self._last[key] = self._begin(running)
        serving.add_done_callback(lambda ended: self._release(key, ended))
        return serving

    def _begin(self, running: Coroutine[Any, Any, Serving | None]) -> Serving:
        serving = asyncio.get_running_loop().create_task(running)
        self._waiting.add(serving)
        serving.add_done_callback(self._waiting.discard)
        return serving

    def _release(self, key: Key, serving: Serving) -> None:
        if self._last.get(key) is serving:
            del self._last[key]

    def _go_on(self, rest: Steps | None) -> Serving | None:
        return None if rest is None else self._begin(self._guarded(self._steps.run(rest)))

    async def _after(self, before: Serving, message: BusMessage) -> Serving | None:
        await asyncio.wait((before,))
        return await self._guarded(self._run(message))

    async def _run(self, message: BusMessage) -> Steps | None:
        rest: Steps | None = await self._steps.run(self._profile.on_record(message))
        return rest

    async def _guarded(self, running: Coroutine[Any, Any, Steps | None]) -> Serving | None:
        try:
            return self._go_on(await running)
        except Exception as error:
            self._faults.profile(error)
            return None


async def _ended(rest: Steps) -> Steps:
    """As steps that waited: what they return is not held."""
    return rest


def _is_served(serving: Serving) -> bool:
    """And not given up."""
    if not serving.done() or serving.cancelled():
        return False
    rest = serving.result()
    return rest is None or _is_served(rest)
