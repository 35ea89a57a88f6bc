"""What the gateway counts in Python: plain numbers, written by `gateway/`, read by `metrics/` at scrape time.

Why not the metric library's own objects: a locked increment a message would be paid on the data path, and their names
belong to a profile's contract. The engine counts its own half (`Engine.stats`). Rule: nothing here is computed before a
scrape asks.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidegate.profile import ProfileSpec

# Seconds from a bus message's receipt to its hand-over. The bounds of the first contract we serve: most hand-overs take
# less than 1 ms, and 1 s is where an operator should look at `tidegate_bus_lag_messages` instead.
LATENCY_BUCKETS: tuple[float, ...] = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

# Label values that exist from the start, at 0, so that an alert on "rate > 0" sees the first error too.
ERROR_TYPES: tuple[str, ...] = ("bad_json", "queue_full", "slow_close", "nats_decode", "nats_publish", "no_target")

# Label values beyond the known ones come from profiles' code, never from clients; the bound is for one that forgets it.
ERROR_TYPES_MAX = 64


# Of one metric of a profile: event names, error codes; the same bound for one that forgets it.
LABELS_MAX = 64
# What is beyond a bound counts under this label
OTHER = "other"


@dataclass(slots=True)
class Histogram:
    """Durations in seconds, by the bounds of whoever keeps it."""

    counts: list[int]  # one a bound and one beyond; not cumulative
    sum: float = 0.0


@dataclass(slots=True)
class GatewayCounters:
    """Totals since the start. One thread writes; a scrape may read at any moment."""

    auth_success: int = 0
    auth_failure: int = 0
    messages_from_bus: int = 0
    broadcasts: int = 0  # bus messages and client events turned into a PUBLISH
    profile_errors: int = 0  # exceptions that escaped a profile; each cost one connection or one bus message
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ERROR_TYPES, 0))
    added: dict[str, dict[str, int]] = field(default_factory=dict)  # a profile's own metrics: name -> label -> total
    observed: dict[str, dict[str, Histogram]] = field(default_factory=dict)  # its histograms, likewise
    bounds: Mapping[str, Sequence[float]] = field(default_factory=dict)  # name -> as `latency_bounds`
    latency_bounds: Sequence[float] = LATENCY_BUCKETS  # ascending, seconds, without +Inf
    latency_counts: list[int] = field(default_factory=list)  # one a bound and one beyond; not cumulative
    latency_sum: float = 0.0  # seconds

    def __post_init__(self) -> None:
        self.latency_counts = [0] * (len(self.latency_bounds) + 1)

    @classmethod
    def of(cls, spec: ProfileSpec) -> "GatewayCounters":
        """With the buckets that the profile's contract has."""
        latency = spec.metrics.latency_buckets if spec.metrics else LATENCY_BUCKETS
        return cls(
            bounds={family.name: family.buckets for family in spec.families if family.buckets}, latency_bounds=latency
        )

    def observe_latency(self, seconds: float, messages: int = 1) -> None:
        """Counts `messages` that each took `seconds`: a batch is handed over as one."""
        self.latency_counts[bisect_left(self.latency_bounds, seconds)] += messages
        self.latency_sum += seconds * messages

    def add(self, family: str, label: str, amount: int = 1) -> None:
        values = self.added.setdefault(family, {})
        if label not in values and len(values) >= LABELS_MAX:
            label = OTHER
        values[label] = values.get(label, 0) + amount

    def observe(self, family: str, seconds: float, label: str = "") -> None:
        """Adds to a histogram. One that nobody declared is kept by the usual bounds, and no scrape shows it."""
        bounds = self.bounds.get(family, LATENCY_BUCKETS)
        histograms = self.observed.setdefault(family, {})
        histogram = histograms.get(label)
        if histogram is None:
            label = label if len(histograms) < LABELS_MAX else OTHER
            histogram = histograms.setdefault(label, Histogram([0] * (len(bounds) + 1)))
        histogram.counts[bisect_left(bounds, seconds)] += 1
        histogram.sum += seconds

    def count_error(self, kind: str) -> None:
        if kind not in self.errors and len(self.errors) >= ERROR_TYPES_MAX:
            kind = OTHER
        self.errors[kind] = self.errors.get(kind, 0) + 1
