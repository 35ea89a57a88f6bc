"""The parts of the Redis bus that speak to nobody: URLs, refusals and their cures, positions, broadcasts that wait."""

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ResponseError
from tidegate.buses import open_bus, scheme_of
from tidegate.buses._redis_broadcasts import (
    BROADCAST_BYTES_MAX,
    BROADCASTS_MAX,
    NODES_MAX,
    WAIT_S_MAX,
    Envelope,
    Outbox,
)
from tidegate.buses._redis_link import describe, parse_server
from tidegate.buses._redis_streams import Entry, Info, Position, format_id, parse_id, parse_info
from tidegate.errors import ConfigError

from tests.buses import Settings


@pytest.mark.parametrize(
    ("url", "address", "user", "password"),
    [
        ("redis://cache", "redis://cache:6379/0", None, None),
        (" redis://cache:7000/3 ", "redis://cache:7000/3", None, None),
        ("rediss://u:p%40%2Fw@[::1]:6380/0", "rediss://[::1]:6380/0", "u", "p@/w"),
        ("redis://:secret@10.0.0.1/", "redis://10.0.0.1:6379/0", None, "secret"),
    ],
)
def test_a_url_says_where_and_as_whom(url: str, address: str, user: str | None, password: str | None) -> None:
    server = parse_server(url)
    assert (str(server), server.user, server.password) == (address, user, password)
    assert not password or password not in str(server) + repr(server)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://:6379",
        "redis://h:port",
        "redis://h:99999",
        "redis://h/zero",
        "redis://h,k:6379",
        "redis://h h",
        "redis://h?password=hunter2",
        "redis://u:hunter2@h:x",
        "redis://u:hun@ter2@:1",
    ],
)
def test_a_url_that_cannot_be_right_says_what_to_write_and_no_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_bus(url, Settings(), node_id="one")
    assert "redis://user:password@host:6379/0" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "hun@" not in str(refused.value)


def test_both_schemes_are_the_bus_redis() -> None:
    assert scheme_of("redis://h") == scheme_of("rediss://h") == "redis"


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (AuthenticationError("invalid username-password pair or user is disabled."), "password in redis.url"),
        (AuthenticationError("Authentication required."), "redis://user:password@"),
        (NoPermissionError("this user has no permissions to run the 'publish' command"), "ACL"),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "maxmemory"),
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), "DEL that key"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "disk"),
    ],
)
def test_what_redis_refuses_comes_with_a_cure(error: Exception, cure: str) -> None:
    assert cure in describe(error)


def test_an_error_without_words_is_named() -> None:
    assert describe(TimeoutError()) == "TimeoutError"


def test_ids_are_compared_as_numbers() -> None:
    assert parse_id(b"9-10") > parse_id(b"9-9")
    assert parse_id(b"10-0") > parse_id(b"9-99")
    assert format_id(parse_id(b"1700000000000-3")) == "1700000000000-3"


def at(cursor: int, sequence: int) -> Position:
    position = Position("CHAT")
    position.cursor, position.sequence = (cursor, 0), sequence
    return position


def info(first: int, last: int, added: int, length: int) -> Info:
    return Info((last, 0), added, length, (first, 0))


def test_a_position_at_the_end_stays() -> None:
    position = at(10, 10)
    assert position.settle(info(first=1, last=10, added=10, length=10)) == 0
    assert (position.cursor, position.sequence, position.lag) == ((10, 0), 10, 0)


def test_a_position_in_the_middle_knows_how_much_is_left() -> None:
    position = at(4, 4)
    assert position.settle(info(first=3, last=10, added=10, length=8)) == 0
    assert (position.sequence, position.lag) == (4, 6)


def test_what_was_trimmed_unread_is_counted_and_the_sequence_goes_on_after_it() -> None:
    position = at(4, 4)
    assert position.settle(info(first=8, last=10, added=10, length=3)) == 3
    assert (position.cursor, position.sequence, position.lag) == ((4, 0), 7, 3)


def test_a_stream_emptied_unread_is_counted_whole() -> None:
    position = at(4, 4)
    assert position.settle(info(first=0, last=10, added=10, length=0)) == 6


def test_a_stream_that_lost_its_last_writes_is_followed_from_its_new_end() -> None:
    position = at(10, 10)
    assert position.settle(info(first=1, last=7, added=7, length=7)) == 0
    assert (position.cursor, position.sequence) == ((7, 0), 7)


def test_an_entry_without_data_is_left_out_and_keeps_its_number() -> None:
    entries = [
        Entry((5, 0), [b"subject", b"chat.x", b"data", b"one"]),
        Entry((6, 0), [b"other", b"two"]),
        Entry((7, 0), [b"subject", b"\xff", b"data", b"three"]),
        Entry((8, 0), [b"data", b"four"]),
    ]
    position = at(4, 4)
    made = position.messages(entries, received_at=0.0)
    assert [(message.subject, message.data, message.sequence) for message in made] == [
        ("chat.x", b"one", 5),
        ("chat", b"four", 8),
    ]
    position.advance(entries)
    assert (position.cursor, position.sequence) == ((8, 0), 8)


def test_a_stream_as_redis_describes_it() -> None:
    reply = [b"length", 1, b"last-generated-id", b"9-1", b"entries-added", 5, b"first-entry", [b"9-1", [b"data", b"x"]]]
    assert parse_info(reply) == Info((9, 1), 5, 1, (9, 1))


def test_a_broadcast_waits_so_long_and_not_longer() -> None:
    outbox = Outbox()
    outbox.put(b"old", 100.0)
    outbox.put(b"young", 102.0)
    outbox.expire(100.0 + WAIT_S_MAX)
    assert (outbox.head(), outbox.dropped) == ([b"young"], 1)


def test_what_is_not_confirmed_stays_at_the_head_in_order() -> None:
    outbox = Outbox()
    for item in (b"1", b"2", b"3"):
        outbox.put(item, 0.0)
    assert outbox.head() == outbox.head() == [b"1", b"2", b"3"]
    outbox.confirm(2)
    assert outbox.head() == [b"3"]


def test_the_outbox_is_bounded_in_count_and_in_bytes() -> None:
    many, large = Outbox(), Outbox()
    assert all(many.put(b"", 0.0) for _ in range(BROADCASTS_MAX))
    assert not many.put(b"", 0.0)
    assert large.put(bytes(BROADCAST_BYTES_MAX), 0.0)
    assert not large.put(b"x", 0.0)
    assert many.dropped == large.dropped == 1
    large.confirm(1)
    assert large.put(b"x", 0.0)


def test_an_envelope_is_opened_once_by_others_and_never_by_its_sender() -> None:
    one, two = Envelope(), Envelope()
    first, second = one.wrap(b"a"), one.wrap(b"b")
    assert [two.unwrap(first), two.unwrap(second), two.unwrap(first), two.unwrap(second)] == [b"a", b"b", None, None]
    assert one.unwrap(first) is None


def test_junk_on_our_channel_is_told_from_an_envelope() -> None:
    for junk in (b"", b"tg1:", b'{"event":1}' * 10):
        with pytest.raises(ValueError, match="envelope"):
            Envelope().unwrap(junk)


def test_only_so_many_nodes_are_remembered() -> None:
    reader = Envelope()
    for _ in range(NODES_MAX + 10):
        reader.unwrap(Envelope().wrap(b""))
    assert len(reader._seen) == NODES_MAX
