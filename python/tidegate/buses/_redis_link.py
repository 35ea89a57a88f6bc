"""One connection to Redis: opened, spoken over, ended at the first doubt. And the URL, and what Redis' refusals mean.

Why the library's connections and not its client: the client sends a command again by itself when a connection breaks,
and a PUBLISH or XADD must not be repeated unasked. Rule: the URL's password stays in here, no text shows it.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from tidegate.errors import ConfigError

Command: TypeAlias = tuple[bytes | str | int, ...]

# What a server that is down, cut off, frozen, full or unwilling shows as.
LINK_ERRORS = (RedisError, OSError, TimeoutError)
# What replies that no Redis gives end in, when they are read.
NONSENSE = (LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Server:
    """Where to connect and as whom; its `repr` is safe to log."""

    host: str
    port: int
    db: int
    tls: bool
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def parse_server(url: str) -> Server:
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        raise bad_url(url) from None
    path = parts.path.strip("/")
    odd = parts.query or parts.fragment or parts.scheme not in ("redis", "rediss")
    if odd or not host or not HOST.fullmatch(host) or not DATABASE.fullmatch(path):
        raise bad_url(url)
    user, password = (unquote(value) if value else None for value in (parts.username, parts.password))
    return Server(host, port, int(path or 0), parts.scheme == "rediss", user, password)


def new_connection(server: Server, name: str, connect_s_max: float) -> Connection:
    """Not connected yet. It never tries anything twice by itself."""
    return (SSLConnection if server.tls else Connection)(
        host=server.host,
        port=server.port,
        db=server.db,
        username=server.user,
        password=server.password,
        client_name=name,
        # RESP2: replies without surprises, from any version
        protocol=2,
        # The times are ours: a timeout of the library's would count a whole blocking read.
        socket_timeout=None,
        socket_connect_timeout=connect_s_max,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )


def bad_url(url: str) -> ConfigError:
    # Whatever comes before the last @ may be a password, and so may what follows a ? or #.
    shown = re.split(r"[?#]", url.rpartition("@")[2], maxsplit=1)[0]
    cure = (
        "Write redis://user:password@host:6379/0, or rediss:// for TLS, one server and no options; "
        "percent-encode : @ / ? # in a password."
    )
    return ConfigError(f"redis.url {('***@' if '@' in url else '') + shown!r} is not a Redis URL", cure)


class Link:
    """Commands in order, replies in order. What breaks it closes it; `on_lost` hears of that once."""

    def __init__(self, server: Server, name: str, on_lost: Callable[[], None] = lambda: None) -> None:
        self._server = server
        self._name = name
        self._on_lost = on_lost
        self._connection: Connection | None = None
        self.used_at = 0.0  # loop time of the last reply

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    async def open(self) -> None:
        """Raises one of LINK_ERRORS. A server that accepts and says nothing is one that is down."""
        await self.close()
        connection = new_connection(self._server, self._name, CONNECT_TIMEOUT_S)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(connection.pack_command("PING"))
                await connection.read_response()
        except BaseException:
            await end(connection)
            raise
        self._connection = connection
        self.used_at = asyncio.get_running_loop().time()

    async def call(self, *commands: Command, within: float) -> list[Any]:
        """All replies, a refusal in its command's place. Raises one of LINK_ERRORS: then it is closed."""
        try:
            async with asyncio.timeout(within):
                connection = await self._send(commands)
                return [await self._reply(connection) for _ in commands]
        except BaseException:
            await self.close()
            raise

    async def send(self, command: Command) -> None:
        """Without its reply, which `next_push` reads."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._send([command])
        except BaseException:
            await self.close()
            raise

    async def next_push(self, within: float) -> list[Any] | None:
        """What comes by itself on a connection that subscribes; None = nothing did."""
        try:
            connection = self._connected()
            pushed: list[Any] | None = await connection.read_response(timeout=within)
        except BaseException:
            await self.close()
            raise
        return pushed

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._on_lost()
            await end(connection)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise ConnectionError("not connected")
        return self._connection

    async def _send(self, commands: Sequence[Command]) -> Connection:
        connection = self._connected()
        # False: no pings of the library's in between
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return connection

    async def _reply(self, connection: Connection) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as refusal:
            return refusal
        finally:
            self.used_at = asyncio.get_running_loop().time()


async def end(connection: Connection) -> None:
    with contextlib.suppress(*LINK_ERRORS):
        # nowait: a peer that is gone would be waited for
        await connection.disconnect(nowait=True)


def describe(error: BaseException) -> str:
    """One line with the cure, if there is a known one. Redis and its library name no password in an error."""
    text = str(error).strip() or type(error).__name__
    code = str(getattr(error, "status_code", None) or "")
    said = f"{code} {text}" if code and not text.startswith(code) else text
    cure = next((cure for pattern, cure in CURES if re.search(pattern, said)), "")
    return f"{said.rstrip('.')}. {cure}" if cure else said


# Redis' own words -> what a person does about it; the first that fits.
CURES = (
    (
        r"WRONGPASS|invalid username-password|invalid password",
        "Correct the user and password in redis.url (percent-encode : @ / ? # in them).",
    ),
    (
        r"NOAUTH|Authentication required",
        "Redis wants a password: write redis://user:password@host:6379/0 in redis.url.",
    ),
    (r"AUTH .*(no password|without any password)", "Redis has no password: take it out of redis.url."),
    (
        r"NOPERM|no permissions|User .* has no",
        "Give the user of redis.url what docs/operations.md lists under Redis (ACL SETUSER).",
    ),
    (
        r"WRONGTYPE",
        "Something else is kept under a stream's name: DEL that key, or name other streams in redis.streams.",
    ),
    (r"OOM|maxmemory", "Redis is full: raise its maxmemory, or lower redis.stream_length."),
    (r"READONLY|read only replica", "redis.url leads to a replica: write the address of the primary."),
    (
        r"MISCONF",
        "Redis can't write its snapshot and refuses writes: free its disk, or look at its log.",
    ),
    (
        r"MOVED|CROSSSLOT|CLUSTERDOWN",
        "Redis Cluster is not supported: write the address of a single server or primary.",
    ),
    (r"max number of clients", "Raise maxclients of Redis; a node of tidegate takes four."),
    (r"DB index is out of range", "redis.url ends in a database that Redis does not have: /0 is always there."),
)

# A TCP handshake, TLS and Redis' greeting; a server that takes longer is frozen or out of reach.
CONNECT_TIMEOUT_S = 2.0
# Redis answers in microseconds; a big RDB fork or a slow script stops it for a second.
COMMAND_TIMEOUT_S = 2.0

HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9a-fA-F:.]+(%[A-Za-z0-9]+)?")
# Redis' own bound is its `databases` setting, 16 unless raised.
DATABASE = re.compile(r"[0-9]{0,4}")
