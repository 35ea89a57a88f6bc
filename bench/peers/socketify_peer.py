"""`socketify` (uWebSockets) as a gateway: topics are rooms, and the library's own publish writes to their members.

Without JetStream its native loop runs alone, which is its best: no asyncio turn between two of its own. With JetStream
it runs as `App.run` does, the native loop polled from an asyncio loop (uvloop) that the NATS client lives in.
"""

import sys

import jwt
import shape
import uvloop
from socketify import App, OpCode

IDLE_S = 60  # uWebSockets pings by itself within this
BACKPRESSURE_BYTES_MAX = 1 << 20  # tidegate's bound a connection; what is over it would be dropped without a word


class Gateway:
    def __init__(self, app: App, secret: str) -> None:
        self._app, self._secret = app, secret
        self._arriving: tuple[str, ...] = ()
        self._present = 0
        self._orders = shape.Orders(self.publish, lambda: self._present)

    def publish(self, room: str, text: str) -> None:
        self._app.publish(room, text, OpCode.TEXT)

    def upgrade(self, response, request, socket_context) -> None:
        try:
            self._arriving = shape.rooms_of(
                self._secret, request.get_query("token") or "", request.get_query("room_id") or ""
            )
        except (jwt.PyJWTError, KeyError):
            response.write_status(401).end("a valid token is needed\n")
            return
        key = request.get_header("sec-websocket-key")
        # uWebSockets calls `open` before this returns, so the rooms need no user data: a handle and a UUID less
        response.upgrade(key, None, None, socket_context)

    def open(self, socket) -> None:
        self._present += 1
        for room in self._arriving:
            socket.subscribe(room)

    def close(self, _socket, _code, _message) -> None:
        self._present -= 1

    def obey(self, socket, message, _opcode) -> None:
        """After this call: until then the driver's socket holds the one buffer that uWebSockets gathers writes in."""
        self._obey_part((socket, self._orders.parts(message)))

    def _obey_part(self, order) -> None:
        self._timer = self._app.loop.set_timeout(0, self._take_part, order)

    def _take_part(self, order) -> None:
        socket, parts = order
        self._timer.stop()
        if next(parts, self) is self:
            socket.send(self._orders.answer(), OpCode.TEXT)
        else:
            self._obey_part(order)


def main() -> None:
    options = shape.options()
    app = App()
    gateway = Gateway(app, options.secret)
    clients = {"upgrade": gateway.upgrade, "open": gateway.open, "close": gateway.close}
    limits = {
        "idle_timeout": IDLE_S,
        "send_pings_automatically": True,
        "max_backpressure": BACKPRESSURE_BYTES_MAX,
        "compression": 0,
    }
    app.ws("/ws", {**limits, **clients})
    app.ws("/control", {**limits, "message": gateway.obey})
    if options.nats:
        app.loop.set_event_loop(uvloop.new_event_loop())
    app.listen({"port": options.port, "host": "127.0.0.1"}, lambda config: config or sys.exit("the port is taken"))
    if options.nats:
        app.loop.create_background_task(lambda: shape.forward(options.nats, options.subject, gateway.publish))
        app.run()
    app.loop.uv_loop.run()


if __name__ == "__main__":
    main()
