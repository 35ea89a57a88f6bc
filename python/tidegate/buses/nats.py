"""`nats://host:port[,host:port...]`, NATS: streams from JetStream, broadcasts on a core subject of ours.

Why each connection is a new client: the library's own reconnect ends for good on some errors (authorization, limits),
and what it carries over (subscriptions, pull requests) is made again here anyway, from our own position. Rule: a lost
connection never cancels a hand-over that is under way. The subject of ours: `tidegate.{client_id}.broadcast`.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from tidegate.buses import Arrived, BusSettings, Deliver, NatsSettings, Offer, Receive
from tidegate.buses._backoff import backoff_s, level_of
from tidegate.buses._connection import Connection, describe
from tidegate.buses._feed import Feed, FeedLostError, Position
from tidegate.buses._jetstream import Durable, RefusedError, consumer_info, name_token, open_feed
from tidegate.buses._servers import WEBSOCKET, Server, parse_servers
from tidegate.errors import BusError, ConfigError
from tidegate.profile import BusMessage

log = logging.getLogger(__name__)


def open_bus(url: str, settings: BusSettings, node_id: str) -> "NatsBus":
    servers = parse_servers(url)
    if servers[0].address.startswith(WEBSOCKET) and find_spec("aiohttp") is None:
        raise ConfigError(
            "NATS over WebSocket needs a client for it", "Run: pip install aiohttp, or use nats:// or tls://."
        )
    return NatsBus(servers, settings.nats, node_id)


class NatsBus:
    """One gateway node. `run` keeps a connection and follows the streams; `publish` works with and without it."""

    def __init__(self, servers: list[Server], settings: NatsSettings, node_id: str) -> None:
        client_id = name_token(settings.client_id)
        self._settings = settings
        self._shared = settings.consumer_mode == "shared"
        self._consumer = f"gateway-{client_id}" if self._shared else f"gateway-{client_id}-{name_token(node_id)}"
        self._connection = Connection(servers, f"tidegate {self._consumer}")
        self._positions = {stream: Position() for stream in settings.streams}
        self._feeds: dict[str, Feed] = {}
        self._delivering = asyncio.Lock()
        self._running = False
        self._subject = f"tidegate.{client_id}.broadcast"
        self._instance = secrets.token_bytes(INSTANCE_BYTES)
        self._broadcasts: asyncio.Queue[bytes] = asyncio.Queue(BROADCASTS_MAX)
        self._messages = self._bytes = self._reconnects = self._dropped = self._decode_errors = 0

    def is_ready(self) -> bool:
        live = [feed for feed in self._feeds.values() if feed.is_live()]
        return self._connection.client is not None and len(live) == len(self._positions)

    def stats(self) -> dict[str, int]:
        return {
            "messages": self._messages,
            "bytes": self._bytes,
            "reconnects": self._reconnects,
            "lag": sum(position.lag for position in self._positions.values()),
            "broadcasts_dropped": self._dropped + self._connection.dropped,
            "decode_errors": self._decode_errors + sum(feed.decode_errors for feed in self._feeds.values()),
        }

    async def close(self) -> None:
        await self._connection.close()

    # --- consuming ---------------------------------------------------------------------------------------------------

    async def run(self, deliver: Deliver, receive: Receive, offer: Offer | None = None) -> None:
        self._running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected(receive))
                tasks.create_task(self._watch())
                tasks.create_task(self._measure_lag())
                tasks.create_task(self._send_broadcasts())
                for stream in self._positions:
                    tasks.create_task(self._follow(stream, deliver, offer))
        except BaseExceptionGroup as group:
            # The caller wants it as it is: what `deliver` raised, or that nats.max_reconnects was reached.
            first = group.exceptions[0]
            raise (first.__cause__ or first) if isinstance(first, HandOverError) else first from None
        finally:
            self._running = False
            await self._connection.close()

    async def _stay_connected(self, receive: Receive) -> None:
        failures = 0
        while True:
            try:
                client = await self._connection.open()
                await client.subscribe(
                    self._subject,
                    cb=self._receiver(receive),
                    pending_msgs_limit=BROADCASTS_MAX,
                    pending_bytes_limit=BROADCAST_BYTES_MAX,
                )
            except (nats.errors.Error, OSError, TimeoutError) as error:
                failures += 1
                log.log(level_of(failures), "NATS at %s: %s; retrying", self._connection, describe(error))
                await self._connection.close()
                if 0 <= self._settings.max_reconnects < failures:
                    cure = "Start NATS, or set nats.max_reconnects to -1 to try for ever."
                    raise BusError(f"no NATS server answered in {failures} attempts", cure) from None
            else:
                log.info("connected to NATS at %s", self._connection)
                connected_at = time.monotonic()
                await self._connection.lost.wait()
                for feed in self._feeds.values():
                    feed.fail("connection lost")
                failures = 0 if time.monotonic() - connected_at > STABLE_S else failures + 1
                self._reconnects += 1
                log.warning("connection to NATS at %s lost; reconnecting", self._connection)
            await asyncio.sleep(backoff_s(failures, self._settings.reconnect_wait))

    def _durable(self, stream: str) -> Durable:
        return Durable(stream, self._consumer, self._shared, self._settings.ensure_streams)

    async def _follow(self, stream: str, deliver: Deliver, offer: Offer | None) -> None:
        """One stream, for as long as `run` lasts: one feed after the other."""
        durable = self._durable(stream)
        failures = 0
        while True:
            client = await self._connection.usable()
            opened_at = time.monotonic()
            try:
                await self._consume(client, durable, deliver, offer)
            except (FeedLostError, RefusedError) as reason:
                why = str(reason)
            except (nats.errors.Error, OSError, LookupError, TypeError, ValueError) as error:
                # Nobody answers, or nonsense: this connection is of no use.
                said = self._connection.last_error
                why = f"{type(error).__name__} from JetStream{f' ({said})' if said else ''}"
                self._connection.abandon(client)
            failures = 0 if time.monotonic() - opened_at > STABLE_S else failures + 1
            if self._connection.client is client:
                log.log(level_of(failures), "stream %s: %s; starting again from our position", stream, why)
            await asyncio.sleep(backoff_s(failures, RETRY_S_MAX))

    async def _consume(self, client: Client, durable: Durable, deliver: Deliver, offer: Offer | None) -> None:
        at_once = self._offering(offer) if offer else None
        opening = open_feed(client, durable, self._positions[durable.stream], at_once)
        feed = await self._connection.unless_lost(opening)
        self._feeds[durable.stream] = feed
        try:
            while True:
                batch = await feed.next_batch()
                async with self._delivering:
                    try:
                        await deliver(batch.messages)
                    except Exception as error:
                        raise HandOverError from error
                await feed.acknowledge(batch)
                self._count(batch.messages)
        finally:
            del self._feeds[durable.stream]
            self._decode_errors += feed.decode_errors
            await feed.close()

    def _offering(self, offer: Offer) -> Offer:
        """Never beside a hand-over that waits, of whatever stream."""

        def at_once(messages: Sequence[BusMessage]) -> bool:
            if self._delivering.locked() or not offer(messages):
                return False
            self._count(messages)
            return True

        return at_once

    def _count(self, messages: Sequence[BusMessage]) -> None:
        self._messages += len(messages)
        if isinstance(messages, Arrived):
            self._bytes += messages.messages.payload_bytes
        else:
            self._bytes += sum(len(message.data) for message in messages)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._connection.check()
            now = time.monotonic()
            for feed in self._feeds.values():
                feed.check(now)

    async def _measure_lag(self) -> None:
        """Each message says how many follow it; while a hand-over waits no message comes, so the server is asked."""
        while True:
            await asyncio.sleep(LAG_S)
            for stream, feed in list(self._feeds.items()):
                client = self._connection.client
                if client is None or not feed.is_full():
                    continue
                with contextlib.suppress(nats.errors.Error, OSError, LookupError, RefusedError):
                    if info := await consumer_info(client, self._durable(stream)):
                        self._positions[stream].lag = info["num_pending"]

    # --- publishing --------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, data: bytes) -> None:
        """Tries again after a lost connection until the time is up; JetStream recognises a second copy by its id."""
        headers = {"Nats-Msg-Id": secrets.token_hex(12)}
        deadline = time.monotonic() + PUBLISH_TIMEOUT_S
        unheard = 0
        why = "not connected to NATS"
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    client = await (self._connection.usable() if self._running else self._connection.open())
                    request = client.request(subject, data, timeout=left, headers=headers)
                    answer = await self._connection.unless_lost(request)
            except nats.errors.NoRespondersError:
                unheard += 1
                if unheard >= UNHEARD_MAX:
                    cure = "Create a stream that takes it, publish to one that exists, or enable JetStream."
                    raise BusError(f"no stream takes the subject {subject!r}", cure) from None
            except (nats.errors.BadSubjectError, nats.errors.MaxPayloadError) as error:
                cure = "Change the subject, or send less than the server's max_payload."
                raise BusError(f"NATS cannot carry this message: {describe(error)}", cure) from None
            except (nats.errors.Error, OSError, TimeoutError) as error:
                why = describe(error)
            else:
                return check_stored(subject, answer)
            await asyncio.sleep(min(PUBLISH_RETRY_S, max(0.0, deadline - time.monotonic())))
        raise BusError(f"not confirmed within {PUBLISH_TIMEOUT_S:.0f} s: {why}", "Is NATS up? `tidegate doctor` tells.")

    # --- broadcasting ------------------------------------------------------------------------------------------------

    def broadcast(self, data: bytes) -> None:
        client = self._connection.client
        if client is None or len(data) + INSTANCE_BYTES > client.max_payload or self._broadcasts.full():
            self._dropped += 1
        else:
            self._broadcasts.put_nowait(data)

    async def _send_broadcasts(self) -> None:
        while True:
            data = await self._broadcasts.get()
            client = self._connection.client
            try:
                if client is None:
                    raise nats.errors.ConnectionClosedError
                await client.publish(self._subject, self._instance + data)
            except (nats.errors.Error, OSError):
                self._dropped += 1

    def _receiver(self, receive: Receive) -> Callable[[Msg], Awaitable[None]]:
        async def on_broadcast(message: Msg) -> None:
            if message.data[:INSTANCE_BYTES] == self._instance:
                return
            try:
                receive(message.data[INSTANCE_BYTES:])
            except Exception:
                log.exception("a broadcast from another node could not be used")

        return on_broadcast


class HandOverError(Exception):
    """Carries what `deliver` raised past the errors of NATS."""


def check_stored(subject: str, answer: Msg) -> None:
    try:
        stored = orjson.loads(answer.data)
        error = stored.get("error")
    except (orjson.JSONDecodeError, AttributeError):
        cure = "Publish to a subject that a stream takes; something else answered on this one."
        raise BusError(f"the answer to {subject!r} did not come from JetStream", cure) from None
    if error:
        raise BusError(f"JetStream refused the message: {error.get('description')}", "Look at the stream's limits.")


# The longest pause between attempts to follow one stream while the connection itself is well.
RETRY_S_MAX = 2.0
# What lasted so long was well: the next failure is a first one again.
STABLE_S = 5.0
# A connection that ended without a word is noticed so soon; four times as often as heartbeats come.
WATCH_S = 0.25
# Often enough for a scrape, whose usual interval is 15 s.
LAG_S = 2.0
# As long as the contract's other requests; a publisher's own timeout is rarely shorter.
PUBLISH_TIMEOUT_S = 5.0
PUBLISH_RETRY_S = 0.1
# A cluster that elects a leader is silent for a moment; then it is a wrong subject, and the caller is told soon.
UNHEARD_MAX = 3
# Typing events of a second on a busy node; more than that behind a slow socket is stale.
BROADCASTS_MAX = 10_000
BROADCAST_BYTES_MAX = 16 * 1024 * 1024
# Tells our own broadcasts from others': 64 random bits.
INSTANCE_BYTES = 8
