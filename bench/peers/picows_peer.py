"""`picows` as a gateway: its Cython transports on uvloop, one send a member."""

import asyncio
from collections import defaultdict
from urllib.parse import urlsplit

import jwt
import shape
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

CONTROL = "/control"
BACKLOG = 65_535  # the kernel cuts it to net.core.somaxconn
READ_BYTES = 256  # clients say next to nothing; picows advises to fit its buffer, 16 KiB by default, to the messages


class Member(WSListener):
    """A client: its rooms while it is here."""

    __slots__ = ("gateway", "rooms")

    def __init__(self, gateway: "Gateway", rooms: tuple[str, ...]) -> None:
        super().__init__()
        self.gateway, self.rooms = gateway, rooms

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.gateway.present += 1
        for room in self.rooms:
            self.gateway.rooms[room].add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gateway.present -= 1
        for room in self.rooms:
            self.gateway.rooms[room].discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


class Driver(WSListener):
    def __init__(self, gateway: "Gateway") -> None:
        super().__init__()
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            task = asyncio.create_task(self._obey(transport, frame.get_payload_as_utf8_text()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()

    async def _obey(self, transport: WSTransport, command: str) -> None:
        transport.send(WSMsgType.TEXT, (await self._gateway.orders.obey(command)).encode())


class Gateway:
    def __init__(self, secret: str) -> None:
        self._secret = secret
        self.rooms: dict[str, set[WSTransport]] = defaultdict(set)
        self.present = 0
        self.orders = shape.Orders(self.publish, lambda: self.present)

    def publish(self, room: str, text: str) -> None:
        payload = text.encode()
        for transport in self.rooms.get(room, ()):
            transport.send(WSMsgType.TEXT, payload)

    def listener(self, request: WSUpgradeRequest) -> WSListener | None:
        path = urlsplit(request.path.decode())
        if path.path == CONTROL:
            return Driver(self)
        try:
            return Member(self, shape.rooms_by_query(self._secret, path.query))
        except (jwt.PyJWTError, KeyError):
            return None  # answered with 404


async def main() -> None:
    options = shape.options()
    gateway = Gateway(options.secret)
    server = await ws_create_server(
        gateway.listener,
        "127.0.0.1",
        options.port,
        enable_auto_ping=True,
        auto_ping_idle_timeout=shape.PING_S,
        read_buffer_init_size=READ_BYTES,
        backlog=BACKLOG,
    )
    if options.nats:
        await shape.forward(options.nats, options.subject, gateway.publish)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
