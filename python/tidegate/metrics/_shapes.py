"""Numbers as the metric library's families, under exactly the name that a contract has.

The library appends `_total` to a counter without it, which would break a contract: such a name stays untyped. Rule: one
sample a set of labels, however the counts were keyed, since a scraper refuses a whole page for one that is there twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tidegate.upstreams import UpstreamStats

# Label values, in the order of the labels' names
Labels: TypeAlias = tuple[str, ...]
AnyLabels = TypeVar("AnyLabels", bound=tuple[str, ...])


class Observed(NamedTuple):
    """One histogram of a family."""

    labels: Labels
    bounds: Sequence[float]  # ascending, without +Inf
    counts: Sequence[int]  # one a bound and one beyond; not cumulative
    sum: float


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    alone: dict[Labels, float] = {(): value}
    return labelled(name, text, (), alone)


def number(name: str, text: str, value: float) -> Metric:
    """A counter if its name says so, else a gauge."""
    return counter(name, text, value) if name.endswith("_total") else gauge(name, text, value)


def labelled(name: str, text: str, names: Sequence[str], values: Mapping[AnyLabels, float]) -> Metric:
    """A counter by labels."""
    if name.endswith("_total"):
        return _filled(CounterMetricFamily(name, text, labels=names), values)
    family = Metric(name, text, "unknown")
    for labels, value in values.items():
        family.add_sample(name, dict(zip(names, labels, strict=True)), value)
    return family


def gauges(name: str, text: str, names: Sequence[str], values: Mapping[AnyLabels, float]) -> Metric:
    """A gauge by labels."""
    return _filled(GaugeMetricFamily(name, text, labels=names), values)


def by_one(values: Mapping[str, float]) -> dict[Labels, float]:
    """For a metric with one label."""
    return {(value,): count for value, count in values.items()}


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[AnyLabels, float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def histogram(name: str, text: str, names: Sequence[str], values: Iterable[Observed]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=names)
    for each in values:
        family.add_metric(each.labels, buckets(each.bounds, each.counts), each.sum)
    return family


def latencies(before: Labels, stats: UpstreamStats) -> list[Observed]:
    """How long an upstream took, by call; `before` are the labels before that one."""
    return [
        Observed((*before, call), stats.latency_bounds, counts, stats.latency_sums.get(call, 0.0))
        for call, counts in stats.latency_counts.items()
    ]


def buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """As the format wants them: each counts everything up to its bound. `counts` has one more, for what is beyond."""
    found: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        below += count
        found.append(("+Inf" if bound == float("inf") else str(float(bound)), below))
    return found
