"""What publishes to tidegate in a benchmark: a backend that speaks NATS, or one that posts to /api/publish.

Rule: an event has the size asked for and carries its number and the time it was made (CLOCK_MONOTONIC), which the
generator checks; the limit program makes the same ones. The NATS side is a plain blocking socket: an asyncio client's
own delays would be in every latency.
"""

import asyncio
import json
import select
import socket
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

EVENTS_PER_POST = 100  # of the 1,000 that /api/publish takes at once
FLUSH_S_MAX = 10.0
CONNECT_S_MAX = 3  # as the doctor waits for a bus


class Backend(Protocol):
    def publish(self, room: str, count: int, size: int) -> None:
        """`count` events to a room, as fast as the bus takes them."""

    def close(self) -> None:
        """Ends its connection, if it holds one."""


class Numbers:
    """One rising sequence a room, over all that a backend publishes."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def events(self, room: str, count: int, size: int) -> Iterable[bytes]:
        first = self._next.get(room, 1)
        self._next[room] = first + count
        return (event(room, first + index, size) for index in range(count))


def event(room: str, number: int, size: int) -> bytes:
    head = f'{{"type":"message","room":"{room}","payload":{{"n":{number},"t":{time.monotonic_ns()},"x":"'
    return (head + "x" * (size - len(head) - len(TAIL)) + TAIL).encode()


TAIL = '"}}'
# For a message that is sent for its acknowledgement only
NOBODYS_ROOM = "chat:nobody"


class NatsBackend:
    """Publishes into a JetStream stream by its subject, without waiting for each acknowledgement."""

    def __init__(self, port: int, subject: str = "chat.events", host: str = "127.0.0.1") -> None:
        self._numbers = Numbers()
        self._subject = subject.encode()
        self._socket = socket.create_connection((host, port), timeout=FLUSH_S_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"lang":"python","version":"0"}\r\n')
        self._flush()

    def publish(self, room: str, count: int, size: int) -> None:
        lines = bytearray()
        for data in self._numbers.events(room, count, size):
            lines += b"PUB %s %d\r\n%s\r\n" % (self._subject, len(data), data)
        self._answer_pings()
        self._socket.sendall(lines)

    def await_stored(self) -> None:
        """Returns when JetStream has stored all that was published: what its queue can't take it drops silently."""
        data = event(NOBODYS_ROOM, 0, 128)
        inbox = b"_INBOX.stored.%d" % time.monotonic_ns()
        parts = (inbox, self._subject, inbox, len(data), data)
        self._socket.sendall(b"SUB %s 1\r\nUNSUB 1 1\r\nPUB %s %s %d\r\n%s\r\n" % parts)
        self._await_words(b'"seq":', "did not store a message")

    def _answer_pings(self) -> None:
        if not self._has_answer(0):
            return
        heard = self._socket.recv(65536)
        if b"-ERR" in heard or not heard:
            raise ConnectionError(f"nats-server refused: {heard[:200]!r}")
        if b"PING" in heard:
            self._socket.sendall(b"PONG\r\n")

    def _flush(self) -> None:
        self._socket.sendall(b"PING\r\n")
        self._await_words(b"PONG", "did not answer a PING")

    def _await_words(self, words: bytes, failure: str) -> None:
        heard = b""
        while words not in heard:
            if not self._has_answer(FLUSH_S_MAX):
                raise TimeoutError(f"nats-server {failure} for {FLUSH_S_MAX:.0f} s")
            more = self._socket.recv(65536)
            if not more or b"-ERR" in more:
                raise ConnectionError(f"nats-server refused: {more[:200]!r}")
            heard += more

    def _has_answer(self, wait_s: float) -> bool:
        return bool(select.select([self._socket], [], [], wait_s)[0])

    def close(self) -> None:
        self._socket.close()


class HttpBackend:
    """Posts events to the gateway itself, which has the bus `memory:`."""

    def __init__(self, port: int, key: str) -> None:
        self._numbers = Numbers()
        self._url = f"http://127.0.0.1:{port}/api/publish"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def publish(self, room: str, count: int, size: int) -> None:
        events = list(self._numbers.events(room, count, size))
        for start in range(0, count, EVENTS_PER_POST):
            body = b"[" + b",".join(events[start : start + EVENTS_PER_POST]) + b"]"
            request = urllib.request.Request(self._url, body, self._headers)
            with urllib.request.urlopen(request, timeout=FLUSH_S_MAX) as answer:
                json.load(answer)

    def close(self) -> None:
        """Nothing is held open."""


def add_stream(url: str, name: str, subject: str) -> None:
    """A JetStream stream that tidegate would not make itself."""
    _with_jetstream(url, lambda jetstream: jetstream.add_stream(name=name, subjects=[subject]))


def add_push_consumer(url: str, stream: str, subject: str) -> None:
    """Has JetStream send what it stored to a plain subject, unacknowledged, for who knows no JetStream."""
    config = ConsumerConfig(deliver_subject=subject, ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.NEW)
    _with_jetstream(url, lambda jetstream: jetstream.add_consumer(stream, config))


def delete_stream(url: str, name: str) -> None:
    _with_jetstream(url, lambda jetstream: jetstream.delete_stream(name))


def _with_jetstream(url: str, ask: Callable[[JetStreamContext], Awaitable[object]]) -> None:
    async def silence(_: Exception) -> None:
        """The library would print it; whoever called is told."""

    async def connected() -> None:
        client = await nats.connect(
            url, allow_reconnect=False, connect_timeout=CONNECT_S_MAX, max_reconnect_attempts=1, error_cb=silence
        )
        try:
            await ask(client.jetstream(timeout=FLUSH_S_MAX))
        finally:
            await client.close()

    asyncio.run(connected())
