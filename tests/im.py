"""What tests of im-gateway with real processes share: nodes started by the original's variables, and devices.

Rule: a frame that does not come fails the test with what came instead; nothing waits without a bound. Who pushes to
nodes, writes to Kafka and reads etcd is in `tests/im_backends.py`.
"""

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateways import Gateway, spawn, stop
from tests.im_backends import addresses
from tests.im_services import ImServices
from tests.servers import free_port

FRAME_S_MAX = 20  # milliseconds on a quiet machine
READY_S_MAX = 40  # under a second on a quiet machine, but for the first one that joins a group of a new Kafka
# What each frame of the server has, zero-valued if it means nothing there; the answer to a heartbeat alone has less
ALWAYS = {"type", "msg_id", "sender", "content", "timestamp", "sequence_number"}
FULL = {"message", "ack", "error", "read_receipt", "membership_change", "close"}


# --- nodes ------------------------------------------------------------------------------------------------------------


class Node(Gateway):
    """A gateway with a gRPC listener; its id in the registry is that address."""

    grpc_port = 0

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def get(self, path: str) -> tuple[int, Any]:
        """JSON is read, anything else is text."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                status, body = refused.code, refused.read()
        with contextlib.suppress(json.JSONDecodeError):
            return status, json.loads(body)
        return status, body.decode()

    def door(self, user: str, device: str, **query: str) -> str:
        """The URL that a device of a user connects to."""
        return f"{self.url}?{urlencode({'token': token(user, device)} | query)}"


def token(user: str, device: str) -> str:
    return f"{user}/{device}"


@contextlib.contextmanager
def node(services: ImServices, etcd_url: str, kafka: str, redis: str, **environ: str) -> Iterator[Node]:
    """`tidegate serve --profile im-gateway`, ready. `environ`: more of the original's variables, by their names."""
    made = starting(services, etcd_url, kafka, redis, **environ)
    await_ready(made)
    try:
        yield made
    finally:
        stop(made)


def starting(services: ImServices, etcd_url: str, kafka: str, redis: str, **environ: str) -> Node:
    """The process alone. PORT, GRPC_PORT and METRICS_PORT may be given, as those of a node that was there before."""
    names = ("PORT", "GRPC_PORT", "METRICS_PORT")
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True)) | environ
    named = {
        **services.environ,
        "ETCD_ENDPOINTS": addresses(etcd_url),
        "KAFKA_BROKERS": addresses(kafka),
        "REDIS_ADDR": addresses(redis),
        "GATEWAY_NODE_ID": f"127.0.0.1:{ports['GRPC_PORT']}",
        "TIDEGATE_SERVER_HOST": "127.0.0.1",
        "TIDEGATE_METRICS_HOST": "127.0.0.1",
        "TIDEGATE_GRPC_HOST": "127.0.0.1",
    }
    begun = spawn("im-gateway", port=int(ports["PORT"]), environ=named | ports)
    made = Node(begun.process, begun.port, int(ports["METRICS_PORT"]), begun.log)
    made.grpc_port = int(ports["GRPC_PORT"])
    return made


def await_ready(made: Node) -> None:
    deadline, said = time.monotonic() + READY_S_MAX, (0, "nothing")
    while time.monotonic() < deadline and made.is_alive():
        with contextlib.suppress(OSError):
            said = made.get("/ready")
            if said[0] == 200:
                return
        time.sleep(0.02)  # the only way to learn that another process is ready
    log = made.log_text()
    made.kill()
    raise AssertionError(f"the node did not become ready, it says {said}:\n{log}")


def free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


# --- devices ----------------------------------------------------------------------------------------------------------


class Device:
    """One connection of a user. It acks nothing by itself."""

    def __init__(self, socket: ClientConnection, user: str, device: str) -> None:
        self.socket, self.user, self.id = socket, user, device

    async def say(self, kind: str, **members: Any) -> None:
        await self.socket.send(orjson.dumps({"type": kind} | members).decode())

    async def send_msg(self, recipient: str, content: str, msg_id: str = "", **members: Any) -> str:
        """The id of what was sent. Its ack, or an error, is on its way."""
        msg_id = msg_id or str(uuid.uuid4())
        said = {"msg_id": msg_id, "recipient": recipient, "content": content, "timestamp": int(time.time())}
        await self.say("send_msg", **said | members)
        return msg_id

    async def sends(self, recipient: str, content: str, **members: Any) -> Any:
        """`send_msg`, and the ack of it, which must be the next frame."""
        msg_id = await self.send_msg(recipient, content, **members)
        frame = await self.hears("ack")
        assert frame["msg_id"] == msg_id, frame
        return frame

    async def ack(self, msg_id: str) -> None:
        await self.say("ack", msg_id=msg_id)

    async def receives(self) -> Any:
        """The next frame, which must be a message, and acks it."""
        frame = await self.hears("message")
        await self.ack(frame["msg_id"])
        return frame

    async def hears(self, kind: str) -> Any:
        """The next frame; it must be of this type."""
        frame = orjson.loads(await self.raw())
        assert frame["type"] == kind, frame
        assert kind not in FULL or frame.keys() >= ALWAYS, frame
        return frame

    async def raw(self) -> str:
        async with asyncio.timeout(FRAME_S_MAX):
            return str(await self.socket.recv())

    async def error(self) -> tuple[str, str]:
        frame = await self.hears("error")
        return frame["error_code"], frame["error_message"]

    async def heartbeat(self) -> Any:
        """Answered, and nothing was on its way before."""
        await self.say("heartbeat")
        return await self.hears("heartbeat")

    async def ends(self) -> tuple[list[Any], int]:
        """What came until the connection was closed, and its close code."""
        frames = []
        async with asyncio.timeout(FRAME_S_MAX):
            try:
                while True:
                    frames.append(orjson.loads(await self.socket.recv()))
            except ConnectionClosed as closed:
                return frames, closed.rcvd.code if closed.rcvd else 1006


@contextlib.asynccontextmanager
async def device(
    node: Node, user: str, device_id: str = "", *, query: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Device]:
    device_id = device_id or str(uuid.uuid4())
    door = node.door(user, device_id, **query or {})
    async with connect(door, compression=None, max_size=None, **options) as socket:
        yield Device(socket, user, device_id)


async def refused(door: str, **options: Any) -> int:
    """The HTTP status that a connection is refused with."""
    try:
        async with connect(door, compression=None, **options):
            raise AssertionError("the connection was accepted")
    except InvalidStatus as refusal:
        return refusal.response.status_code
