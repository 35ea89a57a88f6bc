"""The metrics of a profile's contract, exactly as it names them.

A `Family` with several labels has their names with commas between, and so have its values. Rule: a value that does not
split into as many parts still counts: missing parts are empty, and surplus commas stay in the last part.
"""

from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric

from tidegate.buses import Bus
from tidegate.counters import GatewayCounters, Histogram
from tidegate.metrics import _shapes as shapes
from tidegate.metrics._shapes import Labels, Observed
from tidegate.metrics._sources import CountsBroadcasts, KnowsLagByStream, Sources
from tidegate.profile import BackendMetrics, Family, MetricNames
from tidegate.upstreams import Upstream


def contract_metrics(names: MetricNames, stats: Mapping[str, int], counters: GatewayCounters) -> Iterator[Metric]:
    yield shapes.gauge(names.connections_current, "Admitted connections.", stats.get("connections_now", 0))
    yield shapes.counter(names.connections_total, "Connections admitted.", stats.get("connections", 0))
    yield shapes.gauge(names.rooms, "Rooms with a member.", stats.get("rooms_now", 0))
    yield shapes.counter(names.messages_received, "Messages from clients.", stats.get("messages_in", 0))
    yield shapes.counter(names.messages_sent, "Recipients of room and user messages.", stats.get("broadcasts", 0))
    yield shapes.counter(names.messages_from_bus, "Messages from the bus.", counters.messages_from_bus)
    yield shapes.counter(names.auth_success, "Upgrades admitted with a token.", counters.auth_success)
    yield shapes.counter(names.auth_failure, "Upgrades whose token was not accepted.", counters.auth_failure)
    text = "Seconds from a bus message's receipt to its hand-over to the engine."
    counts = tuple(counters.latency_counts)
    latency = Observed((), counters.latency_bounds, counts, counters.latency_sum)
    yield shapes.histogram(names.latency, text, (), [latency])
    yield errors(names.errors, stats, counters)


def errors(name: str, stats: Mapping[str, int], counters: GatewayCounters) -> Metric:
    """The gateway's own and those two that happen in the engine."""
    found = dict(counters.errors)
    # A reader who took nothing for the write time-out was as slow as one who overran the outbox
    slow = stats.get("refused.slow_close", 0) + stats.get("refused.write_timeout", 0)
    found["slow_close"] = found.get("slow_close", 0) + slow
    found["queue_full"] = found.get("queue_full", 0) + stats.get("refused.queue_full", 0)
    return shapes.labelled(name, "What went wrong, by type.", ("type",), shapes.by_one(found))


# --- families ---------------------------------------------------------------------------------------------------------


def family_metric(family: Family, stats: Mapping[str, int], sources: Sources) -> Metric:
    names = tuple(family.label.split(",")) if family.label else ()
    if family.source.startswith(SECONDS_OF):
        return _seconds(family, names, sources.upstreams().get(family.source.removeprefix(SECONDS_OF)))
    if family.buckets:
        return _histogram(family, names, sources.counters.observed.get(family.name, {}))
    values = dict.fromkeys(family.known, 0) | _read(family, sources)
    for label, key in family.engine.items():
        values[label] = values.get(label, 0) + stats.get(key, 0)
    if not names:
        return shapes.number(family.name, family.text, sum(values.values()))
    shape = shapes.labelled if family.name.endswith("_total") else shapes.gauges
    return shape(family.name, family.text, names, _split(values, len(names)))


def _read(family: Family, sources: Sources) -> dict[str, int]:
    if family.source == "bus_lag":
        return dict(_lag_by_stream(sources.bus))
    if family.source == "circuits":
        return _circuits(sources.upstreams())
    return dict(sources.counters.added.get(family.name, {}))


def _seconds(family: Family, names: tuple[str, ...], upstream: Upstream | None) -> Metric:
    """How long calls to one upstream took, by method."""
    observed = shapes.latencies((), upstream.stats()) if upstream is not None else []
    return shapes.histogram(family.name, family.text, names, observed)


# Of a family's source; what follows is the upstream's name
SECONDS_OF = "seconds:"


def _lag_by_stream(bus: Bus | None) -> Mapping[str, int]:
    return bus.lag_by_stream() if isinstance(bus, KnowsLagByStream) else {}


def _circuits(upstreams: Mapping[str, Upstream]) -> dict[str, int]:
    """0 closed, 1 open; one of an upstream, or one of each target where it has many."""
    found: dict[str, int] = {}
    for name, upstream in upstreams.items():
        stats = upstream.stats()
        if stats.circuits:
            found |= {f"{name}:{target}": int(is_open) for target, is_open in stats.circuits.items()}
        else:
            found[name] = int(stats.circuit_open)
    return found


def _split(values: Mapping[str, int], parts: int) -> dict[Labels, float]:
    found: dict[Labels, float] = {}
    for text, value in values.items():
        labels = split_label(text, parts)
        found[labels] = found.get(labels, 0) + value
    return found


def split_label(text: str, parts: int) -> Labels:
    """As many values as the metric has labels, whatever the text."""
    found = text.split(",", parts - 1) if parts else []
    return (*found, *[""] * (parts - len(found)))


def _histogram(family: Family, names: tuple[str, ...], observed: Mapping[str, Histogram]) -> Metric:
    size = len(family.buckets) + 1
    merged = {split_label(text, len(names)): Histogram([0] * size) for text in family.known or ("",) * (not names)}
    for text, kept in tuple(observed.items()):
        into = merged.setdefault(split_label(text, len(names)), Histogram([0] * size))
        into.counts = [sum(pair) for pair in zip(into.counts, kept.counts, strict=True)]
        into.sum += kept.sum
    values = [Observed(labels, family.buckets, kept.counts, kept.sum) for labels, kept in merged.items()]
    return shapes.histogram(family.name, family.text, names, values)


# --- calls to the backend, messages between nodes ---------------------------------------------------------------------


def backend_metrics(names: BackendMetrics, sources: Sources) -> Iterator[Metric]:
    if (upstream := sources.upstreams().get(BACKEND)) is not None:
        stats = upstream.stats()
        text = "Calls to the backend, by outcome."
        yield shapes.labelled(names.requests, text, ("call", "status"), stats.requests)
        text = "How long the backend took to answer."
        yield shapes.histogram(names.seconds, text, ("call",), shapes.latencies((), stats))
        lookups = shapes.by_one(stats.lookups)
        yield shapes.labelled(names.lookups, "Answers that were shared, or not.", ("result",), lookups)
    sent: Mapping[str, int] = sources.bus.broadcast_stats() if isinstance(sources.bus, CountsBroadcasts) else {}
    yield shapes.counter(names.published, "Messages sent to the other nodes.", sent.get("published", 0))
    yield shapes.counter(names.received, "Messages that came from the other nodes.", sent.get("received", 0))


# The upstream that `BackendMetrics` is of
BACKEND = "backend"
