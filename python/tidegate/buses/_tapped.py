"""The pull loop where the messages come by a tap: no task between the socket and the engine while that has room.

A batch that arrives while nothing waits is offered at once. What is not taken waits here, and the bus hands it over as
it does with any feed. A few messages are acknowledged a moment later: shards and clients have the cores first. Rule:
the order of the stream is kept, so nothing is offered while something older waits.
"""

import asyncio
import logging
import time
from collections import deque

from nats.aio.client import Client
from nats.aio.msg import Msg

from tidegate._core import Messages
from tidegate.buses import Arrived, Offer
from tidegate.buses._feed import Batch, Feed, FeedLostError, Position
from tidegate.buses._tap import Seen, Tap

log = logging.getLogger(__name__)


class TappedFeed(Feed):
    def __init__(
        self, nc: Client, durable: tuple[str, str], position: Position, first: int, *, tap: Tap, offer: Offer | None
    ) -> None:
        """`durable` is the names of stream and consumer."""
        super().__init__(nc, *durable, position, first)
        self._first = first
        self._tap = tap
        self._offer = offer
        self._waiting: deque[Arrived] = deque()
        self._received = 0
        self._is_idle = False  # nothing older is being handed over
        self._unacknowledged: list[Messages] = []
        self._unacknowledged_count = 0
        self._acknowledging: asyncio.TimerHandle | None = None

    async def _subscribe(self) -> None:
        await super()._subscribe()
        # the library sends in a task of its own: a pull request that overtook it would be answered to nobody
        await self._nc.flush()
        self._tap.watch(self._subscription._id, self._first, self._last, self._on_arrival)

    async def next_batch(self) -> Batch:
        self._is_idle = True
        while not self._waiting:
            if self._lost:
                raise FeedLostError(self._lost)
            self._arrived.clear()
            self._ask_for_more()
            await self._arrived.wait()
        self._is_idle = False
        return Batch(self._waiting.popleft())

    async def acknowledge(self, batch: Batch) -> None:
        if isinstance(batch.messages, Arrived):  # as `next_batch` gave it
            self._handed_over(batch.messages)

    async def close(self) -> None:
        self._tap.forget(self._subscription._id)
        self._acknowledge_now()
        self._waiting.clear()
        await super().close()

    async def _request_more(self) -> None:
        self._ask_for_more()

    def _on_arrival(self, seen: Seen) -> None:
        batches, received, self._expected, self._position.lag, self.decode_errors, gap = seen
        self._heard_at = time.monotonic()
        self._owed -= received - self._received
        self._received = received
        now = time.perf_counter()
        if not self._lost:
            self._waiting.extend(Arrived(self._stream, messages, now) for messages in batches)
        if gap is not None:
            self.fail(f"message {self._expected} of the consumer is missing, {gap} came")
        if self._is_idle:
            self._offer_waiting()
        if self._waiting:
            self._arrived.set()

    def _offer_waiting(self) -> None:
        while self._waiting and self._is_taken(self._waiting[0]):
            self._handed_over(self._waiting.popleft())

    def _is_taken(self, batch: Arrived) -> bool:
        try:
            return self._offer is not None and self._offer(batch)
        except Exception:
            # the hand-over that waits meets the same error, and that one ends the run
            log.exception("stream %s: a batch could not be handed over at once", self._stream)
            return False

    def _handed_over(self, batch: Arrived) -> None:
        self._position.delivered = batch.messages.last
        self._unacknowledged.append(batch.messages)
        self._unacknowledged_count += len(batch)
        if self._unacknowledged_count >= ACK_AT_ONCE:
            self._acknowledge_now()
        elif self._acknowledging is None:
            loop = asyncio.get_running_loop()
            self._acknowledging = loop.call_later(ACK_DELAY_S, self._acknowledge_now)
        self._ask_for_more()

    def _acknowledge_now(self) -> None:
        if self._acknowledging is not None:
            self._acknowledging.cancel()
            self._acknowledging = None
        if self._unacknowledged:
            self._tap.write(b"".join([messages.acknowledgements() for messages in self._unacknowledged]))
            self._unacknowledged.clear()
            self._unacknowledged_count = 0

    def _ask_for_more(self) -> None:
        while reply := self._next_request(sum(map(len, self._waiting))):
            self._tap.write(b"PUB %b %b %d\r\n%b\r\n" % (self._pull_to, reply.encode(), len(self._pull), self._pull))

    @property
    def _pull_to(self) -> bytes:
        return self._pull_subject.encode()

    async def _on_message(self, message: Msg) -> None:
        """Statuses only. A message here has passed the tap by, so there is a hole in what the tap has seen."""
        if message.reply:
            self.fail("a message could not be read where it arrived")
        else:
            await super()._on_message(message)


# A write to the server takes a core from the shard and the client that the message is for: 10 % of a quiet message's
# latency. After so long they are done; a crash in between repeats what was handed over meanwhile.
ACK_DELAY_S = 0.001
# From here on it is a burst, in which nothing is quiet and a timer would only cost.
ACK_AT_ONCE = 16
