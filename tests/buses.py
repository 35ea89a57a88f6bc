"""What tests of buses share: settings, a gateway that collects what it is handed, each bus as seen from outside.

Rule: a test waits for a condition, never for a time; `until` is where conditions of other processes are asked for.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from redis.asyncio import Redis as RedisClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from tidegate.buses import Bus, IsServed, open_bus
from tidegate.profile import BusMessage

from tests.servers import NatsServer, RedisServer

# For conditions that hold in well under a second on a quiet machine; only a failing test waits so long.
WAIT_S_MAX = 40


@dataclass(frozen=True)
class Nats:
    streams: Sequence[str]
    client_id: str = "gateway"
    reconnect_wait: float = 0.2
    max_reconnects: int = -1
    consumer_mode: str = "per-node"
    ensure_streams: bool = True


@dataclass(frozen=True)
class Redis:
    streams: Sequence[str] = ()
    stream_length: int = 100_000
    channel: str = ""


@dataclass(frozen=True)
class Kafka:
    topics: Sequence[str] = ()
    group_id: str = "tidegate"
    min_bytes: int = 1024
    max_bytes: int = 10 * 1024 * 1024
    commit_interval: float = 1.0
    broadcast_topic: str = "tidegate.broadcast"


@dataclass(frozen=True)
class Settings:
    nats: Nats = Nats(())
    redis: Redis = Redis()
    kafka: Kafka = Kafka()


@dataclass
class Gateway:
    """Takes what a bus delivers. `gate` closed = a hand-over waits, as when the engine is full."""

    messages: list[BusMessage] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    broadcasts: list[bytes] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: int = 0  # messages of hand-overs that have begun
    inside: int = 0  # hand-overs under way
    together: int = 0  # the most that ever were
    failure: Exception | None = None
    is_served: IsServed | None = None  # what each hand-over says

    def __post_init__(self) -> None:
        self.gate.set()
        self._changed = asyncio.Event()

    async def deliver(self, messages: Sequence[BusMessage]) -> IsServed | None:
        self.entered += len(messages)
        self.inside += 1
        self.together = max(self.together, self.inside)
        self._changed.set()
        try:
            await self.gate.wait()
            if self.failure:
                raise self.failure
        finally:
            self.inside -= 1
        self.messages += messages
        self.batches.append(len(messages))
        self._changed.set()
        return self.is_served

    def offer(self, messages: Sequence[BusMessage]) -> bool:
        """Takes what it can take at once."""
        if not self.gate.is_set() or self.failure or self.is_served:
            return False
        assert self.inside == 0, "offered beside a hand-over"
        self.entered += len(messages)
        self.messages += messages
        self.batches.append(len(messages))
        self._changed.set()
        return True

    def receive(self, data: bytes) -> None:
        self.broadcasts.append(data)
        self._changed.set()

    @property
    def payloads(self) -> list[bytes]:
        return [message.data for message in self.messages]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition on what this gateway was given."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def has(self, count: int) -> None:
        await self.until(lambda: len(self.messages) >= count)


class Backend(Protocol):
    """One bus from outside: what a test of the contract does to it without knowing which it is."""

    stream: str

    def bus(self, node_id: str) -> Bus: ...

    async def publish(self, data: Sequence[bytes]) -> None:
        """Returns when all are kept, in this order."""

    async def close(self) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self.stream = "CHAT"
        self._url = f"memory:{secrets.token_hex(4)}"
        self._publisher = self.bus("publisher")

    def bus(self, node_id: str) -> Bus:
        return open_bus(self._url, Settings(Nats([self.stream])), node_id=node_id)

    async def publish(self, data: Sequence[bytes]) -> None:
        for item in data:
            await self._publisher.publish("chat.events", item)

    async def close(self) -> None:
        await self._publisher.close()


class NatsBackend:
    def __init__(self, server: NatsServer, **settings: object) -> None:
        self.server = server
        self.stream = f"CHAT{secrets.token_hex(4)}"
        self.settings = Nats(**({"streams": [self.stream], "client_id": secrets.token_hex(4)} | settings))  # type: ignore[arg-type]
        self._client: Client | None = None

    @property
    def subject(self) -> str:
        return f"{self.stream.lower()}.events"

    def bus(self, node_id: str) -> Bus:
        return open_bus(self.server.url, Settings(self.settings), node_id=node_id)

    async def client(self) -> Client:
        if self._client is None or self._client.is_closed:
            self._client = Client()
            await self._client.connect(
                [self.server.url],
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                error_cb=ignore,
            )
        return self._client

    async def publish(self, data: Sequence[bytes]) -> None:
        """Without a confirmation each, for speed; the last one's covers those before it."""
        client = await self.client()
        for item in data[:-1]:
            await client.publish(self.subject, item)
        await client.jetstream(timeout=WAIT_S_MAX).publish(self.subject, data[-1])

    async def keep(self, data: bytes, stream: str | None = None) -> None:
        """Repeats with one message id until the server confirms, whatever happens to it: kept exactly once."""
        subject = f"{stream.lower()}.events" if stream else self.subject
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                try:
                    client = await self.client()
                    headers = {"Nats-Msg-Id": f"{subject} {data!r}"}
                    await client.jetstream(timeout=2).publish(subject, data, headers=headers)
                    return
                except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError):
                    await self.close()
                    await asyncio.sleep(0.02)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


class RedisBackend:
    def __init__(self, server: RedisServer, **settings: object) -> None:
        self.server = server
        self.stream = f"CHAT{secrets.token_hex(4).upper()}"
        self.settings = Redis(**({"streams": [self.stream]} | settings))  # type: ignore[arg-type]
        self._client: RedisClient | None = None

    def bus(self, node_id: str, **settings: object) -> Bus:
        return self.bus_at(self.server.url, node_id, **settings)

    def bus_at(self, url: str, node_id: str, **settings: object) -> Bus:
        return open_bus(url, Settings(redis=replace(self.settings, **settings)), node_id=node_id)  # type: ignore[arg-type]

    @property
    def client(self) -> RedisClient:
        """Tries nothing twice by itself."""
        if self._client is None:
            retry = Retry(NoBackoff(), 0)
            self._client = RedisClient.from_url(self.server.url, retry=retry, protocol=2, socket_timeout=5)
        return self._client

    async def publish(self, data: Sequence[bytes]) -> None:
        for start in range(0, len(data), 1_000):
            pipe = self.client.pipeline(transaction=False)
            for item in data[start : start + 1_000]:
                pipe.execute_command("XADD", self.stream, "*", "subject", f"{self.stream.lower()}.events", "data", item)
            await pipe.execute()

    async def keep(self, data: bytes) -> None:
        """Repeats until the server confirms, whatever happens to it: kept exactly once, for it looks before."""
        tried = False
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                try:
                    if tried and await self._has(data):
                        return
                    tried = True
                    await self.publish([data])
                    return
                except (RedisError, OSError):
                    await asyncio.sleep(0.02)

    async def _has(self, data: bytes) -> bool:
        newest = await self.client.execute_command("XREVRANGE", self.stream, "+", "-", "COUNT", 100)
        return any(data in (fields.values() if isinstance(fields, dict) else fields) for _, fields in newest)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


@contextlib.asynccontextmanager
async def redis_backend_on(server: RedisServer, **settings: object) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(server, **settings)
    try:
        yield backend
    finally:
        await backend.close()


@contextlib.asynccontextmanager
async def backend_on(server: NatsServer, **settings: object) -> AsyncIterator[NatsBackend]:
    backend = NatsBackend(server, **settings)
    try:
        yield backend
    finally:
        await backend.close()


async def ignore(error: Exception) -> None:
    """The library would log each with a traceback; what fails shows where it is awaited."""


@contextlib.asynccontextmanager
async def consuming(bus: Bus, gateway: Gateway) -> AsyncIterator["asyncio.Task[None]"]:
    """A bus that runs and is ready; cancelled at the end as a draining gateway does it."""
    task = asyncio.create_task(bus.run(gateway.deliver, gateway.receive, gateway.offer))
    try:
        await until(lambda: bus.is_ready() or task.done())
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=WAIT_S_MAX)
        await bus.close()
        assert task.done(), "run did not end when it was cancelled"
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), ExpectedError):
            raise task.exception() or AssertionError


class ExpectedError(Exception):
    """What a test makes `deliver` raise."""


async def until(condition: Callable[[], bool]) -> None:
    # Polled: the other side of the condition has no event to wait for.
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]
