"""Changes to etcd, many in a transaction: devices that enter, places that leave, keys that have to be settled.

Changes of one user go one after the other, so that a device that leaves and comes back ends up in, and users can't have
more devices than they may by connecting them all at once. Everybody else's go together. Entering takes two round trips
for a whole batch: one reads what its users have, one puts; another node that put one of theirs in between is noticed.
Rule: each change ends exactly once: done, refused, or given up, which makes its key unsettled.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from tidegate.calls import Enter
from tidegate.errors import UpstreamError
from tidegate.registries import _etcd_wire as wire
from tidegate.registries._batches import Batches
from tidegate.registries._etcd_leases import Leases
from tidegate.registries._etcd_ledger import Doubt, Ledger
from tidegate.registries._etcd_link import Link, failure
from tidegate.registries._held import Hold

# Another endpoint may take what one did not; another node that registers the same user in between is rare
TRIES_MAX = 3
AGAIN_S = 0.1
# Entering, and not begun: more than can be served before their callers give up
ENTERING_MAX = 50_000
# Nothing was wrong with the change itself
AGAIN = {"unavailable", "cancelled", "unauthenticated", "not_found"}
CLOSED = failure("cancelled", "the registry was closed")


class Keyed:
    """A change of one key."""

    __slots__ = ("answer", "is_over", "key", "lease", "user", "was_sent")

    def __init__(self, key: str, answer: "asyncio.Future[bool]") -> None:
        self.key = key
        self.user = key.partition("/")[0]
        self.answer = answer
        self.lease = 0  # to put it on; 0 = it puts nothing
        self.was_sent = False  # and etcd may have done it
        self.is_over = False


class Entering(Keyed):
    """A device that connected."""

    __slots__ = ("enter",)

    def __init__(self, key: str, answer: "asyncio.Future[bool]", enter: Enter) -> None:
        super().__init__(key, answer)
        self.enter = enter


class Settling(Keyed):
    """A key that must be as the ledger has it. If that has none, `left` is to be deleted; None = whatever is ours."""

    __slots__ = ("is_keep", "left")

    def __init__(self, key: str, answer: "asyncio.Future[bool]", left: Hold | None) -> None:
        super().__init__(key, answer)
        self.left = left
        self.is_keep = False  # it was sent as one that puts


Change: TypeAlias = Entering | Settling


class Writes:
    def __init__(self, node: str, link: Link, leases: Leases, ledger: Ledger, changed: Callable[[str], None]) -> None:
        self._node = node
        self._link = link
        self._leases = leases
        self._ledger = ledger
        self._changed = changed
        self._batches: Batches[Change] = Batches(self._carry, wire.BATCH_MAX)
        # users with a change that waits in a batch or is on its way -> those behind it
        self._behind: dict[str, deque[Change] | None] = {}
        self._entering = 0
        self.puts_again = 0

    async def enter(self, key: str, enter: Enter) -> bool:
        if self._entering >= ENTERING_MAX:
            raise failure("unavailable", "more devices connect at once than etcd takes")
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._entering += 1
        try:
            self._add(Entering(key, answer, enter))
            return await answer
        finally:
            self._entering -= 1

    def settle(self, key: str, left: Hold | None = None) -> "asyncio.Future[bool]":
        """Ends with UpstreamError if it was given up."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        # whoever waited may have gone; the ledger knows what became of it
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._add(Settling(key, answer, left))
        return answer

    async def close(self, within_s: float) -> None:
        behind, self._behind = self._behind, {}
        dropped = await self._batches.close(within_s)
        for change in [*dropped, *(change for changes in behind.values() for change in changes or ())]:
            self._give_up(change, CLOSED)

    def _add(self, change: Change) -> None:
        if change.user not in self._behind:
            self._behind[change.user] = None
            self._batches.add(change)
        elif (behind := self._behind[change.user]) is not None:
            behind.append(change)
        else:
            self._behind[change.user] = deque((change,))

    def _let_next(self, user: str) -> None:
        if behind := self._behind.get(user):
            self._batches.add(behind.popleft())
        else:
            self._behind.pop(user, None)

    async def _carry(self, changes: list[Change]) -> None:
        try:
            await self._try(changes)
        finally:
            for change in changes:
                if not change.is_over:
                    self._give_up(change, CLOSED)
                self._let_next(change.user)

    async def _try(self, changes: list[Change]) -> None:
        error = failure("unavailable", "the user's devices changed each time they were counted")
        for attempt in range(TRIES_MAX):
            todo = [change for change in changes if not self._is_over(change)]
            if not todo:
                return
            if attempt:
                await asyncio.sleep(AGAIN_S)
            try:
                await self._attempt(todo)
            except UpstreamError as failed:
                error = failed
                if failed.outcome not in AGAIN or (failed.outcome == "not_found" and not await self._found_lost()):
                    break
        for change in changes:
            if not change.is_over:
                self._give_up(change, error)

    def _is_over(self, change: Change) -> bool:
        """Also of one whose caller is gone: it was cancelled, or waited long enough."""
        if not change.is_over and change.answer.done() and isinstance(change, Entering):
            self._give_up(change, failure("timeout", "nobody waits for it"))
        return change.is_over

    async def _found_lost(self) -> bool:
        """A lease that we put keys on is gone, and etcd does not say which."""
        try:
            were_lost = await self._leases.renew()
        except UpstreamError:
            return False
        # else another batch found it a moment ago
        if were_lost:
            self._ledger.suspect(Doubt.LEASES)
        return True

    async def _attempt(self, changes: list[Change]) -> None:
        entering = [change for change in changes if isinstance(change, Entering)]
        revision = await self._count(entering) if entering else 0
        changes = [change for change in changes if not change.is_over]
        if changes:
            await self._write(changes, revision)

    async def _count(self, entering: list[Entering]) -> int:
        """Refuses who has too many devices already; returns the revision of which that was true."""
        reads = [wire.read_devices(change.user, change.enter.others_max + 1, keys_only=True) for change in entering]
        answer = await self._link.txn(reads)
        for change, response in zip(entering, answer.responses, strict=True):
            if wire.others_in(response, change.key) >= change.enter.others_max:
                self._refuse(change)
        return int(answer.header.revision)

    def _refuse(self, change: Entering) -> None:
        if change.was_sent:
            # another node was faster, and ours may be there too
            self._ledger.give_up(change.key)
        self._over(change, False)

    async def _write(self, changes: list[Change], revision: int) -> None:
        leases = await self._reserve(changes)
        try:
            operations = [self._operation(change, revision) for change in changes]
            for change in changes:
                self._ledger.begin(change.key)
                change.was_sent = True
            answer = await self._link.txn(operations)
        except BaseException:
            self._leases.release(*leases)
            raise
        revision = int(answer.header.revision)
        for change, response in zip(changes, answer.responses, strict=True):
            if isinstance(change, Entering):
                self._entered(change, response.response_txn.succeeded, revision)
            else:
                self._settled(change, response, revision)

    async def _reserve(self, changes: list[Change]) -> list[int]:
        """Gives each change that puts a lease with room for it."""
        putting = [change for change in changes if isinstance(change, Entering) or change.key in self._ledger.held]
        leases = await self._leases.reserve(len(putting))
        for change in changes:
            change.lease = 0
        for change, lease in zip(putting, leases, strict=True):
            change.lease = lease
        return leases

    def _operation(self, change: Change, revision: int) -> wire.Message:
        if isinstance(change, Entering):
            value = wire.value_of(self._node, change.enter.place.connected_at)
            return wire.enter(change.key, value, self._leases.id_of(change.lease), revision)
        hold = self._ledger.held.get(change.key)
        change.is_keep = hold is not None
        if hold is not None:
            value = wire.value_of(self._node, hold.since)
            return wire.keep(change.key, value, self._leases.id_of(change.lease), self._node)
        if change.left is None:
            return wire.leave_any(change.key, self._node)
        return wire.leave(change.key, wire.value_of(self._node, change.left.since))

    def _entered(self, change: Entering, is_done: bool, revision: int) -> None:
        place = change.enter.place
        if not is_done:
            change.was_sent = False
            self._leases.release(change.lease)
            self._ledger.end(change.key)
        elif change.answer.done():
            self._leases.release(change.lease)
            self._give_up(change, failure("timeout", "nobody waits for it"))
        else:
            self._ledger.confirm(change.key, Hold(place.conn, place.connected_at, change.lease, revision))
            self._over(change, True)

    def _settled(self, change: Settling, response: wire.Message, revision: int) -> None:
        hold = self._ledger.held.get(change.key)
        other = wire.kept_by(response) if change.is_keep else None
        if change.is_keep and hold is not None and other is None:
            self.puts_again += 1
            self._ledger.confirm(change.key, hold._replace(lease=change.lease, revision=revision))
            self._over(change, True)
            return
        self._leases.release(change.lease)
        self._ledger.end(change.key)
        if other is not None:
            self._ledger.lose(change.key)
        elif change.is_keep:
            # it ended, or was taken, while we wrote it: what we wrote must not stay
            self._ledger.give_up(change.key)
        self._over(change, True)

    def _over(self, change: Change, answer: bool) -> None:
        change.is_over = True
        self._changed(change.user)
        if not change.answer.done():
            change.answer.set_result(answer)

    def _give_up(self, change: Change, error: UpstreamError) -> None:
        change.is_over = True
        self._changed(change.user)
        if isinstance(change, Settling) or change.was_sent:
            self._ledger.give_up(change.key)
        if not change.answer.done():
            change.answer.set_exception(UpstreamError(error.message, error.cure, error.outcome))
