"""A profile's own metrics: labels, histograms, and what is read from buses, circuits, registries and calls."""

import dataclasses

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tidegate.counters import LABELS_MAX, GatewayCounters
from tidegate.profile import Family
from tidegate.registries import RegistryStats

from tests.unit.gateway_fakes import SPEC
from tests.unit.test_metrics import PLAIN, NodeBus, SampleBus, SampleUpstream, exposition, scraped, value

FORWARDS = Family("x_forwards_total", "Forwards by kind, result and reason.", "kind,result,reason")
SECONDS = Family("x_seconds", "How long it took.", "kind", known=("message",), buckets=(0.01, 0.1, 1.0))
LAG = Family("x_lag", "Lag by topic.", "topic", source="bus_lag")
BREAKERS = Family("x_breaker_state", "Circuits by target.", "target", source="circuits")


def shown(*families, counters=None, **more):
    return scraped(exposition(counters=counters, names=None, families=families, **more))


def of(found, name):
    """{label values in the order of their names: value} of all samples of that name."""
    return {tuple(each for _, each in labels): count for (seen, labels), count in found.items() if seen == name}


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_family_with_several_labels_has_each_of_them():
    counters = GatewayCounters()
    counters.add("x_forwards_total", "message,failed,timeout")
    counters.add("x_forwards_total", "message,ok,", 3)
    found = shown(FORWARDS, counters=counters)
    assert value(found, "x_forwards_total", kind="message", result="failed", reason="timeout") == 1
    assert value(found, "x_forwards_total", kind="message", result="ok", reason="") == 3


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("message", ("message", "", "")),
        ("", ("", "", "")),
        ("message,failed,a,b", ("message", "failed", "a,b")),
        (",,", ("", "", "")),
    ],
)
def test_a_value_that_does_not_split_into_all_labels_still_counts(label, expected):
    counters = GatewayCounters()
    counters.add("x_forwards_total", label)
    found = shown(FORWARDS, counters=counters)
    kind, result, reason = expected
    assert value(found, "x_forwards_total", kind=kind, result=result, reason=reason) == 1


def test_values_that_come_to_the_same_labels_are_one_sample():
    counters = GatewayCounters()
    for label in ("message", "message,", "message,,"):
        counters.add("x_forwards_total", label)
    assert of(shown(FORWARDS, counters=counters), "x_forwards_total") == {("message", "", ""): 3}


def test_a_comma_in_the_value_of_a_single_label_stays():
    counters = GatewayCounters()
    counters.add("x_total", "a,b")
    assert value(shown(Family("x_total", "One label.", "code"), counters=counters), "x_total", code="a,b") == 1


def test_known_values_are_there_from_the_start():
    family = Family("x_total", "By kind and result.", "kind,result", known=("message,ok", "message,failed"))
    assert of(shown(family), "x_total") == {("message", "ok"): 0, ("message", "failed"): 0}


@pytest.mark.parametrize("label", ["", "state"])
def test_a_family_that_does_not_end_in_total_is_a_gauge_that_goes_up_and_down(label):
    counters = GatewayCounters()
    counters.add("x_pending", "open" if label else "", 5)
    counters.add("x_pending", "open" if label else "", -3)
    made = exposition(counters=counters, names=None, families=(Family("x_pending", "Waiting now.", label),))
    text = made.render(PLAIN)[0].decode()
    [family] = [each for each in text_string_to_metric_families(text) if each.name == "x_pending"]
    assert family.type == "gauge"
    assert [(sample.name, sample.value) for sample in family.samples] == [("x_pending", 2)]


# --- histograms -------------------------------------------------------------------------------------------------------


def test_durations_are_in_buckets_by_label():
    counters = GatewayCounters.of(spec_with(SECONDS))
    for seconds in (0.001, 0.05, 0.05, 5.0):
        counters.observe("x_seconds", seconds, "message")
    counters.observe("x_seconds", 0.5, "receipt")
    found = shown(SECONDS, counters=counters)
    message = [value(found, "x_seconds_bucket", kind="message", le=le) for le in ("0.01", "0.1", "1.0", "+Inf")]
    assert message == [1, 3, 3, 4]
    assert value(found, "x_seconds_count", kind="receipt") == 1
    assert value(found, "x_seconds_sum", kind="message") == pytest.approx(5.101)


def test_a_duration_of_exactly_a_bound_is_in_its_bucket():
    counters = GatewayCounters.of(spec_with(SECONDS))
    counters.observe("x_seconds", 0.1, "message")
    found = shown(SECONDS, counters=counters)
    assert [value(found, "x_seconds_bucket", kind="message", le=le) for le in ("0.01", "0.1")] == [0, 1]


def test_a_histogram_is_there_before_the_first_duration():
    plain = Family("y_seconds", "Without a label.", buckets=(1.0,))
    found = shown(SECONDS, plain)
    assert value(found, "x_seconds_count", kind="message") == 0
    assert value(found, "y_seconds_count") == 0
    assert value(found, "y_seconds_bucket", le="+Inf") == 0


def test_labels_of_a_histogram_that_never_end_are_bounded_and_lose_no_duration():
    counters = GatewayCounters.of(spec_with(SECONDS))
    for number in range(1000):
        counters.observe("x_seconds", 0.5, f"kind{number}")
    counts = of(shown(SECONDS, counters=counters), "x_seconds_count")
    assert len(counts) == LABELS_MAX + 2
    assert sum(counts.values()) == 1000


def test_a_duration_of_a_family_that_nobody_declared_harms_nobody():
    counters = GatewayCounters.of(spec_with(SECONDS))
    counters.observe("z_seconds", 0.5)
    assert of(shown(SECONDS, counters=counters), "z_seconds_count") == {}


def test_counters_of_a_profile_have_the_contracts_latency_buckets():
    assert GatewayCounters.of(SPEC).latency_counts == GatewayCounters().latency_counts


def spec_with(*families):
    return dataclasses.replace(SPEC, families=families)


# --- read at a scrape -------------------------------------------------------------------------------------------------


class LaggingBus(SampleBus):
    def lag_by_stream(self):
        return {"group_msg": 7, "read_receipt": 0}


def test_lag_is_shown_for_each_stream_of_a_bus_that_knows_it():
    assert of(shown(LAG, bus=LaggingBus()), "x_lag") == {("group_msg",): 7, ("read_receipt",): 0}


@pytest.mark.parametrize("bus", [None, NodeBus()])
def test_known_streams_are_shown_where_no_bus_tells_of_them(bus):
    family = Family("x_lag", "Lag by topic.", "topic", known=("group_msg",), source="bus_lag")
    assert of(shown(family, bus=bus), "x_lag") == {("group_msg",): 0}


def test_lag_without_a_label_is_that_of_all_streams():
    assert value(shown(Family("x_lag", "Lag.", source="bus_lag"), bus=LaggingBus()), "x_lag") == 7


def test_circuits_are_shown_by_upstream_and_by_target_where_one_has_many():
    upstreams = {
        "auth": SampleUpstream(),
        "im": SampleUpstream(circuit_open=True),
        "peers": SampleUpstream(circuits={"10.0.0.1:9093": True, "10.0.0.2:9093": False}),
    }
    found = of(shown(BREAKERS, upstreams=lambda: upstreams), "x_breaker_state")
    assert found == {("auth",): 0, ("im",): 1, ("peers:10.0.0.1:9093",): 1, ("peers:10.0.0.2:9093",): 0}


def test_what_a_bus_lost_is_shown_by_stream():
    class LosingBus(LaggingBus):
        def lost_by_stream(self):
            return {"group_msg": 3}

    assert of(shown(LAG, bus=LosingBus()), "tidegate_bus_lost_total") == {("group_msg",): 3}


def test_seconds_are_those_of_one_upstreams_calls_by_method():
    family = Family("x_forward_seconds", "Forwards.", "kind", source="seconds:nodes")
    found = scraped(exposition(names=None, families=(family,), upstreams=lambda: {"nodes": SampleUpstream()}))
    assert of(found, "x_forward_seconds_count") == {("auth",): 6}
    assert of(found, "x_forward_seconds_sum") == {("auth",): 0.5}
    assert of(shown(family), "x_forward_seconds_count") == {}


def test_circuits_are_a_gauge():
    made = exposition(names=None, families=(BREAKERS,), upstreams=lambda: {"auth": SampleUpstream()})
    assert "# TYPE x_breaker_state gauge" in made.render(PLAIN)[0].decode()


def test_upstreams_that_come_later_are_seen_by_the_next_scrape():
    upstreams = {}
    made = exposition(names=None, families=(BREAKERS,), upstreams=lambda: upstreams)
    assert of(scraped(made), "x_breaker_state") == {}
    upstreams["auth"] = SampleUpstream()
    assert of(scraped(made), "x_breaker_state") == {("auth",): 0}


# --- the operator's ---------------------------------------------------------------------------------------------------


def test_the_operator_sees_each_upstream():
    many = SampleUpstream(circuits={"a:1": True, "b:1": True, "c:1": False})
    found = shown(upstreams=lambda: {"auth": SampleUpstream(circuit_open=True), "peers": many})
    assert value(found, "tidegate_upstream_requests_total", upstream="auth", call="auth", status="timeout") == 1
    assert value(found, "tidegate_upstream_request_seconds_count", upstream="peers", call="auth") == 6
    assert value(found, "tidegate_upstream_in_flight", upstream="auth") == 3
    assert value(found, "tidegate_upstream_waiting", upstream="auth") == 2
    assert of(found, "tidegate_upstream_circuits_open") == {("auth",): 1, ("peers",): 2}


class SampleRegistry:
    def is_ready(self):
        return True

    def stats(self):
        numbers = {name: at for at, name in enumerate(RegistryStats.__dataclass_fields__, 1)}
        return RegistryStats(**numbers)


def test_the_operator_sees_every_number_of_the_registry():
    found = shown(more={"registry": SampleRegistry})
    names = {name for name, _ in found if name.startswith("tidegate_registry_")}
    assert value(found, "tidegate_registry_ready") == 1
    assert value(found, "tidegate_registry_places") == SampleRegistry().stats().places
    assert value(found, "tidegate_registry_taken_total") == SampleRegistry().stats().taken
    assert len(names) == len(RegistryStats.__dataclass_fields__) + 1


class SampleRpcs:
    under_way = 4

    def counts(self):
        return {("PushMessage", "ok"): 9, ("PushMessage", "internal"): 1}


class SampleTracer:
    def stats(self):
        return {"exported": 8, "failed": 2, "dropped": 1}


def test_the_operator_sees_calls_of_backends_and_spans():
    found = shown(more={"rpcs": SampleRpcs, "tracer": SampleTracer})
    assert value(found, "tidegate_rpcs") == 4
    assert value(found, "tidegate_rpcs_total", method="PushMessage", status="internal") == 1
    assert of(found, "tidegate_spans_total") == {("exported",): 8, ("failed",): 2, ("dropped",): 1}


def test_what_a_gateway_has_not_is_not_shown():
    names = {name for name, _ in shown()}
    for part in ("registry", "rpcs", "spans", "upstream", "bus"):
        assert not any(name.startswith(f"tidegate_{part}") for name in names)
