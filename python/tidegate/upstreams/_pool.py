"""Connections kept for the next request, and never one that the backend has closed already.

A request on a connection that the server is just closing may or may not have been read, so a POST cannot be repeated.
Two things keep that rare. We let go of an idle connection before servers do (KEEP_ALIVE_S); and since the event loop
may not have come to a FIN that is here, the kernel is asked once more before a kept connection is used. What is left is
a FIN that is on its way while we send: aiohttp repeats a GET once then, and a POST fails.
"""

import select
from typing import Any

import aiohttp

# uvicorn, Node and Apache close after 5 s, others later
KEEP_ALIVE_S = 4.0
# The peer sent its last byte, or is gone. Not POLLIN: a TLS server sends session tickets at any time
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Pool(aiohttp.TCPConnector):
    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(limit=limit, keepalive_timeout=KEEP_ALIVE_S, **options)
        self._tries = limit + 1  # one more than can be kept: the last is a new connection

    async def connect(self, *args: Any, **options: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **options)
        for _ in range(self._tries):
            if not is_gone(connection.transport):
                break
            connection.close()
            connection = await super().connect(*args, **options)
        return connection


def is_gone(transport: Any) -> bool:
    """Asks the kernel, which knows before the event loop does."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), GONE)
    return bool(poll.poll(0))
