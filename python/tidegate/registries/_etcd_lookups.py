"""Where a user's devices are: from the cache, else from etcd, many users in one transaction.

Whoever asks for a user that is being asked for shares the answer. A look-up that was overtaken by a change of its user
answers those who wait for it, and nobody else: it is not kept, and who comes after the change asks anew.
Rule: a look-up belongs to nobody, so a caller that is cancelled takes it from no other.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tidegate.errors import UpstreamError
from tidegate.registries import _etcd_wire as wire
from tidegate.registries._batches import Batches
from tidegate.registries._etcd_link import Link, failure
from tidegate.registries._places import Places

# Not begun: more than can be read before their callers give up
ASKED_MAX = 100_000
# Reads change nothing; once more, of the endpoint that comes next
TRIES_MAX = 2


class Asked(NamedTuple):
    user: str
    answer: "asyncio.Future[Mapping[str, str] | UpstreamError]"


class Lookups:
    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic, places: Places | None = None) -> None:
        self._link = link
        self._clock = clock
        self._asking: dict[str, Asked] = {}
        self._batches: Batches[Asked] = Batches(self._carry, wire.BATCH_MAX)
        self.places = places or Places()
        self.hits = 0
        self.misses = 0
        self.merged = 0

    async def devices(self, user: str) -> Mapping[str, str]:
        found = self.places.find(user, self._clock())
        if found is not None:
            self.hits += 1
            return found
        asked = self._asking.get(user)
        if asked is None:
            asked = self._ask(user)
        else:
            self.merged += 1
        # unlike awaiting the future, this leaves it alone when we are cancelled
        await asyncio.wait((asked.answer,))
        answer = asked.answer.result()
        if isinstance(answer, UpstreamError):
            # one each: a traceback grows with every raise
            raise UpstreamError(answer.message, answer.cure, answer.outcome)
        return answer

    def drop(self, user: str) -> None:
        self.places.drop(user)
        self._asking.pop(user, None)

    def clear(self) -> None:
        self.places.clear()
        self._asking.clear()

    async def close(self, within_s: float) -> None:
        for asked in await self._batches.close(within_s):
            self._answer(asked, failure("cancelled", "the registry was closed"))

    def _ask(self, user: str) -> Asked:
        if len(self._batches) >= ASKED_MAX:
            raise failure("unavailable", "more users are looked up at once than etcd answers for")
        self.misses += 1
        asked = self._asking[user] = Asked(user, asyncio.get_running_loop().create_future())
        self._batches.add(asked)
        return asked

    async def _carry(self, batch: list[Asked]) -> None:
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                answer = await self._link.txn([wire.read_devices(asked.user) for asked in batch])
            except UpstreamError as error:
                if tries_left and error.outcome in ("unavailable", "unauthenticated"):
                    continue
                for asked in batch:
                    self._answer(asked, error)
                return
            for asked, response in zip(batch, answer.responses, strict=True):
                self._answer(asked, wire.devices_in(response, asked.user))
            return

    def _answer(self, asked: Asked, answer: Mapping[str, str] | UpstreamError) -> None:
        if self._asking.get(asked.user) is asked:
            del self._asking[asked.user]
            if not isinstance(answer, UpstreamError):
                self.places.keep(asked.user, answer, self._clock())
        asked.answer.set_result(answer)
