"""Finding out who is in a group: what is known here, else the set in Redis, else the user service, page by page.

Look-ups of one group at a time are one. Rule: a list that somebody joined or left while it was on its way is asked for
again; a service that is away is waited for within a bound, since the bus keeps what we do not take (section 10).
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeAlias

import tidegate.profiles._im_services as services
from tidegate.errors import UpstreamError
from tidegate.profile import Action, Add, Call, Count, Join, Leave, Now, Together, Wait, Wake
from tidegate.profiles._im_devices import Devices
from tidegate.profiles._im_groups import STALE_S, Change, Groups, Large, Loading, Small
from tidegate.profiles._im_pushes import Pushes

# How long messages to groups that nobody knows wait for the services: a restart takes less, and then they are skipped
LOOKUP_S = 60.0
PAUSE_S = 0.5
# A list that changes while it is read is read again; the third time it counts for one message only
READS_MAX = 3
# Pages of a thousand: a group of ten million; more is a cursor that goes in circles
PAGES_MAX = 10_000
# Groups whose set in Redis is not trusted; it lives five minutes, so older ones are gone by themselves
DISTRUSTED_MAX = 100_000
# Confirmations asked for at once, of the service, when Redis does not know
CONFIRMED_AT_ONCE = 100

Found: TypeAlias = Generator[Action, Any, Small | Large | None]


class Unknown(Exception):  # noqa: N818 - not an error of ours: the service knows no such group
    """There is no such group."""


class Patience:
    """For how long an outage is waited for: LOOKUP_S in all, since whoever waits holds up what is behind it."""

    def __init__(self) -> None:
        self._since = self._last = -LOOKUP_S

    def lasts(self, now: float) -> bool:
        """Somebody failed. After a quiet minute it is another outage."""
        if now - self._last >= LOOKUP_S:
            self._since = now
        self._last = now
        return now - self._since < LOOKUP_S

    def renew(self) -> None:
        """Somebody answered."""
        self._last = -LOOKUP_S


class Members:
    def __init__(self, groups: Groups, devices: Devices, pushes: Pushes, node: str) -> None:
        self._groups = groups
        self._devices = devices
        self._tickets = pushes
        self._node = node
        self._patience = Patience()

    def of(self, group: str, now: float) -> Found:
        """None if there is no such group, or nobody could say within LOOKUP_S: counted."""
        found = self._groups.get(group, now)
        yield Add("im_gateway_cache_hits_total" if found else "im_gateway_cache_misses_total")
        if found is None:
            found = yield from self._find(group, now)
        if isinstance(found, Large):
            found = yield from self._with_arrivals(group, found, now)
        return found

    def _find(self, group: str, now: float) -> Found:
        began = now
        while now - began < LOOKUP_S:
            loading = self._groups.loading.get(group)
            if loading is not None:
                yield Wait(loading.ticket, LOOKUP_S)
            else:
                try:
                    return (yield from self._load(group))
                except Unknown:
                    self._patience.renew()
                    yield Count("group_unknown")
                    return None
                except UpstreamError:
                    if (stale := self._groups.get(group, now, STALE_S)) is not None:
                        return stale
                    if not self._patience.lasts((yield Now())):
                        break
                    yield Wait(0, PAUSE_S)
            now = yield Now()
            if (found := self._groups.get(group, now)) is not None:
                return found
        yield Count("group_lookup", detail="nobody said who is in a group; a message to it was skipped")
        return None

    def _load(self, group: str) -> Generator[Action, Any, Small | Large]:
        loading = self._groups.loading[group] = Loading(self._tickets.ticket())
        try:
            members = yield from self._read_until_steady(group, loading)
        finally:
            del self._groups.loading[group]
        self._patience.renew()
        now: float = yield Now()
        change = self._groups.keep(group, members, self._devices.users, now, self._devices.position)
        if loading.is_stale:
            change.kept.until = now
        yield from self._move(change)
        yield Wake(loading.ticket)
        return change.kept

    def _read_until_steady(self, group: str, loading: Loading) -> Generator[Action, Any, set[str]]:
        try:
            for _ in range(READS_MAX):
                loading.is_stale = False
                members, is_new = yield from self._read(group)
                if not loading.is_stale:
                    break
            if is_new and members and not loading.is_stale:
                yield from _tried(services.cache_members(group, sorted(members), self._node))
            if is_new and loading.is_stale:
                # what was written may have come after what the news had deleted
                yield from self.forget(group)
            return members
        except Exception:
            # nobody must wait for one that failed
            yield Wake(loading.ticket)
            raise

    def forget(self, group: str) -> Generator[Action, Any, None]:
        """The set in Redis is wrong from now on, whether Redis can be told or not."""
        distrusted = self._groups.distrusted
        distrusted[group] = None
        if len(distrusted) > DISTRUSTED_MAX:
            del distrusted[next(iter(distrusted))]
        yield from self._forget(group)

    def _forget(self, group: str) -> Generator[Action, Any, None]:
        try:
            yield services.forget_members(group)
            self._groups.distrusted.pop(group, None)
        except UpstreamError:
            yield Count("redis", detail="Redis did not forget who is in a group; it is not asked about it meanwhile")

    def _read(self, group: str) -> Generator[Action, Any, tuple[set[str], bool]]:
        """Members, and whether Redis has yet to be told."""
        if group in self._groups.distrusted:
            yield from self._forget(group)
        members: set[str] = set()
        if group not in self._groups.distrusted:
            with contextlib.suppress(UpstreamError):
                members = yield from self._read_cached(group)
        if members:
            return members, False
        return (yield from self._read_service(group)), True

    def _read_cached(self, group: str) -> Generator[Action, Any, set[str]]:
        members: set[str] = set()
        cursor = 0
        for _ in range(PAGES_MAX):
            ((following, page),) = yield services.cached_page(group, cursor)
            members.update(name.decode("utf-8", "replace") for name in page)
            cursor = int(following)
            if not cursor:
                break
        return members

    def _read_service(self, group: str) -> Generator[Action, Any, set[str]]:
        members: set[str] = set()
        cursor = ""
        for _ in range(PAGES_MAX):
            page = yield services.members_page(group, cursor)
            if page.error_code == services.GROUP_NOT_FOUND:
                raise Unknown
            if page.error_code:
                raise UpstreamError("the user service did not say who is in a group", outcome="remote_error")
            members.update(member.user_id for member in page.members)
            if page.next_cursor in ("", cursor):
                break
            cursor = page.next_cursor
        return members

    def _move(self, change: Change) -> Iterator[Action]:
        """Into the room of a large group, and out of rooms that count no more."""
        for room, users in change.gone.items():
            yield from self.leave(room, users)
        if isinstance(change.kept, Large):
            yield from self.join(change.kept.room, change.kept.here)

    def join(self, room: str, users: Iterable[str]) -> Iterator[Action]:
        for user in users:
            yield from [Join(dialect_room(room, device.sdk), device.conn) for device in self._devices.of(user)]

    def leave(self, room: str, users: Iterable[str]) -> Iterator[Action]:
        for user in users:
            yield from [Leave(dialect_room(room, device.sdk), device.conn) for device in self._devices.of(user)]

    # --- arrivals ----------------------------------------------------------------------------------------------------

    def _with_arrivals(self, group: str, large: Large, now: float) -> Found:
        """Who connected since the last message joins, if a member."""
        for _ in range(READS_MAX):
            position, arrivals, changes = (
                self._devices.position,
                self._devices.arrived_since(large.position),
                large.changes,
            )
            if arrivals is None:
                large.until = min(large.until, now)
                return (yield from self._find(group, now))
            known, doubtful = self._groups.doubtful(large, arrivals)
            confirmed = (yield from self._confirmed(group, doubtful, now)) if doubtful else set()
            if confirmed is None:
                return large
            current = self._groups.get(group, now, STALE_S)
            if not isinstance(current, Large):
                return current or (yield from self._find(group, now))
            if current is large and large.changes == changes:
                yield from self._arrive(large, known | confirmed, position)
                return large
            # somebody joined or left, or it was loaded again, while we asked
            large = current
        return large

    def _arrive(self, large: Large, users: set[str], position: int) -> Iterator[Action]:
        large.position = max(large.position, position)
        large.here |= users
        yield from self.join(large.room, users)

    def _confirmed(self, group: str, users: set[str], now: float) -> Generator[Action, Any, set[str] | None]:
        began = now
        while now - began < LOOKUP_S:
            try:
                found = yield from self._confirm(group, sorted(users))
                self._patience.renew()
                return found
            except UpstreamError:
                if not self._patience.lasts((yield Now())):
                    break
                yield Wait(0, PAUSE_S)
            now = yield Now()
        yield Count("group_lookup", detail="nobody said whether those who connected are in a group")
        return None

    def _confirm(self, group: str, users: list[str]) -> Generator[Action, Any, set[str]]:
        is_there, flags = 0, []
        if group not in self._groups.distrusted:
            with contextlib.suppress(UpstreamError):
                is_there, *flags = yield services.cached_members(group, users)
        if is_there:
            return {user for user, flag in zip(users, flags, strict=True) if flag}
        found: set[str] = set()
        for at in range(0, len(users), CONFIRMED_AT_ONCE):
            some = users[at : at + CONFIRMED_AT_ONCE]
            answers: list[Any] = yield Together([services.is_member(group, user) for user in some])
            for user, answer in zip(some, answers, strict=True):
                if isinstance(answer, Exception):
                    raise answer
                if answer.error_code not in services.NO_MEMBER:
                    raise UpstreamError("the user service did not say who is in a group", outcome="remote_error")
                found |= {user} if answer.is_member else set()
        return found


def dialect_room(room: str, sdk: bool) -> str:
    """Frames of the two dialects differ, so each has a room of its own."""
    return f"sdk:{room}" if sdk else room


def _tried(call: Call) -> Generator[Action, Any, None]:
    """What only saves somebody a look-up."""
    try:
        yield call
    except UpstreamError:
        yield Count("redis", detail="Redis did not take what spares others a look-up")
