"""What registering costs: memory of a connection that is in the registry, and etcd's work for a hundred thousand.

Connections: one node with a crowd, each client a user's device, beside attchat-gateway and the limit program with as
many. Registrations: the registry of one node alone, a thousand at a time, as many as handshakes are under way on a busy
node; `limit` puts the same keys under a lease, in the largest transactions that etcd takes, and asks nothing.
Rule: requests are counted by etcd itself.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc
from push_rig import Etcd, Outside, PushRun, device_of, node, started
from tidegate.bench.rig import Crowd, LostError, RigError, Server
from tidegate.calls import Enter, Place
from tidegate.registries import Registry, open_registry

CONNECTIONS = 10_000
CONNECTIONS_QUICK = 500
SETTLE_S = 4.0  # until allocators have given back what a storm of handshakes took: the engine's waits a second
SETTLE_S_QUICK = 1.0
REGISTRATIONS = 100_000
REGISTRATIONS_QUICK = 5_000
WAVE = 1_000
OTHERS_MAX = 4
TTL_S = 90
RENEW_S = 30.0
READY_S_MAX = 30.0
TRANSACTION_MAX = 128  # etcd's own limit, unless set
IN_FLIGHT = 8  # transactions: as many as the registry has under way


# --- connections ------------------------------------------------------------------------------------------------------


def connections(run: PushRun, outside: Outside, stack: contextlib.ExitStack) -> None:
    count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
    with run.part(), contextlib.ExitStack() as nodes:
        here = node(run, outside, nodes, count)
        asked = outside.etcd.round_trips()
        crowd = measure_memory(run, here, here.name, count)
        trips = outside.etcd.round_trips() - asked
        run.figures.of(f"{count:,} connections", "asked of etcd", "requests", 0).add(here.name, trips)
        crowd.ask("close")
    for make, name in ((run.tidegate, "attchat-gateway"), (run.limit, "limit")):
        with run.part():
            measure_memory(run, make(count), name, count)


def measure_memory(run: PushRun, server: Server, name: str, count: int) -> Crowd:
    settle_s, case = SETTLE_S_QUICK if run.quick else SETTLE_S, f"{count:,} connections"
    crowd = run.crowd(server, "chat:all", count)
    time.sleep(settle_s)
    empty, cpu = server.rss_bytes(), server.cpu_s()
    opened = crowd.open(count)
    cpu = server.cpu_s() - cpu
    time.sleep(settle_s)
    figures = run.figures
    figures.of(case, "user memory a connection", "bytes", 0).add(name, (server.rss_bytes() - empty) / count)
    figures.of(case, "opened", "1/s", 0).add(name, count / opened["seconds"], opened)
    figures.of(case, "server CPU a connection opened", "us", 0).add(name, cpu / count * 1e6)
    return crowd


# --- registrations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ttl:
    ttl: float = float(TTL_S)
    renew_interval: float = RENEW_S


@dataclass(frozen=True)
class Settings:
    registry: Ttl = field(default_factory=Ttl)


def registrations(run: PushRun, outside: Outside, stack: contextlib.ExitStack) -> None:
    count = run.options.registrations or (REGISTRATIONS_QUICK if run.quick else REGISTRATIONS)
    places = [Place(f"u{number}", device_of(number), number + 1, int(time.time())) for number in range(count)]
    for name, measure in (("tidegate", through_the_registry), ("limit", put_bare)):
        with started(Etcd) as etcd:
            asyncio.run(measure(Meter(run, etcd, name, count), places))


@dataclass(frozen=True, slots=True)
class Meter:
    run: PushRun
    etcd: Etcd
    name: str
    count: int

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Time, and what this process and etcd did meanwhile."""
        trips, etcd = self.etcd.round_trips(), self.etcd.cpu_s()
        cpu, began = time.process_time(), time.monotonic()
        yield
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        etcd, trips = self.etcd.cpu_s() - etcd, self.etcd.round_trips() - trips
        figures, case = self.run.figures, f"{self.count:,} {what}"
        figures.of(case, "all done", "s", 2).add(self.name, seconds)
        figures.of(case, "asked of etcd", "requests", 0).add(self.name, trips)
        figures.of(case, "client CPU each", "us", 0).add(self.name, cpu / self.count * 1e6)
        figures.of(case, "etcd's CPU each", "us", 0).add(self.name, etcd / self.count * 1e6)


async def through_the_registry(meter: Meter, places: Sequence[Place]) -> None:
    async with running(meter.etcd) as registry:
        with meter.measuring("registrations"):
            await in_waves(lambda place: registry.call("register", Enter(place, OTHERS_MAX)), places)
        await check(meter.etcd, len(places))
        with meter.measuring("unregistrations"):
            await in_waves(lambda place: registry.call("unregister", place), places)
        await check(meter.etcd, 0)


@contextlib.asynccontextmanager
async def running(etcd: Etcd) -> AsyncIterator[Registry]:
    registry = open_registry(etcd.url, Settings(), node="127.0.0.1:9093")
    task = asyncio.create_task(registry.run(lambda conn: None))
    deadline = time.monotonic() + READY_S_MAX
    while not registry.is_ready():
        if time.monotonic() > deadline:
            raise RigError(f"the registry was not ready after {READY_S_MAX:.0f} s")
        await asyncio.sleep(0.02)  # it has no event for that
    try:
        yield registry
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await registry.close(READY_S_MAX)


async def in_waves(call: Callable[[Place], Awaitable[object]], places: Sequence[Place]) -> None:
    """So many at a time: whoever has an answer makes place for the next."""
    left = iter(places)

    async def call_in_turn() -> None:
        for place in left:
            if await call(place) is False:
                raise LostError("a registration was refused")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WAVE):
            tasks.create_task(call_in_turn())


async def put_bare(meter: Meter, places: Sequence[Place]) -> None:
    async with grpc.aio.insecure_channel(meter.etcd.address) as channel:
        lease = await rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=TTL_S))
        store = rpc_pb2_grpc.KVStub(channel)
        batches = iter([places[at : at + TRANSACTION_MAX] for at in range(0, len(places), TRANSACTION_MAX)])

        async def put_in_turn() -> None:
            for batch in batches:
                await store.Txn(rpc_pb2.TxnRequest(success=[put(place, lease.ID) for place in batch]))

        with meter.measuring("registrations"):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.create_task(put_in_turn())
    await check(meter.etcd, len(places))


def put(place: Place, lease: int) -> rpc_pb2.RequestOp:
    key = f"/registry/users/{place.user}/{place.device}".encode()
    value = f"127.0.0.1:9093|{place.connected_at}".encode()
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease))


async def check(etcd: Etcd, due: int) -> None:
    """As any reader of the registry sees it."""
    wanted = rpc_pb2.RangeRequest(key=b"/registry/users/", range_end=b"/registry/users0", count_only=True)
    async with grpc.aio.insecure_channel(etcd.address) as channel:
        found = await rpc_pb2_grpc.KVStub(channel).Range(wanted)
    if found.count != due:
        raise LostError(f"etcd has {found.count:,} registrations, {due:,} were due")
