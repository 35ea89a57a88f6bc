"""What Python counts while it works: plain numbers that cost nanoseconds to add to and are read at scrape time.

Rule: written only from the event loop's thread, without a lock; `metrics.py` gives them their names. The engine counts for itself.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

# From the seed: .1 ms to 1 s covers a hand-over in memory as well as a stalled engine
LATENCY_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Histogram:
    """Observations by upper bound: `counts[i]` are those <= `bounds[i]` and above the bound before; the last one is the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Counters:
    """Totals since the start, except where a name ends in `_now`."""

    auth_success: int = 0
    auth_failure: int = 0
    messages_from_bus: int = 0
    profile_errors: int = 0  # exceptions in a profile; each cost one connection or one bus message
    broadcasts_out: int = 0
    broadcasts_in: int = 0
    bus_pressed: int = 0  # batches that waited for the engine before they were acknowledged
    bus_batches_now: int = 0  # handed to the gateway, not returned yet
    calls_now: int = 0  # connections that wait for an upstream
    publishes_now: int = 0  # messages for backends that are not confirmed yet
    restarts: Counter[str] = field(default_factory=Counter)  # background tasks that died, by name
    errors: Counter[str] = field(default_factory=Counter)  # by type: the label of the profile's error metric
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # a profile's own, by name and label
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
