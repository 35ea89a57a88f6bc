"""`redis://[user:password@]host:6379/0` and `rediss://`: a Redis that a profile reads from and writes to.

A few connections, each for one request at a time: its commands are sent together and all its replies are read. So who
goes away, or waits for a large reply, costs others no answer, and there is nothing to sort. Rules: no command is ever
sent twice, since a list that is appended to would hold it twice; no text shows a password, a key or a value.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import DataError, ResponseError

from tidegate.buses._redis_link import CURES, LINK_ERRORS, NONSENSE, Server, describe, parse_server
from tidegate.calls import RedisRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import UpstreamSettings, UpstreamStats
from tidegate.upstreams._circuit import Circuit
from tidegate.upstreams._lane import Lane, NoSignError, no_answer
from tidegate.upstreams._meter import NO_ANSWER, REFUSED, Meter
from tidegate.upstreams._redis_connections import Connections

log = logging.getLogger("tidegate.upstreams.redis")

# Redis answers one after the other anyway; with a third of a millisecond there and back, eight keep it as busy as one
# Python process can
CONNECTIONS = 8
# It stands before a slower service, whose calls take 3 s at most: a cache that takes longer than 1 s is none
TIMEOUT_S = 1.0
# As of the services that it stands before
FAILURES_MAX = 3
OPEN_S = 2.0


def open_upstream(url: str, _settings: UpstreamSettings, name: str) -> "RedisUpstream":
    return RedisUpstream(parse_server(url), name or "Redis")


class RedisUpstream:
    def __init__(self, server: Server, name: str = "Redis", clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._meter = Meter()
        self._lane = Lane(
            name,
            str(server),
            slots=asyncio.Semaphore(CONNECTIONS),
            circuit=Circuit(FAILURES_MAX, OPEN_S),
            clock=clock,
            log=log,
            bound=f"{CONNECTIONS} connections",
        )
        self._connections = Connections(server)

    async def call(self, method: str, request: RedisRequest) -> list[Any]:
        asked = self._lane.call(lambda: self._exchange(request), TIMEOUT_S)
        return await self._meter.timed(method, self._clock, asked)

    def stats(self) -> UpstreamStats:
        return self._meter.stats(self._lane.in_flight, self._lane.waiting, self._lane.is_open())

    def is_ready(self) -> bool:
        return self._lane.is_ready()

    async def close(self, within_s: float) -> None:
        await self._lane.close(within_s)
        await self._connections.close()

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _exchange(self, request: RedisRequest) -> list[Any] | UpstreamError:
        commands = [("MULTI",), *request.commands, ("EXEC",)] if request.is_atomic else request.commands
        try:
            replies = await self._connections.ask(commands)
        except DataError:
            raise  # an argument that is no text, bytes or number: a mistake of who wrote the profile
        except LINK_ERRORS as error:
            if isinstance(error, TimeoutError):
                raise  # the whole call's
            raise NoSignError(NO_ANSWER, f"{self._server}: {describe(error)}") from None
        except NONSENSE as error:
            raise NoSignError(NO_ANSWER, f"{self._server}: {type(error).__name__}; is it a Redis?") from None
        return self._checked(request, replies)

    def _checked(self, request: RedisRequest, replies: list[Any]) -> list[Any] | UpstreamError:
        """A refusal is a sign of life. One of those before EXEC says more than EXEC's own, which follows from it."""
        names = [str(command[0]) for command in request.commands]
        if request.is_atomic:
            queued, done = replies[1:-1], replies[-1]
            names, replies = ([*names, "EXEC"], [*queued, done]) if isinstance(done, ResponseError) else (names, done)
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, ResponseError):
                return no_answer(REFUSED, f"{self._server} refused {name}: {refusal(reply)}")
        return replies


def refusal(error: ResponseError) -> str:
    """Its code and the cure: the rest of what Redis says may repeat a command's arguments."""
    text = str(error)
    code = str(getattr(error, "status_code", None) or "") or text.partition(" ")[0]
    code = code if CODE.fullmatch(code) else "ERR"
    cures = [cure for pattern, cure in ((r"WRONGTYPE", WRONG_TYPE), *CURES) if re.search(pattern, f"{code} {text}")]
    return f"{code}. {cures[0] if cures else 'Look what the profile asked for.'}"


CODE = re.compile(r"[A-Z]{2,32}")
WRONG_TYPE = "Something else is kept under a key that the profile uses: DEL that key."
