"""Messages from backends: the contract that every bus keeps, and the only place that finds one by its URL scheme.

A bus hands over batches and acknowledges a batch only after `deliver` returned: a crash before that repeats it and
loses nothing.
Rule: one file a bus, named like its URL scheme, with a function `open_bus`; `tests/contract/test_bus.py` runs on each.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from tidegate.buses._arrived import Arrived
from tidegate.profile import BusMessage
from tidegate.schemes import Schemes

__all__ = [
    "Arrived",
    "Bus",
    "BusSettings",
    "Deliver",
    "KafkaSettings",
    "NatsSettings",
    "IsServed",
    "Offer",
    "Receive",
    "RedisSettings",
    "open_bus",
    "scheme_of",
]

# Whether all of a batch was served by now.
IsServed: TypeAlias = Callable[[], bool]
# Hand-over to the engine, never two calls at once. It may wait (backpressure: the bus stops fetching within a bound).
# The batch, of one stream and in its order, is acknowledged when it returns. What it raises ends `run`, unacknowledged.
# Some of it may wait for longer than the bus should: then it returns `IsServed`, and a bus that keeps places
# (`kafka:`) goes on, but acknowledges neither the batch nor what is behind it before that says so.
Deliver: TypeAlias = Callable[[Sequence[BusMessage]], Awaitable[IsServed | None]]
# The same at once, without a turn of the loop: True = taken, to be acknowledged. False = not now, `Deliver` must wait.
Offer: TypeAlias = Callable[[Sequence[BusMessage]], bool]
# A message that another node of the same gateway broadcast: opaque bytes, at most once, never our own.
Receive: TypeAlias = Callable[[bytes], None]


class Bus(Protocol):
    """Connected or trying for as long as `run` lasts."""

    def is_ready(self) -> bool:
        """Whether messages flow right now: `/ready` and `tidegate doctor` ask."""

    async def run(self, deliver: Deliver, receive: Receive, offer: Offer | None = None) -> None:
        """Connects, consumes and reconnects until cancelled. A bus that can may `offer` a batch before it delivers it.

        Never raises for a backend that is down or lies, unless a setting limits the attempts: then BusError.

        On cancellation, a batch that `deliver` has accepted is acknowledged first. A later `run` goes on from there.
        """

    async def publish(self, subject: str, data: bytes) -> None:
        """Persists a message for whoever consumes `subject`; works without `run`. Raises BusError if not confirmed."""

    def broadcast(self, data: bytes) -> None:
        """To the other nodes of this gateway, at most once; dropped (and counted) while disconnected."""

    def stats(self) -> dict[str, int]:
        """`messages`, `bytes`, `reconnects`, `lag`, `broadcasts_dropped`, `decode_errors`.

        `lag` is how many messages the backend holds that we have not seen.
        """

    async def close(self) -> None:
        """Gives back what `publish` opened; call it after `run` has ended."""


class NatsSettings(Protocol):
    """What `nats.py` reads; `config.py` says what each means."""

    @property
    def client_id(self) -> str: ...
    @property
    def reconnect_wait(self) -> float: ...  # seconds
    @property
    def max_reconnects(self) -> int: ...  # failed attempts in a row; negative = for ever
    @property
    def streams(self) -> Sequence[str]: ...
    @property
    def consumer_mode(self) -> str: ...  # per-node | shared
    @property
    def ensure_streams(self) -> bool: ...


class RedisSettings(Protocol):
    """What `redis.py` reads."""

    @property
    def streams(self) -> Sequence[str]: ...
    @property
    def stream_length(self) -> int: ...  # entries
    @property
    def channel(self) -> str: ...  # empty = ours, with an envelope


class KafkaSettings(Protocol):
    """What `kafka.py` reads."""

    @property
    def group_id(self) -> str: ...
    @property
    def topics(self) -> Sequence[str]: ...
    @property
    def min_bytes(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def commit_interval(self) -> float: ...  # seconds
    @property
    def broadcast_topic(self) -> str: ...  # empty = none


class BusSettings(Protocol):
    @property
    def nats(self) -> NatsSettings: ...
    @property
    def redis(self) -> RedisSettings: ...
    @property
    def kafka(self) -> KafkaSettings: ...


def open_bus(url: str, settings: BusSettings, *, node_id: str) -> Bus:
    """The bus that serves the URL's scheme. Connects nothing yet; a URL that cannot be right is a ConfigError."""
    bus: Bus = SCHEMES.module(url).open_bus(url, settings, node_id)
    return bus


def scheme_of(url: str) -> str:
    """The name of the bus's file. `host:port` alone is NATS, as NATS clients read it."""
    return SCHEMES.of(url)


SCHEMES = Schemes(
    "bus",
    __name__,
    __path__,
    same={"tls": "nats", "ws": "nats", "wss": "nats", "rediss": "redis"},
    extras={"kafka": "kafka"},
    bare="nats",
)
