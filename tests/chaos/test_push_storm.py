"""Two thousand pushes at once, every other one to a device that never acks: each call is answered in time, and the node
keeps nothing of it.

Rule: numbers of this machine are printed, never asserted; bounds are failsafes. Devices are raw sockets in a thread,
so that the test itself is no part of what it measures.
"""

import asyncio
import contextlib
import select
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import orjson
import pytest

from tests.etcd_server import EtcdServer
from tests.im import Node, node, token
from tests.im_backends import Pusher
from tests.im_services import ImServices
from tests.im_traffic import Person, becomes, people
from tests.kafka_server import KafkaServer
from tests.servers import RedisServer
from tests.wire.client import PING, PONG, Raw, frame, upgrade

PUSHES = 2000
# Its devices read messages alone, and on a busy machine the storm outlasts half of the usual 54 s
NO_PINGS = {"PING_PERIOD": "10m", "PONG_WAIT": "11m", "HEARTBEAT_TIMEOUT": "11m"}
# Far above what a busy machine needs; only a failing test gets there
ANSWER_S_MAX = 45.0
# A push that waits costs some 25 KB in the node, so all of them a third of this
MEMORY_MAX = 150 << 20
AT_ONCE = 200  # connections that wait for the auth service together: below what it answers in its three seconds
CHANNELS = 8  # a proxy in between lets a hundred calls on one; here it spreads the test's own work
LATE = 100


class Device:
    def __init__(self, port: int, number: int) -> None:
        self.user, self.id = f"user_{number}", str(uuid.uuid4())
        self.raw = Raw(port)
        self.raw.socket.settimeout(ANSWER_S_MAX)
        self.raw.send(upgrade(f"/ws?token={token(self.user, self.id)}"))

    def reads(self) -> str:
        """The id of the message that is next, which must be one."""
        got = orjson.loads(self.raw.read().payload)
        assert got["type"] == "message", got
        return str(got["msg_id"])

    def ack(self, msg_id: str) -> None:
        self.raw.send(frame(orjson.dumps({"type": "ack", "msg_id": msg_id})))

    def has_nothing_more(self) -> None:
        """A ping is answered behind whatever is on its way."""
        self.raw.send(frame(b"nothing", PING))
        while (got := self.raw.read()).opcode == PING:
            pass  # the node's own
        assert (got.opcode, got.payload) == (PONG, b"nothing"), got


class Answered(NamedTuple):
    seconds: float
    delivered: int
    failed: list[str]


@contextlib.contextmanager
def crowd(port: int, count: int) -> Iterator[list[Device]]:
    devices: list[Device] = []
    try:
        for start in range(0, count, AT_ONCE):
            devices += [Device(port, number) for number in range(start, min(start + AT_ONCE, count))]
            for device in devices[start:]:
                status, _, body = device.raw.response(b"")
                assert status == 101, (status, body)
        yield devices
    finally:
        for device in devices:
            device.raw.socket.close()


def ack_one_each(devices: Sequence[Device], stop: threading.Event) -> dict[str, str]:
    """Each acks what comes as soon as it comes; user -> id."""
    waiting, acked = {device.raw.socket.fileno(): device for device in devices}, {}
    with select.epoll() as poll:
        for number in waiting:
            poll.register(number, select.EPOLLIN)
        while waiting and not stop.is_set():
            for number, _ in poll.poll(0.1):
                device = waiting.pop(number)
                poll.unregister(number)
                acked[device.user] = msg_id = device.reads()
                device.ack(msg_id)
    return acked


async def push_all(gateway: Node, devices: Sequence[Device]) -> list[Answered]:
    """All in flight at once."""
    async with contextlib.AsyncExitStack() as stack:
        pushers = [await stack.enter_async_context(Pusher(gateway.grpc_address)) for _ in range(CHANNELS)]

        async def push(number: int, device: Device) -> Answered:
            began = time.monotonic()
            pusher = pushers[number % CHANNELS]
            answer = await pusher.push(device.user, msg_id=f"m:{device.user}", deadline=ANSWER_S_MAX)
            assert answer.success == (answer.delivered_count > 0)
            return Answered(time.monotonic() - began, answer.delivered_count, list(answer.failed_devices))

        return await asyncio.gather(*(push(number, device) for number, device in enumerate(devices)))


class Watched:
    """What others notice meanwhile: how long heartbeats take, and how much memory the node has."""

    def __init__(self, gateway: Node, others: Sequence[Person]) -> None:
        self._gateway, self._others = gateway, others
        self._is_over = False
        self.before, self.grown = gateway.memory_bytes(), 0
        self.slowest, self.beats = 0.0, 0

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await self._beating

    async def _beat(self) -> None:
        while not self._is_over:
            began = time.monotonic()
            assert all(await asyncio.gather(*(one.is_alive() for one in self._others)))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.beats += len(self._others)
            self.grown = max(self.grown, self._gateway.memory_bytes() - self.before)
            await asyncio.sleep(0.05)


@pytest.fixture
def gateway(
    servers_wanted: None, calm_etcd: EtcdServer, calm_kafka_server: KafkaServer, calm_redis_server: RedisServer
) -> Iterator[Node]:
    with (
        ImServices().running() as services,
        node(services, calm_etcd.url, calm_kafka_server.url, calm_redis_server.url, **NO_PINGS) as started,
    ):
        services.auth.tell(recording=False)
        yield started


@pytest.mark.timeout(150)
async def test_2000_pushes_at_once_are_answered_in_time_whether_their_devices_ack_or_not(gateway: Node) -> None:
    with crowd(gateway.port, PUSHES) as devices:
        acking, silent = devices[::2], devices[1::2]
        async with (
            people(*[(gateway, f"user_other_{number}") for number in range(5)]) as others,
            Watched(gateway, others) as watched,
        ):
            answers = await storm(gateway, devices, acking)
        for device, (_, delivered, failed) in zip(devices, answers, strict=True):
            assert (delivered, failed) == ((0, [device.id]) if device in silent else (1, [])), device.user
        assert watched.grown < MEMORY_MAX
        assert acks(gateway) == {"pending": PUSHES, "success": 1000, "timeouts": 1000, "late": 0, "unknown": 0}
        counted = gateway.metrics()
        assert counted["im_gateway_messages_delivered_total"] == counted["im_gateway_messages_failed_total"] == 1000
        for device in silent:
            assert device.reads() == f"m:{device.user}"
        for device in silent[:LATE]:
            device.ack(f"m:{device.user}")
        await becomes(lambda: acks(gateway)["late"] == LATE)
        for device in devices:
            device.has_nothing_more()
        assert acks(gateway)["unknown"] == 0
        tell(answers, watched)


async def storm(gateway: Node, devices: Sequence[Device], acking: Sequence[Device]) -> list[Answered]:
    stop = threading.Event()
    acked = asyncio.create_task(asyncio.to_thread(ack_one_each, acking, stop))
    try:
        answers = await push_all(gateway, devices)
        assert await acked == {device.user: f"m:{device.user}" for device in acking}
        return answers
    finally:
        stop.set()


def acks(gateway: Node) -> dict[str, float]:
    counted = gateway.metrics()
    kinds = ("pending", "success", "timeouts", "late", "unknown")
    return {kind: counted[f"im_gateway_ack_{kind}_total"] for kind in kinds}


def tell(answers: Sequence[Answered], watched: Watched) -> None:
    took = [sorted(answer.seconds for answer in answers[start::2]) for start in (0, 1)]
    for who, seconds in zip(("acking", "silent"), took, strict=True):
        print(f"{who}: {seconds[0]:.2f}, {seconds[len(seconds) // 2]:.2f}, {seconds[-1]:.2f} s")
    print(f"{watched.beats} heartbeats meanwhile, the slowest took {watched.slowest:.2f} s")
    print(f"memory: {watched.before >> 20} MiB, and {watched.grown >> 20} more")
