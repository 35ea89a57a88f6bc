"""Between a NATS connection's transport and its library: JetStream messages are taken out natively, all else goes on.

Why: the library spends 8 us and three turns of the loop on a message (a regular expression, a queue, a task). Here
the bytes are cut where they arrive, without an object a message. The library still speaks: connecting, TLS, requests,
pings. Rule: what the library gets is whole frames in their order, so it never knows. Where the transport can't be
reached (over WebSocket) there is no tap, and everything goes the library's way.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE

from tidegate._core import Intake, Messages

# Batches, messages in all, the consumer's next number, messages that follow, messages without a position, and a hole
Seen = tuple[list[Messages], int, int, int, int, int | None]


class Tap(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport, library: asyncio.Protocol) -> None:
        self._transport = transport
        self._library = library
        self._intake = Intake()
        self._arrivals: dict[int, Callable[[Seen], None]] = {}

    def watch(self, sid: int, first: int, last: int, on_arrival: Callable[[Seen], None]) -> None:
        """`on_arrival` is called where bytes are read: it must not wait, and nothing may escape it."""
        self._intake.watch(sid, first, last)
        self._arrivals[sid] = on_arrival

    def forget(self, sid: int) -> None:
        self._intake.forget(sid)
        self._arrivals.pop(sid, None)

    def write(self, frames: bytes) -> None:
        """Whole frames to the server, in turn with the library's."""
        if not self._transport.is_closing():
            self._transport.write(frames)

    def data_received(self, data: bytes) -> None:
        rest, touched = self._intake.take(data)
        if rest:
            self._library.data_received(rest)
        for sid in touched:
            seen = self._intake.arrived(sid)
            if seen is not None and (on_arrival := self._arrivals.get(sid)):
                on_arrival(seen)

    def connection_lost(self, exc: Exception | None) -> None:
        self._library.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._library.eof_received()

    def pause_writing(self) -> None:
        self._library.pause_writing()

    def resume_writing(self) -> None:
        self._library.resume_writing()


async def tap_on(client: Client) -> Tap | None:
    """The connection's tap, put in if it has none; None where that can't be done."""
    for _ in range(TAP_ATTEMPTS):
        if tap := tap_of(client):
            return tap
        await client.flush()  # the answer to a ping is a frame's end
    return None


def tap_of(client: Client) -> Tap | None:
    """The same at this moment: in the middle of a frame there is none."""
    # The library has no public name for its transport, and another version may name it otherwise.
    stream = getattr(client, "_transport", None)
    writer: asyncio.StreamWriter | None = getattr(stream, "_io_writer", None)
    if writer is None:
        return None
    transport = cast(asyncio.Transport, writer.transport)
    protocol = transport.get_protocol()
    if isinstance(protocol, Tap):
        return protocol
    if not isinstance(protocol, asyncio.Protocol) or not is_between_frames(client):
        return None
    tap = Tap(transport, protocol)
    transport.set_protocol(tap)
    return tap


def is_between_frames(client: Client) -> bool:
    """Whether the library has taken every byte it was given, up to the end of a frame."""
    parser = getattr(client, "_ps", None)
    reader = getattr(getattr(client, "_transport", None), "_io_reader", None)
    unread = getattr(reader, "_buffer", None)
    return parser is not None and parser.state == AWAITING_CONTROL_LINE and not parser.buf and unread == b""


# Once is enough but for a message that comes right behind the answer.
TAP_ATTEMPTS = 3
