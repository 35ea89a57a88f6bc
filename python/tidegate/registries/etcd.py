"""`etcd:`, the registry that nodes share: who is connected where, as any reader of the keys can see it.

The parts: a link to an endpoint, leases, a ledger of what is ours, writes and look-ups in batches, a watch, and a
keeper. Whatever happens to etcd - it is killed, frozen, wiped, compacted - connections stay and the parts heal.
Rule: this file only fits the parts together and says what calls mean.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tidegate.calls import Enter, Place
from tidegate.registries import CALL_S, RegistryStats, Taken, TtlSettings
from tidegate.registries._etcd_keeper import Keeper
from tidegate.registries._etcd_leases import Leases
from tidegate.registries._etcd_ledger import Doubt, Ledger
from tidegate.registries._etcd_link import Link, failure
from tidegate.registries._etcd_lookups import Lookups
from tidegate.registries._etcd_url import parse
from tidegate.registries._etcd_watch import Watch
from tidegate.registries._etcd_wire import gateway_of, read_gateways
from tidegate.registries._etcd_writes import Writes
from tidegate.registries._names import is_user, key_of


def open_registry(url: str, settings: TtlSettings, node: str) -> "EtcdRegistry":
    return EtcdRegistry(Link(parse(url)), settings, node)


class EtcdRegistry:
    def __init__(self, link: Link, settings: TtlSettings, node: str) -> None:
        self._node = node
        self._link = link
        self._leases = Leases(link, settings.ttl)
        self._ledger = Ledger(node, self._leases, self._was_taken)
        self._lookups = Lookups(link)
        self._writes = Writes(node, link, self._leases, self._ledger, self._lookups.drop)
        self._keeper = Keeper(
            node, settings.renew_interval, link=link, leases=self._leases, ledger=self._ledger, writes=self._writes
        )
        self._watch = Watch(link, self._heard, self._keeper.node_gone, self._gap)
        self._taken: Taken | None = None
        self._taken_count = 0
        self._is_closed = False
        self._calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "register": self._register,
            "unregister": self._unregister,
            "devices": self._devices,
            "nodes": self._nodes,
        }

    async def run(self, taken: Taken) -> None:
        self._taken = taken
        parts = [asyncio.ensure_future(part) for part in (self._watch.run(), self._keeper.run())]
        try:
            # neither ends but by a fault of this program, which ends the other
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._taken = None
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)
        for part in parts:
            if not part.cancelled():
                part.result()

    def is_ready(self) -> bool:
        return not self._is_closed and self._watch.is_following and self._keeper.is_enrolled()

    async def call(self, method: str, payload: Any) -> Any:
        if self._is_closed:
            if method == "unregister":
                return None
            raise failure("unavailable", "This node's registry is closed: the gateway ends.")
        try:
            async with asyncio.timeout(CALL_S):
                return await self._calls[method](payload)
        except TimeoutError:
            raise failure("timeout", f"etcd did not answer to {method} within {CALL_S:g} s") from None

    async def _register(self, enter: Enter) -> bool:
        return await self._writes.enter(key_of(enter.place), enter)

    async def _unregister(self, place: Place) -> None:
        key = key_of(place)
        hold = self._ledger.forget(key, place.conn)
        self._lookups.drop(place.user)
        if hold is not None:
            await self._writes.settle(key, hold)

    async def _devices(self, user: str) -> Mapping[str, str]:
        return await self._lookups.devices(user) if is_user(user) else {}

    async def _nodes(self, _nothing: None) -> frozenset[str]:
        """As the watch has it; without one, as etcd says."""
        if self._watch.is_following:
            return self._watch.nodes
        answer = await self._link.range(read_gateways())
        return frozenset(name for pair in answer.kvs if (name := gateway_of(pair.key)) is not None)

    def stats(self) -> RegistryStats:
        return RegistryStats(
            places=len(self._ledger.held),
            leases=len(self._leases),
            nodes=len(self._watch.nodes),
            unsettled=len(self._ledger.unsettled),
            cache_entries=len(self._lookups.places),
            cache_hits=self._lookups.hits,
            cache_misses=self._lookups.misses,
            cache_merged=self._lookups.merged,
            lease_losses=self._leases.losses,
            puts_again=self._writes.puts_again,
            watch_resumes=self._watch.resumes,
            watch_gaps=self._watch.gaps,
            taken=self._taken_count,
            round_trips=self._link.round_trips,
            failures=self._link.failures,
        )

    async def close(self, within_s: float) -> None:
        self._is_closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._writes.close(within_s / 2)
                await self._leases.revoke_all()
        await self._lookups.close(0)
        await self._link.close()
        self._ledger.held.clear()

    def _heard(self, key: str, node: str | None, revision: int) -> None:
        self._lookups.drop(key.partition("/")[0])
        self._ledger.heard(key, node, revision)

    def _gap(self) -> None:
        self._lookups.clear()
        self._ledger.suspect(Doubt.ALL)

    def _was_taken(self, place: Place) -> None:
        self._taken_count += 1
        if self._taken is not None:
            asyncio.get_running_loop().call_soon(self._taken, place)
