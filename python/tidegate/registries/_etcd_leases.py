"""The leases of this node: up to a thousand places share one, so that 600,000 places are kept by 600 renewals.

A lease is known by a number that is never given again, since a place keeps the number for as long as it lives: what
refers to a number that is not alive any more has to be written once more.
Rule: only etcd says that a lease is lost; an etcd that does not answer loses none.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from tidegate.errors import UpstreamError
from tidegate.registries._etcd_link import Link, failure

# As the contract says: few enough that a lost one is written again in ten transactions
PLACES_MAX = 1_000
# Revocations at the same time, when the node ends: each deletes a thousand keys
REVOKED_TOGETHER = 8


class Lease:
    __slots__ = ("id", "places")

    def __init__(self, lease_id: int) -> None:
        self.id = lease_id
        self.places = 0


class Leases:
    def __init__(self, link: Link, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._ttl_s = math.ceil(ttl_s)
        self._clock = clock
        self._alive: dict[int, Lease] = {}
        self._roomy: dict[int, Lease] = {}  # those with room, in the order in which they are filled
        self._last = 0
        self._granting = asyncio.Lock()
        self._renewed_at = -math.inf
        self.losses = 0

    def __contains__(self, number: int) -> bool:
        return number in self._alive

    def __len__(self) -> int:
        return len(self._alive)

    def are_fresh(self) -> bool:
        """Whether etcd said within their life that they live."""
        return self._clock() < self._renewed_at + self._ttl_s

    def id_of(self, number: int) -> int:
        return self._alive[number].id

    async def reserve(self, count: int) -> list[int]:
        """Room for so many places, each to be given back by `release`: one number for each."""
        numbers: list[int] = []
        async with self._granting:
            try:
                while len(numbers) < count:
                    if not self._roomy:
                        await self._grant()
                    numbers += self._fill(count - len(numbers))
            except BaseException:
                self.release(*numbers)
                raise
        return numbers

    def _fill(self, count: int) -> list[int]:
        number, lease = next(iter(self._roomy.items()))
        taken = min(count, PLACES_MAX - lease.places)
        lease.places += taken
        if lease.places >= PLACES_MAX:
            del self._roomy[number]
        return [number] * taken

    async def _grant(self) -> None:
        lease = Lease(await self._link.grant(self._ttl_s))
        if not self._alive:
            self._renewed_at = self._clock()
        self._last += 1
        self._alive[self._last] = self._roomy[self._last] = lease

    def release(self, *numbers: int) -> None:
        """Of places that are gone; of a lease that is lost it changes nothing."""
        for number in numbers:
            if (lease := self._alive.get(number)) is not None:
                lease.places -= 1
                self._roomy[number] = lease

    async def renew(self) -> bool:
        """True if some were lost. UpstreamError if etcd didn't say of each."""
        asked_at = self._clock()
        asked = {lease.id: number for number, lease in self._alive.items()}
        if not asked:
            return False
        seconds = await self._link.renew(list(asked))
        if len(seconds) < len(asked):
            raise failure("unavailable", "etcd did not say of every lease whether it lives")
        lost = [asked[lease_id] for lease_id, ttl in seconds.items() if ttl <= 0]
        self._lose(lost)
        self._renewed_at = asked_at
        self._drop_empty()
        return bool(lost)

    def _lose(self, numbers: list[int]) -> None:
        for number in numbers:
            if self._alive.pop(number, None) is not None:
                self._roomy.pop(number, None)
                self.losses += 1

    def _drop_empty(self) -> None:
        """All but one of those that nothing hangs on: they end by themselves."""
        empty = [number for number, lease in self._roomy.items() if lease.places == 0]
        for number in empty[1:]:
            del self._alive[number], self._roomy[number]

    async def revoke_all(self) -> None:
        """Which deletes all keys that hang on them. One that can't be revoked ends by itself."""
        leases = [lease.id for lease in self._alive.values()]
        self._alive.clear()
        self._roomy.clear()

        async def revoke_some() -> None:
            while leases:
                with contextlib.suppress(UpstreamError):
                    await self._link.revoke(leases.pop())

        await asyncio.gather(*(revoke_some() for _ in range(REVOKED_TOGETHER)))
