"""The demo's people: real WebSocket clients that join rooms and listen, and a backend that publishes to them.

Rule: polite. The publisher sends at a pace that leaves the machine to others, and nobody retries in a tight loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tidegate.connect import printable
from tidegate.demo.tally import Tally

Publish = Callable[[bytes], Awaitable[None]]

# Who is where: a room for all, and some that overlap
MEMBERS: Mapping[str, Sequence[str]] = {
    "chat:lobby": ("An", "Binh", "Chi", "Dung", "Em", "Giang"),
    "chat:news": ("An", "Binh", "Chi"),
    "chat:support": ("Dung", "Em"),
    "chat:games": ("Chi", "Giang", "An"),
}
LINES = (
    "the tide is coming in",
    "deployed, all green",
    "coffee?",
    "one socket to rule them all",
    "did you see that goal!",
    "back in five minutes",
    "release notes are out",
)
# A start on a busy machine; usually milliseconds
JOIN_TIMEOUT_S = 10.0
# What is due since the last tick is published together, as backends do; a hundred wake-ups a second cost nothing
TICK_S = 0.01


class Crowd:
    """All clients, connected and in their rooms while the block lasts."""

    def __init__(self, url_of: Callable[[str], str], tally: Tally) -> None:
        self._url_of = url_of
        self._tally = tally
        self._clients: list[ClientConnection] = []
        self._listening: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Crowd":
        names = sorted({name for names in MEMBERS.values() for name in names})
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await asyncio.gather(*(self._enter(name) for name in names))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(client.close() for client in self._clients), return_exceptions=True)
        await asyncio.gather(*self._listening, return_exceptions=True)

    @property
    def size(self) -> int:
        return sum(not task.done() for task in self._listening)

    async def _enter(self, name: str) -> None:
        client = await connect(self._url_of(name), compression=None)
        self._clients.append(client)
        await client.recv()  # `connected`
        for room in (room for room, names in MEMBERS.items() if name in names):
            await client.send(orjson.dumps({"type": "join", "room": room}).decode())
            await client.recv()  # `joined`
        self._listening.append(asyncio.create_task(self._listen(name, client)))

    async def _listen(self, name: str, client: ClientConnection) -> None:
        try:
            while True:
                frame = await client.recv(decode=False)
                self._note(name, orjson.loads(frame), time.perf_counter())
        except ConnectionClosed:
            return

    def _note(self, name: str, event: dict[str, object], now: float) -> None:
        """Others may publish to the same rooms: what has no number is shown, not counted."""
        payload, room = event.get("payload"), str(event.get("room"))
        if event.get("type") != "message" or not isinstance(payload, dict):
            return
        if name == MEMBERS.get(room, ("",))[0]:  # everybody's messages once, not six times
            self._tally.last.append(f"{room:<13} {printable(str(payload.get('text', '')))[:60]}")
        number, sent_at = payload.get("number"), payload.get("sent_at")
        if isinstance(number, int) and isinstance(sent_at, float) and room in MEMBERS:
            self._tally.receive(name, room, number, now - sent_at)


async def publish_steadily(publish: Publish, tally: Tally, *, rate: float, messages: int | None = None) -> None:
    """`rate` messages a second, in turn to all rooms, until `messages` are sent (None = for ever)."""
    started, rooms, sent = time.perf_counter(), list(MEMBERS), 0
    while messages is None or sent < messages:
        due = int((time.perf_counter() - started) * rate) + 1
        for _ in range(min(due, messages or due) - sent):
            await publish(_message(tally, rooms[sent % len(rooms)], LINES[sent % len(LINES)]))
            sent += 1
        await asyncio.sleep(TICK_S)


def _message(tally: Tally, room: str, text: str) -> bytes:
    payload = {"text": text, "number": tally.send(room), "sent_at": time.perf_counter()}
    return orjson.dumps({"type": "message", "room": room, "user_id": "demo", "payload": payload})
