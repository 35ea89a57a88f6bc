"""Attacks as generators: each does its worst in steps and yields between them, so that a bystander can be watched.

Rule: bounded, from 127.0.0.0/8 to the port given, and everything opened is closed. Random ones print their seed.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tests.wire.client import BINARY, CONTINUATION, PING, TEXT, Raw, frame, head, upgrade

Attack: TypeAlias = Callable[[int], Iterator[str]]
BYSTANDER = b"is anybody there?"
CROWD = 50
OUTBOX_BYTES = 256 << 10  # what the gateway under attack may owe to each of them


def opened(port: int, count: int, **options: int) -> list[Raw]:
    clients = [Raw(port, **options) for _ in range(count)]
    for client in clients:
        client.open()
    return clients


def pushed(client: Raw, data: bytes) -> bool:
    """Sends what the server takes without waiting for it; `False` once it has cut us off."""
    client.socket.setblocking(False)
    try:
        while data:
            data = data[client.socket.send(data) :]
    except BlockingIOError:
        return True
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        with contextlib.suppress(OSError):
            client.socket.setblocking(True)
    return True


def closed(clients: list[Raw]) -> None:
    for client in clients:
        client.socket.close()


def one_byte_fragments(port: int) -> Iterator[str]:
    """100,000 fragments of one byte from each of twenty connections (CVE-2026-48779)."""
    clients = opened(port, 20)
    fragments = frame(b"a", CONTINUATION, fin=False) * 1000
    for client in clients:
        pushed(client, frame(b"a", TEXT, fin=False))
    for turn in range(100):
        for client in clients:
            pushed(client, fragments)
        yield f"turn {turn}"
    closed(clients)


def announced_but_never_sent(port: int) -> Iterator[str]:
    """Fifty clients announce the largest message allowed and send one byte of it."""
    clients = opened(port, CROWD)
    for client in clients:
        pushed(client, head(64 << 10, BINARY) + b"\0\0\0\0a")
    yield "announced"
    closed(clients)


def slow_readers(port: int) -> Iterator[str]:
    """Fifty clients ask for echoes and never read them."""
    clients = opened(port, CROWD, receive_buffer=4096)
    message = frame(b"a" * 60_000, BINARY)
    for turn in range(60):
        for client in clients:
            pushed(client, message)
        yield f"turn {turn}"
    closed(clients)


def ping_flood(port: int) -> Iterator[str]:
    """Pings without end from clients that never read a pong."""
    clients = opened(port, 10, receive_buffer=4096)
    pings = frame(b"p" * 125, PING) * 500
    for turn in range(40):
        for client in clients:
            pushed(client, pings)
        yield f"turn {turn}"
    closed(clients)


def message_flood(port: int) -> Iterator[str]:
    """As many tiny messages as the socket takes."""
    clients = opened(port, 4)
    messages = frame(b"x") * 5000
    for turn in range(20):
        for client in clients:
            pushed(client, messages)
        yield f"turn {turn}"
    closed(clients)


def random_bytes(port: int) -> Iterator[str]:
    """Noise before and after the upgrade."""
    seed = int(os.environ.get("TIDEGATE_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"TIDEGATE_SEED={seed}")
    noise = random.Random(seed)
    for turn in range(100):
        with Raw(port) as early, Raw(port) as late:
            pushed(early, noise.randbytes(noise.randrange(1, 4096)))
            late.open()
            pushed(late, noise.randbytes(noise.randrange(1, 4096)))
            yield f"turn {turn} of seed {seed}"


def resets_in_the_middle_of_frames(port: int) -> Iterator[str]:
    """RST at every stage: before the head's end, inside a header, inside a payload, while an echo is on its way."""
    whole = upgrade() + frame(b"a" * 2000)
    for cut in range(1, len(whole), 37):
        client = Raw(port)
        pushed(client, whole[:cut])
        client.reset()
        if cut % 10 == 0:
            yield f"cut at {cut}"
    yield "all cut"


def half_open(port: int) -> Iterator[str]:
    """Clients that end their sending side and stay, in the head and after the upgrade."""
    import socket

    clients = [Raw(port) for _ in range(CROWD)] + opened(port, CROWD)
    for client in clients:
        client.socket.shutdown(socket.SHUT_WR)
        yield "half-closed"
    closed(clients)


def trickled_heads(port: int) -> Iterator[str]:
    """Fifty heads, a byte at a time, none ever finished (CVE-2023-43669)."""
    clients = [Raw(port) for _ in range(CROWD)]
    for client in clients:
        pushed(client, b"GET /ws HTTP/1.1\r\nX-Long: ")
    for turn in range(50):
        for client in clients:
            pushed(client, b"a")
        yield f"byte {turn}"
    closed(clients)


def endless_heads(port: int) -> Iterator[str]:
    """Header lines until the server has had enough."""
    clients = [Raw(port) for _ in range(10)]
    for client in clients:
        pushed(client, b"GET /ws HTTP/1.1\r\n")
    for turn in range(50):
        for client in clients:
            pushed(client, b"X-More: of the same\r\n" * 200)
        yield f"turn {turn}"
    closed(clients)


def idle_http(port: int) -> Iterator[str]:
    """Plain HTTP connections that ask once and stay, and some that announce a body that never comes."""
    clients = [Raw(port) for _ in range(CROWD)]
    for number, client in enumerate(clients):
        body = b"Content-Length: 1000000\r\n" if number % 2 else b""
        pushed(client, b"POST /api/publish HTTP/1.1\r\nHost: x\r\n" + body + b"\r\n")
        yield "asked"
    closed(clients)


ATTACKS: list[Attack] = [
    one_byte_fragments,
    announced_but_never_sent,
    slow_readers,
    ping_flood,
    message_flood,
    random_bytes,
    resets_in_the_middle_of_frames,
    half_open,
    trickled_heads,
    endless_heads,
    idle_http,
]
