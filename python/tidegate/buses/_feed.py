"""The pull loop on one JetStream consumer: overlapping requests, one inbox, batches out, acknowledgements back.

Why not the library's `fetch`: it takes 16 us a message and waits for a full batch or a timeout. Here requests overlap,
a batch is what has arrived (one quiet message is never delayed), and the consumer's own numbers show a lost message.
Rule: a `Feed` that has failed is never mended, it is replaced.

Specification: ADR-13 (pull requests), ADR-37 (statuses, heartbeats), `$JS.ACK.*` reply subjects.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from tidegate.profile import BusMessage


class Batch(NamedTuple):
    """What is handed over at once, and the subjects that acknowledge it where we must know them."""

    messages: Sequence[BusMessage]
    replies: Sequence[str] = ()


class FeedLostError(Exception):
    """This feed is over: make another one. The text says why."""


@dataclass(slots=True)
class Position:
    """How far a stream was handed over; it outlives connections and consumers."""

    delivered: int | None = None  # stream sequence; None until a consumer said where it starts
    created: str = ""  # when the stream was made: another one of the same name is another stream
    lag: int = 0  # messages that the server holds beyond what it sent
    # Shared consumers only: the sequences handed over last.
    seen: OrderedDict[int, None] = field(default_factory=OrderedDict)


class Feed:
    """What arrived waits in `_buffer`, in order, to be handed over.

    Invariant: messages asked for and not yet handed over are at most AHEAD_MAX: the library's own queue needs no limit.
    """

    def __init__(self, nc: Client, stream: str, consumer: str, position: Position, first: int | None) -> None:
        self._nc = nc
        self._stream = stream
        self._position = position
        self._expected = first  # consumer sequence; None = shared, other nodes get the numbers between
        self._buffer: deque[tuple[BusMessage, str]] = deque()
        self._taken: Sequence[str] = ()  # replies of what was handed over, or about to be, and not yet acknowledged
        self._last = position.delivered or 0  # stream sequence of the newest message in the buffer
        self._owed = 0  # messages asked for that have not come
        self._requests = 0
        self._arrived = asyncio.Event()
        self._lost = ""
        self._heard_at = time.monotonic()
        self._inbox = nc.new_inbox()
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        # A message larger than this would never come: as many bytes as the server lets one have, and its headers.
        largest = max(PULL_BYTES_MIN, nc.max_payload + 64 * 1024)
        pull = {
            "batch": PULL_MESSAGES,
            "max_bytes": largest,
            "expires": PULL_EXPIRES_NS,
            "idle_heartbeat": HEARTBEAT_NS,
        }
        self._pull = orjson.dumps(pull)
        self.decode_errors = 0

    def is_live(self) -> bool:
        return not self._lost

    def is_full(self) -> bool:
        """Nothing is asked for any more, since what came was not handed over."""
        return not self._lost and self._owed <= 0

    async def start(self) -> None:
        await self._subscribe()
        await self._request_more()

    async def _subscribe(self) -> None:
        self._subscription = await self._nc.subscribe(
            f"{self._inbox}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def next_batch(self) -> Batch:
        """Waits for one message and takes what has arrived by then, up to the bounds. Raises FeedLostError."""
        while not self._buffer:
            if self._lost:
                raise FeedLostError(self._lost)
            self._arrived.clear()
            await self._request_more()
            await self._arrived.wait()
        messages: list[BusMessage] = []
        replies: list[str] = []
        size = 0
        while self._buffer and len(messages) < BATCH_MESSAGES_MAX and size < BATCH_BYTES_MAX:
            message, reply = self._buffer.popleft()
            messages.append(message)
            replies.append(reply)
            size += len(message.data)
        self._taken = replies
        return Batch(messages, replies)

    async def acknowledge(self, batch: Batch) -> None:
        """`batch` was handed over. Without a connection only the position knows; the next consumer begins there."""
        position = self._position
        position.delivered = batch.messages[-1].sequence
        self._taken = ()
        if self._expected is None:
            remember(position.seen, batch.messages)
        try:
            for reply in batch.replies:
                await self._nc.publish(reply)
            await self._request_more()
        except (nats.errors.Error, OSError) as error:
            self.fail(f"acknowledging: {error}")

    def fail(self, reason: str) -> None:
        """What is in the buffer is still good and is handed over first."""
        self._lost = self._lost or reason
        self._arrived.set()

    def check(self, now: float) -> None:
        """Called now and then: a server that owes us messages says something every heartbeat."""
        if self._owed > 0 and now - self._heard_at > SILENCE_MAX_S:
            self.fail("silence: no heartbeat from the server")

    async def close(self) -> None:
        self.fail("closed")
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):  # the connection may have gone first
            if self._expected is None:
                await self._hand_back()
            elif not self._nc.is_closed:
                await self._subscription.unsubscribe()
        self._buffer.clear()

    async def _hand_back(self) -> None:
        """Other nodes get what is ours and was not handed over, without waiting for the ack wait."""
        async with asyncio.timeout(HAND_BACK_S_MAX):
            await self._subscription.drain()  # type: ignore[no-untyped-call]  # what is still on its way to us, too
        for reply in (*self._taken, *(reply for _, reply in self._buffer)):
            await self._nc.publish(reply, b"-NAK")

    async def _request_more(self) -> None:
        while reply := self._next_request(len(self._buffer)):
            await self._nc.publish(self._pull_subject, self._pull, reply=reply)

    def _next_request(self, waiting: int) -> str:
        """The inbox of one more pull request; "" while as many are under way as `waiting` messages allow."""
        if self._lost or self._owed + waiting + PULL_MESSAGES > AHEAD_MAX:
            return ""
        if self._owed <= 0:
            self._heard_at = time.monotonic()
        self._owed += PULL_MESSAGES
        self._requests += 1
        return f"{self._inbox}.{self._requests}"

    async def _on_message(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        if self._lost and self._expected is not None:
            return
        reply = message.reply
        if not reply:
            self._on_status(message.headers or {})
            return
        tokens = reply.split(".")
        # $JS.ACK.[domain.account.]stream.consumer.deliveries.stream_seq.consumer_seq.stored_at.pending[.random]
        at = 5 if len(tokens) == 9 else 7
        try:
            sequence, number, pending = int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 3])
        except (ValueError, IndexError):
            self.decode_errors += 1
            return
        self._owed -= 1
        if self._accepts(sequence, number, reply):
            self._position.lag = pending
            self._last = sequence
            item = BusMessage(self._stream, message.subject, message.data, sequence, time.perf_counter())
            self._buffer.append((item, reply))
        self._arrived.set()

    def _accepts(self, sequence: int, number: int, reply: str) -> bool:
        if self._expected is None:
            return sequence not in self._position.seen
        if number != self._expected:
            self.fail(f"message {self._expected} of the consumer is missing, {number} came")
            return False
        self._expected += 1
        # Delivered twice by the server, after the ack wait: the first copy is in the buffer or its ack is on its way.
        return sequence > self._last

    def _on_status(self, headers: Mapping[str, str]) -> None:
        status, text = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":  # idle heartbeat
            last = headers.get("Nats-Last-Consumer", "")
            if self._expected is not None and last.isdigit() and int(last) >= self._expected:
                self.fail(f"message {self._expected} of the consumer is missing, {last} was sent")
        elif status == "408" or (status == "409" and text.lower().startswith(REQUEST_ENDED)):
            rest = headers.get("Nats-Pending-Messages", "")
            self._owed -= int(rest) if rest.isdigit() else PULL_MESSAGES
            self._arrived.set()
        elif status == "409" and text.lower().startswith("consumer deleted"):
            self.fail(
                "somebody removed the consumer; if another gateway runs with this name, set GATEWAY_NODE_ID on each"
            )
        else:
            self.fail(f"status {status} {text}".strip())


def remember(seen: OrderedDict[int, None], messages: Sequence[BusMessage]) -> None:
    for message in messages:
        seen[message.sequence] = None
    while len(seen) > SEEN_MAX:
        seen.popitem(last=False)


SECOND_NS = 1_000_000_000

# Messages a pull request: at 100,000 a second one every 5 ms, and few enough that a slow gateway holds little.
PULL_MESSAGES = 500
# Four requests overlap, so that the server never waits for the next one over a round trip of several milliseconds.
AHEAD_MAX = 4 * PULL_MESSAGES
# Bytes a pull request may bring at least; with four of them under way 16 MiB a stream.
PULL_BYTES_MIN = 4 * 1024 * 1024
# Long, since an expired request only costs a new one; clients of the project's own use 30 s.
PULL_EXPIRES_NS = 30 * SECOND_NS
# A dead server shows within SILENCE_MAX_S: two heartbeats and a half.
HEARTBEAT_NS = SECOND_NS
SILENCE_MAX_S = 2.5
# What one hand-over may bring: its fixed cost vanishes, and other work still runs in between.
BATCH_MESSAGES_MAX = 500
BATCH_BYTES_MAX = 1024 * 1024
# One round trip to the server, in which it stops sending.
HAND_BACK_S_MAX = 2
# Sequences remembered to tell a redelivery in shared mode: more than ACK_PENDING_MAX can be under way.
SEEN_MAX = 65_536

# Statuses that end one pull request and nothing else.
REQUEST_ENDED = ("message size exceeds", "batch completed", "request expired")
