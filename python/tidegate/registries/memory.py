"""`memory:NAME`, a registry inside one process: first run, demo and tests need no server.

A real registry, not a mock: nodes that share a name take places from each other and are forgotten when they end.
Nothing outlives the process. Rule: the same answers as from etcd, without a cache, as nothing is nearer than this.
"""

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from tidegate.calls import Enter, Place
from tidegate.errors import UpstreamError
from tidegate.registries import UNAVAILABLE, RegistryStats, Taken, TtlSettings
from tidegate.registries._names import is_user, key_of


def open_registry(url: str, _settings: TtlSettings, node: str) -> "MemoryRegistry":
    name = url.partition(":")[2].strip("/")
    # Weak: a board lives as long as a registry that uses it.
    board = BOARDS.get(name) or BOARDS.setdefault(name, Board())
    return MemoryRegistry(board, node)


class Board:
    """Who is where, for all nodes that opened it. As large as what they have registered."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, tuple[MemoryRegistry, Place]]] = {}
        self.running: list[MemoryRegistry] = []


class MemoryRegistry:
    """One node's view of a board."""

    def __init__(self, board: Board, node: str) -> None:
        self._board = board
        self._node = node
        self._taken: Taken | None = None
        self._places = 0
        self._taken_count = 0
        self._is_closed = False

    async def run(self, taken: Taken) -> None:
        self._taken = taken
        self._board.running.append(self)
        try:
            await asyncio.Event().wait()
        finally:
            self._board.running.remove(self)
            self._taken = None

    def is_ready(self) -> bool:
        return self._taken is not None and not self._is_closed

    async def call(self, method: str, payload: Any) -> Any:
        """At once: there is nobody to wait for."""
        if method == "unregister":
            return self._unregister(payload)
        if self._is_closed:
            raise UpstreamError(UNAVAILABLE, "This node's registry is closed: the gateway ends.")
        if method == "register":
            return self._register(payload)
        return self._devices(payload) if method == "devices" else frozenset(one._node for one in self._board.running)

    def _register(self, enter: Enter) -> bool:
        key_of(enter.place)
        place = enter.place
        devices = self._board.users.get(place.user, {})
        if len(devices) - (place.device in devices) >= enter.others_max:
            return False
        if (before := devices.get(place.device)) is not None:
            before[0]._lost(before[1], is_taken=before[0] is not self)
        self._board.users.setdefault(place.user, devices)[place.device] = (self, place)
        self._places += 1
        return True

    def _lost(self, place: Place, is_taken: bool) -> None:
        self._places -= 1
        if is_taken:
            self._taken_count += 1
            if self._taken is not None:
                asyncio.get_running_loop().call_soon(self._taken, place)

    def _unregister(self, place: Place) -> None:
        devices = self._board.users.get(place.user, {})
        owner, registered = devices.get(place.device, (None, place))
        if owner is self and registered.conn == place.conn:
            self._places -= 1
            del devices[place.device]
            if not devices:
                del self._board.users[place.user]

    def _devices(self, user: str) -> Mapping[str, str]:
        devices = self._board.users.get(user, {}) if is_user(user) else {}
        return {device: owner._node for device, (owner, _) in devices.items()}

    def stats(self) -> RegistryStats:
        return RegistryStats(
            places=self._places,
            leases=0,
            nodes=len({one._node for one in self._board.running}),
            unsettled=0,
            cache_entries=0,
            cache_hits=0,
            cache_misses=0,
            cache_merged=0,
            lease_losses=0,
            puts_again=0,
            watch_resumes=0,
            watch_gaps=0,
            taken=self._taken_count,
            round_trips=0,
            failures=0,
        )

    async def close(self, within_s: float) -> None:
        self._is_closed = True
        for user, devices in list(self._board.users.items()):
            kept = {device: entry for device, entry in devices.items() if entry[0] is not self}
            if kept:
                self._board.users[user] = kept
            else:
                del self._board.users[user]
        self._places = 0


BOARDS: WeakValueDictionary[str, Board] = WeakValueDictionary()
