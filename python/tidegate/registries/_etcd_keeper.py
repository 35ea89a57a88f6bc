"""Keeps a node and its places known: renews leases, writes again what hung on a lost one, settles what nobody knows.

One thing after the other, and everything in batches: 600,000 places of an etcd that lost its data are 5,000
transactions. No connection is closed for any of it.
Rule: what failed is tried again after a pause, for as long as the node runs; between two pauses fails one slice.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice

from tidegate.buses._backoff import backoff_s, level_of
from tidegate.errors import UpstreamError
from tidegate.registries import _etcd_wire as wire
from tidegate.registries._etcd_leases import Leases
from tidegate.registries._etcd_ledger import Doubt, Ledger
from tidegate.registries._etcd_link import Link
from tidegate.registries._etcd_writes import Writes

PAUSE_S_MAX = 5.0
# Settled together: as many as eight transactions take
SLICE = 8 * wire.BATCH_MAX
# Looked at without letting others run: a few milliseconds
SCAN = 10_000
# However busy it is woken, so often at most; news that come together are dealt with together
BREATH_S = 0.02

logger = logging.getLogger(__name__)


class Keeper:
    def __init__(
        self,
        node: str,
        renew_s: float,
        *,
        link: Link,
        leases: Leases,
        ledger: Ledger,
        writes: Writes,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._link = link
        self._leases = leases
        self._ledger = ledger
        self._writes = writes
        self._renew_s = renew_s
        self._clock = clock
        self._now = now
        self._renew_at = 0.0
        self._since = 0
        self._lease = 0  # of the node's own key
        self._written_at = 0  # its revision

    def is_enrolled(self) -> bool:
        return self._lease in self._leases and self._leases.are_fresh()

    def node_gone(self, node: str, revision: int) -> None:
        """The key of a node was deleted; is it ours, it has to be there."""
        if node == self._node and revision > self._written_at:
            self._leases.release(self._lease)
            self._lease = 0
            self._ledger.suspect(Doubt.LEASES)

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        self._since = int(self._now())
        while True:
            try:
                await self._round()
                failures = 0
            except UpstreamError as error:
                failures += 1
                logger.log(level_of(failures), "The registry can't be kept up, trying again: %s", error)
                await asyncio.sleep(backoff_s(failures, min(PAUSE_S_MAX, self._renew_s)))
                continue
            await asyncio.sleep(BREATH_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._renew_at - self._clock()):
                    await self._ledger.wake.wait()

    async def _round(self) -> None:
        self._ledger.wake.clear()
        began = self._clock()
        if began >= self._renew_at or self._ledger.doubt:
            if await self._leases.renew():
                logger.warning("Leases of the registry were lost; their places are written again")
                self._ledger.suspect(Doubt.LEASES)
            self._renew_at = began + self._renew_s
        await self._enrol()
        await self._mend()

    async def _enrol(self) -> None:
        if self._lease in self._leases:
            return
        (lease,) = await self._leases.reserve(1)
        try:
            answer = await self._link.txn([wire.put_gateway(self._node, self._since, self._leases.id_of(lease))])
        except BaseException:
            self._leases.release(lease)
            raise
        self._lease, self._written_at = lease, int(answer.header.revision)

    async def _mend(self) -> None:
        doubt, self._ledger.doubt = self._ledger.doubt, Doubt.NONE
        try:
            if doubt:
                for keys in self._ledger.held.slices(SCAN):
                    wanted = [key for key in keys if doubt == Doubt.ALL or self._ledger.is_adrift(key)]
                    await self._settle(wanted)
                    await asyncio.sleep(0)
        except BaseException:
            self._ledger.doubt = max(doubt, self._ledger.doubt)
            raise
        # also what becomes unsettled meanwhile; a failure ends it
        while keys := list(islice(self._ledger.unsettled, SLICE)):
            await self._settle(keys)

    async def _settle(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), SLICE):
            part = keys[start : start + SLICE]
            for key in part:
                self._ledger.unsettled.pop(key, None)
            answers = [self._writes.settle(key) for key in part]
            await asyncio.wait(answers)
            failed = [error for answer in answers if (error := answer.exception()) is not None]
            if failed:
                raise failed[0]
