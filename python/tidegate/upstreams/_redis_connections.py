"""Connections to a Redis, kept for the next request: each serves one at a time, and what goes wrong on one ends it.

Why the library's connections and not its pool or client: those send a command again by themselves. Rule: a connection
is kept only when every reply of a request was read from it.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

from tidegate.buses._redis_link import LINK_ERRORS, Server, end, new_connection
from tidegate.calls import RedisCommand

# Only ends what nobody waits for any more: who asks has a time of his own, which is shorter
CONNECT_S_MAX = 5.0


class Connections:
    """As many as ask at once; who asks bounds that."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._free: list[Connection] = []  # the one used last comes first, so that the others may go idle

    async def ask(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """All replies, a refusal in its command's place. Raises one of LINK_ERRORS."""
        connection = await self._taken()
        try:
            # False: no pings of the library's in between
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies = [await _reply(connection) for _ in commands]
        except BaseException:
            await end(connection)
            raise
        self._free.append(connection)
        return replies

    async def close(self) -> None:
        free, self._free = self._free, []
        for connection in free:
            await end(connection)

    async def _taken(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if await _is_fresh(connection):
                return connection
            await end(connection)
        return await self._opened()

    async def _opened(self) -> Connection:
        connection = new_connection(self._server, "tidegate", CONNECT_S_MAX)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await end(connection)
            raise
        return connection


async def _is_fresh(connection: Connection) -> bool:
    """Redis closes idle connections, or was restarted: then there is an end of file to be read, and nothing else."""
    try:
        return not await connection.can_read()
    except LINK_ERRORS:
        return False


async def _reply(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal
