"""One call of a backend: from the bytes of its message to those of the answer, or to a status that says no more.

Application errors are fields of an answer, so a status other than OK is our own trouble or a caller's mistake. Rule:
its text is fixed, and a failure is logged by its type and the lines of code it came through.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from tidegate.gateway.faults import LOG_PACE_S, came_through
from tidegate.profile import Request
from tidegate.protos.methods import Method

log = logging.getLogger("tidegate.api.grpc")

# Fields of the answer to a request
Answer: TypeAlias = Callable[[Request], Awaitable[Mapping[str, Any]]]

# Under way at once. Each holds 25 KB, 200 MB in all, for the 5 s that a silent device is waited for: more than 1,600 a
# second that wait in vain are a sign that devices hang, not that more is needed
CALLS_MAX = 8192
# The longest that a profile waits is 30 s. A caller without a deadline, or one of hours, must not hold a place longer
SECONDS_MAX = 60.0

TEXTS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "too many calls are under way",
    grpc.StatusCode.INVALID_ARGUMENT: "the message can't be read",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the deadline is over",
    grpc.StatusCode.INTERNAL: "internal error",
}


class Calls:
    def __init__(self, answer: Answer) -> None:
        self.under_way = 0
        self._answer = answer
        self._counts: dict[tuple[str, str], int] = {}
        self._due = 0.0

    def counts(self) -> Mapping[tuple[str, str], int]:
        """(method, status) -> calls that have ended."""
        return self._counts

    async def serve(self, method: Method, data: bytes, context: ServicerContext[bytes, bytes]) -> bytes:
        """CancelledError where the caller has given up; its place is free at once."""
        if self.under_way >= CALLS_MAX:
            return await self._refuse(method, grpc.StatusCode.RESOURCE_EXHAUSTED, context)
        self.under_way += 1
        try:
            found = await self._outcome(method, data, context)
        except asyncio.CancelledError:
            self._count(method, grpc.StatusCode.CANCELLED)
            raise
        finally:
            self.under_way -= 1
        if isinstance(found, grpc.StatusCode):
            return await self._refuse(method, found, context)
        self._count(method, grpc.StatusCode.OK)
        return found

    async def _outcome(
        self, method: Method, data: bytes, context: ServicerContext[bytes, bytes]
    ) -> bytes | grpc.StatusCode:
        left = context.time_remaining()
        seconds = SECONDS_MAX if left is None else min(max(left, 0.0), SECONDS_MAX)
        try:
            message = method.request.FromString(data)
        except DecodeError:
            return grpc.StatusCode.INVALID_ARGUMENT
        request = Request(method.name, message, seconds, _metadata(context), time.time())
        try:
            async with asyncio.timeout(seconds) as limit:
                fields = await self._answer(request)
            return method.response(**fields).SerializeToString()
        except Exception as error:
            if limit.expired():
                return grpc.StatusCode.DEADLINE_EXCEEDED
            self._tell(method, error)
            return grpc.StatusCode.INTERNAL

    async def _refuse(self, method: Method, status: grpc.StatusCode, context: ServicerContext[bytes, bytes]) -> bytes:
        self._count(method, status)
        return await context.abort(status, TEXTS[status])

    def _count(self, method: Method, status: grpc.StatusCode) -> None:
        key = (method.name, status.name.lower())
        self._counts[key] = self._counts.get(key, 0) + 1

    def _tell(self, method: Method, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + LOG_PACE_S
            what = type(error).__name__
            log.error("a backend's call of %s failed: %s\n%s", method.name, what, came_through(error))


def _metadata(context: ServicerContext[bytes, bytes]) -> dict[str, str]:
    """What is text; the library has made its names lower-case, and keeps bytes for names that end in -bin."""
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
