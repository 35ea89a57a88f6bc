"""The tap between a NATS connection and its library: what is taken, what goes on, and what is offered when."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from tidegate.buses import Arrived
from tidegate.buses._feed import AHEAD_MAX, PULL_MESSAGES, FeedLostError, Position
from tidegate.buses._tap import Tap, tap_of
from tidegate.buses._tapped import ACK_AT_ONCE, TappedFeed
from tidegate.profile import BusMessage

SID = 4


class Wire(asyncio.Transport):
    """The transport: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self.sent = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)
        self.written.set()

    def is_closing(self) -> bool:
        return self.closing


class Library(asyncio.Protocol):
    """The library's side: keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(exc)

    def eof_received(self) -> bool | None:
        self.told.append("eof")
        return True

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


class Connection:
    """Stands for the library's client, as far as a feed speaks to it."""

    max_payload = 1024 * 1024
    is_closed = False

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe(self, subject: str, cb: Any, **limits: int) -> "Connection":
        self._id = SID
        return self

    async def flush(self) -> None:
        await self.answers.wait()

    async def unsubscribe(self) -> None: ...


class Scene:
    """A tapped feed between a scripted server and somebody to offer to."""

    def __init__(self, accepts: Callable[[], bool] = lambda: True) -> None:
        self.wire, self.library, self.accepts = Wire(), Library(), accepts
        self.tap = Tap(self.wire, self.library)
        self.taken: list[bytes] = []
        self.position = Position(delivered=0)
        self.connection = Connection()
        self.feed = TappedFeed(
            self.connection,  # type: ignore[arg-type]
            ("CHAT", "gateway"),
            self.position,
            1,
            tap=self.tap,
            offer=self.offer,
        )

    def offer(self, batch: Sequence[BusMessage]) -> bool:
        if not self.accepts():
            return False
        self.taken += [message.data for message in batch]
        return True

    async def listening(self) -> "asyncio.Task[Any]":
        await self.feed.start()
        task = asyncio.create_task(self.feed.next_batch())
        await asyncio.sleep(0)
        self.wire.sent = b""
        self.wire.written.clear()
        return task

    def come(self, *numbers: int) -> None:
        self.tap.data_received(b"".join(message(number) for number in numbers))

    @property
    def acknowledged(self) -> list[int]:
        lines = self.wire.sent.split(b"\r\n")
        return [int(line.split(b".")[5]) for line in lines if line.startswith(b"PUB $JS.ACK.")]


def message(number: int, sequence: int | None = None, pending: int = 0) -> bytes:
    data = b"%d" % number
    reply = b"$JS.ACK.CHAT.gateway.1.%d.%d.1700000000000000000.%d" % (sequence or number, number, pending)
    return b"MSG chat.events %d %b %d\r\n%b\r\n" % (SID, reply, len(data), data)


async def test_nothing_is_asked_for_before_the_server_knows_the_subscription() -> None:
    scene = Scene()
    scene.connection.answers.clear()
    opening = asyncio.create_task(scene.feed.start())
    await asyncio.sleep(0)
    assert scene.wire.sent == b""
    scene.connection.answers.set()
    await opening
    assert scene.wire.sent.startswith(b"PUB $JS.API.CONSUMER.MSG.NEXT.CHAT.gateway")


async def test_what_is_offered_and_taken_needs_no_task_and_is_acknowledged_soon_in_one_write() -> None:
    scene = Scene()
    waiting = await scene.listening()
    scene.come(1)
    scene.come(2)
    assert scene.taken == [b"1", b"2"]
    assert (scene.position.delivered, scene.acknowledged) == (2, [])
    await scene.wire.written.wait()
    assert scene.acknowledged == [1, 2]
    assert not waiting.done()
    waiting.cancel()


async def test_a_burst_is_acknowledged_at_once() -> None:
    scene = Scene()
    waiting = await scene.listening()
    scene.come(1)
    scene.come(*range(2, ACK_AT_ONCE + 1))
    assert scene.acknowledged == list(range(1, ACK_AT_ONCE + 1))
    waiting.cancel()


async def test_what_was_handed_over_is_acknowledged_before_the_feed_is_closed() -> None:
    scene = Scene()
    waiting = await scene.listening()
    scene.come(1)
    await scene.feed.close()
    assert scene.acknowledged == [1]
    scene.wire.written.clear()
    waiting.cancel()


async def test_what_is_not_taken_waits_and_nothing_newer_overtakes_it() -> None:
    open_now = False
    scene = Scene(lambda: open_now)
    waiting = await scene.listening()
    scene.come(1)
    scene.come(2)
    assert (scene.taken, scene.acknowledged) == ([], [])
    batch = await waiting
    open_now = True
    scene.come(3)
    assert scene.taken == [], "an older one is being handed over"
    await scene.feed.acknowledge(batch)
    assert [one.data for one in batch.messages] == [b"1"]
    assert [one.data for one in (await scene.feed.next_batch()).messages] == [b"2"]
    await scene.feed.close()
    assert scene.acknowledged == [1]


async def test_an_offer_that_fails_leaves_the_batch_to_the_hand_over_that_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails() -> bool:
        raise ValueError

    scene = Scene(fails)
    waiting = await scene.listening()
    scene.come(1)
    assert [one.data for one in (await waiting).messages] == [b"1"]
    assert scene.acknowledged == []
    assert "could not be handed over at once" in caplog.text


async def test_a_hole_ends_the_feed_after_what_came_before_it() -> None:
    scene = Scene(lambda: False)
    waiting = await scene.listening()
    scene.come(1, 3)
    assert [one.data for one in (await waiting).messages] == [b"1"]
    with pytest.raises(FeedLostError, match="message 2 of the consumer is missing, 3 came"):
        await scene.feed.next_batch()


async def test_a_hole_alone_ends_the_feed_too() -> None:
    scene = Scene()
    waiting = await scene.listening()
    scene.come(2)
    with pytest.raises(FeedLostError, match="message 1 of the consumer is missing"):
        await waiting


async def test_a_message_that_passed_the_tap_by_ends_the_feed() -> None:
    scene = Scene()
    waiting = await scene.listening()
    await scene.feed._on_message(Msg(_client=None, subject="s", reply="r"))  # type: ignore[arg-type]
    with pytest.raises(FeedLostError):
        await waiting


async def test_a_heartbeat_is_held_against_what_the_tap_has_seen() -> None:
    scene = Scene()
    waiting = await scene.listening()
    scene.come(1)
    for last, live in (("1", True), ("2", False)):
        beat = {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": last}
        await scene.feed._on_message(Msg(_client=None, subject="s", headers=beat))  # type: ignore[arg-type]
        assert scene.feed.is_live() is live
    with pytest.raises(FeedLostError):
        await waiting


async def test_no_more_is_asked_for_than_the_bound_while_nothing_is_taken() -> None:
    scene = Scene(lambda: False)
    await scene.feed.start()
    assert scene.wire.sent.count(b"MSG.NEXT.CHAT.gateway _INBOX.x.") == AHEAD_MAX // PULL_MESSAGES
    scene.come(*range(1, AHEAD_MAX + 1))
    assert scene.feed.is_full()
    assert scene.wire.sent.count(b"MSG.NEXT") == AHEAD_MAX // PULL_MESSAGES
    await scene.feed.acknowledge(await scene.feed.next_batch())
    assert scene.wire.sent.count(b"MSG.NEXT") == AHEAD_MAX // PULL_MESSAGES + 1
    assert scene.acknowledged == list(range(1, PULL_MESSAGES + 1))


async def test_lag_and_unreadable_messages_are_told() -> None:
    scene = Scene()
    waiting = await scene.listening()
    scene.tap.data_received(message(1, pending=9) + b"MSG s %d nonsense 0\r\n\r\n" % SID)
    assert scene.position.lag == 9
    assert scene.feed.decode_errors == 1
    assert scene.feed.is_live()
    waiting.cancel()


async def test_a_closed_feed_takes_nothing_and_writes_nothing() -> None:
    scene = Scene()
    waiting = await scene.listening()
    await scene.feed.close()
    scene.come(1)
    assert scene.library.told == [message(1)], "it is nobody's, so the library may drop it"
    with pytest.raises(FeedLostError):
        await waiting
    scene.wire.closing = True
    scene.tap.write(b"PING\r\n")
    assert scene.wire.sent == b""


def test_whatever_else_happens_to_the_connection_the_library_is_told() -> None:
    library = Library()
    tap = Tap(Wire(), library)
    tap.data_received(b"PING\r\nPO")
    tap.data_received(b"NG\r\n")
    assert tap.eof_received() is True
    tap.pause_writing()
    tap.resume_writing()
    tap.connection_lost(None)
    assert library.told == [b"PING\r\n", b"PONG\r\n", "eof", "pause", "resume", None]


def test_a_batch_is_a_sequence_of_messages_like_any_other() -> None:
    tap, seen = Tap(Wire(), Library()), list[Any]()
    tap.watch(SID, 1, 0, seen.append)
    tap.data_received(message(1) + message(2, sequence=7))
    batch = Arrived("CHAT", seen[0][0][0], 1.5)
    assert list(batch) == [
        BusMessage("CHAT", "chat.events", b"1", 1, 1.5),
        BusMessage("CHAT", "chat.events", b"2", 7, 1.5),
    ]
    assert (batch[-1], batch[0:1], len(batch)) == (batch[1], [batch[0]], 2)
    for outside in (2, -3):
        with pytest.raises(IndexError):
            batch[outside]


def test_what_is_not_connected_over_tcp_has_no_tap() -> None:
    assert tap_of(Client()) is None
