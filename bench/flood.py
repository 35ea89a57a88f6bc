"""A backend that publishes as fast as JetStream stores: messages encoded beforehand, many on their way at once.

Rule: nothing is lost unseen. A stream drops what comes faster than it stores (its queue takes 10,000 messages), so the
last message of each chunk asks for an acknowledgement, the chunks on their way are bounded, and the positions in the
stream must rise by exactly what was published.
"""

import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rig import RigError
from tidegate.bench.backend import NatsBackend, Numbers

CHUNK = 256  # messages to an acknowledgement: one for each would be a fifth of what nats-server does
CHUNKS_IN_FLIGHT = 16  # 4,096 messages, less than half of what a stream's queue takes
READ_BYTES = 65_536
ACKNOWLEDGED = re.compile(rb'"seq":(\d+)[^\r]*\r\n')


@dataclass(frozen=True, slots=True)
class Chunk:
    """Publications as they go to nats-server, the last one with a request for an acknowledgement."""

    lines: bytes
    messages: int


class Flood(NatsBackend):
    """Nobody else may publish into the stream meanwhile."""

    def __init__(self, port: int, subject: str = "chat.events") -> None:
        super().__init__(port, subject)
        self._inbox = f"_INBOX.{secrets.token_hex(8)}".encode()
        self._socket.sendall(b"SUB %s 1\r\n" % self._inbox)
        self._heard = b""
        self._positions: list[int] = []

    def encode(self, events: Iterable[bytes]) -> list[Chunk]:
        everything = list(events)
        return [self._chunk(everything[start : start + CHUNK]) for start in range(0, len(everything), CHUNK)]

    def _chunk(self, events: Sequence[bytes]) -> Chunk:
        lines = [b"PUB %s %d\r\n%s\r\n" % (self._subject, len(data), data) for data in events[:-1]]
        lines.append(b"PUB %s %s %d\r\n%s\r\n" % (self._subject, self._inbox, len(events[-1]), events[-1]))
        return Chunk(b"".join(lines), len(events))

    def pour(self, chunks: Sequence[Chunk]) -> float:
        """Publishes all of it; the seconds until the stream has stored the last one."""
        self._positions.clear()
        began = time.monotonic()
        for sent, chunk in enumerate(chunks):
            while sent - len(self._positions) >= CHUNKS_IN_FLIGHT:
                self._hear()
            self._socket.sendall(chunk.lines)
        while len(self._positions) < len(chunks):
            self._hear()
        seconds = time.monotonic() - began
        stored = self._positions[-1] - self._positions[0]
        published = sum(chunk.messages for chunk in chunks[1:])
        if stored != published:
            raise RigError(f"the stream stored {stored:,} of {published:,} messages")
        return seconds

    def _hear(self) -> None:
        heard = self._socket.recv(READ_BYTES)  # the socket has a time-out
        if not heard or b"-ERR" in heard or b'"error"' in heard:
            raise RigError(f"nats-server refused: {heard[:200]!r}")
        if b"PING\r\n" in heard:
            self._socket.sendall(b"PONG\r\n")
        self._heard += heard
        end = 0
        for found in ACKNOWLEDGED.finditer(self._heard):
            self._positions.append(int(found[1]))
            end = found.end()
        self._heard = self._heard[end:]


def events(numbers: Numbers, rooms: Sequence[str], times: int, size: int) -> Iterable[bytes]:
    """`times` messages to each room, one room after the other, over and over."""
    for _ in range(times):
        for room in rooms:
            yield from numbers.events(room, 1, size)
