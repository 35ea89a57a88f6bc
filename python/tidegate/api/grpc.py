"""What backends call over gRPC: the services of a profile on a port of their own, with health and reflection.

Plain HTTP/2 without TLS, as the contracts have it: the port is for the inside of a network. Rule: whoever is there has
a bound: connections, calls, pings, bytes of a message and seconds of a call.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from tidegate.api.server import bind_tcp
from tidegate.errors import StartError, missing_package

try:
    import grpc
    from grpc import aio
    from grpc.aio import ServicerContext
    from grpc_health.v1.health import SERVICE_NAME as HEALTH  # type: ignore[import-untyped]  # comes without types
    from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server  # type: ignore[import-untyped]  # likewise
    from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]  # likewise

    from tidegate.api._rpc_calls import CALLS_MAX, Answer, Calls
    from tidegate.api._rpc_health import WATCHES_MAX, Health
    from tidegate.protos.methods import Method, methods_of
except ImportError as error:
    raise missing_package("the port of gRPC", error, "grpc") from None

__all__ = ["Answer", "GrpcServer"]

log = logging.getLogger("tidegate.api.grpc")

# Also those that are on their way to be refused, and reflection's; beyond it the library refuses unread
RPCS_MAX = CALLS_MAX + WATCHES_MAX + 512
# A message for clients has at most ws.max_message_size, 64 KiB unless set; with room for 1 MiB this is no second place
# to set it, and CALLS_MAX of them can't take all memory
MESSAGE_BYTES_MAX = 1 << 20
# Other nodes and services with a few connections each; more is a leak of theirs
CONNECTIONS_MAX = 4096
# After the grace, what is cut off has so long to notice
CUT_S = 1.0

OPTIONS = (
    # a port that another process has must be refused, not shared
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # one service may make all its calls on one connection
    ("grpc.max_concurrent_streams", RPCS_MAX),
    # unless told so the library cancels calls at random once 1,000 have come that nobody has looked at: a burst's
    ("grpc.server.max_pending_requests", RPCS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", RPCS_MAX),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # a peer that vanished without a goodbye gives its connection back
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # who pings more often than the eagerest client library is cut off the third time
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
)


class GrpcServer:
    """The methods of the first service, under the names of all."""

    def __init__(
        self, services: Sequence[str], answer: Answer, health: Callable[[], str | None], *, host: str, port: int
    ) -> None:
        self._services = services
        self._calls = Calls(answer)
        self._why_not_ready = health
        self._host = host
        self._port = port
        self._server: aio.Server | None = None
        self._health: Health | None = None

    @property
    def under_way(self) -> int:
        return self._calls.under_way

    def counts(self) -> Mapping[tuple[str, str], int]:
        """(method, status) -> calls that have ended."""
        return self._calls.counts()

    async def start(self) -> int:
        """Returns the port. StartError if it can't be had."""
        server = aio.server(options=OPTIONS, maximum_concurrent_rpcs=RPCS_MAX)
        health = Health(self._services, self._why_not_ready)
        methods = {method.name: self._method_handler(method) for method in methods_of(self._services[0])}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, methods) for service in self._services]
        )
        add_HealthServicer_to_server(health, server)
        reflection.enable_server_reflection([*self._services, HEALTH, reflection.SERVICE_NAME], server)
        port = self._bind(server)
        await server.start()
        self._server, self._health = server, health
        return port

    def _method_handler(self, method: Method) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Takes and gives bytes: a message that can't be read must not become the library's line in the log."""

        async def serve(data: bytes, context: ServicerContext[bytes, bytes]) -> bytes:
            return await self._calls.serve(method, data, context)

        return grpc.unary_unary_rpc_method_handler(serve)

    def _bind(self, server: aio.Server) -> int:
        host = f"[{self._host}]" if ":" in self._host else self._host or "[::]"
        try:
            return server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError:
            # the library does not say why; a socket of our own is told
            bind_tcp(self._host, self._port, "grpc.port").close()
        where = f"{self._host}:{self._port}"
        raise StartError(f"can't listen on {where}", "Check grpc.host and grpc.port, then start again.")

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once; those under way have the grace time to end. A second time does nothing."""
        server, self._server = self._server, None
        if server is None or self._health is None:
            return
        self._health.stop()
        try:
            async with asyncio.timeout(grace_s + CUT_S):
                await server.stop(grace_s)
        except TimeoutError:
            log.warning("%d calls of backends did not end when they were cut off", self.under_way)
