"""What a scrape shows, read back with the library's own parsers."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tidegate.counters import ERROR_TYPES, LABELS_MAX, GatewayCounters
from tidegate.metrics import Exposition, Sources, resident_bytes
from tidegate.profile import BackendMetrics, Family, MetricNames

from tests.unit.gateway_fakes import SPEC

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
PLAIN = "text/plain; version=0.0.4"

NAMES = MetricNames(
    connections_current="gateway_connections_current",
    connections_total="gateway_connections_total",
    rooms="gateway_rooms_total",
    messages_received="gateway_messages_received_total",
    messages_sent="gateway_messages_sent_total",
    messages_from_bus="gateway_messages_from_nats_total",
    auth_success="gateway_auth_success_total",
    auth_failure="gateway_auth_failure_total",
    latency="gateway_message_latency_seconds",
    latency_buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    errors="gateway_errors_total",
)

STATS = {
    "connections_now": 37,
    "handshakes_now": 2,
    "connections": 120,
    "rooms_now": 12,
    "memberships_now": 111,
    "messages_in": 1000,
    "bytes_in": 50_000,
    "deliveries": 9000,
    "broadcasts": 8000,
    "bytes_out": 1_000_000,
    "writes": 900,
    "outbox_bytes_now": 4096,
    "backlog_bytes_now": 8192,
    "pings": 55,
    "deflate_now": 3,
    "refused.max_connections": 5,
    "refused.slow_close": 2,
    "refused.write_timeout": 1,
    "refused.queue_full": 7,
    "shards": 2,
    "shard_lag_us_max": 1500,
    "http_relays_now": 4,
    "events_queued_now": 6,
}

CONTRACT_TYPES = {
    "gateway_connections_current": "gauge",
    "gateway_connections_total": "counter",
    "gateway_rooms_total": "gauge",
    "gateway_messages_received_total": "counter",
    "gateway_messages_sent_total": "counter",
    "gateway_messages_from_nats_total": "counter",
    "gateway_auth_success_total": "counter",
    "gateway_auth_failure_total": "counter",
    "gateway_message_latency_seconds": "histogram",
    "gateway_errors_total": "counter",
}


class SampleBus:
    def __init__(self, ready=True):
        self.ready = ready

    def is_ready(self):
        return self.ready

    def stats(self):
        return {"messages": 70, "bytes": 7000, "reconnects": 3, "lag": 11, "broadcasts_dropped": 1, "decode_errors": 2}


class SampleTokens:
    hits, misses, cached = 90, 10, 9


def exposition(stats=STATS, counters=None, names=NAMES, bus=None, tokens=None, **spec):
    made = counters or GatewayCounters()
    upstreams, more = spec.pop("upstreams", dict), spec.pop("more", {})
    sources = Sources(lambda: stats, made, bus, tokens, upstreams, "1.2.3", "node-1", **more)
    return Exposition(sources, dataclasses.replace(SPEC, name="sample", metrics=names, **spec))


def scraped(made, accept=PLAIN):
    """{(sample name, labels): value}, by the parser of that format."""
    body, content_type = made.render(accept)
    parse = parse_open if content_type.startswith("application/openmetrics-text") else parse_text
    found = {}
    for family in parse(body.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


@pytest.mark.parametrize("accept", [PLAIN, OPEN_METRICS, "", "*/*"])
def test_every_name_of_the_contract_has_its_value_in_both_formats(accept):
    counters = GatewayCounters(auth_success=120, auth_failure=4, messages_from_bus=70)
    found = scraped(exposition(counters=counters), accept)
    assert value(found, "gateway_connections_current") == 37
    assert value(found, "gateway_connections_total") == 120
    assert value(found, "gateway_rooms_total") == 12
    assert value(found, "gateway_messages_received_total") == 1000
    assert value(found, "gateway_messages_sent_total") == 8000
    assert value(found, "gateway_messages_from_nats_total") == 70
    assert value(found, "gateway_auth_success_total") == 120
    assert value(found, "gateway_auth_failure_total") == 4
    assert value(found, "gateway_message_latency_seconds_count") == 0


def test_the_declared_types_are_the_contracts():
    text = exposition().render(PLAIN)[0].decode()
    declared = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE gateway_"))
    assert declared == CONTRACT_TYPES


def test_open_metrics_declares_the_same_types_without_the_counters_suffix():
    text = exposition().render(OPEN_METRICS)[0].decode()
    declared = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE gateway_"))
    expected = {
        name.removesuffix("_total") if kind == "counter" else name: kind for name, kind in CONTRACT_TYPES.items()
    }
    assert declared == expected
    assert text.endswith("# EOF\n")


def test_the_content_type_follows_the_accept_header():
    assert exposition().render(OPEN_METRICS)[1].startswith("application/openmetrics-text; version=1.0.0")
    assert exposition().render(PLAIN)[1].startswith("text/plain; version=0.0.4")
    assert exposition().render("")[1].startswith("text/plain; version=0.0.4")


def test_every_known_error_type_is_there_at_zero():
    found = scraped(exposition(stats={}))
    assert {kind: value(found, "gateway_errors_total", type=kind) for kind in ERROR_TYPES} == dict.fromkeys(
        ERROR_TYPES, 0
    )


def test_errors_of_gateway_and_engine_are_in_one_metric():
    counters = GatewayCounters()
    for kind in ("bad_json", "bad_json", "no_target", "something_new"):
        counters.count_error(kind)
    found = scraped(exposition(counters=counters))
    assert value(found, "gateway_errors_total", type="bad_json") == 2
    assert value(found, "gateway_errors_total", type="no_target") == 1
    assert value(found, "gateway_errors_total", type="something_new") == 1
    assert value(found, "gateway_errors_total", type="slow_close") == 3
    assert value(found, "gateway_errors_total", type="queue_full") == 7


def test_the_number_of_error_types_is_bounded():
    counters = GatewayCounters()
    for number in range(1000):
        counters.count_error(f"kind{number}")
    found = scraped(exposition(counters=counters))
    kinds = [key for key in found if key[0] == "gateway_errors_total"]
    assert len(kinds) <= 65
    assert sum(found[key] for key in kinds) == 1000 + 3 + 7


def test_latency_buckets_are_cumulative_with_the_contracts_bounds():
    counters = GatewayCounters()
    counters.observe_latency(0.0001)
    counters.observe_latency(0.0003, messages=10)
    counters.observe_latency(0.75)
    counters.observe_latency(5.0)
    found = scraped(exposition(counters=counters))
    buckets = {
        labels[0][1]: count
        for (name, labels), count in found.items()
        if name == "gateway_message_latency_seconds_bucket"
    }
    bounds = ["0.0001", "0.0005", "0.001", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "+Inf"]
    assert buckets == dict(zip(bounds, [1, 11, 11, 11, 11, 11, 11, 11, 11, 11, 12, 13], strict=True))
    assert value(found, "gateway_message_latency_seconds_count") == 13
    assert math.isclose(value(found, "gateway_message_latency_seconds_sum"), 0.0001 + 0.003 + 0.75 + 5.0)


def test_a_profile_without_names_shows_only_the_operators():
    found = scraped(exposition(names=None))
    assert {name.split("_")[0] for name, _ in found} <= {"tidegate", "process"}
    assert value(found, "tidegate_connections") == 37


def test_the_operator_sees_the_engine():
    found = scraped(exposition())
    assert value(found, "tidegate_refused_total", reason="max_connections") == 5
    assert value(found, "tidegate_refused_total", reason="queue_full") == 7
    assert value(found, "tidegate_outbox_bytes") == 4096
    assert value(found, "tidegate_backlog_bytes") == 8192
    assert math.isclose(value(found, "tidegate_shard_lag_seconds"), 0.0015)
    assert value(found, "tidegate_http_relays") == 4
    assert value(found, "tidegate_pings_total") == 55
    assert value(found, "tidegate_received_bytes_total") == 50_000
    assert value(found, "tidegate_sent_bytes_total") == 1_000_000
    assert value(found, "tidegate_deliveries_total") == 9000
    assert value(found, "tidegate_events_queued") == 6
    assert value(found, "tidegate_build_info", version="1.2.3", profile="sample", node="node-1") == 1


@pytest.mark.parametrize(("ready", "shown"), [(True, 1), (False, 0)])
def test_the_operator_sees_the_bus(ready, shown):
    found = scraped(exposition(bus=SampleBus(ready)))
    assert value(found, "tidegate_bus_ready") == shown
    assert value(found, "tidegate_bus_lag_messages") == 11
    assert value(found, "tidegate_bus_reconnects_total") == 3
    assert value(found, "tidegate_bus_decode_errors_total") == 2
    assert not any(name.startswith("tidegate_bus") for name, _ in scraped(exposition()))


def test_the_operator_sees_the_token_cache():
    found = scraped(exposition(tokens=SampleTokens()))
    assert value(found, "tidegate_token_cache_hits_total") == 90
    assert value(found, "tidegate_token_cache_misses_total") == 10
    assert value(found, "tidegate_token_cache_tokens") == 9


def test_memory_a_connection_is_all_memory_over_all_connections():
    memory = resident_bytes()
    assert memory > 1_000_000
    shown = value(scraped(exposition()), "tidegate_process_resident_bytes_per_connection")
    assert shown == pytest.approx(memory / 37, rel=0.5)
    nobody = scraped(exposition(stats={"connections_now": 0}))
    assert value(nobody, "tidegate_process_resident_bytes_per_connection") == 0


def test_each_scrape_reads_anew_and_making_the_exposition_reads_nothing():
    reads = []

    def stats():
        reads.append(1)
        return STATS | {"connections_now": len(reads)}

    sources = Sources(stats, GatewayCounters(), None, None, dict, "1", "n")
    made = Exposition(sources, dataclasses.replace(SPEC, metrics=NAMES))
    assert reads == []
    assert [value(scraped(made), "gateway_connections_current") for _ in range(3)] == [1, 2, 3]


def test_a_contracts_counter_without_the_suffix_keeps_its_name():
    names = dataclasses.replace(NAMES, messages_sent="sent_messages")
    found = scraped(exposition(names=names))
    assert value(found, "sent_messages") == 8000
    assert ("sent_messages_total", ()) not in found


def test_every_metric_says_what_it_means():
    text = exposition(bus=SampleBus(), tokens=SampleTokens()).render(PLAIN)[0].decode()
    helps = [line.split(maxsplit=3) for line in text.splitlines() if line.startswith("# HELP")]
    assert [parts[2] for parts in helps if len(parts) < 4 or len(parts[3]) < 10] == []


# --- a profile's own --------------------------------------------------------------------------------------------------


class SampleUpstream:
    def __init__(self, circuit_open=False, circuits=None):
        self.circuit_open = circuit_open
        self.circuits = circuits or {}

    def stats(self):
        return SimpleNamespace(
            requests={("auth", "200"): 5, ("auth", "timeout"): 1},
            latency_bounds=(0.01, 0.1),
            latency_counts={"auth": [3, 2, 1]},
            latency_sums={"auth": 0.5},
            lookups={"hit": 7, "miss": 2, "merged": 1},
            in_flight=3,
            waiting=2,
            circuit_open=self.circuit_open,
            circuits=self.circuits,
        )


class NodeBus(SampleBus):
    def broadcast_stats(self):
        return {"published": 4, "received": 9}


BACKEND = BackendMetrics(
    requests="x_requests_total",
    seconds="x_request_seconds",
    lookups="x_cache_total",
    published="x_published_total",
    received="x_received_total",
)


def test_a_profiles_families_sum_what_it_counted_and_what_the_engine_did():
    counters = GatewayCounters()
    counters.add("x_errors_total", "BAD")
    counters.add("x_errors_total", "RATE", 2)
    families = (
        Family("x_now", "Open connections now.", engine={"": "connections_now"}),
        Family("x_errors_total", "Errors by code.", "code", known=("NONE",), engine={"RATE": "refused.queue_full"}),
    )
    found = scraped(exposition(counters=counters, names=None, families=families))
    assert value(found, "x_now") == 37
    assert [value(found, "x_errors_total", code=code) for code in ("NONE", "BAD", "RATE")] == [0, 1, 9]


def test_calls_to_the_backend_and_messages_between_nodes_have_the_contracts_names():
    found = scraped(
        exposition(names=None, backend_metrics=BACKEND, upstreams=lambda: {"backend": SampleUpstream()}, bus=NodeBus())
    )
    assert value(found, "x_requests_total", call="auth", status="timeout") == 1
    assert value(found, "x_request_seconds_bucket", call="auth", le="0.1") == 5
    assert value(found, "x_request_seconds_count", call="auth") == 6
    assert value(found, "x_cache_total", result="merged") == 1
    assert (value(found, "x_published_total"), value(found, "x_received_total")) == (4, 9)


def test_without_names_for_it_what_went_wrong_is_still_there():
    counters = GatewayCounters()
    counters.count_error("members_failed")
    assert (
        value(scraped(exposition(counters=counters, names=None)), "tidegate_errors_total", type="members_failed") == 1
    )


def test_labels_of_a_profile_that_never_end_are_bounded():
    counters = GatewayCounters()
    for number in range(1000):
        counters.add("x", str(number))
    assert len(counters.added["x"]) == LABELS_MAX + 1
    assert sum(counters.added["x"].values()) == 1000
