"""gRPC's health protocol, v1: the same answer as /ready, under the empty name and each service's.

The library's own servicer must be told each change; this one asks when it is asked. Rule: a watch ends with its server,
so that a stop is not held up by those who look on.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1.health_pb2 import (  # type: ignore[import-untyped]  # comes without types
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from grpc_health.v1.health_pb2_grpc import HealthServicer  # type: ignore[import-untyped]  # likewise

# How soon a watch tells a change; load balancers look every few seconds
WATCH_S = 0.5
# Each caller's balancer has one on each of its connections; looking for all of them costs 1 % of a core
WATCHES_MAX = 256


class Health(HealthServicer):  # type: ignore[misc]  # it comes without types
    def __init__(self, services: Iterable[str], why_not_ready: Callable[[], str | None]) -> None:
        self._names = {"", *services}
        self._why_not_ready = why_not_ready
        self._watches = 0
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """NOT_SERVING from now on; watches are told so and end."""
        self._stopping.set()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: HealthCheckRequest, context: ServicerContext[HealthCheckRequest, HealthCheckResponse]
    ) -> HealthCheckResponse:
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=status)

    async def List(  # noqa: N802 - the protocol's name
        self, _request: HealthListRequest, _context: ServicerContext[HealthListRequest, HealthListResponse]
    ) -> HealthListResponse:
        statuses = {name: HealthCheckResponse(status=self._status(name)) for name in self._names}
        return HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802 - the protocol's name
        self, request: HealthCheckRequest, context: ServicerContext[HealthCheckRequest, HealthCheckResponse]
    ) -> AsyncIterator[HealthCheckResponse]:
        if self._watches >= WATCHES_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch")
        self._watches += 1
        try:
            async for status in self._changes(request.service):
                yield HealthCheckResponse(status=status)
        finally:
            self._watches -= 1

    async def _changes(self, service: str) -> AsyncIterator[HealthCheckResponse.ServingStatus]:
        last = None
        while True:
            status, is_last = self._status(service), self._stopping.is_set()
            if status != last:
                yield status
            if is_last:
                return
            last = status
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service not in self._names:
            return HealthCheckResponse.SERVICE_UNKNOWN
        if self._stopping.is_set() or self._why_not_ready() is not None:
            return HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse.SERVING
