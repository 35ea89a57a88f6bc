"""Requests to backends: the contract that every upstream keeps, and the only place that finds one by its URL scheme.

A profile asks with `Call`; the gateway awaits `Upstream.call`. Whatever the backend does, a call ends: with an answer,
or with UpstreamError. What is asked and answered is what the upstream's kind says, in `tidegate/calls.py`. Rule: one
file an upstream, named like its URL scheme, with a function `open_upstream`; `tests/contract/test_upstream.py` runs on
each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidegate.schemes import Schemes

__all__ = [
    "LATENCY_BOUNDS",
    "UNAVAILABLE",
    "BackendSettings",
    "ServicesSettings",
    "Upstream",
    "UpstreamSettings",
    "UpstreamStats",
    "open_upstream",
    "scheme_of",
]

# The message of every UpstreamError of a call: a client may read it, so it never says more
UNAVAILABLE = "backend unavailable"
# Seconds. From a backend in the same rack to the longest time-out that a contract knows
LATENCY_BOUNDS: tuple[float, ...] = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """Plain counters since the start, read at a scrape."""

    # (method, outcome): the HTTP status as text, or `ok` of others; `cancelled` where the caller went away; else what
    # UpstreamError has: `unavailable` | `timeout` | `circuit_open` | `too_large`, `refused` by Redis, or a gRPC status
    requests: Mapping[tuple[str, str], int]
    latency_bounds: Sequence[float]
    latency_counts: Mapping[str, Sequence[int]]  # method -> one count a bound and one beyond; not cumulative
    latency_sums: Mapping[str, float]  # method -> seconds; waiting included, what the open circuit refused is not
    lookups: Mapping[str, int]  # of requests with `shared_s`: `hit` | `miss` | `merged`
    in_flight: int  # sent and not answered now
    waiting: int  # for one of those to end, now
    circuit_open: bool  # one of them, where there are several
    circuits: Mapping[str, bool] = field(default_factory=dict)  # target -> open, of an upstream that serves many


class Upstream(Protocol):
    """Nothing is connected before the first call; only calls need a running loop."""

    async def call(self, method: str, request: Any) -> Any:
        """Asks. `method` is one of few words, for metrics only.

        The request is HttpRequest, RpcRequest or RedisRequest, whose docstrings say what answers it. UpstreamError when
        nothing did, whatever the reason; its cure is for the log. A caller may be cancelled at any time.
        """

    def stats(self) -> UpstreamStats: ...

    def is_ready(self) -> bool:
        """False when calls fail at once: the circuit is open, or the upstream is closed."""

    async def close(self, within_s: float) -> None:
        """Refuses new calls, gives those on their way `within_s`, then ends them with UpstreamError."""


class Secret(Protocol):
    def get_secret_value(self) -> str: ...


class BackendSettings(Protocol):
    """What upstreams read; `config` says what each means."""

    @property
    def key(self) -> Secret: ...
    @property
    def timeout(self) -> float: ...  # seconds
    @property
    def max_requests(self) -> int: ...


class ServicesSettings(Protocol):
    @property
    def timeout(self) -> float: ...  # seconds, of a gRPC call with all its tries


class UpstreamSettings(Protocol):
    @property
    def backend(self) -> BackendSettings: ...
    @property
    def services(self) -> ServicesSettings: ...


def open_upstream(url: str, settings: UpstreamSettings, name: str = "") -> Upstream:
    """The upstream that serves the URL's scheme. A URL that cannot be right is a ConfigError.

    `name` is what the profile calls it, for logs and errors.
    """
    upstream: Upstream = SCHEMES.module(url).open_upstream(url, settings, name)
    return upstream


def scheme_of(url: str) -> str:
    """The name of the upstream's file."""
    return SCHEMES.of(url)


SCHEMES = Schemes(
    "backend",
    __name__,
    __path__,
    same={"https": "http", "grpcs": "grpc", "rediss": "redis"},
    extras={"grpc": "grpc"},
)
