"""What comes in the same turn of the loop goes out together: the fewer requests, the busier it is.

A quiet node sends each item at once, alone. Once IN_FLIGHT_MAX requests are out, whatever comes waits for the first of
them to end and then goes as one; so a crowd that reconnects makes large batches without anybody waiting for company.
Rule: an item is carried exactly once; whoever carries it says how it ended, and never raises.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

# Enough to hide the round trip to a cluster in the same region; more would only make the batches smaller
IN_FLIGHT_MAX = 8


class Batches(Generic[Item]):
    def __init__(self, carry: Callable[[list[Item]], Awaitable[None]], batch_max: int) -> None:
        self._carry = carry
        self._batch_max = batch_max
        self._waiting: deque[Item] = deque()  # bounded by those who add: each has a call that waits, or a place
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_scheduled = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item) -> None:
        self._waiting.append(item)
        self._start_soon()

    def _start_soon(self) -> None:
        if not self._is_scheduled and len(self._tasks) < IN_FLIGHT_MAX:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._is_scheduled = False
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._tasks) < IN_FLIGHT_MAX:
            count = min(self._batch_max, len(self._waiting))
            items = [self._waiting.popleft() for _ in range(count)]
            self._tasks.add(loop.create_task(self._carry_all(items)))

    async def _carry_all(self, items: list[Item]) -> None:
        try:
            await self._carry(items)
        except Exception:
            logger.exception("a batch was lost by a fault of this program")
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._tasks.discard(task)
            if self._waiting:
                self._start_soon()

    async def close(self, within_s: float) -> list[Item]:
        """Waits for what is out, then ends it. Returns what waited: nobody will carry it."""
        dropped = list(self._waiting)
        self._waiting.clear()
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return dropped
