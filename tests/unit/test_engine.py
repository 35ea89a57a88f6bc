"""The options, and the binding to the native engine: what it takes, refuses and gives."""

import dataclasses
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tidegate import _core, engine
from tidegate.config import Settings
from tidegate.config.settings import Server, Ws
from tidegate.engine import Options, options_of
from tidegate.errors import ConfigError
from tidegate.profile import Notices

from tests.unit.gateway_fakes import SPEC

UPGRADE_REQUEST = (
    b"GET /ws?x=1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: https://a.example\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def options(**changed: Any) -> Options:
    settings = Settings(server=Server(host="127.0.0.1", port=0), ws=Ws(shards=1, max_connections=100))
    return {**options_of(settings, SPEC, ""), **changed}  # type: ignore[typeddict-item]


@pytest.fixture
def running() -> Iterator[_core.Engine]:
    started = _core.Engine(options())
    yield started
    started.stop()


class Client:
    """A raw WebSocket client, so that nothing but the engine decides what is seen."""

    def __init__(self, running: _core.Engine) -> None:
        self.engine = running
        self.socket = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        self.socket.sendall(UPGRADE_REQUEST)

    def event(self) -> engine.Event:
        ready, _, _ = select.select([self.engine.fileno()], [], [], 10)
        assert ready, "the eventfd did not become readable"
        return self.engine.drain(1)[0]

    def admitted(self, *texts: bytes, dialect: int = 0) -> int:
        conn = self.event()[1]
        self.engine.submit([(_core.ADMIT, conn, b"session", "7", ["room"], list(texts), None, None, dialect)])
        assert self.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        return conn

    def send_text(self, payload: bytes) -> None:
        self.socket.sendall(bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload)

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            chunk = self.socket.recv(length - len(data))
            assert chunk, f"closed after {data!r}"
            data += chunk
        return data

    def until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            data += self.read(1)
        return data

    def frame(self) -> tuple[int, bytes]:
        first, length = self.read(2)
        return first & 0x0F, self.read(length)


@pytest.fixture
def client(running: _core.Engine) -> Iterator[Client]:
    made = Client(running)
    yield made
    made.socket.close()


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_is_filled_in_from_the_settings() -> None:
    assert set(options()) == Options.__required_keys__


def test_times_become_milliseconds_and_the_outbox_policy_a_number() -> None:
    assert options()["ping_interval_ms"] == 30_000
    assert options()["outbox_messages_max"] == 0
    dropping = Settings(ws=Ws(outbox_policy="drop"))
    assert options_of(dropping, SPEC, "")["outbox_messages_max"] == 256


def test_a_certificate_that_cannot_be_read_is_told_with_its_key() -> None:
    settings = Settings(server=Server(tls_cert="nowhere.pem", tls_key="nowhere.key"))
    with pytest.raises(ConfigError, match=r"server\.tls_cert = nowhere\.pem"):
        options_of(settings, SPEC, "")


def test_a_missing_option_is_named() -> None:
    given = {name: value for name, value in options().items() if name != "rooms_max"}
    with pytest.raises(ValueError, match="rooms_max is missing"):
        _core.Engine(given)  # type: ignore[arg-type]


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match="rooms_mx"):
        _core.Engine(options(rooms_mx=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70_000), ("port", "80"), ("shards", -1), ("ws_paths", "/ws"), ("compression", 1), ("host", b"x")],
)
def test_an_option_of_the_wrong_kind_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"option {name}: "):
        _core.Engine(options(**{name: value}))


def test_what_a_profile_says_of_rates_and_silence_reaches_the_engine() -> None:
    notices = (Notices(excess=b"slow down"), Notices(silence=b"gone?", farewell=b"bye"))
    spec = dataclasses.replace(SPEC, rate_mark=b"mark", silence_code=4408, notices=notices)
    filled = options_of(Settings(), spec, "")
    assert (filled["rate_mark"], filled["silence_code"]) == (b"mark", 4408)
    assert filled["notices"] == [(b"slow down", None, None), (None, b"gone?", b"bye")]


def test_a_code_for_silence_that_must_not_be_sent_is_named() -> None:
    with pytest.raises(ValueError, match="silence_code 1006"):
        _core.Engine(options(silence_code=1006))


def test_half_of_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="together"):
        _core.Engine(options(tls_key_pem=b"x"))


def test_a_port_in_use_is_an_os_error(running: _core.Engine) -> None:
    with pytest.raises(OSError, match=str(running.port)) as told:
        _core.Engine(options(port=running.port))
    assert told.value.errno == 98


# --- events and commands ----------------------------------------------------------------------------------------------


def test_a_client_from_upgrade_to_close(running: _core.Engine, client: Client) -> None:
    upgrade = client.event()
    conn = upgrade[1]
    assert upgrade == (_core.UPGRADE, conn, "127.0.0.1", b"/ws?x=1", (None, b"https://a.example"))
    running.submit([(_core.ADMIT, conn, b"session", None, ["room"], [b"hello"], None, None, 0)])
    client.until(b"\r\n\r\n")
    assert client.frame() == (1, b"hello")
    client.send_text(b"hi")
    assert client.event() == (_core.MESSAGE, conn, b"session", b"hi", True)
    running.submit(
        [(_core.SESSION, conn, b"new"), (_core.SEND, conn, b"\xff", False, 0), (_core.CLOSE, conn, 4000, "bye")]
    )
    assert client.frame() == (2, b"\xff")
    assert client.frame() == (8, struct.pack(">H", 4000) + b"bye")
    client.socket.close()
    closed = client.event()
    assert closed[:3] == (_core.CLOSED, conn, b"new")


def test_a_refusal_is_an_http_answer(running: _core.Engine, client: Client) -> None:
    running.submit([(_core.REFUSE, client.event()[1], 503, b'{"error":"full"}', 5)])
    head = client.until(b"\r\n\r\n").lower()
    assert head.startswith(b"http/1.1 503 ")
    assert b"retry-after: 5\r\n" in head
    assert client.read(16) == b'{"error":"full"}'


def test_a_publish_reaches_the_members_but_who_is_excluded(running: _core.Engine) -> None:
    one, two = Client(running), Client(running)
    first, second = one.admitted(), two.admitted()
    running.submit(
        [
            (_core.PUBLISH, "room", b"1", True, first),
            (_core.PUBLISH, "room", b"2", True, running.uuid(second)),
            (_core.PUBLISH, "room", b"3", True, "no such uuid"),
        ]
    )
    assert [one.frame()[1] for _ in range(2)] == [b"2", b"3"]
    assert [two.frame()[1] for _ in range(2)] == [b"1", b"3"]
    one.socket.close()
    two.socket.close()


def test_join_and_leave_change_the_rooms(running: _core.Engine, client: Client) -> None:
    conn = client.admitted()
    running.submit([(_core.LEAVE, conn, "room"), (_core.JOIN, conn, "other")])
    running.submit([(_core.PUBLISH, "room", b"left", True, None), (_core.PUBLISH, "other", b"joined", True, None)])
    assert client.frame() == (1, b"joined")


def test_commands_for_a_connection_that_is_gone_are_ignored(running: _core.Engine) -> None:
    assert running.submit([(_core.SEND, 1, b"x", True, 0), (_core.CLOSE, 1, 1000, "")]) is False


def test_a_send_with_a_ticket_is_told_of_and_one_to_nobody_too(running: _core.Engine, client: Client) -> None:
    conn = client.admitted()
    running.submit([(_core.SEND, conn, b"plain", True, 0), (_core.SEND, conn, b"asked", True, (1 << 64) - 1)])
    assert client.event() == (_core.TOLD, conn, (1 << 64) - 1, 0)
    assert [client.frame()[1] for _ in range(2)] == [b"plain", b"asked"]
    for nobody in (conn + 1, (1 << 64) - 1):
        running.submit([(_core.SEND, nobody, b"x", True, 7)])
        assert client.event() == (_core.TOLD, nobody, 7, 2)


def test_a_send_that_overruns_the_outbox_is_told_as_full_and_the_next_as_gone() -> None:
    running = _core.Engine(options(outbox_bytes_max=256 * 1024))
    client = Client(running)
    conn = client.admitted()
    outcomes = []
    # more than both ends' sockets take without a reader
    for ticket in range(1, 1_000):
        running.submit([(_core.SEND, conn, bytes(64 * 1024), False, ticket)])
        told = client.event()
        assert told[:3] == (_core.TOLD, conn, ticket)
        outcomes.append(told[-1])
        if told[-1] == 2:
            break
    assert set(outcomes[:-2]) == {0}
    assert outcomes[-2:] == [1, 2]
    client.socket.close()
    running.stop()


def test_an_admit_for_who_has_left_is_followed_by_its_end(running: _core.Engine, client: Client) -> None:
    conn = client.event()[1]
    client.socket.close()
    while running.stats()["handshakes_now"]:
        select.select([running.fileno()], [], [], 0.01)
    running.submit([(_core.ADMIT, conn, b"registered", "7", ["room"], [], None, None, 0)])
    assert client.event() == (_core.CLOSED, conn, b"registered", 1006)


def test_only_marked_messages_count_in_full() -> None:
    running = _core.Engine(options(message_rate=1, message_burst=5, rate_mark=b"send", notices=[(b"no", None, None)]))
    client = Client(running)
    client.admitted()
    for payload in [b"ack"] * 50 + [b"send"] * 5:
        client.send_text(payload)
    assert client.frame() == (1, b"no")
    heard = [client.event()[3] for _ in range(54)]
    assert heard == [b"ack"] * 50 + [b"send"] * 4
    client.socket.close()
    running.stop()


def test_who_is_silent_is_closed_with_the_code_for_it() -> None:
    changed = {"ping_interval_ms": 100, "pong_timeout_ms": 100, "unanswered_pings": 1, "silence_code": 4408}
    running = _core.Engine(options(**changed))
    client = Client(running)
    conn = client.admitted()
    assert client.frame()[0] == 9
    assert client.frame() == (8, struct.pack(">H", 4408) + b"heartbeat timeout")
    client.socket.close()
    assert client.event() == (_core.CLOSED, conn, b"session", 4408)
    assert running.stats()["refused.pong_timeout"] == 1
    running.stop()


MALFORMED = {
    "no tuple": [3],
    "an empty tuple": [()],
    "a number that is no command": [(9, 1)],
    "a negative number": [(-1, 1)],
    "too short": [(_core.SEND, 1, b"x", True)],
    "a text for a ticket": [(_core.SEND, 1, b"x", True, "1")],
    "a negative ticket": [(_core.SEND, 1, b"x", True, -1)],
    "too long": [(_core.JOIN, 1, "room", 3)],
    "a text for bytes": [(_core.SEND, 1, "x", True, 0)],
    "bytes for a room": [(_core.JOIN, 1, b"room")],
    "a room that is no UTF-8": [(_core.JOIN, 1, "\ud800")],
    "a negative connection": [(_core.SEND, -1, b"x", True, 0)],
    "a huge connection": [(_core.SEND, 1 << 64, b"x", True, 0)],
    "a huge status": [(_core.REFUSE, 1, 1 << 20, b"", None)],
    "a text for rooms": [(_core.ADMIT, 1, b"", None, "room", [], None, None, 0)],
    "texts that are no bytes": [(_core.ADMIT, 1, b"", None, [], ["x"], None, None, 0)],
    "a float for who is excluded": [(_core.PUBLISH, "room", b"", True, 1.5)],
    "no sequence": 3,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_command_is_refused_with_its_whole_batch(running: _core.Engine, client: Client, name: str) -> None:
    conn = client.admitted()
    good = [(_core.SEND, conn, b"good", True, 0)]
    bad: Any = MALFORMED[name]
    with pytest.raises((TypeError, ValueError, OverflowError)):
        running.submit([*good, *bad] if isinstance(bad, list) else bad)
    running.submit([(_core.SEND, conn, b"next", True, 0)])
    assert client.frame() == (1, b"next")


def test_stats_have_the_keys_that_metrics_read(running: _core.Engine) -> None:
    from tidegate.metrics import ENGINE_STATS

    stats = running.stats()
    assert {stat.key for stat in ENGINE_STATS} <= set(stats)
    assert "refused.slow_close" in stats
    assert all(isinstance(value, int) for value in stats.values())


def test_uuids_differ_and_stay(running: _core.Engine) -> None:
    assert running.uuid(1) == running.uuid(1) != running.uuid(2)
    assert len(running.uuid(1)) == 36


def test_a_bad_certificate_is_refused_by_name(running: _core.Engine) -> None:
    with pytest.raises(ValueError, match=r"(?i)cert|pem|key|tls"):
        running.set_tls(b"no certificate", b"no key")


def test_a_drained_engine_says_so_and_stops_twice(running: _core.Engine, client: Client) -> None:
    client.admitted()
    running.begin_drain(1)
    assert client.frame()[1][:2] == struct.pack(">H", 1001)
    client.socket.close()
    while not running.is_drained():
        select.select([running.fileno()], [], [], 0.01)
    running.stop()
    running.stop()
    assert running.submit([(_core.SEND, 1, b"", True, 0)]) is False


def test_last_words_come_with_the_time_in_the_clients_dialect() -> None:
    dialects: list[tuple[None, None, bytes]] = [(None, None, b"goodbye"), (None, None, b"at $UNIX_SECONDS.")]
    running = _core.Engine(options(notices=dialects))
    clients = []
    for dialect in (0, 1):
        clients.append(Client(running))
        clients[-1].admitted(dialect=dialect)
    began = int(time.time())
    running.begin_drain(500)
    assert clients[0].frame() == (1, b"goodbye")
    opcode, said = clients[1].frame()
    assert (opcode, said[:3], said[-1:]) == (1, b"at ", b".")
    assert began <= int(said[3:-1]) <= time.time()
    for client in clients:
        client.socket.close()
    running.stop()


def test_an_engine_that_is_forgotten_gives_its_port_back() -> None:
    started = _core.Engine(options())
    port = started.port
    del started
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_settings_are_frozen_so_the_engine_and_they_stay_equal() -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, ValueError)):
        Settings().ws.max_rooms = 3  # type: ignore[misc]
