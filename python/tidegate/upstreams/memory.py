"""`memory:`, a chat backend inside the process: first run, demo and tests need no server.

A real backend, not a mock: `_lobby.py` keeps members and messages and refuses what the published one refuses. Nothing
outlives the process. Rule: the same contract, counters and shared look-ups as over HTTP.
"""

import time
from collections.abc import Callable

from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import UNAVAILABLE, UpstreamSettings, UpstreamStats
from tidegate.upstreams._lobby import Lobby
from tidegate.upstreams._meter import NO_ANSWER, Meter
from tidegate.upstreams._shared import Shared


def open_upstream(_url: str, settings: UpstreamSettings, _name: str) -> "MemoryUpstream":
    return MemoryUpstream(Lobby(settings.backend.key.get_secret_value()))


class MemoryUpstream:
    def __init__(
        self,
        lobby: Lobby,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._lobby = lobby
        self._clock = clock
        self._now = now
        self._meter = Meter()
        self._shared = Shared(self._ask, self._meter, clock)
        self._is_closed = False

    async def call(self, method: str, request: HttpRequest) -> HttpAnswer:
        return await self._shared.call(method, request)

    def stats(self) -> UpstreamStats:
        return self._meter.stats()

    def is_ready(self) -> bool:
        return not self._is_closed

    async def close(self, within_s: float) -> None:
        """An answer takes no time, so none is on its way for long."""
        self._is_closed = True
        await self._shared.close()

    async def _ask(self, method: str, request: HttpRequest) -> HttpAnswer:
        began = self._clock()
        if self._is_closed:
            self._meter.count(method, NO_ANSWER, 0.0)
            raise UpstreamError(UNAVAILABLE, "The gateway is stopping.")
        answer = self._lobby.answer(request, self._now())
        self._meter.count(method, str(answer.status), self._clock() - began)
        return answer
