"""The Python `websockets` library as a gateway: its asyncio server on uvloop, its own broadcast."""

import asyncio
import contextlib
from collections import defaultdict
from http import HTTPStatus
from urllib.parse import urlsplit

import jwt
import shape
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

CONTROL = "/control"
BACKLOG = 65_535  # the kernel cuts it to net.core.somaxconn


class Gateway:
    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._rooms: dict[str, set[ServerConnection]] = defaultdict(set)
        self._present = 0
        self._orders = shape.Orders(self.publish, lambda: self._present)

    def publish(self, room: str, text: str) -> None:
        broadcast(self._rooms.get(room, ()), text)

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        path = urlsplit(request.path)
        if path.path == CONTROL:
            return None
        try:
            connection.rooms = shape.rooms_by_query(self._secret, path.query)  # type: ignore[attr-defined]
        except (jwt.PyJWTError, KeyError):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a valid token is needed\n")
        return None

    async def serve(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            if not hasattr(connection, "rooms"):
                async for command in connection:
                    await connection.send(await self._orders.obey(str(command)))
                return
            await self._stay(connection, connection.rooms)

    async def _stay(self, connection: ServerConnection, rooms: tuple[str, ...]) -> None:
        for room in rooms:
            self._rooms[room].add(connection)
        self._present += 1
        try:
            async for _ in connection:
                pass
        finally:
            self._present -= 1
            for room in rooms:
                self._rooms[room].discard(connection)


async def main() -> None:
    options = shape.options()
    gateway = Gateway(options.secret)
    async with serve(
        gateway.serve,
        "127.0.0.1",
        options.port,
        process_request=gateway.admit,
        compression=None,
        ping_interval=shape.PING_S,
        backlog=BACKLOG,
    ):
        if options.nats:
            await shape.forward(options.nats, options.subject, gateway.publish)
        await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(main())
