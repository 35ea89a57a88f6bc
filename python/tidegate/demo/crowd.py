"""The demo's people: real WebSocket clients that join rooms and listen, and a backend that publishes to them.

Rule: polite. The publisher sends at a pace that leaves the machine to others, and nobody retries in a tight loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tidegate.connect import printable
from tidegate.demo.dialects import Dialect
from tidegate.demo.tally import Tally

# A message to a room
Publish = Callable[[str, bytes], Awaitable[None]]

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

    def __init__(self, dialect: Dialect, url_of: Callable[[str], str], tally: Tally) -> None:
        self._dialect = dialect
        self._url_of = url_of
        self._tally = tally
        self._clients: dict[str, ClientConnection] = {}
        self._listening: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Crowd":
        names = sorted({name for names in self._dialect.members.values() for name in names})
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await asyncio.gather(*(self._enter(name) for name in names))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()), return_exceptions=True)
        await asyncio.gather(*self._listening, return_exceptions=True)

    @property
    def size(self) -> int:
        return sum(not task.done() for task in self._listening)

    async def _enter(self, name: str) -> None:
        client = self._clients[name] = await connect(self._url_of(name), compression=None)
        for greeting in self._dialect.greetings(name):
            if greeting is not None:
                await client.send(greeting.decode())
            await client.recv()
        self._listening.append(asyncio.create_task(self._listen(name, client)))

    async def say(self, room: str, frame: bytes) -> None:
        """The first member of the room sends it."""
        await self._clients[self._dialect.members[room][0]].send(frame.decode())

    async def _listen(self, name: str, client: ClientConnection) -> None:
        try:
            while True:
                frame = orjson.loads(await client.recv(decode=False))
                self._note(name, frame, time.perf_counter())
                if (answer := self._dialect.answer(frame)) is not None:
                    await client.send(answer.decode())
        except ConnectionClosed:
            return

    def _note(self, name: str, frame: dict[str, object], now: float) -> None:
        """Others may talk here too: what has no number is shown, not counted."""
        heard, members = self._dialect.heard(frame), self._dialect.members
        if heard is None:
            return
        if name == members.get(heard.room, ("",))[0]:  # everybody's messages once, not six times
            self._tally.last.append(f"{heard.room:<13} {printable(heard.text)[:60]}")
        if heard.number and heard.room in members:
            self._tally.receive(name, heard.room, heard.number, now - heard.sent_at)


async def publish_steadily(
    publish: Publish, dialect: Dialect, tally: Tally, *, rate: float, messages: int | None = None
) -> None:
    """`rate` messages a second, in turn to all rooms, until `messages` are sent (None = for ever)."""
    started, rooms, sent = time.perf_counter(), list(dialect.members), 0
    while messages is None or sent < messages:
        due = int((time.perf_counter() - started) * rate) + 1
        for _ in range(min(due, messages or due) - sent):
            room, text = rooms[sent % len(rooms)], LINES[sent % len(LINES)]
            await publish(room, dialect.message(room, tally.send(room), time.perf_counter(), text))
            sent += 1
        await asyncio.sleep(TICK_S)
