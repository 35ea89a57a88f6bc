"""`memory:NAME`, backends inside the process: first run, demo and tests need no server.

Real backends, not mocks: a chat over HTTP (`_lobby.py`), the services of an im-gateway over gRPC (`_services.py`), and
what profiles use of a Redis (`_store.py`); the kind of a request says which is asked. Services and stores are shared by
all that open one name. Nothing outlives the process. Rule: the same contract and counters as over a wire, and no
library that is optional before somebody asks for it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tidegate.calls import HttpAnswer, HttpRequest, RedisRequest, RpcRequest
from tidegate.errors import UpstreamError, missing_package
from tidegate.upstreams import UNAVAILABLE, UpstreamSettings, UpstreamStats
from tidegate.upstreams._lobby import Lobby
from tidegate.upstreams._meter import NO_ANSWER, Meter
from tidegate.upstreams._shared import Shared
from tidegate.upstreams._store import store_named

if TYPE_CHECKING:
    from tidegate.upstreams._services import Services


def open_upstream(url: str, settings: UpstreamSettings, _name: str) -> "MemoryUpstream":
    return MemoryUpstream(Lobby(settings.backend.key.get_secret_value()), url.partition(":")[2].strip("/"))


class MemoryUpstream:
    def __init__(
        self,
        lobby: Lobby,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._lobby = lobby
        self._name = name
        self._store = store_named(name)
        self._services: Services | None = None
        self._clock = clock
        self._now = now
        self._meter = Meter()
        self._shared = Shared(self._ask, self._meter, clock)
        self._is_closed = False

    async def call(self, method: str, request: Any) -> Any:
        if isinstance(request, HttpRequest):
            return await self._shared.call(method, request)
        return await self._meter.timed(method, self._clock, self._answer(request))

    def stats(self) -> UpstreamStats:
        return self._meter.stats()

    def is_ready(self) -> bool:
        return not self._is_closed

    async def close(self, within_s: float) -> None:
        """An answer takes no time, so none is on its way for long; but for a push, which waits for who gets it."""
        self._is_closed = True
        await self._shared.close()
        if self._services is not None:
            await self._services.close(within_s)

    async def _ask(self, method: str, request: HttpRequest) -> HttpAnswer:
        began = self._clock()
        if self._is_closed:
            self._meter.count(method, NO_ANSWER, 0.0)
            raise closed()
        answer = self._lobby.answer(request, self._now())
        self._meter.count(method, str(answer.status), self._clock() - began)
        return answer

    async def _answer(self, request: RpcRequest | RedisRequest) -> Any:
        if self._is_closed:
            raise closed()
        if isinstance(request, RedisRequest):
            return self._store.answer(request, self._clock())
        if self._services is None:
            self._services = services_named(self._name)
        return await self._services.answer(request, self._now())


def services_named(name: str) -> "Services":
    try:
        from tidegate.upstreams._services import Services  # noqa: PLC0415 - the libraries are an extra
    except ModuleNotFoundError as error:
        raise missing_package("a service inside the process", error, "grpc") from None
    return Services(name)


def closed() -> UpstreamError:
    return UpstreamError(UNAVAILABLE, "The gateway is stopping.")
