"""What a profile's steps wait for: calls to upstreams, time, and each other. All of it ends, in an answer or an error.

Rule: a `Wake` takes effect a turn of the loop later, so that every `Wait` that was yielded before is entered by then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tidegate.errors import UpstreamError
from tidegate.gateway.faults import ProfileError
from tidegate.profile import Call, Together, Wait

# An upstream has shorter time-outs of its own; this bounds a connection's silence if it forgets them
CALL_S = 30.0

# A request to an upstream: method and payload in, its answer out
Upstream: TypeAlias = Callable[[str, Any], Awaitable[Any]]
Waits: TypeAlias = Call | Wait | Together


class Asking:
    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._tickets: dict[int, list[asyncio.Future[Any]]] = {}

    async def ask(self, waits: Waits) -> tuple[Any, Exception | None]:
        """The answer, or what is to be raised where the steps wait."""
        try:
            return await self._begin(waits), None
        except Exception as error:
            return None, error

    def wake(self, ticket: int, answer: Any) -> None:
        """When what is ready now has had its turn: whose steps have yielded a `Wait` already may not have begun it."""
        asyncio.get_running_loop().call_soon(self._wake, ticket, answer)

    def _wake(self, ticket: int, answer: Any) -> None:
        for future in self._tickets.pop(ticket, ()):
            if not future.done():
                future.set_result(answer)

    def _begin(self, waits: Waits) -> Awaitable[Any]:
        if type(waits) is Call:
            return self._call(waits)
        if type(waits) is Together:
            return self._together(waits.waits)
        if type(waits) is Wait:
            return self._until_woken(waits, self._expect(waits.ticket))
        raise ProfileError(f"nobody waits for {type(waits).__name__}")

    def _together(self, waits: Sequence[Waits]) -> Awaitable[list[Any]]:
        begun = [self._begin(each) for each in waits]
        # gather makes a task of each; most pushes wait for one device
        return _alone(begun[0]) if len(begun) == 1 else asyncio.gather(*begun, return_exceptions=True)

    async def _call(self, call: Call) -> Any:
        upstream = self._upstreams.get(call.upstream)
        if upstream is None:
            raise ProfileError(f"no upstream is named {call.upstream!r}")
        try:
            async with asyncio.timeout(CALL_S):
                return await upstream(call.method, call.payload)
        except TimeoutError:
            raise UpstreamError(
                f"no answer of the upstream {call.upstream}", "See why it is slow.", "timeout"
            ) from None

    def _expect(self, ticket: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if ticket:
            self._tickets.setdefault(ticket, []).append(future)
        return future

    async def _until_woken(self, wait: Wait, future: asyncio.Future[Any]) -> Any:
        patience = asyncio.get_running_loop().call_later(min(wait.seconds, CALL_S), _give_up, future)
        try:
            return await future
        finally:
            patience.cancel()
            self._forget(wait.ticket, future)

    def _forget(self, ticket: int, future: asyncio.Future[Any]) -> None:
        waiting = self._tickets.get(ticket)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._tickets[ticket]


async def _alone(waits: Awaitable[Any]) -> list[Any]:
    """What `gather` would give."""
    try:
        return [await waits]
    except Exception as error:
        return [error]


def _give_up(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
