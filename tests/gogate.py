"""What tests of gogate with real processes share: nodes started by the original's variables, and people who chat.

Rule: an event that does not come fails the test with what came instead; nothing waits without a bound.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect

from tests.gateways import Gateway, await_health, spawn, stop
from tests.rest_backend import RestBackend

EVENT_S_MAX = 20  # milliseconds on a quiet machine


@contextlib.contextmanager
def node(backend: RestBackend, **environ: str) -> Iterator[Gateway]:
    """`tidegate serve --profile gogate` with the original's variables. Limits are off unless a test sets them."""
    made = starting(backend, **environ)
    await_health(made)
    try:
        yield made
    finally:
        stop(made)


def starting(backend: RestBackend, **environ: str) -> Gateway:
    limits = {"RATE_LIMIT_PER_CONNECTION": "0", "RATE_LIMIT_PER_USER": "0", "MEMBERS_CACHE_TTL_MS": "0"}
    named = {"BACKEND_API_URL": backend.url, "INTERNAL_API_KEY": backend.KEY, "TIDEGATE_SERVER_HOST": "127.0.0.1"}
    return spawn("gogate", environ=limits | named | environ)


class Person:
    """One connection. `id` is the user's once logged in."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.id = 0

    async def say(self, event: str, **data: Any) -> None:
        await self.socket.send(orjson.dumps({"event": event, "data": data}).decode())

    async def raw(self) -> str:
        async with asyncio.timeout(EVENT_S_MAX):
            return str(await self.socket.recv())

    async def hears(self, event: str) -> Any:
        """The next frame's data; it must be this event."""
        frame = orjson.loads(await self.raw())
        assert frame["event"] == event, frame
        return frame["data"]

    async def error(self) -> tuple[str, str]:
        data = await self.hears("error")
        return data["message"], data["code"]

    async def log_in(self, token: str) -> "Person":
        await self.say("auth", token=token)
        self.id = (await self.hears("auth_success"))["user_id"]
        return self

    async def hears_nothing_before(self, other: "Person", chat: int = 1) -> None:
        """Nothing was on its way: a message that everybody in the chat gets is the next."""
        await other.say("send_message", chat_id=chat, text="marker")
        await other.hears("new_message")
        assert (await self.hears("new_message"))["text"] == "marker"


@contextlib.asynccontextmanager
async def person(gateway: Gateway, token: str = "", **options: Any) -> AsyncIterator[Person]:
    async with connect(gateway.url, compression=None, max_size=None, **options) as socket:
        made = Person(socket)
        yield await made.log_in(token) if token else made


async def begun(backend: RestBackend) -> None:
    """A request is in it: what it is told from now on is for the next ones."""
    async with asyncio.timeout(EVENT_S_MAX):
        while not backend.inside():  # noqa: ASYNC110 - another process's state can only be asked
            await asyncio.sleep(0.01)
