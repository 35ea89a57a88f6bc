"""`memory:NAME`, messages inside one process: first run, demo and tests need no server.

A real bus, not a mock: streams with sequences, a bounded log, a cursor for each node that survives a `run`. Nothing
outlives the process. Rule: a node that runs and lags holds publishers back; a node that is away is not waited for.
"""

import asyncio
import time
from collections import deque
from weakref import WeakValueDictionary

from tidegate.buses import BusSettings, Deliver, Offer, Receive
from tidegate.errors import BusError
from tidegate.profile import BusMessage


def open_bus(url: str, settings: BusSettings, node_id: str) -> "MemoryBus":
    name = url.partition(":")[2].strip("/")
    # Weak: a log lives as long as a bus that uses it.
    log = LOGS.get(name) or LOGS.setdefault(name, Log())
    return MemoryBus(log, node_id)


class MemoryBus:
    """One node's end of a log."""

    def __init__(self, log: "Log", node_id: str) -> None:
        self._log = log
        self._node_id = node_id
        self._arrived = asyncio.Event()
        self._receive: Receive | None = None
        self._messages = 0
        self._bytes = 0
        self._dropped = 0

    def is_ready(self) -> bool:
        return self._receive is not None

    async def run(self, deliver: Deliver, receive: Receive, offer: Offer | None = None) -> None:
        log = self._log
        cursor = log.cursors.setdefault(self._node_id, log.end)
        self._receive = receive
        log.running.append(self)
        try:
            while True:
                cursor = max(cursor, log.start)
                if batch := log.batch_at(cursor):
                    await deliver(batch)
                    cursor += len(batch)
                    log.advance(self._node_id, cursor)
                    self._messages += len(batch)
                    self._bytes += sum(len(message.data) for message in batch)
                else:
                    self._arrived.clear()
                    await self._arrived.wait()
        finally:
            log.running.remove(self)
            log.room.set()
            self._receive = None

    async def publish(self, subject: str, data: bytes) -> None:
        if not subject or len(data) > LOG_BYTES_MAX:
            raise BusError(
                "a message without a subject, or larger than the memory bus holds", "Send less, or use nats://."
            )
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                while not self._log.make_room(len(data)):
                    self._log.room.clear()
                    await self._log.room.wait()
        except TimeoutError:
            raise BusError(
                "the memory bus is full: a gateway lags behind", "Publish more slowly, or use nats://."
            ) from None
        self._log.append(subject, data)

    def broadcast(self, data: bytes) -> None:
        if self._receive is None:
            self._dropped += 1
            return
        loop = asyncio.get_running_loop()
        for bus in self._log.running:
            if bus is not self and bus._receive is not None:
                loop.call_soon(bus._receive, data)

    def stats(self) -> dict[str, int]:
        lag = self._log.end - max(self._log.start, self._log.cursors.get(self._node_id, self._log.end))
        return {
            "messages": self._messages,
            "bytes": self._bytes,
            "reconnects": 0,
            "lag": lag,
            "broadcasts_dropped": self._dropped,
            "decode_errors": 0,
        }

    async def close(self) -> None:
        pass

    def wake(self) -> None:
        self._arrived.set()

    @property
    def node_id(self) -> str:
        return self._node_id


class Log:
    """Messages of all streams in order of arrival. Offsets count from 0; `start` is the oldest kept, `end` the next."""

    def __init__(self) -> None:
        self._messages: deque[BusMessage] = deque()
        self._bytes = 0
        self._sequences: dict[str, int] = {}
        self.start = 0
        self.cursors: dict[str, int] = {}  # node -> next offset; as many as nodes ever ran in this process
        self.running: list[MemoryBus] = []
        self.room = asyncio.Event()

    @property
    def end(self) -> int:
        return self.start + len(self._messages)

    def append(self, subject: str, data: bytes) -> None:
        # a subject of one word is a topic, which has its name as it is
        first, dot, _ = subject.partition(".")
        stream = first.upper() if dot else first
        sequence = self._sequences[stream] = self._sequences.get(stream, 0) + 1
        self._messages.append(BusMessage(stream, subject, data, sequence, time.perf_counter()))
        self._bytes += len(data)
        for bus in self.running:
            bus.wake()

    def make_room(self, size: int) -> bool:
        """Drops the oldest messages until `size` bytes fit; False if a node that runs has not read them yet."""
        unread = min((self.cursors[bus.node_id] for bus in self.running), default=self.end)
        while len(self._messages) >= LOG_MESSAGES_MAX or self._bytes + size > LOG_BYTES_MAX:
            if self.start >= unread:
                return False
            self._drop_oldest()
        return True

    def advance(self, node_id: str, cursor: int) -> None:
        """`node_id` has read up to `cursor`; what every node has read is not kept."""
        self.cursors[node_id] = cursor
        unread = min(self.cursors.values())
        while self.start < unread:
            self._drop_oldest()
        self.room.set()

    def batch_at(self, cursor: int) -> list[BusMessage]:
        """What is there now, as far as it is of one stream; empty at the end."""
        first = cursor - self.start
        batch: list[BusMessage] = []
        for index in range(first, min(first + BATCH_MESSAGES_MAX, len(self._messages))):
            message = self._messages[index]
            if batch and message.stream != batch[0].stream:
                break
            batch.append(message)
        return batch

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._messages.popleft().data)
        self.start += 1


LOGS: WeakValueDictionary[str, Log] = WeakValueDictionary()

# As much as a burst of a demo or a test; a laptop keeps it without swapping.
LOG_MESSAGES_MAX = 65_536
LOG_BYTES_MAX = 64 * 1024 * 1024
# The same bound as on NATS, so that what is measured here means something there.
BATCH_MESSAGES_MAX = 500
# As long as a NATS publish waits for its confirmation.
PUBLISH_TIMEOUT_S = 5.0
