"""One gRPC server and the way to it: its channels, its circuit, and what a status of it means.

A channel reconnects by itself; what it must not do is wait. So no call is held back for a connection that is not there
(`wait_for_ready` is off), the pauses between attempts are short, and no call is repeated by the library. Rule: a status
that only a living server gives is a sign of life, whatever it says; its text is shown nowhere, since it may repeat what
was asked.
"""

import asyncio
import itertools
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

import tidegate
from tidegate.errors import UpstreamError
from tidegate.protos.methods import Method
from tidegate.upstreams._circuit import Circuit
from tidegate.upstreams._lane import Lane, NoSignError, no_answer
from tidegate.upstreams._meter import NO_ANSWER

log = logging.getLogger("tidegate.upstreams.grpc")

# The im-gateway contract's figures
FAILURES_MAX = 3
OPEN_S = 2.0
# A burst of more would only wait in the service instead of here, and servers built on gRPC's C core cancel calls at
# random from 1,000 waiting ones on (measured: 11 of 4,000 calls with 1,024 at once, none with 512)
IN_FLIGHT_MAX = 512
# A page of 1,000 members has some 200 KB; the library's own bound for what it receives
MESSAGE_BYTES_MAX = 4 * 1024 * 1024

# What gRPC itself says of a message that it can't read
UNREADABLE = grpc.StatusCode.INTERNAL.name.lower()
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED.name.lower()
# Whoever answers anything else is there
NO_SIGN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
OPTIONS: tuple[tuple[str, Any], ...] = (
    # repeating is the profile's decision
    ("grpc.enable_retries", 0),
    # else channels with the same options would share one connection
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # all addresses of a name are used, as a headless service of Kubernetes has several
    ("grpc.lb_policy_name", "round_robin"),
    # a service that was restarted, maybe elsewhere, is found within a second or so
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # for one attempt: the kernel repeats a lost SYN after 1 s
    ("grpc.min_reconnect_backoff_ms", 2500),
    # a host that vanished without a goodbye is noticed: at once by unconfirmed bytes, else by a ping. Seldom enough for
    # servers that punish pings, and never without a call
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    # connections that nobody needs are closed
    ("grpc.client_idle_timeout_ms", 300_000),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.primary_user_agent", f"tidegate/{tidegate.__version__}"),
)


class Target:
    """`channels` connections, made at the first call."""

    def __init__(self, title: str, address: str, channels: int, clock: Callable[[], float], tls: bool = False) -> None:
        self.address = address
        self.lane = Lane(
            title,
            address,
            slots=asyncio.Semaphore(IN_FLIGHT_MAX),
            circuit=Circuit(FAILURES_MAX, OPEN_S),
            clock=clock,
            log=log,
            bound=f"{IN_FLIGHT_MAX} are on their way",
            too_slow=DEADLINE,
        )
        self._tls = tls
        self._channels: list[aio.Channel] = []
        self._size = channels
        self._turns = itertools.cycle(range(channels))
        self._calls: dict[tuple[int, str], Any] = {}  # (channel, path) -> what calls it
        self.users = 0  # calls that have it in hand, those that pause between two tries too

    async def call(
        self, method: Method, message: Message, metadata: tuple[tuple[str, str], ...], seconds: float
    ) -> Any:
        """One try."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds

        async def exchange() -> Any:
            left = max(until - loop.time(), 0.0)  # what waiting for a place has left of it
            try:
                answer = await self._next(method)(message, timeout=left, metadata=metadata)
            except aio.AioRpcError as error:
                return self._meaning(error.code(), method)
            except aio.InternalError as error:
                raise NoSignError(NO_ANSWER, f"{self.address}: {type(error).__name__}; look in its log.") from None
            return self._read(answer, method)

        return await self.lane.call(exchange, seconds)

    async def close(self, within_s: float) -> None:
        await self.lane.close(within_s)
        channels, self._channels = self._channels, []
        self._calls.clear()
        for channel in channels:
            await channel.close()

    def _next(self, method: Method) -> Any:
        """Another connection each time, so that a call that is repeated doesn't meet the same trouble."""
        if not self._channels:
            self._channels = [self._channel() for _ in range(self._size)]
        turn = next(self._turns)
        call = self._calls.get((turn, method.path))
        if call is None:
            call = self._calls[turn, method.path] = self._channels[turn].unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
            )
        return call

    def _channel(self) -> aio.Channel:
        name = f"dns:///{self.address}"
        if self._tls:
            return aio.secure_channel(name, grpc.ssl_channel_credentials(system_roots()), options=OPTIONS)
        return aio.insecure_channel(name, options=OPTIONS)

    def _read(self, answer: bytes, method: Method) -> Any:
        """Not left to the library, which would give None for an answer that can't be read."""
        try:
            return method.response.FromString(answer)
        except DecodeError:
            why = f"{self.address} answered {method.path} with another message; are its .proto files of the same kind?"
            return no_answer(UNREADABLE, why)

    def _meaning(self, code: grpc.StatusCode, method: Method) -> UpstreamError:
        outcome = code.name.lower()
        why = f"{self.address} {CURES.get(code, f'answered {method.path} with {code.name}; look in its log.')}"
        if code in NO_SIGN:
            raise NoSignError(outcome, why)
        return no_answer(outcome, why)


def system_roots() -> bytes | None:
    """The machine's, which an administrator can add to; where none are found, the library's own count."""
    found = ssl.get_default_verify_paths()  # SSL_CERT_FILE names another
    files = [Path(found.cafile or ""), Path(found.capath or "") / "ca-certificates.crt"]
    return next((path.read_bytes() for path in files if path.is_file()), None)


CURES = {
    grpc.StatusCode.UNAVAILABLE: "cannot be reached; start it, or put its address right.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time; see why it is slow.",
    grpc.StatusCode.UNIMPLEMENTED: "has no such method; is it the right service's address?",
    grpc.StatusCode.RESOURCE_EXHAUSTED: f"is overloaded, or a message has more than {MESSAGE_BYTES_MAX} bytes.",
}
