"""Runs an ASGI app on a socket that is ours: uvicorn without its signals, its logs and its WebSockets.

Rule: one request a connection, whose head has one deadline whatever trickles in. On the main port the engine has kept
that already; on the metrics port nobody else does, and silent clients would take every place there is.
"""

import asyncio
import contextlib
import errno
import secrets
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tidegate.errors import StartError

# Requests at once: a probe takes a millisecond, so more than this is an attack or a mistake, and is answered 503
REQUESTS_MAX = 1024
# For a request's head, unless the settings say otherwise: as for an upgrade
HEAD_S = 10.0
# After the last answer nothing is owed to anybody
SHUTDOWN_S = 1
# As the kernel bounds it: net.core.somaxconn is the real limit
BACKLOG = 4096


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """`app.py` has them."""
        yield


def _protocol(head_s: float) -> type[asyncio.Protocol]:
    """h11 by name: which parser serves must not depend on what else is installed."""

    class OneDeadline(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(head_s, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            if self.cycle is None:  # no head is complete
                self.transport.close()

    return OneDeadline


async def serve_http(app: ASGIApp, listener: socket.socket, head_s: float = HEAD_S) -> None:
    """Until cancelled; closes the socket then."""
    server = _Server(
        uvicorn.Config(
            app,
            http=_protocol(head_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=[("connection", "close")],
            limit_concurrency=REQUESTS_MAX,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        await task
        raise
    finally:
        listener.close()


def abstract_name() -> str:
    """Of a UNIX socket that no file system shows and nobody guesses."""
    return f"tidegate-{secrets.token_hex(16)}"


def bind_abstract(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def bind_tcp(host: str, port: int, setting: str) -> socket.socket:
    """`setting` is the key of the port, for the cure."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise cannot_listen(host, port, error, setting) from None
    listener.setblocking(False)
    return listener


def cannot_listen(host: str, port: int, error: OSError, setting: str) -> StartError:
    where = f"{host or '*'}:{port}"
    if error.errno == errno.EADDRINUSE:
        return StartError(f"port {port} is in use", f"Stop what listens on {where}, or choose another {setting}.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StartError(f"no permission to listen on {where}", f"Choose a {setting} of 1024 or above.")
    return StartError(f"can't listen on {where}: {error.strerror or error}", f"Check {setting} and the address.")
