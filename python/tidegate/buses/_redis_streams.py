"""Where this node is in each Redis stream, and reading on from there: `redis.py` hands over what is read here.

Why XREAD and a position of our own, and no XREADGROUP: what a group has read and not acknowledged is a list in Redis,
written to its log for each entry. Measured on Redis 7.0 in batches of 500: 2.6 us of the server a message against 0.4,
3.0 us here against 1.5, 209 bytes of the append-only file against 0.2. And after a crash of Redis that lost its last
writes a group would repeat, where our position in memory does not. The node has a group still: nothing but a position
(XGROUP SETID), so that XINFO GROUPS shows who is where and how far behind. Given up: nodes can't share a group's work.

Rule: a position moves when the hand-over returned, and is stored with the next read.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from redis.exceptions import ResponseError

from tidegate.buses._redis_link import COMMAND_TIMEOUT_S, Command, Link, describe
from tidegate.profile import BusMessage

log = logging.getLogger(__name__)

Id: TypeAlias = tuple[int, int]
START: Id = (0, 0)


class Entry(NamedTuple):
    id: Id
    fields: Sequence[bytes]  # name, value, name, value, ...


class Info(NamedTuple):
    """A stream as Redis describes it."""

    last: Id  # of the newest that ever was
    added: int  # how many ever were
    length: int  # how many are kept
    first: Id  # of the oldest kept


class Position:
    """In one stream. `cursor` is the last entry that was handed over, `sequence` how many-eth of the stream it is."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.cursor = START
        self.sequence = 0
        self.stored: Id | None = None  # what Redis has confirmed to keep of it
        self.is_known = False  # for as long as this object lives
        self.is_found = False  # for as long as the connection does
        self.lag = 0

    def settle(self, info: Info) -> int:
        """Makes it fit the stream as it is now. Returns how many messages are gone that we never read."""
        lost = 0
        if info.last <= self.cursor:
            # Nothing is new. Smaller: Redis lost its last writes, or this is another stream of that name.
            self.cursor, self.sequence = info.last, info.added
        elif info.length == 0 or info.first > self.cursor:
            gone = info.added - info.length
            lost, self.sequence = max(0, gone - self.sequence), gone
        self.lag = max(0, info.added - self.sequence)
        return lost

    def messages(self, entries: Sequence[Entry], received_at: float) -> list[BusMessage]:
        """Those that are messages; `len` says how many were not."""
        made = []
        for sequence, entry in enumerate(entries, self.sequence + 1):
            fields = dict(zip(entry.fields[::2], entry.fields[1::2], strict=False))
            data = fields.get(b"data")
            with contextlib.suppress(UnicodeDecodeError):
                subject = fields.get(b"subject", self.stream.lower().encode()).decode()
                if data is not None:
                    made.append(BusMessage(self.stream, subject, data, sequence, received_at))
        return made

    def advance(self, entries: Sequence[Entry]) -> None:
        self.cursor = entries[-1].id
        self.sequence += len(entries)
        self.lag = max(0, self.lag - len(entries))


class Streams:
    """All streams of this node, read over one connection."""

    def __init__(self, names: Iterable[str], group: str) -> None:
        self.positions = {name: Position(name) for name in names}
        self._group = group
        self._retry_at = 0.0  # monotonic
        self._failures_logged: dict[str, str] = {}
        self._count = COUNT_FIRST
        # Entries may have been trimmed before we read them: then a read asks for the counters in the same moment.
        self.may_be_behind = True

    def is_live(self) -> bool:
        return all(position.is_found for position in self.positions.values())

    def lag(self) -> int:
        return sum(position.lag for position in self.positions.values())

    def disconnected(self) -> None:
        for position in self.positions.values():
            position.is_found = False
        self.may_be_behind = True
        self._retry_at = 0.0

    async def read(self, link: Link) -> list[tuple[Position, list[Entry]]]:
        """What is new, each stream's in its order; empty after a second without. Raises one of LINK_ERRORS."""
        await self._find_missing(link)
        found = [position for position in self.positions.values() if position.is_found]
        if not found:
            await asyncio.sleep(RETRY_S)
            return []
        arrived = await (self._read_checked(link, found) if self.may_be_behind else self._wait(link, found))
        self._adapt(arrived)
        return arrived

    def unstored(self) -> list[Command]:
        """What tells Redis where we are."""
        moved = [position for position in self.positions.values() if position.cursor != position.stored]
        return [self._store(position) for position in moved if position.is_known]

    # --- finding -----------------------------------------------------------------------------------------------------

    async def _find_missing(self, link: Link) -> None:
        missing = [position for position in self.positions.values() if not position.is_found]
        if not missing or time.monotonic() < self._retry_at:
            return
        for position in missing:
            try:
                await self._find(link, position)
            except RefusedError as refused:
                self._give_up_for_now([position], str(refused))
            else:
                self._failures_logged.pop(position.stream, None)

    async def _find(self, link: Link, position: Position) -> None:
        """Where we are in the stream as it is now; a stream or group that is missing is made."""
        stream = position.stream
        info, groups = await transaction(link, ("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream))
        is_new = isinstance(info, ResponseError) or not self._own_group(groups)
        if is_new:
            # Not asked for where it exists: a Redis that is full would refuse it.
            create = ("XGROUP", "CREATE", stream, self._group, "$", "MKSTREAM")
            made, info = await transaction(link, create, ("XINFO", "STREAM", stream))
            if isinstance(made, ResponseError):
                raise RefusedError(describe(made))
        now = parse_info(info)
        if not position.is_known:
            position.cursor, position.sequence = (now.last, now.added) if is_new else self._kept(groups, now)
            position.is_known = True
        elif is_new and now.last < position.cursor:
            # Another stream of that name, which has not heard of us: all of it is new.
            position.cursor, position.sequence = START, 0
        report_lost(position, position.settle(now))
        position.stored = None
        position.is_found = True

    def _own_group(self, groups: Sequence[Sequence[Any]]) -> dict[bytes, Any] | None:
        return next((made for made in map(pairs, groups) if made[b"name"] == self._group.encode()), None)

    def _kept(self, groups: Sequence[Sequence[Any]], now: Info) -> tuple[Id, int]:
        """Where this node was when it was last here."""
        group = self._own_group(groups) or {}
        read = group.get(b"entries-read")
        return parse_id(group[b"last-delivered-id"]), now.added - now.length if read is None else read

    def _give_up_for_now(self, positions: Iterable[Position], why: str) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        for position in positions:
            position.is_found = False
            # Once for each reason: it is tried again every other second.
            known = self._failures_logged.get(position.stream) == why
            self._failures_logged[position.stream] = why
            log.log(logging.DEBUG if known else logging.WARNING, "Redis stream %s: %s", position.stream, why)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _wait(self, link: Link, found: list[Position]) -> list[tuple[Position, list[Entry]]]:
        stores = self._stores(found)
        read: Command = ("XREAD", "COUNT", self._count, "BLOCK", int(BLOCK_S * 1000), "STREAMS", *where(found))
        *stored, reply = await link.call(*(command for _, command in stores), read, within=BLOCK_S + COMMAND_TIMEOUT_S)
        self._check_stored([position for position, _ in stores], stored)
        # Silence is the time to see whether the stream is still the one we know.
        self.may_be_behind = reply is None
        arrived = self._arrived(found, reply)
        for position, entries in arrived:
            position.lag = len(entries)
        return arrived

    async def _read_checked(self, link: Link, found: list[Position]) -> list[tuple[Position, list[Entry]]]:
        stores = self._stores(found)
        if stores:
            stored = await link.call(*(command for _, command in stores), within=COMMAND_TIMEOUT_S)
            self._check_stored([position for position, _ in stores], stored)
        infos = [("XINFO", "STREAM", position.stream) for position in found]
        try:
            *described, reply = await transaction(
                link, *infos, ("XREAD", "COUNT", self._count, "STREAMS", *where(found))
            )
            for position, info in zip(found, described, strict=True):
                self._settle(position, info)
        except RefusedError as refused:
            self._give_up_for_now(found, str(refused))
            return []
        arrived = self._arrived(found, reply)
        self.may_be_behind = any(len(entries) >= self._count for _, entries in arrived)
        return arrived

    def _settle(self, position: Position, info: Any) -> None:
        """Where it can't be the stream that we know, what is there instead is found anew."""
        now = None if isinstance(info, ResponseError) else parse_info(info)
        if now is None or now.last < position.cursor:
            position.is_found = False
        else:
            report_lost(position, position.settle(now))

    def _stores(self, found: list[Position]) -> list[tuple[Position, Command]]:
        return [(position, self._store(position)) for position in found if position.cursor != position.stored]

    def _store(self, position: Position) -> Command:
        cursor = format_id(position.cursor)
        return ("XGROUP", "SETID", position.stream, self._group, cursor, "ENTRIESREAD", position.sequence)

    def _check_stored(self, positions: Sequence[Position], replies: Sequence[Any]) -> None:
        for position, reply in zip(positions, replies, strict=True):
            if not isinstance(reply, ResponseError):
                position.stored = position.cursor
            elif re_made(reply):
                position.is_found = False
            else:
                self._give_up_for_now([position], describe(reply))

    def _arrived(self, found: list[Position], reply: Any) -> list[tuple[Position, list[Entry]]]:
        if isinstance(reply, ResponseError):
            self._give_up_for_now(found, describe(reply))
            return []
        # A position that was not stored belongs to a group or stream that is gone: it is found again first.
        live = {position.stream.encode(): position for position in found if position.is_found}
        return [
            (live[name], [Entry(parse_id(entry_id), fields) for entry_id, fields in entries])
            for name, entries in reply or ()
            if name in live
        ]

    def _adapt(self, arrived: list[tuple[Position, list[Entry]]]) -> None:
        """A reply is held in memory whole: the larger messages are, the fewer are asked for at once."""
        if not arrived:
            return
        sizes = [sum(map(len, entry.fields)) for _, entries in arrived for entry in entries]
        full = any(len(entries) >= self._count for _, entries in arrived)
        self.may_be_behind = self.may_be_behind or full
        fitting = BATCH_BYTES_MAX // max(1, sum(sizes) // len(sizes))
        self._count = max(1, min(BATCH_MESSAGES_MAX, 2 * self._count, fitting))


class RefusedError(Exception):
    """What Redis says about a stream, with the cure."""


async def transaction(link: Link, *commands: Command) -> list[Any]:
    replies = await link.call(("MULTI",), *commands, ("EXEC",), within=COMMAND_TIMEOUT_S)
    *queued, done = replies
    if isinstance(done, ResponseError):
        raise RefusedError(describe(next((reply for reply in queued if isinstance(reply, ResponseError)), done)))
    results: list[Any] = done
    return results


def report_lost(position: Position, lost: int) -> None:
    if lost:
        log.warning(
            "Redis stream %s: %d messages were trimmed before this node read them; going on with the oldest kept. "
            "Raise redis.stream_length if nodes are away for so long",
            position.stream,
            lost,
        )


def re_made(refusal: ResponseError) -> bool:
    """The group or its stream was removed while we were reading."""
    return str(refusal).startswith("NOGROUP") or "requires the key to exist" in str(refusal)


def where(positions: Sequence[Position]) -> list[str]:
    return [position.stream for position in positions] + [format_id(position.cursor) for position in positions]


def pairs(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def parse_info(reply: Sequence[Any]) -> Info:
    info = pairs(reply)
    if b"entries-added" not in info:
        raise RefusedError("this server does not count what a stream ever held. Use Redis 7.0 or later, or Valkey.")
    first = info[b"first-entry"]
    oldest = parse_id(first[0]) if first else START
    return Info(parse_id(info[b"last-generated-id"]), info[b"entries-added"], info[b"length"], oldest)


def parse_id(text: bytes) -> Id:
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def format_id(entry: Id) -> str:
    return f"{entry[0]}-{entry[1]}"


# The same bound as on NATS: some milliseconds of the engine's time.
BATCH_MESSAGES_MAX = 500
# What one reply should hold at most, guessed by the last one's average.
BATCH_BYTES_MAX = 8 * 1024 * 1024
# Nothing is known of the messages' size yet; it doubles with each read.
COUNT_FIRST = 16
# How long a read waits in Redis: with the time for an answer, a silent server is noticed in three seconds.
BLOCK_S = 1.0
# A stream that Redis refuses needs a person; that one should not wait long after the cure.
RETRY_S = 2.0
