"""What an upstream counts of its calls: plain numbers, written a few times a request, read at a scrape.

Rule: labels are few. Methods are a profile's own words, and outcomes are HTTP or gRPC statuses or one of the words
below; the bound is for a profile that forgets it.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from tidegate.errors import UpstreamError
from tidegate.upstreams import LATENCY_BOUNDS, UpstreamStats

Answer = TypeVar("Answer")

METHODS_MAX = 64
OK = "ok"
CANCELLED = "cancelled"
REFUSED = "refused"
CIRCUIT_OPEN = "circuit_open"
TIMEOUT = "timeout"
TOO_LARGE = "too_large"
NO_ANSWER = "unavailable"


class Meter:
    def __init__(self) -> None:
        self._requests: dict[tuple[str, str], int] = {}
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self.hits = self.misses = self.merged = 0

    def count(self, method: str, outcome: str, seconds: float) -> None:
        if method not in self._counts:
            method = self._known(method)
        key = (method, outcome)
        self._requests[key] = self._requests.get(key, 0) + 1
        if outcome != CIRCUIT_OPEN:
            self._counts[method][bisect_left(LATENCY_BOUNDS, seconds)] += 1
            self._sums[method] += seconds

    async def timed(
        self,
        method: str,
        clock: Callable[[], float],
        asked: Awaitable[Answer],
        word: Callable[[Answer], str] = lambda _: OK,
    ) -> Answer:
        """Awaits a call and counts how it ended; `word` is an answer's."""
        began, outcome = clock(), NO_ANSWER
        try:
            answer = await asked
            outcome = word(answer)
            return answer
        except UpstreamError as error:
            outcome = error.outcome
            raise
        except asyncio.CancelledError:
            outcome = CANCELLED
            raise
        finally:
            self.count(method, outcome, clock() - began)

    def _known(self, method: str) -> str:
        name = method if len(self._counts) < METHODS_MAX else "other"
        self._counts.setdefault(name, [0] * (len(LATENCY_BOUNDS) + 1))
        self._sums.setdefault(name, 0.0)
        return name

    def stats(
        self,
        in_flight: int = 0,
        waiting: int = 0,
        circuit_open: bool = False,
        circuits: Mapping[str, bool] | None = None,
    ) -> UpstreamStats:
        return UpstreamStats(
            requests=dict(self._requests),
            latency_bounds=LATENCY_BOUNDS,
            latency_counts={method: tuple(counts) for method, counts in self._counts.items()},
            latency_sums=dict(self._sums),
            lookups={"hit": self.hits, "miss": self.misses, "merged": self.merged},
            in_flight=in_flight,
            waiting=waiting,
            circuit_open=circuit_open,
            circuits=circuits or {},
        )
