"""The pull loop against a scripted server: holes, second copies, statuses, silence and nonsense, one step at a time."""

import time
from typing import Any

import pytest
from nats.aio.msg import Msg
from tidegate.buses._feed import AHEAD_MAX, PULL_MESSAGES, Feed, FeedLostError, Position


class Server:
    """Stands for the connection: keeps what is published, hands messages to the feed."""

    max_payload = 1024 * 1024
    is_closed = False

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.feed: Any = None

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe(self, subject: str, cb: Any, **limits: int) -> "Server":
        self.feed = cb
        return self

    async def unsubscribe(self) -> None:
        self.feed = None

    async def publish(self, subject: str, data: bytes = b"", reply: str = "") -> None:
        self.sent.append((subject, data))

    async def message(self, sequence: int, number: int, pending: int = 0, prefix: str = "$JS.ACK") -> None:
        reply = f"{prefix}.CHAT.gateway.1.{sequence}.{number}.1700000000000000000.{pending}"
        await self.feed(Msg(_client=None, subject="chat.events", reply=reply, data=b"%d" % sequence))  # type: ignore[arg-type]

    async def status(self, code: str, text: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.feed(Msg(_client=None, subject="_INBOX.x.1", headers={"Status": code, "Description": text} | named))  # type: ignore[arg-type]

    @property
    def pulls(self) -> int:
        return sum(subject.startswith("$JS.API.CONSUMER.MSG.NEXT.CHAT.gateway") for subject, _ in self.sent)


async def started(first: int | None = 1, delivered: int = 0) -> tuple[Server, Feed]:
    server = Server()
    feed = Feed(server, "CHAT", "gateway", Position(delivered=delivered), first)  # type: ignore[arg-type]
    await feed.start()
    return server, feed


async def sequences(feed: Feed) -> list[int]:
    return [message.sequence for message in (await feed.next_batch()).messages]


async def test_a_batch_is_what_has_arrived_and_its_acknowledgement_names_each() -> None:
    server, feed = await started()
    for number in (1, 2, 3):
        await server.message(number, number)
    batch = await feed.next_batch()
    assert [message.data for message in batch.messages] == [b"1", b"2", b"3"]
    server.sent.clear()
    await feed.acknowledge(batch)
    assert [subject.split(".")[5] for subject, _ in server.sent if subject.startswith("$JS.ACK")] == ["1", "2", "3"]


async def test_a_hole_in_the_consumers_numbers_ends_the_feed_after_what_came_before_it() -> None:
    server, feed = await started()
    await server.message(1, 1)
    await server.message(3, 3)
    await server.message(4, 4)
    assert await sequences(feed) == [1]
    with pytest.raises(FeedLostError, match="message 2 of the consumer is missing"):
        await feed.next_batch()


async def test_a_hole_in_the_streams_numbers_is_none_of_ours() -> None:
    server, feed = await started()
    await server.message(10, 1)
    await server.message(20, 2)
    assert await sequences(feed) == [10, 20]
    assert feed.is_live()


async def test_a_second_copy_is_not_handed_over_again() -> None:
    server, feed = await started(delivered=5)
    await server.message(6, 1)
    await server.message(5, 2)
    await server.message(6, 3)
    await server.message(7, 4)
    assert await sequences(feed) == [6, 7]


async def test_a_shared_feed_takes_any_number_but_no_sequence_twice() -> None:
    server, feed = await started(first=None)
    await server.message(7, 70)
    await feed.acknowledge(await feed.next_batch())
    await server.message(7, 71)
    await server.message(3, 12)
    assert await sequences(feed) == [3]


async def test_a_heartbeat_that_knows_a_message_we_have_not_seen_ends_the_feed() -> None:
    server, feed = await started()
    await server.message(1, 1)
    await server.status("100", "Idle Heartbeat", Nats_Last_Consumer="1")
    assert feed.is_live()
    await server.status("100", "Idle Heartbeat", Nats_Last_Consumer="2")
    assert not feed.is_live()


async def test_no_more_is_asked_for_than_the_bound_while_nothing_is_handed_over() -> None:
    server, feed = await started()
    assert server.pulls == AHEAD_MAX // PULL_MESSAGES
    for number in range(1, AHEAD_MAX + 1):
        await server.message(number, number)
    assert server.pulls == AHEAD_MAX // PULL_MESSAGES
    assert feed.is_full()
    await feed.acknowledge(await feed.next_batch())
    assert server.pulls == AHEAD_MAX // PULL_MESSAGES + 1


@pytest.mark.parametrize("text", ["Request Timeout", "Message Size Exceeds MaxBytes", "Batch Completed"])
async def test_a_request_that_ended_is_replaced_by_another(text: str) -> None:
    server, feed = await started()
    await server.message(1, 1)
    await server.status("408" if text.startswith("R") else "409", text, Nats_Pending_Messages=str(PULL_MESSAGES - 1))
    await feed.acknowledge(await feed.next_batch())
    assert feed.is_live()
    assert server.pulls == AHEAD_MAX // PULL_MESSAGES + 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("409", "Consumer Deleted"),
        ("409", "Leadership Change"),
        ("409", "Server Shutdown"),
        ("503", ""),
        ("400", "Bad"),
    ],
)
async def test_any_other_status_ends_the_feed(code: str, text: str) -> None:
    server, feed = await started()
    await server.status(code, text)
    with pytest.raises(FeedLostError):
        await feed.next_batch()


async def test_silence_ends_the_feed_only_while_the_server_owes_something() -> None:
    server, feed = await started()
    feed.check(time.monotonic())
    assert feed.is_live()
    for number in range(1, AHEAD_MAX + 1):
        await server.message(number, number)
    feed.check(time.monotonic() + 1_000)
    assert feed.is_live()
    await feed.acknowledge(await feed.next_batch())
    feed.check(time.monotonic() + 1_000)
    assert not feed.is_live()


async def test_reply_subjects_with_a_domain_are_read_and_nonsense_is_counted() -> None:
    server, feed = await started()
    await server.message(1, 1, pending=9, prefix="$JS.ACK.hub.ACCHASH")
    assert await sequences(feed) == [1]
    for reply in ("x", "$JS.ACK.CHAT.gateway.1.one.2.3.4", "." * 8):
        await server.feed(Msg(_client=None, subject="chat.events", reply=reply))  # type: ignore[arg-type]
    assert feed.decode_errors == 3
    assert feed.is_live()
