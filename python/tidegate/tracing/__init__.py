"""Spans for whoever traces: what a profile says has just ended, sent to a collector by OTLP over HTTP.

A profile has no clock, so a `Span` comes with how long it took, and its end is when it gets here. Rule: the event loop
never waits for a collector. What it does not take in time is dropped and counted, and a collector that is down is told
in one line, not in one a batch.
"""

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from tidegate.errors import ConfigError, missing_package
from tidegate.profile import Span

# Where collectors listen for traces, below the address that people know
TRACES_PATH = "/v1/traces"


class Tracer(Protocol):
    """Takes spans until it is closed."""

    def record(self, span: Span) -> None:
        """It has ended now. Costs a few dozen microseconds, or nothing while too many wait."""

    def stats(self) -> Mapping[str, int]:
        """Of spans: `exported`, `failed` (the collector did not take them), `dropped` (too many waited)."""

    async def close(self, within_s: float) -> None:
        """Sends what waits, for so long at most; what is recorded after it is dropped."""


def open_tracer(endpoint: str, service_name: str, node: str) -> Tracer | None:
    """None without an endpoint: nobody traces. Connects nothing yet; one that cannot be right is a ConfigError."""
    if not endpoint:
        return None
    url = traces_url(endpoint)
    try:
        from tidegate.tracing._otlp import OtlpTracer  # noqa: PLC0415 - the library is an extra
    except ImportError as error:
        raise missing_package("otel.endpoint", error, "otel") from None
    return OtlpTracer(url, service_name, node)


def traces_url(endpoint: str) -> str:
    """As OTLP has it: the path of the traces below the collector's address, unless it is there already."""
    try:
        parts = urlsplit(endpoint)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        # not the text itself: it may hold a password
        raise ConfigError("otel.endpoint is no URL of a collector", "Write it like http://localhost:4318.")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(TRACES_PATH) else path + TRACES_PATH).geturl()
