"""Where a scrape finds its numbers: what `app.py` fills in, and what each keeper of numbers must offer.

Rule: reading one costs microseconds and neither waits nor changes anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tidegate.buses import Bus
from tidegate.counters import GatewayCounters
from tidegate.registries import Registry
from tidegate.upstreams import Upstream


class TokenCache(Protocol):
    """What `auth.py` counts."""

    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def cached(self) -> int: ...


class Spans(Protocol):
    """What `tracing.py` counts."""

    def stats(self) -> Mapping[str, int]:
        """`exported`, `failed`, `dropped`."""


class Rpcs(Protocol):
    """What `api/grpc.py` counts."""

    @property
    def under_way(self) -> int: ...

    def counts(self) -> Mapping[tuple[str, str], int]:
        """(method, status) -> calls that have ended."""


@runtime_checkable
class CountsBroadcasts(Protocol):
    """A bus that says how much nodes told each other: `published` and `received`."""

    def broadcast_stats(self) -> Mapping[str, int]: ...


@runtime_checkable
class KnowsLagByStream(Protocol):
    """A bus that says for each stream (Kafka: topic) how many messages the backend holds that we have not seen."""

    def lag_by_stream(self) -> Mapping[str, int]: ...


@runtime_checkable
class KnowsLost(Protocol):
    """A bus that says for each stream how many messages it can never have: trimmed before they were read."""

    def lost_by_stream(self) -> Mapping[str, int]: ...


def nothing() -> None:
    """A source that this gateway has not."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are kept; each is read once a scrape. What a function returns may come and go."""

    engine: Callable[[], Mapping[str, int]]  # Engine.stats
    counters: GatewayCounters
    bus: Bus | None
    tokens: TokenCache | None
    upstreams: Callable[[], Mapping[str, Upstream]]  # by the name that the profile has for it
    version: str
    node_id: str
    registry: Callable[[], Registry | None] = nothing
    tracer: Callable[[], Spans | None] = nothing
    rpcs: Callable[[], Rpcs | None] = nothing
