"""Each kind of upstream for the tests of what all of them promise: how it is made, asked, and what stands behind it.

Rule: a kind that is not here is not tested: `tests/contract/test_upstream.py` compares with the files of the role.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tidegate.buses._redis_link import parse_server
from tidegate.calls import RedisRequest
from tidegate.upstreams import Upstream
from tidegate.upstreams._circuit import FAILURES_MAX
from tidegate.upstreams._grpc_target import FAILURES_MAX as GRPC_FAILURES_MAX
from tidegate.upstreams._grpc_target import IN_FLIGHT_MAX
from tidegate.upstreams._lobby import Lobby
from tidegate.upstreams.grpc import GrpcUpstream
from tidegate.upstreams.http import HttpUpstream, checked_url
from tidegate.upstreams.memory import MemoryUpstream
from tidegate.upstreams.redis import CONNECTIONS, RedisUpstream
from tidegate.upstreams.redis import FAILURES_MAX as REDIS_FAILURES_MAX

from tests.rest_backend import RestBackend
from tests.servers import Server
from tests.upstreams import Backend, auth, validate

Clock = Callable[[], float]


@dataclass
class Case:
    kind: str
    url: str
    nowhere: str  # a URL where nobody listens
    word: str  # the outcome of an answer
    make: Callable[[Clock, float], Upstream]  # with a clock for its circuit and a time-out
    ask: Callable[[str], Any]  # a request that holds this text and is answered
    server: Server | None
    bound: int  # calls on their way at once
    failures_max: int


# those with somebody behind them who can die
SERVED = ("http", "grpc", "redis")
# what is inside the process answers requests of each kind
KINDS = ("memory", "memory-grpc", "memory-redis", *SERVED)


def case_of(kind: str, request: pytest.FixtureRequest) -> Iterator[Case]:
    made = {"memory": memory, "memory-grpc": memory_grpc, "memory-redis": memory_redis}
    yield (made | {"http": http, "grpc": grpc, "redis": redis})[kind](request)


def memory(_: pytest.FixtureRequest) -> Case:
    return Case("memory", "memory:", "", "200", made_inside, auth, None, 0, 0)


def memory_grpc(_: pytest.FixtureRequest) -> Case:
    return Case("memory", "memory:contract", "", "ok", made_inside, validate, None, 0, 0)


def memory_redis(_: pytest.FixtureRequest) -> Case:
    return Case("memory", "memory:contract", "", "ok", made_inside, kept, None, 0, 0)


def made_inside(clock: Clock, _: float) -> Upstream:
    return MemoryUpstream(Lobby(RestBackend.KEY), "contract", clock)


def kept(text: str) -> RedisRequest:
    return RedisRequest([("SADD", f"key {text}", text), ("SISMEMBER", f"key {text}", text), ("DEL", f"key {text}")])


def http(request: pytest.FixtureRequest) -> Case:
    backend = request.getfixturevalue("rest_backend")

    def make(clock: Clock, timeout: float) -> Upstream:
        return HttpUpstream(checked_url(backend.url), Backend(timeout=timeout, max_requests=32), clock)

    return Case("http", backend.url, "http://127.0.0.1:1", "200", make, auth, backend, 32, FAILURES_MAX)


def grpc(request: pytest.FixtureRequest) -> Case:
    backend = request.getfixturevalue("grpc_backend")

    def make(clock: Clock, timeout: float) -> Upstream:
        return GrpcUpstream(backend.address, timeout, clock=clock)

    nowhere = "grpc://127.0.0.1:1"
    return Case("grpc", backend.url, nowhere, "ok", make, validate, backend, IN_FLIGHT_MAX, GRPC_FAILURES_MAX)


def redis(request: pytest.FixtureRequest) -> Case:
    server = request.getfixturevalue("redis_server")

    def make(clock: Clock, _: float) -> Upstream:
        return RedisUpstream(parse_server(server.url), clock=clock)

    def ask(text: str) -> RedisRequest:
        return RedisRequest([("SET", f"key {text}", text), ("GET", f"key {text}")])

    nowhere = "redis://127.0.0.1:1/0"
    return Case("redis", server.url, nowhere, "ok", make, ask, server, CONNECTIONS, REDIS_FAILURES_MAX)
