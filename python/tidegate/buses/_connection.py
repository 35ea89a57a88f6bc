"""One connection to NATS at a time, and whether it is usable: opened, found lost, given up, closed.

Rule: it never reconnects by itself (`nats.py` decides when), it never logs an address with credentials, and the
library's callbacks end here: what they report shows as a lost connection or as `last_error`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from tidegate.buses._servers import Server

log = logging.getLogger(__name__)
T = TypeVar("T")


class Connection:
    """Invariant: `client` is not None exactly while `lost` is not set and the server can be spoken to."""

    def __init__(self, servers: list[Server], name: str) -> None:
        self._servers = servers  # the first is the one in use, or the one tried last
        self._name = name
        self._opening = asyncio.Lock()
        self._found = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self.client: Client | None = None
        self.lost = asyncio.Event()
        self.last_error = ""
        self.dropped = 0  # broadcasts from other nodes that came faster than they were taken

    def __str__(self) -> str:
        return self._servers[0].address

    async def usable(self) -> Client:
        """Waits for somebody to `open` it."""
        while self.client is None:
            await self._found.wait()
        return self.client

    async def open(self) -> Client:
        """Tries one server, the next one each time. Raises nats.errors.Error, OSError or TimeoutError."""
        async with self._opening:
            if self.client is not None:
                return self.client
            self._servers.append(self._servers.pop(0))
            client = await self._connect(self._servers[0])
            self.client = client
            self.lost.clear()
            self._found.set()
            self._add_discovered(client)
            return client

    async def unless_lost(self, request: Coroutine[Any, Any, T]) -> T:
        """The answer to `request`. A connection that goes ends it at once; the library would wait for the timeout."""
        task = asyncio.ensure_future(request)
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise nats.errors.ConnectionClosedError
            return task.result()
        finally:
            lost.cancel()
            task.cancel()
            await asyncio.gather(lost, task, return_exceptions=True)

    def abandon(self, client: Client) -> None:
        """It is of no use any more. What is being handed over goes on."""
        if client is self.client:
            self.client = None
            self._found.clear()
            self.lost.set()
            task = asyncio.get_running_loop().create_task(close_quietly(client))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def check(self) -> None:
        """Called now and then: a client that fails to write while it closes forgets to call back."""
        if self.client is not None and not self.client.is_connected:
            self.abandon(self.client)

    async def close(self) -> None:
        """Sends what is owed (acknowledgements above all), then closes."""
        client, self.client = self.client, None
        self._found.clear()
        self.lost.set()
        if client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.flush(FLUSH_TIMEOUT_S)
            await close_quietly(client)
        if self._closing:
            await asyncio.wait(self._closing, timeout=FLUSH_TIMEOUT_S)

    async def _connect(self, server: Server) -> Client:
        client = Client()
        errors: list[Exception] = []

        async def on_error(error: Exception) -> None:
            errors[:] = [error]
            self.last_error = describe(error)
            self.dropped += isinstance(error, nats.errors.SlowConsumerError)
            if isinstance(error, nats.errors.UnexpectedEOF):
                self.abandon(client)

        async def on_closed() -> None:
            self.abandon(client)

        def credential(value: str | None) -> str | None:
            refuse_plain_text(server, client)
            return value

        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
                await client.connect(
                    [server.address],
                    name=self._name,
                    # Called once the server has said whether it speaks TLS: before that nothing secret is sent.
                    user=(lambda: credential(server.user) or "") if server.password else None,
                    password=(lambda: credential(server.password) or "") if server.password else None,
                    token=(lambda: credential(server.token) or "") if server.token else None,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    allow_reconnect=False,
                    # our own broadcasts would come back only to be thrown away, at a quarter of what one costs
                    no_echo=True,
                    # No waiting and no second round inside the library.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    ping_interval=PING_INTERVAL_S,
                    pending_size=PENDING_BYTES_MAX,
                )
            refuse_plain_text(server, client)
        except nats.errors.NoServersError:
            raise errors[-1] if errors else OSError("no answer") from None
        except BaseException:
            await close_quietly(client)
            raise
        return client

    def _add_discovered(self, client: Client) -> None:
        """Other members of the cluster, for the day that those we were told are gone."""
        current = self._servers[0]
        known = {server.address for server in self._servers}
        for found in client.discovered_servers:
            address = f"{urlsplit(current.address).scheme}://{found.netloc.rpartition('@')[2]}"
            if address not in known and len(self._servers) < SERVERS_MAX:
                self._servers.append(Server(address, current.user, current.password, current.token))


def refuse_plain_text(server: Server, client: Client) -> None:
    """The library speaks TLS if the server asks; tls:// means that we ask. It has no public name for the INFO."""
    if server.address.startswith("tls:") and not client._server_info.get("tls_required"):
        raise nats.errors.Error("the server does not ask for TLS: write nats://, or give the server a tls section")


async def close_quietly(client: Client) -> None:
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            await client.close()
    except (nats.errors.Error, OSError, TimeoutError) as error:
        log.debug("closing the connection to NATS: %s", describe(error))


def describe(error: BaseException) -> str:
    """One line; addresses in it have no credentials, since the library is given none in an address."""
    return str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__


# A TCP handshake and NATS' own greeting; the library's default.
CONNECT_TIMEOUT_S = 2
# Two unanswered pings end a connection nobody speaks on: 10 to 15 s. Streams notice within 2.5 s by heartbeats.
PING_INTERVAL_S = 5
# Acknowledgements and pull requests are small; beyond this the library waits for the socket.
PENDING_BYTES_MAX = 8 * 1024 * 1024
# How long the last acknowledgements may take to reach the server.
FLUSH_TIMEOUT_S = 2
# Members of a cluster that we remember; super-clusters advertise many.
SERVERS_MAX = 64
