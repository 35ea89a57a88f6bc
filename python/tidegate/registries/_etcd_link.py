"""The way to etcd: one channel to one of its endpoints, another one when that fails, a deadline on everything.

gRPC's own choice among addresses stays with one that is frozen, so the choice is made here: an endpoint that cannot be
reached, or does not answer, is left for the next. After a few failures in a row questions fail at once for a moment, so
that a crowd does not queue up behind deadlines; what one broken connection took with it is one failure.
Rule: whatever gRPC raises leaves this file as an UpstreamError; no error says with which password.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from tidegate.buses._backoff import backoff_s
from tidegate.errors import UpstreamError
from tidegate.registries import UNAVAILABLE
from tidegate.registries._etcd_url import Etcd
from tidegate.registries._etcd_wire import Message, protos

# A batch is written in 5 ms; two of these fit almost into what a call may take
ASK_S = 2.0
# Each of many answers on one stream takes a turn of the loop, which may be busy with a storm of registrations
ANSWER_S = 0.02
# In a row, of an endpoint that is the only one: then a new connection is tried. One may be a hiccup of an election
TIMEOUTS_MAX = 2
FAILURES_MAX = 3
REST_S_MAX = 1.0
# The largest answer is a batch of look-ups, of users with as many devices as may be
RECEIVE_BYTES_MAX = 64 * 1024 * 1024
OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    # Finds a peer that is gone while the watch is silent. etcd does not take more than one in 5 s
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The default grows to two minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A new channel must be a new connection: the old one may be to a host that is gone
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
# What says that nobody is there, or not able to serve; other statuses are answers
ABSENT = {"unavailable", "timeout", "cancelled"}


class Wires:
    """A channel and its stubs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = protos.insecure_channel(address, options=OPTIONS)
        self.kv = protos.KVStub(self.channel)
        self.lease = protos.LeaseStub(self.channel)
        self.watch = protos.WatchStub(self.channel)
        self.auth = protos.AuthStub(self.channel)
        self.metadata: tuple[tuple[str, str], ...] | None = None  # None = not known yet


class Link:
    def __init__(self, etcd: Etcd, clock: Callable[[], float] = time.monotonic) -> None:
        self._etcd = etcd
        self._clock = clock
        self._turn = 0
        self._wires: Wires | None = None
        self._failed_in_row = 0
        self._timeouts_in_row = 0
        self._failed_at = 0.0
        self._rest_until = 0.0
        self._entering = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.round_trips = 0
        self.failures = 0

    async def txn(self, operations: Sequence[Message]) -> Message:
        """One transaction of operations; their answers are in `responses`, its revision in `header`."""
        return await self._ask(lambda wires: wires.kv.Txn, protos.TxnRequest(success=operations))

    async def range(self, request: Message) -> Message:
        return await self._ask(lambda wires: wires.kv.Range, request)

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id."""
        answer = await self._ask(lambda wires: wires.lease.LeaseGrant, protos.LeaseGrantRequest(TTL=ttl_s))
        return int(answer.ID)

    async def revoke(self, lease: int) -> None:
        await self._ask(lambda wires: wires.lease.LeaseRevoke, protos.LeaseRevokeRequest(ID=lease))

    async def renew(self, leases: Sequence[int]) -> dict[int, int]:
        """Lease -> the seconds that it lives from now on, 0 = it is gone. All on one stream, one behind the other."""
        wires = await self._connected()
        requests = [protos.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        with self._translated(wires):
            within = ASK_S * 2 + ANSWER_S * len(leases)
            call = wires.lease.LeaseKeepAlive(iter(requests), timeout=within, metadata=wires.metadata)
            try:
                return {int(answer.ID): int(answer.TTL) async for answer in call}
            finally:
                call.cancel()

    async def watch(self, request: Message) -> AsyncGenerator[Message, None]:
        """Answers until it breaks, which raises. The first one comes in time or not at all."""
        wires = await self._connected()
        with self._translated(wires):
            call = wires.watch.Watch(metadata=wires.metadata)
            try:
                async with asyncio.timeout(ASK_S):
                    await call.write(request)
                    answer = await call.read()
                while answer:
                    self._failed_in_row = self._timeouts_in_row = 0
                    yield answer
                    answer = await call.read()
            finally:
                call.cancel()
        raise failure("unavailable", f"etcd at {wires.address} ended the watch")

    async def close(self) -> None:
        self._is_closed = True
        wires, self._wires = self._wires, None
        if wires is not None:
            await wires.channel.close()
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _ask(self, method: Callable[[Wires], Message], request: Message) -> Message:
        wires = await self._connected()
        with self._translated(wires):
            return await method(wires)(request, timeout=ASK_S, metadata=wires.metadata)

    async def _connected(self) -> Wires:
        if self._is_closed:
            raise failure("unavailable", "This node's registry is closed: the gateway ends.")
        if self._clock() < self._rest_until:
            raise failure("circuit_open", f"etcd at {self._etcd} did not answer just now")
        if self._wires is None:
            endpoints = self._etcd.endpoints
            self._wires = Wires(endpoints[self._turn % len(endpoints)])
        wires = self._wires
        if wires.metadata is None:
            async with self._entering:
                await self._enter(wires)
        return wires

    async def _enter(self, wires: Wires) -> None:
        if wires.metadata is not None:
            return
        metadata: tuple[tuple[str, str], ...] = ()
        if self._etcd.user:
            request = protos.AuthenticateRequest(name=self._etcd.user, password=self._etcd.password)
            with self._translated(wires):
                answer = await wires.auth.Authenticate(request, timeout=ASK_S)
            metadata = (("token", answer.token),)
        wires.metadata = metadata

    @contextlib.contextmanager
    def _translated(self, wires: Wires) -> Iterator[None]:
        """Counts a round trip and how it ended. Closing a channel cancels what waits on it, which is no cancellation
        of whoever waits."""
        self.round_trips += 1
        began = self._clock()
        try:
            yield
        except protos.AioRpcError as error:
            raise self._failed(wires, outcome_of(error), error.details() or "", began) from None
        except TimeoutError:
            raise self._failed(wires, "timeout", "no answer", began) from None
        except (protos.BaseError, protos.InternalError, asyncio.InvalidStateError) as error:
            raise self._failed(wires, "unavailable", type(error).__name__, began) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._failed(wires, "cancelled", "the connection was given up", began) from None
        self._failed_in_row = self._timeouts_in_row = 0

    def _failed(self, wires: Wires, outcome: str, details: str, began: float) -> UpstreamError:
        self.failures += 1
        if outcome == "unauthenticated" or "auth token" in details:
            wires.metadata = None
        if outcome not in ABSENT:
            self._failed_in_row = self._timeouts_in_row = 0
        elif wires is self._wires and began >= self._failed_at:
            self._failed_at = self._clock()
            self._count_failure(outcome == "timeout")
        return failure(outcome, f"etcd at {wires.address}: {details}")

    def _count_failure(self, is_timeout: bool) -> None:
        self._failed_in_row += 1
        self._timeouts_in_row += is_timeout
        if self._failed_in_row >= FAILURES_MAX:
            self._rest_until = self._clock() + backoff_s(self._failed_in_row, REST_S_MAX)
        # A lone endpoint that refuses is dialled again by the channel itself
        if len(self._etcd.endpoints) > 1 or self._timeouts_in_row >= TIMEOUTS_MAX:
            self._leave()

    def _leave(self) -> None:
        self._turn += 1
        self._timeouts_in_row = 0
        wires, self._wires = self._wires, None
        if wires is None:
            return
        # What is on its way may still be answered; the watch ends with it
        task = asyncio.get_running_loop().create_task(wires.channel.close(ASK_S))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def outcome_of(error: Message) -> str:
    name: str = error.code().name.lower()
    return "timeout" if name == "deadline_exceeded" else name


def failure(outcome: str, cure: str) -> UpstreamError:
    return UpstreamError(UNAVAILABLE, cure, outcome)
