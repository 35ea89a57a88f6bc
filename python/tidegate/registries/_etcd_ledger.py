"""What this node has in etcd, as far as it knows: places that were confirmed, and keys of which nobody knows.

Answers and events come on two ways, so one may overtake the other. Each carries the revision that it is of, and the
newer one counts: an event for a key whose write is on its way is kept until that write's answer is here.
Rule: no I/O here. Whatever can't be known is unsettled, and the keeper makes etcd agree with what is held here.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum

from tidegate.calls import Place
from tidegate.registries._etcd_leases import Leases
from tidegate.registries._held import Held, Hold


class Doubt(IntEnum):
    """Which places have to be looked at: none, those whose lease is lost, or all."""

    NONE = 0
    LEASES = 1
    ALL = 2


class Ledger:
    def __init__(self, node: str, leases: Leases, taken: Callable[[Place], None]) -> None:
        self._node = node
        self._leases = leases
        self._taken = taken
        self._late: dict[str, tuple[int, str | None] | None] = {}  # keys being written -> the last change by others
        self.held = Held()
        self.unsettled: dict[str, None] = {}  # in order; bounded by places that were ever held at the same time
        self.doubt = Doubt.NONE
        self.wake = asyncio.Event()  # there is something for the keeper to do

    def begin(self, key: str) -> None:
        """A write of the key is on its way; what others do to it meanwhile must not be missed."""
        self._late.setdefault(key, None)

    def give_up(self, key: str) -> None:
        """That write's end is not known, or what it wrote must not stay."""
        self._late.pop(key, None)
        self.unsettled[key] = None
        self.wake.set()

    def end(self, key: str) -> None:
        """That write did nothing."""
        self._late.pop(key, None)

    def confirm(self, key: str, hold: Hold) -> None:
        """That write is done: this is what is there."""
        before = self.held.get(key)
        self.held.set(key, hold)
        if before is not None:
            self._leases.release(before.lease)
        late = self._late.pop(key, None)
        if late is not None:
            self.heard(key, late[1], late[0])

    def heard(self, key: str, node: str | None, revision: int) -> None:
        """Somebody wrote the key, or it was deleted (None)."""
        if key in self._late and node != self._node:
            self._late[key] = (revision, node)
        hold = self.held.get(key)
        if hold is None or revision <= hold.revision or node == self._node:
            return
        if node is not None:
            self.lose(key)
        elif hold.lease:
            # its lease is lost, or somebody deleted it: it has to be there as long as its connection
            self._leases.release(hold.lease)
            self.held.set(key, hold._replace(lease=0, revision=revision))
            self.suspect(Doubt.LEASES)

    def lose(self, key: str) -> None:
        """Another node has the device now."""
        hold = self.held.pop(key)
        if hold is not None:
            self._leases.release(hold.lease)
            user, _, device = key.partition("/")
            self._taken(Place(user, device, hold.conn, hold.since))

    def forget(self, key: str, conn: int) -> Hold | None:
        """The connection has ended; None if the key is not its any more."""
        hold = self.held.get(key)
        if hold is None or hold.conn != conn:
            return None
        self._leases.release(hold.lease)
        return self.held.pop(key)

    def suspect(self, doubt: Doubt) -> None:
        self.doubt = max(self.doubt, doubt)
        self.wake.set()

    def is_adrift(self, key: str) -> bool:
        """A place whose lease is lost."""
        hold = self.held.get(key)
        return hold is not None and hold.lease not in self._leases
