"""A room full of raw clients in one thread, cheap enough for thousands: what each has read is compared byte by byte.

Rule: who reads, reads all that is there, so only the ones a test leaves out are slow; order and number of messages
follow from the comparison: every member of a room must see the same bytes.
"""

import contextlib
import json
import select
import time
from collections.abc import Iterator, Sequence

from tests.gateways import Gateway, token
from tests.wire.client import CLOSE, PING, PONG, TEXT, Frame, Raw, frame, head, upgrade

# Far above what a busy machine needs for the next byte; only a failing test waits so long
QUIET_S_MAX = 30
CHUNK_BYTES = 1 << 18
# Smaller than any message here, so that a client that does not read fills up soon
TIGHT_BUFFER_BYTES = 4096


def event(room: str, number: int, size: int) -> bytes:
    """A chat message of about `size` bytes, as a backend publishes it."""
    payload = {"n": number, "fill": "x" * size}
    return json.dumps({"type": "message", "room": room, "payload": payload}, separators=(",", ":")).encode()


def on_the_wire(events: Sequence[bytes]) -> bytes:
    """As a server frames them: one text frame each, unmasked, the publisher's bytes unchanged."""
    return b"".join(head(len(one), TEXT, masked=False) + one for one in events)


def number_of(got: Frame) -> int:
    return int(json.loads(got.payload)["payload"]["n"])


def enter(gateway: Gateway, room: str, size: int, *, tight: bool = False) -> list[Raw]:
    """So many clients at once: all connect and ask, then all answers are read, then all join."""
    path = f"/ws?token={token()}"
    clients = [Raw(gateway.port, receive_buffer=TIGHT_BUFFER_BYTES if tight else 0) for _ in range(size)]
    for client in clients:
        client.socket.settimeout(QUIET_S_MAX)
        client.send(upgrade(path))
    join = frame(json.dumps({"type": "join", "room": room}).encode())
    for client in clients:
        status, _, body = client.response(b"")
        assert status == 101, (status, body)
        assert json.loads(client.read().payload)["type"] == "connected"
        client.send(join)
    for client in clients:
        assert json.loads(client.read().payload) == {"type": "joined", "room": room}
    return clients


@contextlib.contextmanager
def members(gateway: Gateway, room: str, size: int, *, tight: bool = False) -> Iterator[list[Raw]]:
    clients = enter(gateway, room, size, tight=tight)
    try:
        yield clients
    finally:
        leave(clients)


def leave(clients: Sequence[Raw]) -> None:
    for client in clients:
        client.socket.close()


class Readers:
    """Members that keep up. `expect` says what comes next, `read_all` returns when every one of them has read it."""

    def __init__(self, clients: Sequence[Raw]) -> None:
        self._sockets = {client.socket.fileno(): client.socket for client in clients}
        self._expected = b""  # of the window that is being read
        self._at = dict.fromkeys(self._sockets, 0)
        self._poll = select.epoll()
        self._buffer = bytearray(CHUNK_BYTES)
        for client in clients:
            assert not client.buffer
            client.socket.setblocking(False)
            self._poll.register(client.socket, select.EPOLLIN)

    def close(self) -> None:
        self._poll.close()
        for client in self._sockets.values():
            client.settimeout(QUIET_S_MAX)

    def read_all(self, expected: bytes) -> None:
        """Every reader gets exactly these bytes, and a byte more or another is an error."""
        self._expected, self._at = expected, dict.fromkeys(self._sockets, 0)
        missing = set(self._sockets)
        quiet_since = time.monotonic()
        while missing:
            ready = [fd for fd, _ in self._poll.poll(1)]
            if ready:
                quiet_since = time.monotonic()
            assert time.monotonic() - quiet_since < QUIET_S_MAX, f"{len(missing)} members wait for their messages"
            missing.difference_update(fd for fd in ready if self._read(fd))

    def _read(self, fd: int) -> bool:
        """Whether this one has everything."""
        at = self._at[fd]
        with contextlib.suppress(BlockingIOError):
            count = self._sockets[fd].recv_into(self._buffer)
            assert count, f"a member that reads was cut after {at:,} bytes"
            same = self._buffer.startswith(self._expected[at : at + count])
            assert same, f"another byte than expected: {bytes(self._buffer[:60])!r}"
            self._at[fd] = at = at + count
        assert at <= len(self._expected), "more came than was published"
        return at == len(self._expected)


def rest_of(client: Raw) -> tuple[list[int], int]:
    """The numbers of the messages that are there until the connection ends, and the close code; 0 = cut without one."""
    numbers: list[int] = []
    with contextlib.suppress(ConnectionResetError, EOFError):
        while (got := client.read()).opcode in (TEXT, CLOSE):
            if got.opcode == CLOSE:
                return numbers, got.close_code
            numbers.append(number_of(got))
    return numbers, 0


def up_to_now(client: Raw) -> list[int]:
    """The numbers of the messages that are owed by now: what a ping is answered behind."""
    client.send(frame(b"up to here", PING))
    numbers = []
    while (got := client.read()).opcode != PONG:
        assert got.opcode == TEXT, got
        numbers.append(number_of(got))
    return numbers


def up_to(client: Raw, last: int) -> list[int]:
    """The numbers of the messages that come, the one asked for being the last."""
    numbers = [number_of(client.read())]
    while numbers[-1] < last:
        numbers.append(number_of(client.read()))
    return numbers
