"""What an upstream counts of its calls."""

from tidegate.upstreams import LATENCY_BOUNDS
from tidegate.upstreams._meter import CIRCUIT_OPEN, METHODS_MAX, TIMEOUT, Meter


def test_calls_are_counted_by_method_and_outcome_and_timed():
    meter = Meter()
    meter.count("auth", "200", 0.002)
    meter.count("auth", "200", 0.0025)
    meter.count("auth", TIMEOUT, 10.0)
    meter.count("send", "201", 99.0)
    stats = meter.stats()
    assert stats.requests == {("auth", "200"): 2, ("auth", "timeout"): 1, ("send", "201"): 1}
    assert stats.latency_bounds == LATENCY_BOUNDS
    assert stats.latency_counts["auth"] == (0, 2, *[0] * 10, 1, 0)
    assert stats.latency_counts["send"] == (*[0] * 13, 1)
    assert stats.latency_sums == {"auth": 10.0045, "send": 99.0}


def test_what_the_open_circuit_refused_took_no_time_worth_a_bucket():
    meter = Meter()
    meter.count("auth", CIRCUIT_OPEN, 0.0)
    assert meter.stats().requests == {("auth", "circuit_open"): 1}
    assert sum(meter.stats().latency_counts["auth"]) == 0


def test_methods_without_end_are_bounded():
    meter = Meter()
    for number in range(1000):
        meter.count(f"method-{number}", "200", 0.1)
    stats = meter.stats()
    assert len(stats.latency_counts) == METHODS_MAX + 1
    assert stats.requests[("other", "200")] == 1000 - METHODS_MAX


def test_a_snapshot_does_not_change_afterwards():
    meter = Meter()
    meter.count("auth", "200", 0.1)
    before = meter.stats()
    meter.count("auth", "200", 0.1)
    assert before.requests == {("auth", "200"): 1}
    assert sum(before.latency_counts["auth"]) == 1
