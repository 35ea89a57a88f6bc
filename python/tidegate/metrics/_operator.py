"""What an operator needs beside the contract's metrics, of every part that this gateway has.

Rule: every name begins with `tidegate_`, and every text says what the number means to who reads it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from resource import getpagesize
from typing import NamedTuple

from prometheus_client.core import Metric

from tidegate.buses import Bus
from tidegate.counters import GatewayCounters
from tidegate.metrics import _shapes as shapes
from tidegate.metrics._sources import KnowsLost, Rpcs, Sources, Spans, TokenCache
from tidegate.registries import Registry
from tidegate.upstreams import Upstream, UpstreamStats


class _Stat(NamedTuple):
    key: str
    name: str
    help: str
    scale: float = 1.0


def engine_metrics(stats: Mapping[str, int]) -> Iterator[Metric]:
    yield from _plain(ENGINE_STATS, stats)
    refused = {key.removeprefix("refused."): count for key, count in stats.items() if key.startswith("refused.")}
    text = "Refused, dropped or closed, by reason."
    yield shapes.labelled("tidegate_refused_total", text, ("reason",), shapes.by_one(refused))
    memory = resident_bytes()
    each = memory / stats["connections_now"] if stats.get("connections_now") else 0.0
    yield shapes.gauge(
        "tidegate_process_resident_bytes_per_connection", "All memory over all connections; 0 without any.", each
    )


def operator_metrics(sources: Sources) -> Iterator[Metric]:
    yield from _gateway_metrics(sources.counters)
    if sources.bus is not None:
        yield from _bus_metrics(sources.bus)
    if sources.tokens is not None:
        yield from _token_metrics(sources.tokens)
    if upstreams := sources.upstreams():
        yield from _upstream_metrics(upstreams)
    if (registry := sources.registry()) is not None:
        yield from _registry_metrics(registry)
    if (rpcs := sources.rpcs()) is not None:
        yield from _rpc_metrics(rpcs)
    if (tracer := sources.tracer()) is not None:
        yield _span_metric(tracer)


def _plain(table: Iterable[_Stat], stats: Mapping[str, int]) -> Iterator[Metric]:
    for stat in table:
        yield shapes.number(stat.name, stat.help, stats.get(stat.key, 0) * stat.scale)


def _gateway_metrics(counters: GatewayCounters) -> Iterator[Metric]:
    yield shapes.counter("tidegate_room_messages_total", "Messages handed over for fan-out.", counters.broadcasts)
    yield shapes.counter(
        "tidegate_profile_errors_total", "Exceptions in the profile: bugs, please report.", counters.profile_errors
    )


def _bus_metrics(bus: Bus) -> Iterator[Metric]:
    yield shapes.gauge("tidegate_bus_ready", "1 while messages flow from the backends.", int(bus.is_ready()))
    yield from _plain(BUS_STATS, bus.stats())
    if isinstance(bus, KnowsLost):
        text = "Messages that the backend threw away before this node had read them."
        yield shapes.labelled("tidegate_bus_lost_total", text, ("stream",), shapes.by_one(bus.lost_by_stream()))


def _token_metrics(tokens: TokenCache) -> Iterator[Metric]:
    yield shapes.counter("tidegate_token_cache_hits_total", "Tokens known from before.", tokens.hits)
    yield shapes.counter("tidegate_token_cache_misses_total", "Tokens that had to be verified.", tokens.misses)
    yield shapes.gauge("tidegate_token_cache_tokens", "Verified tokens kept.", tokens.cached)


def _registry_metrics(registry: Registry) -> Iterator[Metric]:
    text = "1 while places are known to all nodes and others' are heard of."
    yield shapes.gauge("tidegate_registry_ready", text, int(registry.is_ready()))
    yield from _plain(REGISTRY_STATS, asdict(registry.stats()))


def _upstream_metrics(upstreams: Mapping[str, Upstream]) -> Iterator[Metric]:
    all_stats = {name: upstream.stats() for name, upstream in upstreams.items()}
    for name, text, read in UPSTREAM_GAUGES:
        yield shapes.gauges(name, text, ("upstream",), {(up,): read(stats) for up, stats in all_stats.items()})
    requests = {
        (name, call, status): count
        for name, stats in all_stats.items()
        for (call, status), count in stats.requests.items()
    }
    labels = ("upstream", "call", "status")
    yield shapes.labelled("tidegate_upstream_requests_total", "Calls to upstreams, by outcome.", labels, requests)
    seconds = [each for name, stats in all_stats.items() for each in shapes.latencies((name,), stats)]
    text = "How long upstreams took to answer."
    yield shapes.histogram("tidegate_upstream_request_seconds", text, ("upstream", "call"), seconds)


def _rpc_metrics(rpcs: Rpcs) -> Iterator[Metric]:
    yield shapes.gauge("tidegate_rpcs", "Calls of backends that are not answered yet.", rpcs.under_way)
    text = "Calls of backends, by their outcome."
    yield shapes.labelled("tidegate_rpcs_total", text, ("method", "status"), rpcs.counts())


def _span_metric(tracer: Spans) -> Metric:
    text = "Spans, by whether the collector took them; dropped: they came faster than it takes them."
    return shapes.labelled("tidegate_spans_total", text, ("result",), shapes.by_one(tracer.stats()))


def resident_bytes() -> int:
    """This process's memory as the kernel counts it; 0 where /proc doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


# --- tables -----------------------------------------------------------------------------------------------------------

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

REGISTRY_STATS = (
    _Stat("places", "tidegate_registry_places", "Devices of this node that other nodes can find."),
    _Stat("leases", "tidegate_registry_leases", "Leases that keep them there."),
    _Stat("nodes", "tidegate_registry_nodes", "Nodes that are alive, this one included."),
    _Stat("unsettled", "tidegate_registry_unsettled_places", "Keys whose state is not known and is looked after."),
    _Stat("cache_entries", "tidegate_registry_cache_entries", "Users whose devices are known from before."),
    _Stat("cache_hits", "tidegate_registry_cache_hits_total", "Look-ups of users answered from memory."),
    _Stat("cache_misses", "tidegate_registry_cache_misses_total", "Look-ups of users that had to be asked."),
    _Stat("cache_merged", "tidegate_registry_cache_merged_total", "Of those, look-ups that joined another's."),
    _Stat("lease_losses", "tidegate_registry_lease_losses_total", "Leases that ran out and were taken anew."),
    _Stat("puts_again", "tidegate_registry_puts_again_total", "Devices that had to be written once more."),
    _Stat("watch_resumes", "tidegate_registry_watch_resumes_total", "Times the watch went on without a gap."),
    _Stat("watch_gaps", "tidegate_registry_watch_gaps_total", "Times news were missed and all was read anew."),
    _Stat("taken", "tidegate_registry_taken_total", "Devices that connected to another node."),
    _Stat("round_trips", "tidegate_registry_round_trips_total", "Requests to the registry."),
    _Stat("failures", "tidegate_registry_failures_total", "Of those, requests that failed."),
)


def _in_flight(stats: UpstreamStats) -> int:
    return stats.in_flight


def _waiting(stats: UpstreamStats) -> int:
    return stats.waiting


def _open_circuits(stats: UpstreamStats) -> int:
    return sum(stats.circuits.values()) if stats.circuits else int(stats.circuit_open)


UPSTREAM_GAUGES = (
    ("tidegate_upstream_in_flight", "Calls that are sent and not answered.", _in_flight),
    ("tidegate_upstream_waiting", "Calls that wait for one of those to end.", _waiting),
    ("tidegate_upstream_circuits_open", "Targets that calls fail for at once, after many failures.", _open_circuits),
)
