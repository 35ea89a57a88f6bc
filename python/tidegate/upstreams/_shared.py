"""Look-ups that many need at once are asked once: overlapping ones share an answer, and a 200 is kept for a while.

A burst in a chat asks for the same members again and again; the backend sees one request. Rule: the shared request
belongs to nobody, so a caller that is cancelled takes it from no other; what is kept is bounded in number and bytes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams._meter import Meter

Ask: TypeAlias = Callable[[str, HttpRequest], Awaitable[HttpAnswer]]
Key: TypeAlias = tuple[str, str]

# Chats that are busy within the same two seconds; more than that and the oldest is asked for again
ANSWERS_MAX = 10_000
# Members of those chats: 6 KiB each, or a few very large ones
BYTES_MAX = 64 * 1024 * 1024
# What is asked for ends with its upstream; it only needs its turns of the loop
ENDING_S = 1.0


class Kept(NamedTuple):
    until: float
    answer: HttpAnswer


class Shared:
    def __init__(
        self,
        ask: Ask,
        meter: Meter,
        clock: Callable[[], float],
        answers_max: int = ANSWERS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._ask = ask
        self._meter = meter
        self._clock = clock
        self._answers_max = answers_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: dict[Key, Kept] = {}  # oldest first
        self._asking: dict[Key, asyncio.Task[HttpAnswer | UpstreamError]] = {}

    async def call(self, method: str, request: HttpRequest) -> HttpAnswer:
        if request.shared_s <= 0:
            return await self._ask(method, request)
        key = (request.verb, request.path)
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept.until:
            self._meter.hits += 1
            return kept.answer
        return await self._join(key, method, request)

    async def _join(self, key: Key, method: str, request: HttpRequest) -> HttpAnswer:
        task = self._asking.get(key)
        if task is None:
            self._meter.misses += 1
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._fetch(key, method, request))
        else:
            self._meter.merged += 1
        # unlike awaiting the task, this leaves it alone when we are cancelled
        await asyncio.wait((task,))
        answer = task.result()
        if isinstance(answer, UpstreamError):
            # one each: a traceback grows with every raise
            raise UpstreamError(answer.message, answer.cure, answer.outcome)
        return answer

    async def _fetch(self, key: Key, method: str, request: HttpRequest) -> HttpAnswer | UpstreamError:
        """A failure is a result: nobody may be left to raise it to."""
        try:
            answer = await self._ask(method, request)
            if answer.status == 200:
                self._keep(key, answer, self._clock(), request.shared_s)
            return answer
        except UpstreamError as error:
            return error
        finally:
            del self._asking[key]

    def _keep(self, key: Key, answer: HttpAnswer, now: float, seconds: float) -> None:
        self._forget(key)
        self._kept[key] = Kept(now + seconds, answer)
        self._bytes += len(answer.body)
        while self._kept and self._must_forget(now):
            self._forget(next(iter(self._kept)))

    def _must_forget(self, now: float) -> bool:
        too_much = len(self._kept) > self._answers_max or self._bytes > self._bytes_max
        return too_much or next(iter(self._kept.values())).until <= now

    def _forget(self, key: Key) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._bytes -= len(kept.answer.body)

    async def close(self) -> None:
        """After `ask` refuses: what was shared ends, and nothing is kept."""
        if self._asking:
            await asyncio.wait(list(self._asking.values()), timeout=ENDING_S)
        self._kept.clear()
        self._bytes = 0
