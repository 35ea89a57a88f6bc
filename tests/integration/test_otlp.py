"""Spans as a collector gets them: a real HTTP server reads what the exporter sends."""

import asyncio
import contextlib
import gzip
import http.server
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Received
from tidegate.profile import Span
from tidegate.tracing import Tracer, open_tracer

WAIT_S = 20.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps what it was sent; `status` is what it answers."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        self.status = 200
        self.free = threading.Event()
        self.free.set()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        collector = self

        class Reader(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                collector.free.wait(WAIT_S)
                if collector.status == 200:
                    collector.paths.add(self.path)
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                with contextlib.suppress(OSError):
                    self.send_response(collector.status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Reader

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spans(self) -> list[Received]:
        resources = [resource for request in list(self.requests) for resource in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    @contextlib.contextmanager
    def running(self) -> Iterator["Collector"]:
        self._thread.start()
        try:
            yield self
        finally:
            self.free.set()
            self._server.shutdown()
            self._thread.join(WAIT_S)
            self._server.server_close()


@pytest.fixture
def collector(servers_wanted: None) -> Iterator[Collector]:
    with Collector().running() as running:
        yield running


def opened(collector: Collector) -> Tracer:
    tracer = open_tracer(collector.url, "im-gateway", "node-1")
    assert tracer is not None
    return tracer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - another thread's progress can only be looked at
            await asyncio.sleep(0.02)


async def recorded(collector: Collector, span: Span) -> Received:
    tracer = opened(collector)
    tracer.record(span)
    await tracer.close(WAIT_S)
    [found] = collector.spans
    return found


async def test_a_span_arrives_with_its_name_times_and_attributes(collector: Collector) -> None:
    before = time.time_ns()
    span = Span("im-gateway.forward.message", 1.5, {"msg_id": "m1", "devices": 2, "ok": True})
    found = await recorded(collector, span)
    assert found.name == "im-gateway.forward.message"
    assert found.end_time_unix_nano - found.start_time_unix_nano == 1_500_000_000
    assert before <= found.end_time_unix_nano <= time.time_ns()
    values = {each.key: each.value for each in found.attributes}
    assert values["msg_id"].string_value == "m1"
    assert values["devices"].int_value == 2
    assert values["ok"].bool_value is True
    assert collector.paths == {"/v1/traces"}


async def test_the_resource_says_which_service_and_node(collector: Collector) -> None:
    await recorded(collector, Span("x", 0.1))
    [resource] = collector.requests[0].resource_spans
    values = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert values["service.name"] == "im-gateway"
    assert values["service.instance.id"] == "node-1"


async def test_a_span_belongs_to_the_trace_of_the_request_it_came_with(collector: Collector) -> None:
    found = await recorded(collector, Span("x", 0.1, parent=f"00-{TRACE}-{PARENT}-01"))
    assert (found.trace_id.hex(), found.parent_span_id.hex()) == (TRACE, PARENT)


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{TRACE}-{'0' * 16}-01", "00-" + "g" * 200])
async def test_a_parent_that_is_none_begins_a_trace_of_its_own(collector: Collector, parent: str) -> None:
    found = await recorded(collector, Span("x", 0.1, parent=parent))
    assert len(found.trace_id) == 16
    assert found.trace_id.hex() != TRACE
    assert found.parent_span_id == b""


async def test_a_span_of_a_trace_that_nobody_looks_at_is_not_sent(collector: Collector) -> None:
    tracer = opened(collector)
    tracer.record(Span("unseen", 0.1, parent=f"00-{TRACE}-{PARENT}-00"))
    tracer.record(Span("seen", 0.1))
    await tracer.close(WAIT_S)
    assert [span.name for span in collector.spans] == ["seen"]
    assert tracer.stats() == {"exported": 1, "failed": 0, "dropped": 0}


async def test_odd_values_cost_no_other_span(collector: Collector) -> None:
    tracer = opened(collector)
    tracer.record(Span("odd", -5.0, {"big": 2**80, "broken": "\ud800", "long": "x" * 10_000}))
    tracer.record(Span("even", 0.1))
    await tracer.close(WAIT_S)
    odd, even = sorted(collector.spans, key=lambda span: span.name, reverse=True)
    values = {each.key: each.value.string_value for each in odd.attributes}
    assert values["big"] == str(2**80)
    assert len(values["long"]) <= 256
    assert odd.start_time_unix_nano <= odd.end_time_unix_nano
    assert even.name == "even"


async def test_spans_arrive_without_a_close_in_batches(collector: Collector) -> None:
    tracer = opened(collector)
    for number in range(1000):
        tracer.record(Span("x", 0.001, {"number": number}))
    await until(lambda: len(collector.spans) == 1000)
    assert len({span.attributes[0].value.int_value for span in collector.spans}) == 1000
    assert 2 <= len(collector.requests) <= 100
    await tracer.close(WAIT_S)


async def test_a_collector_that_hangs_delays_nobody_and_costs_what_does_not_fit(collector: Collector) -> None:
    tracer = opened(collector)
    collector.free.clear()
    for _ in range(10_000):
        tracer.record(Span("x", 0.001))
    dropped = tracer.stats()["dropped"]
    assert dropped > 0
    collector.free.set()
    await tracer.close(WAIT_S)
    assert len(collector.spans) >= 10_000 - dropped
    assert sum(tracer.stats().values()) == 10_000


async def test_a_collector_that_comes_back_gets_what_is_recorded_then(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tidegate.tracing")
    tracer = opened(collector)
    collector.status = 400
    tracer.record(Span("lost", 0.1))
    await until(lambda: tracer.stats()["failed"] == 1)
    tracer.record(Span("lost too", 0.1))
    await until(lambda: tracer.stats()["failed"] == 2)
    collector.status = 200
    tracer.record(Span("seen", 0.1))
    await until(lambda: tracer.stats()["exported"] == 1)
    await tracer.close(WAIT_S)
    assert [span.name for span in collector.spans] == ["seen"]
    told = [record.getMessage() for record in caplog.records if record.name == "tidegate.tracing"]
    assert [("takes no spans" in line, "again" in line) for line in told] == [(True, False), (False, True)]
