"""Which of a group's members are here: what a message to the group needs, and no more than that is kept.

Of a small group all members are known, and a look at each says who is here. Of a large one (`im.large_group`) those who
are here are in a room of the engine, a bitmap there; who connects later is found by a Bloom filter of the members and
confirmed before joining. Rule: pure; the time comes with each question, and everything is bounded.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from rbloom import Bloom

# The contract's: 5 minutes, a fifth more or less so that groups of one storm are not all asked for at once again
TTL_S = 300.0
JITTER = 0.2
# A user service that is down this long is an outage for groups too; until then what was known is better than nothing
STALE_S = 3600.0
# The contract's
FALSE_POSITIVES = 0.01
# Groups that are busy on one node within five minutes, and their members in all: some 100 MB
GROUPS_MAX = 20_000
MEMBERS_MAX = 1_000_000


@dataclass(slots=True)
class Small:
    members: frozenset[str]
    until: float
    weight: int


@dataclass(slots=True)
class Large:
    room: str
    bloom: Bloom
    until: float
    position: int  # arrivals looked at
    here: set[str]  # users who were put into the room
    weight: int
    changes: int = 0  # how often somebody joined or left since it was loaded


@dataclass(slots=True)
class Loading:
    """A look-up that is under way; `is_stale`: somebody joined or left meanwhile."""

    ticket: int
    is_stale: bool = False


class Groups:
    def __init__(self, large: int, rng: random.Random | None = None) -> None:
        self._large = large
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._groups: dict[str, Small | Large] = {}  # least recently used first
        self._weight = 0
        self.loading: dict[str, Loading] = {}
        self.distrusted: dict[str, None] = {}  # groups whose set in Redis should be gone and may not be

    def __len__(self) -> int:
        return len(self._groups)

    def get(self, group: str, now: float, stale_s: float = 0.0) -> Small | Large | None:
        found = self._groups.get(group)
        if found is None or now >= found.until + stale_s:
            return None
        del self._groups[group]
        self._groups[group] = found
        return found

    def keep(self, group: str, members: Set[str], users: Mapping[str, object], now: float, position: int) -> "Change":
        """What was loaded: who must join the room of a large group, and who must leave one."""
        until = now + TTL_S * self._rng.uniform(1 - JITTER, 1 + JITTER)
        before = self._groups.get(group)
        gone: dict[str, set[str]] = {}
        kept: Small | Large
        if len(members) > self._large:
            kept = _large(group, members, members & users.keys(), until, position)
        else:
            kept = Small(frozenset(members), until, len(members))
        if isinstance(before, Large):
            gone[before.room] = before.here - (kept.here if isinstance(kept, Large) else set())
        self._put(group, kept)
        for evicted in self._evicted():
            gone[evicted.room] = evicted.here
        return Change(kept, gone)

    def _put(self, group: str, kept: Small | Large) -> None:
        self._drop(group)
        self._groups[group] = kept
        self._weight += kept.weight

    def _drop(self, group: str) -> Small | Large | None:
        found = self._groups.pop(group, None)
        if found is not None:
            self._weight -= found.weight
        return found

    def _evicted(self) -> Iterator[Large]:
        """The newest stays, whatever its size."""
        while len(self._groups) > 1 and (len(self._groups) > GROUPS_MAX or self._weight > MEMBERS_MAX):
            oldest = self._drop(next(iter(self._groups)))
            if isinstance(oldest, Large):
                yield oldest

    def changed(self, group: str) -> Large | None:
        """Somebody joined or left. A small group is unknown from now on; a large one is the caller's to put right."""
        if (loading := self.loading.get(group)) is not None:
            loading.is_stale = True
        found = self._groups.get(group)
        if isinstance(found, Large):
            found.changes += 1
            return found
        self._drop(group)
        return None

    def doubtful(self, group: Large, arrivals: Iterable[str]) -> tuple[set[str], set[str]]:
        """Of those who came since: members we know, and those who must be confirmed."""
        came = set(arrivals)
        known = came & group.here
        return known, {user for user in came - known if user in group.bloom}


@dataclass(slots=True)
class Change:
    """What `keep` made of a group, and users who must leave rooms."""

    kept: Small | Large
    gone: Mapping[str, Set[str]]


def _large(group: str, members: Set[str], here: set[str], until: float, position: int) -> Large:
    bloom = Bloom(len(members), FALSE_POSITIVES)
    bloom.update(members)
    # in members of small groups: a filter takes ten bits a member, a name in a set some 30 bytes of 100
    weight = len(members) // 80 + len(here) // 3
    return Large(f"g:{group}", bloom, until, position, here, weight)
