"""`redis://host:6379/0`, Redis 7 or later and Valkey: streams for what must arrive, Pub/Sub for broadcasts of nodes.

Three connections a running node: one waits in XREAD, one subscribes, one sends. They are opened and given up together,
so the bus is connected or it is not. Rule: a lost connection never cancels a hand-over that is under way, and nothing
is sent again that Redis may have taken, but a broadcast, of which receivers recognise the second copy.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import AuthenticationError, BusyLoadingError, ResponseError

from tidegate.buses import BusSettings, Deliver, Offer, Receive, RedisSettings
from tidegate.buses._backoff import backoff_s, level_of
from tidegate.buses._redis_broadcasts import Envelope, Outbox
from tidegate.buses._redis_link import (
    COMMAND_TIMEOUT_S,
    LINK_ERRORS,
    NONSENSE,
    Command,
    Link,
    Server,
    describe,
    parse_server,
)
from tidegate.buses._redis_streams import Entry, Position, RefusedError, Streams, parse_info
from tidegate.errors import BusError
from tidegate.profile import BusMessage

log = logging.getLogger(__name__)


def open_bus(url: str, settings: BusSettings, node_id: str) -> "RedisBus":
    return RedisBus(parse_server(url), settings.redis, node_id)


class RedisBus:
    """One gateway node. `run` keeps its connections and follows the streams; `publish` works with and without it."""

    def __init__(self, server: Server, settings: RedisSettings, node_id: str) -> None:
        self._server = server
        self._stream_length = settings.stream_length
        self._channel = settings.channel or CHANNEL
        # A channel that others read as well carries what the profile says and nothing else.
        self._envelope = None if settings.channel else Envelope()
        name = re.sub(r"[^!-~]", "_", f"gateway-{node_id}")
        self._streams = Streams(settings.streams, name)
        self._session = Session(server, f"tidegate-{name}", self._channel, reads=bool(settings.streams))
        self._publisher = Link(server, f"tidegate-{name}")
        self._publishing = asyncio.Lock()
        self._outbox = Outbox()
        self._queued = asyncio.Event()
        self._running = self._handing_over = False
        self._warned_at, self._warned_of = 0.0, 0
        self._messages = self._bytes = self._reconnects = self._refused = self._decode_errors = 0
        self._published = self._received = 0

    def is_ready(self) -> bool:
        return self._session.up.is_set() and self._streams.is_live()

    def stats(self) -> dict[str, int]:
        return {
            "messages": self._messages,
            "bytes": self._bytes,
            "reconnects": self._reconnects,
            "lag": self._streams.lag(),
            "broadcasts_dropped": self._outbox.dropped + self._refused,
            "decode_errors": self._decode_errors,
        }

    def broadcast_stats(self) -> dict[str, int]:
        """Broadcasts that Redis took, and that came from it; on a shared channel our own come back and count too."""
        return {"published": self._published, "received": self._received}

    async def close(self) -> None:
        await self._publisher.close()
        await self._session.close()

    # --- consuming ---------------------------------------------------------------------------------------------------

    async def run(self, deliver: Deliver, receive: Receive, offer: Offer | None = None) -> None:
        self._running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected())
                tasks.create_task(self._listen(receive))
                tasks.create_task(self._send_broadcasts())
                if self._streams.positions:
                    tasks.create_task(self._follow(deliver, offer))
                    tasks.create_task(self._measure_lag())
        except BaseExceptionGroup as group:
            # The caller wants it as it is: what `deliver` raised.
            raise group.exceptions[0] from None
        finally:
            self._running = False
            await self._finish()

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            try:
                await self._session.open()
            except LINK_ERRORS as error:
                failures += 1
                log.log(level_of(failures), "Redis at %s: %s; retrying", self._server, describe(error))
            else:
                log.info("connected to Redis at %s", self._server)
                connected_at = time.monotonic()
                await self._session.lost.wait()
                failures = 0 if time.monotonic() - connected_at > STABLE_S else failures + 1
                self._reconnects += 1
                log.warning("connection to Redis at %s lost; reconnecting", self._server)
            await self._session.close()
            self._streams.disconnected()
            await asyncio.sleep(backoff_s(failures, RECONNECT_S_MAX))

    async def _follow(self, deliver: Deliver, offer: Offer | None) -> None:
        while True:
            await self._session.up.wait()
            try:
                arrived = await self._streams.read(self._session.reader)
            except LINK_ERRORS:
                continue  # the session is lost by that, and says so
            except NONSENSE as error:
                await self._end_session(self._session.reader, error)
                continue
            for position, entries in arrived:
                await self._hand_over(position, entries, deliver, offer)

    async def _end_session(self, link: Link, error: Exception) -> None:
        log.warning("Redis at %s answers as no Redis does (%s)", self._server, type(error).__name__)
        await link.close()

    async def _hand_over(
        self, position: Position, entries: Sequence[Entry], deliver: Deliver, offer: Offer | None
    ) -> None:
        began = time.perf_counter()
        messages = position.messages(entries, began)
        if messages and not (offer and offer(messages)):
            await self._deliver(messages, deliver)
        position.advance(entries)
        if time.perf_counter() - began > SLOW_S:
            self._streams.may_be_behind = True
        self._messages += len(messages)
        self._bytes += sum(len(message.data) for message in messages)
        if junk := len(entries) - len(messages):
            self._decode_errors += junk
            log.warning("Redis stream %s: %d entries without a field `data` were left out", position.stream, junk)

    async def _deliver(self, messages: list[BusMessage], deliver: Deliver) -> None:
        self._handing_over = True
        try:
            await deliver(messages)
        finally:
            self._handing_over = False

    async def _measure_lag(self) -> None:
        """A read says how many are left; while a hand-over waits nothing is read, so the server is asked."""
        while True:
            await asyncio.sleep(LAG_S)
            if not (self._handing_over and self._session.up.is_set()):
                continue
            found = [position for position in self._streams.positions.values() if position.is_found]
            asked: list[Command] = [("XINFO", "STREAM", position.stream) for position in found]
            with contextlib.suppress(*LINK_ERRORS, *NONSENSE, RefusedError):
                replies = await self._session.sender.call(*asked, within=COMMAND_TIMEOUT_S)
                for position, reply in zip(found, replies, strict=True):
                    position.lag = max(0, parse_info(reply).added - position.sequence)

    async def _finish(self) -> None:
        """What is owed: our positions, and broadcasts that still wait."""
        sender, owed = self._session.sender, self._streams.unstored()
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                if (owed or self._outbox) and not sender.is_open:
                    await sender.open()
                if owed:
                    await sender.call(*owed, within=COMMAND_TIMEOUT_S)
                while self._outbox:
                    await self._send_head()
        except LINK_ERRORS as error:
            log.warning("Redis did not take what was owed, the last messages may be repeated: %s", describe(error))
        self._outbox.drop_all()
        await self._session.close()
        self._streams.disconnected()

    # --- publishing --------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, data: bytes) -> None:
        """Tries until the time is up, as long as Redis can't have it: a second XADD would be a second message."""
        stream = subject.partition(".")[0].upper()
        if not stream:
            raise BusError("a message needs a subject", "Its first word names the stream: chat.events goes to CHAT.")
        command = ("XADD", stream, "MAXLEN", "~", self._stream_length, "*", "subject", subject, "data", data)
        deadline = time.monotonic() + PUBLISH_TIMEOUT_S
        why = "not connected to Redis"
        async with self._publishing:
            while (left := deadline - time.monotonic()) > 0:
                try:
                    await self._open_publisher()
                    return await self._add(command, left)
                except (BusyLoadingError, NotOpenError) as error:
                    why = describe(error)
                await asyncio.sleep(min(PUBLISH_RETRY_S, max(0.0, deadline - time.monotonic())))
        raise BusError(
            f"not confirmed within {PUBLISH_TIMEOUT_S:.0f} s: {why}", "Is Redis up? `tidegate doctor` tells."
        )

    async def _open_publisher(self) -> None:
        link = self._publisher
        try:
            # One that has been idle may have ended unnoticed: asked first, a message is not put at risk.
            if link.is_open and asyncio.get_running_loop().time() - link.used_at > HEARTBEAT_S:
                await link.call(("PING",), within=COMMAND_TIMEOUT_S)
            if not link.is_open:
                await link.open()
        except AuthenticationError as error:
            raise BusError(f"Redis refused the connection: {describe(error)}") from None
        except LINK_ERRORS as error:
            raise NotOpenError(describe(error)) from None

    async def _add(self, command: Command, within: float) -> None:
        try:
            (reply,) = await self._publisher.call(command, within=within)
        except BusyLoadingError:
            raise
        except LINK_ERRORS as error:
            cure = "It may be kept or not: look before you send it again."
            raise BusError(f"Redis did not confirm the message: {describe(error)}", cure) from None
        if isinstance(reply, ResponseError):
            raise BusError(f"Redis refused the message: {describe(reply)}")

    # --- broadcasting ------------------------------------------------------------------------------------------------

    def broadcast(self, data: bytes) -> None:
        """Waits in a queue for up to five seconds while Redis is away.

        A connection that breaks before the answer may make one arrive twice. Our own envelope is counted, so a node
        takes it once; on a shared channel (`redis.channel`) receivers tell by what is in it, gogate by `event_id`.
        """
        if not self._running:
            self._refused += 1
        elif self._outbox.put(self._envelope.wrap(data) if self._envelope else data, time.monotonic()):
            self._queued.set()

    async def _send_broadcasts(self) -> None:
        while True:
            self._outbox.expire(time.monotonic())
            self._warn_of_dropped()
            if not self._session.up.is_set():
                await happens(self._session.up, EXPIRE_S)
                continue
            if not self._outbox:
                self._queued.clear()
                await happens(self._queued, HEARTBEAT_S)
            try:
                await self._send_head()
            except LINK_ERRORS:
                continue  # the session is lost by that; what is not confirmed is still in the queue

    async def _send_head(self) -> None:
        """Without anything to say, whether Redis still answers."""
        sender, news = self._session.sender, self._outbox.head()
        commands = self._publish_commands(news) or [("PING",)]
        replies = await sender.call(*commands, within=COMMAND_TIMEOUT_S)
        self._outbox.confirm(len(news))
        refusals = [reply for reply in replies if isinstance(reply, ResponseError)]
        self._refused += len(refusals) if news else 0
        self._published += len(news) - len(refusals) if news else 0
        if refusals:
            self._warn_of_dropped(describe(refusals[0]))

    def _publish_commands(self, news: list[bytes]) -> list[Command]:
        return [("PUBLISH", self._channel, data) for data in news]

    def _warn_of_dropped(self, why: str = "Redis is away or too slow") -> None:
        dropped, now = self._outbox.dropped + self._refused, time.monotonic()
        if dropped > self._warned_of and now - self._warned_at > 1:
            log.warning("%d broadcasts to other nodes dropped: %s", dropped - self._warned_of, why)
            self._warned_at, self._warned_of = now, dropped

    async def _listen(self, receive: Receive) -> None:
        while True:
            await self._session.up.wait()
            try:
                pushed = await self._session.next_push()
                if pushed and pushed[0] == b"message":
                    self._take(pushed[2], receive)
            except LINK_ERRORS:
                continue
            except NONSENSE as error:
                await self._end_session(self._session.subscriber, error)

    def _take(self, wrapped: bytes, receive: Receive) -> None:
        try:
            data = self._envelope.unwrap(wrapped) if self._envelope else wrapped
        except ValueError:
            self._decode_errors += 1
            return
        if data is None:
            return
        self._received += 1
        try:
            receive(data)
        except Exception:
            log.exception("a broadcast from another node could not be used")


class Session:
    """The connections of a running node. Invariant: `up` is set exactly while all of them are usable."""

    def __init__(self, server: Server, name: str, channel: str, *, reads: bool) -> None:
        self.up = asyncio.Event()
        self.lost = asyncio.Event()
        self.reader, self.subscriber, self.sender = (Link(server, name, self._on_lost) for _ in range(3))
        self._links = (self.reader, self.subscriber, self.sender) if reads else (self.subscriber, self.sender)
        self._channel = channel
        self._asked = False  # whether the subscriber owes us a sign of life

    async def open(self) -> None:
        """Raises one of LINK_ERRORS."""
        for link in self._links:
            await link.open()
        self.lost.clear()
        self._asked = False
        await self.subscriber.send(("SUBSCRIBE", self._channel))
        if await self.subscriber.next_push(COMMAND_TIMEOUT_S) is None or self.lost.is_set():
            raise TimeoutError("no answer to SUBSCRIBE")
        self.up.set()

    async def next_push(self) -> list[Any] | None:
        pushed = await self.subscriber.next_push(COMMAND_TIMEOUT_S if self._asked else HEARTBEAT_S)
        if pushed is None and self._asked:
            await self.subscriber.close()
            raise TimeoutError("Redis is silent")
        self._asked = pushed is None
        if self._asked:
            await self.subscriber.send(("PING",))
        return pushed

    async def close(self) -> None:
        for link in (self.reader, self.subscriber, self.sender):
            await link.close()

    def _on_lost(self) -> None:
        self.up.clear()
        self.lost.set()


class NotOpenError(Exception):
    """There is no connection, so nothing was sent."""


async def happens(event: asyncio.Event, within: float) -> None:
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        pass


# With our envelope, so nobody else may use it.
CHANNEL = "tidegate:broadcast"
# Broadcasts wait for five seconds: several attempts must fall into that.
RECONNECT_S_MAX = 1.0
# What lasted so long was well: the next failure is a first one again.
STABLE_S = 5.0
# A connection that nobody speaks on is asked so often; with the time for an answer, one that died is found in three.
HEARTBEAT_S = 1.0
# How late a broadcast that has become too old is counted.
EXPIRE_S = 0.25
# In less time nobody fills and trims a stream of redis.stream_length behind a hand-over.
SLOW_S = 1.0
# Often enough for a scrape, whose usual interval is 15 s.
LAG_S = 2.0
# As long as a NATS publish waits for its confirmation.
PUBLISH_TIMEOUT_S = 5.0
PUBLISH_RETRY_S = 0.1
