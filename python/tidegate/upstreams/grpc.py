"""`grpc://host:port` and `grpcs://`: a service that is called over gRPC. `grpc:` alone: many, by RpcRequest.address.

Each has connections and a circuit of its own, so that one that is down holds up nobody else's calls. Rules: only what
the request says may be repeated is, with a pause, and within the time of one call; no log line holds a message or
metadata.
"""

import asyncio
import itertools
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import Message

from tidegate.calls import RpcRequest
from tidegate.errors import ConfigError, UpstreamError
from tidegate.protos.methods import Method, method_named
from tidegate.upstreams import UpstreamSettings, UpstreamStats
from tidegate.upstreams._grpc_target import DEADLINE, Target
from tidegate.upstreams._lane import STOPPING, no_answer
from tidegate.upstreams._meter import CIRCUIT_OPEN, NO_ANSWER, Meter

# All calls of a connection wait for a packet that it lost, proxies let 100 calls on one, and a balancer of connections
# sends each to one server: four spread all that and cost a service nothing
CHANNELS = 4
# A node calls each other node directly: more of them than clusters of this kind have. Addresses come from a registry
TARGETS_MAX = 256
# A node that was not called for so long is gone, or else a new connection is soon made
IDLE_S = 300.0
# Looked at with each call, so that the calls themselves clean up: more of them than can be added meanwhile
LEFT_OVER_MAX = 2
# Of one call; a profile that wants more would only add to an outage
RETRIES_MAX = 5
# The contract's: a restart of a channel's connection takes about so long
PAUSE_S = 0.05

ADDRESS = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
RETRIED = {"unavailable"}
INSISTED = RETRIED | {DEADLINE, "resource_exhausted"}


def open_upstream(url: str, settings: UpstreamSettings, name: str) -> "GrpcUpstream":
    title = name or "the service"
    address, tls = checked_url(url, title)
    return GrpcUpstream(address, settings.services.timeout, title, tls)


def checked_url(url: str, title: str = "the service") -> tuple[str, bool]:
    """host:port, or "" for many, and whether it is TLS. An error doesn't show the URL, which may hold a password."""
    scheme, _, rest = url.strip().partition(":")
    if rest in ("", "//") and scheme.lower() == "grpc":
        return "", False
    try:
        parts = urlsplit(url.strip())
        address = parts.netloc if parts.port and not (parts.path.strip("/") or parts.query or parts.fragment) else ""
    except ValueError:
        address = ""
    if not ADDRESS.fullmatch(address):
        raise ConfigError(f"the URL of {title} is no gRPC address", "Write grpc://host:port, or grpcs:// for TLS.")
    return address, parts.scheme == "grpcs"


class GrpcUpstream:
    """`address` = "" serves many."""

    def __init__(
        self,
        address: str,
        timeout_s: float,
        name: str = "the service",
        tls: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = timeout_s
        self._name = name
        self._clock = clock
        self._meter = Meter()
        self._only = Target(name, address, CHANNELS, clock, tls) if address else None
        # each with the time of its last call; whose was longest ago comes first
        self._targets: dict[str, tuple[Target, float]] = {}
        self._is_closed = False

    async def call(self, method: str, request: RpcRequest) -> Any:
        rpc = method_named(request.method)
        message = rpc.message(request.fields)
        return await self._meter.timed(method, self._clock, self._asked(rpc, message, request))

    def stats(self) -> UpstreamStats:
        targets = self._all()
        in_flight, waiting = sum(one.lane.in_flight for one in targets), sum(one.lane.waiting for one in targets)
        circuits = {one.address: one.lane.is_open() for one in targets}
        is_open = any(circuits.values())
        return self._meter.stats(in_flight, waiting, is_open, {} if self._only else circuits)

    def is_ready(self) -> bool:
        """One of many that is down is no reason to turn clients away."""
        return not self._is_closed and (self._only is None or self._only.lane.is_ready())

    async def close(self, within_s: float) -> None:
        self._is_closed = True
        await asyncio.gather(*(target.close(within_s) for target in self._all()))

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _asked(self, rpc: Method, message: Message, request: RpcRequest) -> Any:
        target, left_over = self._target(request.address)
        target.users += 1
        try:
            for other in left_over:
                await other.close(0)
            return await self._tries(target, rpc, message, request)
        finally:
            target.users -= 1

    async def _tries(self, target: Target, rpc: Method, message: Message, request: RpcRequest) -> Any:
        """Until one is answered, or fails in a way that is not to be repeated, or the time is up."""
        now = asyncio.get_running_loop().time
        until = now() + (request.timeout_s or self._timeout)
        metadata = tuple(request.metadata.items())
        repeated = INSISTED if request.insists else RETRIED
        others = min(request.retries, RETRIES_MAX)
        failed: UpstreamError | None = None
        while True:
            left = max(until - now(), 0.0)
            # for those that insist, a try that hangs must leave something
            most = request.try_s or (left / (1 + others) if request.insists else left)
            try:
                return await target.call(rpc, message, metadata, min(left, most))
            except UpstreamError as error:
                if failed is not None and error.outcome == CIRCUIT_OPEN:
                    # these tries opened it: what is the matter is why
                    raise failed from None
                if not others or error.outcome not in repeated or until - now() <= PAUSE_S:
                    raise
                failed = error
            others -= 1
            await asyncio.sleep(PAUSE_S)

    def _target(self, address: str) -> tuple[Target, list[Target]]:
        """And those that nobody needs any more, to be closed."""
        if self._is_closed:
            raise no_answer(NO_ANSWER, STOPPING)
        if self._only is not None:
            if address:
                raise ValueError("this upstream has an address; the upstream grpc: takes one with each request")
            return self._only, []
        known = self._targets.pop(address, None)
        target = known[0] if known else self._added(address)
        left_over = [self._targets.pop(old)[0] for old in self._left_over()]
        self._targets[address] = target, self._clock()
        return target, left_over

    def _added(self, address: str) -> Target:
        """An address is data: what a node wrote into the registry."""
        if not ADDRESS.fullmatch(address):
            raise no_answer(NO_ANSWER, "An address is no host:port; was a node's id written where its address belongs?")
        if len(self._targets) >= TARGETS_MAX and all(target.users for target, _ in self._targets.values()):
            raise no_answer(NO_ANSWER, f"{TARGETS_MAX} addresses are being called already.")
        return Target(self._name, address, 1, self._clock)

    def _left_over(self) -> list[str]:
        """Who was not called for long; or, where there is no place for one more, longest ago."""
        since = self._clock() - IDLE_S
        free = (old for old, (target, _) in self._targets.items() if not target.users)
        oldest = list(itertools.islice(free, LEFT_OVER_MAX))
        surplus = max(len(self._targets) + 1 - TARGETS_MAX, 0)
        return [old for rank, old in enumerate(oldest) if rank < surplus or self._targets[old][1] < since]

    def _all(self) -> list[Target]:
        return [self._only] if self._only else [target for target, _ in self._targets.values()]
