"""Latency over a nats-server of the operator's: in two streams of the run's own, which end with it.

Rule: no stream, consumer or subject that anybody else has is touched, and no running gateway sees a message of this.
"""

import secrets
from typing import Self
from urllib.parse import urlsplit

import nats.errors

from tidegate.bench.backend import NatsBackend, add_stream, delete_stream
from tidegate.bench.rig import RigError
from tidegate.bench.run import Run
from tidegate.errors import ConfigError

PORT = 4222  # what nats-server listens on unless told otherwise


class NatsRun(Run):
    """One stream for tidegate, and one for the limit program, so that nats-server does the same work for both."""

    def __init__(self, url: str, name: str, runs: int, *, quick: bool = False) -> None:
        super().__init__(name, runs, quick=quick)
        self.url = url
        self.host, self.port = address(url)
        tag = secrets.token_hex(4)
        self.stream, self.bare_stream = f"TIDEGATE_BENCH_{tag}", f"TIDEGATE_BENCH_{tag}_LIMIT"
        self.subject, self.bare_subject = f"{self.stream}.events", f"{self.bare_stream}.events"

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            for name in (self.stream, self.bare_stream):
                add_stream(self.url, name, f"{name}.>")
                self.lasting.callback(delete_stream, self.url, name)
        except (nats.errors.Error, OSError, TimeoutError) as fault:
            self.lasting.close()
            raise RigError(f"{self.url} gives no stream: {fault}. It needs to run with JetStream (-js)") from fault
        return self

    def bus_url(self) -> str:
        return self.url

    def settings(self) -> dict[str, str]:
        return {"GATEWAY_NATS_STREAMS": self.stream}

    def backend_of(self, subject: str) -> NatsBackend:
        return NatsBackend(self.port, subject, self.host)


def address(url: str) -> tuple[str, int]:
    """The limit program and the publisher are bare sockets: they know neither TLS nor credentials."""
    parts = urlsplit(url)
    if parts.scheme != "nats" or not parts.hostname or "@" in parts.netloc or "," in parts.netloc:
        cure = "One server without TLS and credentials is needed, such as --nats nats://localhost:4222."
        raise ConfigError("latency can't be measured over what --nats names", cure)
    return parts.hostname, parts.port or PORT
