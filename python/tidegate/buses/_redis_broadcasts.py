"""Broadcasts between nodes over Pub/Sub: what waits to go out, for how long, and which that come in are news.

Rule: `put` never waits. What Redis did not take within WAIT_S_MAX of being queued is dropped and counted; what is
younger goes out in order, after a reconnect too. Nothing here does I/O.
"""

import secrets
import struct
from collections import OrderedDict, deque
from typing import NamedTuple


class Waiting(NamedTuple):
    until: float
    data: bytes


class Outbox:
    """A bounded queue whose head stays until Redis has confirmed it."""

    def __init__(self) -> None:
        self._queue: deque[Waiting] = deque()
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, data: bytes, now: float) -> bool:
        if len(self._queue) >= BROADCASTS_MAX or self._bytes + len(data) > BROADCAST_BYTES_MAX:
            self.dropped += 1
            return False
        self._queue.append(Waiting(now + WAIT_S_MAX, data))
        self._bytes += len(data)
        return True

    def expire(self, now: float) -> None:
        while self._queue and self._queue[0].until <= now:
            self._pop()
            self.dropped += 1

    def head(self) -> list[bytes]:
        """As much as goes out in one write."""
        size, taken = 0, []
        for waiting in self._queue:
            taken.append(waiting.data)
            size += len(waiting.data)
            if len(taken) >= WRITE_MESSAGES_MAX or size >= WRITE_BYTES_MAX:
                break
        return taken

    def confirm(self, count: int) -> None:
        """The first `count` need no further attempt."""
        for _ in range(count):
            self._pop()

    def drop_all(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._bytes = 0

    def next_expiry(self) -> float | None:
        return self._queue[0].until if self._queue else None

    def _pop(self) -> None:
        self._bytes -= len(self._queue.popleft().data)


class Envelope:
    """Ours: who sent it and the how-many-eth it is. A PUBLISH whose reply was lost comes again, with the same count."""

    def __init__(self) -> None:
        self._instance = secrets.token_bytes(INSTANCE_BYTES)
        self._sent = 0
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def wrap(self, data: bytes) -> bytes:
        self._sent += 1
        return HEAD.pack(MAGIC, self._instance, self._sent) + data

    def unwrap(self, wrapped: bytes) -> bytes | None:
        """None = our own, or had before. ValueError = not from a node of ours."""
        if len(wrapped) < HEAD.size or not wrapped.startswith(MAGIC):
            raise ValueError("no envelope of tidegate's")
        _, instance, count = HEAD.unpack_from(wrapped)
        if instance == self._instance or count <= self._seen.get(instance, 0):
            return None
        self._seen[instance] = count
        self._seen.move_to_end(instance)
        if len(self._seen) > NODES_MAX:
            self._seen.popitem(last=False)
        return wrapped[HEAD.size :]


# The contract of gogate: publishing is tried for so long. Older news of a chat is read from the backend anyway.
WAIT_S_MAX = 5.0
# Five seconds of a busy node; more than that behind a slow socket is stale.
BROADCASTS_MAX = 10_000
BROADCAST_BYTES_MAX = 16 * 1024 * 1024
# One system call for a burst, and no more than that to publish again after a broken connection.
WRITE_MESSAGES_MAX = 128
WRITE_BYTES_MAX = 64 * 1024
# Nodes whose last count is remembered, a restarted one anew: no gateway has that many at once.
NODES_MAX = 1024
# 64 random bits tell a node's run from every other.
INSTANCE_BYTES = 8
MAGIC = b"tg1:"
HEAD = struct.Struct(f"!{len(MAGIC)}s{INSTANCE_BYTES}sQ")
