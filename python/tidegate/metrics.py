"""What a scrape sees: the engine's, the gateway's and the bus's counters under the names of the profile's contract.

Nothing is counted here: a scrape reads plain numbers that others keep, so metrics cost the data path nothing. The names
of the profile are exported exactly as its contract has them, whatever the library thinks of a gauge whose name ends in
`_total`; what an operator needs beside them begins with `tidegate_`. Rule: labels have few values that are known
beforehand, never a room or a user.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize
from typing import NamedTuple, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tidegate.buses import Bus
from tidegate.counters import GatewayCounters
from tidegate.profile import BackendMetrics, Family, MetricNames, ProfileSpec
from tidegate.upstreams import Upstream


class TokenCache(Protocol):
    """What `auth.py` counts."""

    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def cached(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are kept; each is read once a scrape."""

    engine: Callable[[], Mapping[str, int]]  # Engine.stats
    counters: GatewayCounters
    bus: Bus | None
    tokens: TokenCache | None
    upstream: Callable[[], Upstream | None]
    version: str
    node_id: str


class Exposition:
    """`render` answers one scrape, in the text format that its Accept header asks for."""

    def __init__(self, sources: Sources, spec: ProfileSpec) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(GatewayCollector(sources, spec))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Body and Content-Type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class GatewayCollector(Collector):
    def __init__(self, sources: Sources, spec: ProfileSpec) -> None:
        self._sources = sources
        self._spec = spec

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would else scrape the engine to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        sources, spec = self._sources, self._spec
        stats = sources.engine()
        if spec.metrics is not None:
            yield from _contract_metrics(spec.metrics, stats, sources.counters)
        else:
            errors = _errors(stats, sources.counters)
            yield _labelled("tidegate_errors_total", "What went wrong, by type.", "type", errors)
        for family in spec.families:
            yield _family(family, stats, sources.counters.added.get(family.name, {}))
        if spec.backend_metrics is not None:
            yield from _backend_metrics(spec.backend_metrics, sources)
        yield from _engine_metrics(stats)
        yield from _gateway_metrics(sources.counters)
        if sources.bus is not None:
            yield from _bus_metrics(sources.bus)
        if sources.tokens is not None:
            yield from _token_metrics(sources.tokens)
        build = GaugeMetricFamily("tidegate_build_info", "What runs here; always 1.", labels=BUILD_LABELS)
        build.add_metric([sources.version, spec.name, sources.node_id], 1)
        yield build


# --- the contract's ---------------------------------------------------------------------------------------------------


def _contract_metrics(names: MetricNames, stats: Mapping[str, int], counters: GatewayCounters) -> Iterator[Metric]:
    yield _gauge(names.connections_current, "Admitted connections.", stats.get("connections_now", 0))
    yield _counter(names.connections_total, "Connections admitted.", stats.get("connections", 0))
    yield _gauge(names.rooms, "Rooms with a member.", stats.get("rooms_now", 0))
    yield _counter(names.messages_received, "Messages from clients.", stats.get("messages_in", 0))
    yield _counter(names.messages_sent, "Recipients of room and user messages.", stats.get("broadcasts", 0))
    yield _counter(names.messages_from_bus, "Messages from the bus.", counters.messages_from_bus)
    yield _counter(names.auth_success, "Upgrades admitted with a token.", counters.auth_success)
    yield _counter(names.auth_failure, "Upgrades whose token was not accepted.", counters.auth_failure)
    yield _latency(names.latency, counters)
    yield _labelled(names.errors, "What went wrong, by type.", "type", _errors(stats, counters))


def _family(family: Family, stats: Mapping[str, int], added: Mapping[str, int]) -> Metric:
    values = dict.fromkeys(family.known, 0) | dict(added)
    for label, key in family.engine.items():
        values[label] = values.get(label, 0) + stats.get(key, 0)
    if family.label:
        return _labelled(family.name, family.text, family.label, values)
    make = _counter if family.name.endswith("_total") else _gauge
    return make(family.name, family.text, sum(values.values()))


def _backend_metrics(names: BackendMetrics, sources: Sources) -> Iterator[Metric]:
    if (upstream := sources.upstream()) is not None:
        stats = upstream.stats()
        requests = CounterMetricFamily(names.requests, "Calls to the backend, by outcome.", labels=["call", "status"])
        for (call, status), count in stats.requests.items():
            requests.add_metric([call, status], count)
        yield requests
        seconds = HistogramMetricFamily(names.seconds, "How long the backend took to answer.", labels=["call"])
        for call, counts in stats.latency_counts.items():
            buckets = _buckets(stats.latency_bounds, counts)
            seconds.add_metric([call], buckets, stats.latency_sums.get(call, 0.0))
        yield seconds
        yield _labelled(names.lookups, "Answers that were shared, or not.", "result", stats.lookups)
    sent = broadcast_stats(sources.bus)
    yield _counter(names.published, "Messages sent to the other nodes.", sent.get("published", 0))
    yield _counter(names.received, "Messages that came from the other nodes.", sent.get("received", 0))


def broadcast_stats(bus: Bus | None) -> Mapping[str, int]:
    """`published` and `received`, of a bus that counts them."""
    return bus.broadcast_stats() if isinstance(bus, CountsBroadcasts) else {}


@runtime_checkable
class CountsBroadcasts(Protocol):
    def broadcast_stats(self) -> Mapping[str, int]: ...


def _errors(stats: Mapping[str, int], counters: GatewayCounters) -> dict[str, int]:
    """The gateway's own and those two that happen in the engine."""
    errors = dict(counters.errors)
    # A reader who took nothing for the write time-out was as slow as one who overran the outbox
    slow = stats.get("refused.slow_close", 0) + stats.get("refused.write_timeout", 0)
    errors["slow_close"] = errors.get("slow_close", 0) + slow
    errors["queue_full"] = errors.get("queue_full", 0) + stats.get("refused.queue_full", 0)
    return errors


def _latency(name: str, counters: GatewayCounters) -> Metric:
    buckets = _buckets(counters.latency_bounds, tuple(counters.latency_counts))
    family = HistogramMetricFamily(name, "Seconds from a bus message's receipt to its hand-over to the engine.")
    family.add_metric([], buckets, counters.latency_sum)
    return family


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """As the format wants them: each counts everything up to its bound. `counts` has one more, for what is beyond."""
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), below))
    return buckets


# --- the operator's ---------------------------------------------------------------------------------------------------


class _Stat(NamedTuple):
    key: str
    name: str
    help: str
    scale: float = 1.0


def _engine_metrics(stats: Mapping[str, int]) -> Iterator[Metric]:
    for stat in ENGINE_STATS:
        make = _counter if stat.name.endswith("_total") else _gauge
        yield make(stat.name, stat.help, stats.get(stat.key, 0) * stat.scale)
    refused = {key.removeprefix("refused."): count for key, count in stats.items() if key.startswith("refused.")}
    yield _labelled("tidegate_refused_total", "Refused, dropped or closed, by reason.", "reason", refused)
    memory = resident_bytes()
    each = memory / stats["connections_now"] if stats.get("connections_now") else 0.0
    yield _gauge(
        "tidegate_process_resident_bytes_per_connection", "All memory over all connections; 0 without any.", each
    )


def _gateway_metrics(counters: GatewayCounters) -> Iterator[Metric]:
    yield _counter("tidegate_room_messages_total", "Messages handed over for fan-out.", counters.broadcasts)
    yield _counter(
        "tidegate_profile_errors_total", "Exceptions in the profile: bugs, please report.", counters.profile_errors
    )


def _bus_metrics(bus: Bus) -> Iterator[Metric]:
    yield _gauge("tidegate_bus_ready", "1 while messages flow from the backends.", int(bus.is_ready()))
    stats = bus.stats()
    for stat in BUS_STATS:
        make = _counter if stat.name.endswith("_total") else _gauge
        yield make(stat.name, stat.help, stats.get(stat.key, 0) * stat.scale)


def _token_metrics(tokens: TokenCache) -> Iterator[Metric]:
    yield _counter("tidegate_token_cache_hits_total", "Tokens known from before.", tokens.hits)
    yield _counter("tidegate_token_cache_misses_total", "Tokens that had to be verified.", tokens.misses)
    yield _gauge("tidegate_token_cache_tokens", "Verified tokens kept.", tokens.cached)


def resident_bytes() -> int:
    """This process's memory as the kernel counts it; 0 where /proc doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


# --- families ---------------------------------------------------------------------------------------------------------


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    """The library appends `_total` to a counter without it, which would break a contract: such a name stays untyped."""
    if name.endswith("_total"):
        return CounterMetricFamily(name, text, value=value)
    family = Metric(name, text, "unknown")
    family.add_sample(name, {}, value)
    return family


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


ENGINE_STATS = (
    _Stat("connections_now", "tidegate_connections", "Admitted connections."),
    _Stat("handshakes_now", "tidegate_handshakes", "Sockets that are not admitted yet."),
    _Stat("rooms_now", "tidegate_rooms", "Rooms with a member, counted once a shard that has one."),
    _Stat("memberships_now", "tidegate_memberships", "Connections in rooms, summed over the rooms."),
    _Stat("shards", "tidegate_shards", "Threads that own sockets."),
    _Stat("shard_lag_us_max", "tidegate_shard_lag_seconds", "Longest recent pass of a shard's loop.", 1e-6),
    _Stat("outbox_bytes_now", "tidegate_outbox_bytes", "Bytes owed to clients, shared ones counted for each."),
    _Stat("backlog_bytes_now", "tidegate_backlog_bytes", "Bytes that wait for their turn in a fan-out."),
    _Stat("events_queued_now", "tidegate_events_queued", "Events that Python has not taken yet."),
    _Stat("http_relays_now", "tidegate_http_relays", "Plain HTTP connections passed to the HTTP app."),
    _Stat("deflate_now", "tidegate_deflate_connections", "Connections with permessage-deflate."),
    _Stat("connections", "tidegate_connections_opened_total", "Connections admitted."),
    _Stat("messages_in", "tidegate_messages_received_total", "Messages from clients."),
    _Stat("bytes_in", "tidegate_received_bytes_total", "Bytes read from clients."),
    _Stat("deliveries", "tidegate_deliveries_total", "Messages put on their way, one a recipient."),
    _Stat("broadcasts", "tidegate_room_deliveries_total", "Of those, recipients of room messages."),
    _Stat("bytes_out", "tidegate_sent_bytes_total", "Bytes written to clients."),
    _Stat("writes", "tidegate_writes_total", "System calls that wrote; deliveries over writes is the batching."),
    _Stat("pings", "tidegate_pings_total", "Ping frames sent."),
)

BUS_STATS = (
    _Stat("lag", "tidegate_bus_lag_messages", "Messages that the backend holds and we have not seen."),
    _Stat("messages", "tidegate_bus_messages_total", "Messages from the bus."),
    _Stat("bytes", "tidegate_bus_bytes_total", "Bytes from the bus."),
    _Stat("reconnects", "tidegate_bus_reconnects_total", "Times the connection to the bus was made again."),
    _Stat("broadcasts_dropped", "tidegate_bus_broadcasts_dropped_total", "Client events that other nodes missed."),
    _Stat("decode_errors", "tidegate_bus_decode_errors_total", "Bus messages that were not understood."),
)

BUILD_LABELS = ("version", "profile", "node")
