"""The tracer that speaks OTLP: OpenTelemetry's spans, batched and sent by a thread of the library's.

The library's own queue logs each span that does not fit and its exporter each try; so the bound is kept here, before a
span costs anything, and outcomes are told here. Rule: two threads share plain counters, each written by one of them.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidegate import __version__
from tidegate.profile import Span

log = logging.getLogger("tidegate.tracing")

# Recorded and not sent yet: 12 MB at 2.8 KB each, a second of a node that is busy
WAITING_MAX = 4096
# Encoding one takes 50 us of the interpreter: a batch holds the event loop up for about one turn of its lock, 5 ms
BATCH_MAX = 128
# Spans are looked at by people, seconds later
PAUSE_S = 1.0
# For a batch, tries included; a collector takes milliseconds
EXPORT_S = 5.0
# Ids are shorter, and what is longer is no id
LIMITS = SpanLimits(max_span_attributes=32, max_span_attribute_length=256)
# OTLP's whole numbers have 64 bits; one that is longer would cost its whole batch
INT_END = 2**63


class OtlpTracer:
    def __init__(self, url: str, service_name: str, node: str) -> None:
        self._exporter = _Outcomes(OTLPSpanExporter(endpoint=url, timeout=EXPORT_S))
        resource = Resource.create(
            {"service.name": service_name, "service.version": __version__, "service.instance.id": node}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, span_limits=LIMITS)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=WAITING_MAX,
                schedule_delay_millis=PAUSE_S * 1000,
                max_export_batch_size=BATCH_MAX,
            )
        )
        self._tracer = self._provider.get_tracer("tidegate", __version__)
        self._parents = TraceContextTextMapPropagator()
        self._recorded = 0
        self._dropped = 0
        self._is_closed = False

    def record(self, span: Span) -> None:
        if self._is_closed or self._recorded - self._exporter.handled >= WAITING_MAX:
            self._dropped += 1
            return
        end = time.time_ns()
        made = self._tracer.start_span(
            span.name,
            context=self._context(span.parent),
            attributes={key: _plain(value) for key, value in span.attributes.items()},
            start_time=end - round(max(0.0, span.seconds) * 1e9),
        )
        # the sender of a request may have decided that nobody looks at it
        self._recorded += made.get_span_context().trace_flags.sampled
        made.end(end)

    def _context(self, parent: str) -> Context:
        """Never this thread's own: no span is ever current here."""
        return self._parents.extract({"traceparent": parent}, Context()) if parent else Context()

    def stats(self) -> Mapping[str, int]:
        return {"exported": self._exporter.exported, "failed": self._exporter.failed, "dropped": self._dropped}

    async def close(self, within_s: float) -> None:
        self._is_closed = self._exporter.is_ending = True
        try:
            async with asyncio.timeout(within_s):
                await _in_thread(self._provider.shutdown)
        except TimeoutError:
            log.warning("spans are lost: the collector did not take the last of them within %g s", within_s)
            self._exporter.give_up()


def _plain(value: str | int | bool) -> str | int | bool:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if -INT_END <= value < INT_END else str(value)


async def _in_thread(work: Callable[[], object]) -> None:
    """Not by an executor: the interpreter would wait for its threads at exit, whatever a collector does."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def run() -> None:
        work()
        with contextlib.suppress(RuntimeError):  # nobody waits any more, and the loop is closed
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="tidegate-last-spans", daemon=True).start()
    await ended.wait()


class _Outcomes(SpanExporter):
    """Counts what the exporter comes to, and says so when that changes. The library's thread calls it."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_down = False
        self._has_given_up = False
        self._is_shut = False
        self.is_ending = False  # a first failure is the last then: what waits would fail likewise, one by one
        self.exported = 0
        self.failed = 0

    @property
    def handled(self) -> int:
        return self.exported + self.failed

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._has_given_up else self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
        else:
            self.failed += len(spans)
            self._has_given_up = self._has_given_up or self.is_ending
        self._tell(result is not SpanExportResult.SUCCESS)
        return result

    def _tell(self, is_down: bool) -> None:
        if is_down and not self._is_down:
            log.warning("the collector takes no spans: they are lost until it does; check otel.endpoint")
        elif self._is_down and not is_down:
            log.info("the collector takes spans again")
        self._is_down = is_down

    def give_up(self) -> None:
        """From another thread: what waits fails at once, and a pause between two tries ends."""
        self._has_given_up = True
        self.shutdown()

    def shutdown(self) -> None:
        if not self._is_shut:
            self._is_shut = True
            self._exporter.shutdown()
