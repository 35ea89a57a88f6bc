"""Where spans are to go, and what a tracer does when nothing is there."""

import asyncio
import logging
import socket
import sys
import time

import pytest
from tidegate.errors import ConfigError
from tidegate.profile import Span
from tidegate.tracing import open_tracer, traces_url
from tidegate.tracing._otlp import WAITING_MAX

SPAN = Span("sample.push", 0.01, {"msg_id": "m1"})


def test_nobody_traces_without_an_endpoint():
    assert open_tracer("", "tidegate", "node-1") is None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("https://otlp.example.com/base", "https://otlp.example.com/base/v1/traces"),
        ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_path_of_traces_is_below_the_endpoint(endpoint, url):
    assert traces_url(endpoint) == url


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://x:4317", "http://", "http://x:99999", "secret", "//x"])
def test_an_endpoint_that_is_no_url_is_refused_without_showing_it(endpoint):
    with pytest.raises(ConfigError, match="http://localhost:4318") as caught:
        open_tracer(endpoint, "tidegate", "node-1")
    assert "secret" not in str(caught.value)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "tidegate.tracing._otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError) as caught:
        open_tracer("http://localhost:4318", "tidegate", "node-1")
    assert "pip install 'tidegate[otel]'" in caught.value.cure


async def test_spans_for_a_collector_that_is_down_are_bounded_and_told_in_one_line(caplog):
    caplog.set_level(logging.INFO, "tidegate")
    tracer = open_tracer(f"http://127.0.0.1:{closed_port()}", "tidegate", "node-1")
    for _ in range(3 * WAITING_MAX):
        tracer.record(SPAN)
    assert tracer.stats()["dropped"] >= WAITING_MAX
    await tracer.close(10)
    assert tracer.stats()["exported"] == 0
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("tidegate")]
    assert sum("takes no spans" in line for line in ours) <= 1
    assert len(ours) <= 2


async def test_closing_waits_no_longer_than_it_may(servers_wanted):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = open_tracer(f"http://127.0.0.1:{silent.getsockname()[1]}", "tidegate", "node-1")
        tracer.record(SPAN)
        begun = time.monotonic()
        async with asyncio.timeout(20):
            await tracer.close(0.2)
        assert time.monotonic() - begun < 4


async def test_what_is_recorded_after_the_end_is_dropped():
    tracer = open_tracer(f"http://127.0.0.1:{closed_port()}", "tidegate", "node-1")
    await tracer.close(10)
    tracer.record(SPAN)
    assert tracer.stats() == {"exported": 0, "failed": 0, "dropped": 1}


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
