"""PushMessage to connected devices: calls a second, latency and CPU, beside a bare server that answers at once.

One client in this process makes all calls, on one connection, so many at a time; each waits for its answer, and with
`ACK_MODE=ack` that is the device's ack. `forwarded`: the call goes to a node without clients, which passes it on.
Rule: each recipient was pushed to before, so the registry's answer about it is known; a push that no device took ends
the benchmark.
"""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import median, quantiles
from typing import Any

import grpc
from push_backend import SERVICE
from push_rig import Backend, Node, Outside, PushRun, crowd_of, node
from tidegate.bench.rig import Crowd, LostError, Process
from tidegate.bench.run import Usage
from tidegate.protos import im_gateway_pb2

USERS = 1_000  # recipients, in turn: one client does not decide
USERS_QUICK = 100
CALLS = 10_000
CALLS_QUICK = 500
ALONE_SHARE = 5  # so many times fewer where one call waits for the other
AT_ONCE = (1, 64, 512)
AT_ONCE_QUICK = (1, 64)
FORWARDED_AT_ONCE = (64,)
MODES = ("ack", "queued")
CONTENT = "x" * 128
CALL_S_MAX = 30.0
FULL = 0.9  # of a core, or of all: no more work fits in
CORES = os.cpu_count() or 1
PATH = f"/{SERVICE}/PushMessage"


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the calls go to, and whose CPU they take."""

    case: str
    name: str
    address: str
    processes: Sequence[Process]


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds by the clock, and of CPU: the busiest server's, all servers', this client's and the whole machine's."""

    seconds: float
    busiest_s: float
    server_s: float
    client_s: float
    machine_s: float

    @classmethod
    def now(cls, target: Target) -> "Used":
        cpu = [process.cpu_s() for process in target.processes]
        return cls(time.monotonic(), max(cpu), sum(cpu), time.process_time(), Usage.now().busy)

    def since(self, before: "Used") -> "Used":
        return Used(*(getattr(self, field.name) - getattr(before, field.name) for field in fields(self)))

    def load(self) -> dict[str, bool]:
        """What `Figure.add` asks of a generator."""
        is_bound = self.client_s > FULL * self.seconds > self.busiest_s
        return {"generator_bound": is_bound, "machine_full": self.machine_s > FULL * self.seconds * CORES}


def calls(run: PushRun, outside: Outside, stack: contextlib.ExitStack) -> None:
    count = run.options.calls or (CALLS_QUICK if run.quick else CALLS)
    users = USERS_QUICK if run.quick else USERS
    bare = stack.enter_context(Backend("push"))
    for mode in MODES:
        with run.part(), contextlib.ExitStack() as nodes:
            here, other = (node(run, outside, nodes, users, ACK_MODE=mode) for _ in range(2))
            crowd = crowd_of(run, here, "", users)
            measure_mode(run, mode, (bare, here, other), crowd, (count, users))


def measure_mode(
    run: PushRun, mode: str, servers: tuple[Backend, Node, Node], crowd: Crowd, shape: tuple[int, int]
) -> None:
    bare, here, other = servers
    for at_once in AT_ONCE_QUICK if run.quick else AT_ONCE:
        case = f"{mode}, {at_once} at once"
        targets = [
            Target(case, bare.name, bare.address, [bare]),
            Target(case, here.name, here.grpc_address, [here]),
        ]
        for target in targets:
            measure(run, target, crowd, shape, at_once)
    for at_once in FORWARDED_AT_ONCE:
        target = Target(f"{mode}, forwarded, {at_once} at once", other.name, other.grpc_address, [here, other])
        measure(run, target, crowd, shape, at_once)


def measure(run: PushRun, target: Target, crowd: Crowd, shape: tuple[int, int], at_once: int) -> None:
    count, users = shape
    count = count // ALONE_SHARE if at_once == 1 else count
    crowd.ask("reset")
    waits, used = asyncio.run(pushed(target, at_once, count, users))
    check(target, crowd, users + count)
    figures = run.figures
    figures.of(target.case, "calls", "1/s", 0).add(target.name, count / used.seconds, used.load())
    figures.of(target.case, "p50", "us", 0).add(target.name, median(waits) * 1e6)
    figures.of(target.case, "p99", "us", 0).add(target.name, quantiles(waits, n=100)[98] * 1e6)
    figures.of(target.case, "server CPU a call", "us", 0).add(target.name, used.server_s / count * 1e6)


def check(target: Target, crowd: Crowd, due: int) -> None:
    """The clients got each message once, and acked it where acks are waited for."""
    if target.name == "limit":
        return
    acks = due if target.case.startswith("ack") else 0
    answer = crowd.wait("other", due, CALL_S_MAX)
    seen = {key: answer[key] for key in ("other", "texts_sent", "sends_blocked", "failed")}
    if seen != {"other": due, "texts_sent": acks, "sends_blocked": 0, "failed": {}}:
        raise LostError(f"{target.case}: {due:,} messages and {acks:,} acks were due; {seen}")


async def pushed(target: Target, at_once: int, count: int, users: int) -> tuple[list[float], "Used"]:
    """What each call took, and all of them together; once to everybody before."""
    async with grpc.aio.insecure_channel(target.address) as channel:
        call = channel.unary_unary(
            PATH,
            request_serializer=im_gateway_pb2.PushMessageRequest.SerializeToString,
            response_deserializer=im_gateway_pb2.PushMessageResponse.FromString,
        )
        await push_all(call, requests(users, users), at_once)
        before = Used.now(target)
        waits = await push_all(call, requests(count, users), at_once)
        return waits, Used.now(target).since(before)


async def push_all(call: Any, left: Iterator[im_gateway_pb2.PushMessageRequest], at_once: int) -> list[float]:
    waits: list[float] = []

    async def push_in_turn() -> None:
        for request in left:
            began = time.perf_counter()
            answer = await call(request, timeout=CALL_S_MAX)
            waits.append(time.perf_counter() - began)
            if answer.delivered_count != 1 or answer.error_message:
                raise LostError(f"a push to {request.recipient_id} was not delivered: {answer.error_message}")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(push_in_turn())
    return waits


def requests(count: int, users: int) -> Iterator[im_gateway_pb2.PushMessageRequest]:
    for number in range(count):
        yield im_gateway_pb2.PushMessageRequest(
            msg_id=str(uuid.uuid4()),
            recipient_id=f"u{number % users}",
            sender_id="user_0",
            content=CONTENT,
            message_type="text",
            sequence_number=number + 1,
            timestamp=time.time_ns() // 1_000_000,
        )
