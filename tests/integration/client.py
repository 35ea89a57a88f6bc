"""A chat client of attchat-gateway for tests: `websockets`, JSON in and out, and waiting for a message of a kind."""

import asyncio
import contextlib
import json
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

ANSWER_S_MAX = 15  # generous for a machine that runs everything at once; an answer usually takes a millisecond


class Chat:
    """Open for the length of an `async with`; `hello` is the first frame."""

    def __init__(self, url: str, **headers: str) -> None:
        self.url, self.headers = url, headers
        self.socket: ClientConnection
        self.hello: dict[str, Any] = {}

    async def __aenter__(self) -> "Chat":
        self.socket = await connect(self.url, additional_headers=self.headers, compression=None, max_queue=None)
        self.hello = await self.receive()
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.socket.close()

    @property
    def conn_id(self) -> str:
        return str(self.hello["payload"]["conn_id"])

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.socket.recv(), ANSWER_S_MAX))
        return message

    async def ask(self, **message: Any) -> dict[str, Any]:
        await self.send(**message)
        return await self.receive()

    async def join(self, room: str) -> None:
        assert await self.ask(type="join", room=room) == {"type": "joined", "room": room}

    async def nothing_came(self) -> None:
        """What was on its way has arrived once a ping sent now is answered first."""
        answer = await self.ask(type="ping")
        assert answer["type"] == "pong", answer

    async def closed(self) -> int:
        """The close code that ends the connection; messages before it are passed over."""
        async with asyncio.timeout(ANSWER_S_MAX):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
            await self.socket.wait_closed()
        return self.socket.close_code or 0
