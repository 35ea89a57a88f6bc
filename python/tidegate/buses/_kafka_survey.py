"""Which partitions there are and from where this node reads each: the committed offset, the end, or the beginning.

A new node starts with new messages: at the end as it is when the node first sees the topic. Whatever appears later (a
topic, a partition, a topic made anew) is read from its beginning, for all of it is new. Where a node starts is kept
before it reads, so a crash right after loses nothing. Rule: `positions` changes only where the reader takes `changes`
over, between two hand-overs; until then the reader does not know of them.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tidegate.buses import IsServed
from tidegate.buses._kafka_cluster import Cluster
from tidegate.buses._kafka_link import Place, TroubleError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Position:
    next: int  # the offset after the last one that was handed over
    end: int  # the offset that the next new message will have, as last heard
    stored: int = -1  # as committed
    stored_at: float = 0.0  # monotonic
    unserved: deque[tuple[int, IsServed]] = field(default_factory=deque)  # where each batch began that was not, once

    @property
    def lag(self) -> int:
        return max(0, self.end - self.next)

    def reach(self, reached: int, is_served: IsServed | None) -> None:
        if is_served:
            self.settle()  # not only at commits, which may be hours apart
            self.unserved.append((self.next, is_served))
        self.next = reached

    def settle(self) -> int:
        """The offset that may be committed: all before it was served."""
        while self.unserved and self.unserved[0][1]():
            self.unserved.popleft()
        return self.unserved[0][0] if self.unserved else self.next

    def heard_of(self, end: int) -> None:
        """Who asked first may be answered last."""
        self.end = max(self.end, end)


class Survey:
    """The topics `names`, and where in them this node is. `keeps` = it goes on there after a restart."""

    def __init__(self, names: Iterable[str], *, keeps: bool) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.positions: dict[Place, Position] = {}
        self.changes: dict[Place, Position] = {}
        self.astray: set[Place] = set()  # where the broker has nothing at our position
        self.gone: set[Place] = set()  # not to be read any more
        self.lost: dict[str, int] = dict.fromkeys(self.names, 0)  # topic -> messages trimmed before we read them
        self._keeps = keeps
        self._remembered: dict[Place, Position] = {}  # of a run before
        self._absent: dict[str, int] = {}  # topic that is not there -> in how many looks
        self._said: dict[str, str] = {}  # topic -> what is the matter with it, as last logged
        self._is_complete = False

    def is_live(self) -> bool:
        if not self.names:
            return True
        is_lost = any(place.topic not in self._absent for place in self.astray)
        return self._is_complete and not self.changes and not is_lost

    def rest(self) -> None:
        """Reading has ended; the next run goes on at these positions, once it has looked at them again."""
        self._remembered |= self.positions | self.changes
        self.positions, self.changes = {}, {}
        self.astray.clear()
        self._is_complete = False

    def take_changes(self) -> dict[Place, Position]:
        taken, self.changes = self.changes, {}
        self.positions |= taken
        self.astray -= taken.keys()
        return taken

    def take_gone(self) -> set[Place]:
        taken, self.gone = self.gone, set()
        return taken

    def lag_by_topic(self) -> dict[str, int]:
        lags = dict.fromkeys(self.names, 0)
        for place, position in self.positions.items():
            lags[place.topic] += position.lag
        return lags

    # --- looking -----------------------------------------------------------------------------------------------------

    async def look(self, cluster: Cluster) -> None:
        """Finds what is new. Raises TroubleError when nobody answers; what is wrong with one topic is logged."""
        is_complete = True
        for name, topic in (await cluster.topics(self.names)).items():
            try:
                if isinstance(topic, TroubleError):
                    raise topic
                if topic is None:
                    self._miss(name)
                else:
                    await self._find(cluster, name, topic)
                    self._absent.pop(name, None)
                    self._say(name, "")
            except TroubleError as trouble:
                is_complete = False
                self._say(name, str(trouble))
        self._is_complete = is_complete

    async def measure(self, cluster: Cluster) -> None:
        """The ends while nothing is read; what is read says how far it is to the end."""
        there = [place for place in self.positions if place.topic not in self._absent]
        with contextlib.suppress(TroubleError):  # of a topic that has just gone; the next look tells
            for place, (_, end) in (await cluster.bounds(there)).items():
                if (position := self.positions.get(place)) is not None:
                    position.heard_of(end)

    def _miss(self, name: str) -> None:
        self._absent[name] = self._absent.get(name, 0) + 1
        for place, position in self._of_topic(self.positions, name).items():
            position.end = position.next
            self.astray.add(place)
        if self._is_gone(name):
            self._say(name, "there is no such topic yet; it will be read from its beginning")
            self._give_up(name)

    def _give_up(self, name: str) -> None:
        """If it comes back, it is another one."""
        for positions in (self.positions, self.changes, self._remembered):
            for place in self._of_topic(positions, name):
                del positions[place]
                self.astray.discard(place)
                self.gone.add(place)

    async def _find(self, cluster: Cluster, name: str, places: list[Place]) -> None:
        current = self._of_topic(self.positions | self.changes, name)
        wanted = [place for place in places if place not in current or place in self.astray - self.changes.keys()]
        if not wanted:
            return
        known = self._of_topic(self._remembered, name) | current
        # Kafka may keep the offsets of a topic that was deleted for the next one of its name
        stored = await cluster.stored(places) if self._keeps and not self._is_gone(name) else {}
        # Known or committed in part: the node has been here, and the rest of it has come since.
        is_new = name in self._absent or bool(known) or bool(stored)
        bounds = await cluster.bounds(wanted)
        starts, before = {}, {}
        for place in wanted:
            # A topic's end is the end of the offsets committed in it: without one, ours is of another topic.
            is_same = place in known and (place in stored or not self._keeps)
            before[place] = known[place].next if is_same else stored.get(place)
            oldest, end = bounds[place]
            start = (oldest if is_new else end) if before[place] is None else min(max(before[place] or 0, oldest), end)
            goes_on = is_same and start == before[place]
            starts[place] = Position(start, end, unserved=known[place].unserved if goes_on else deque())
        await self.store(cluster, starts)
        self.changes |= starts
        for place, position in starts.items():
            self._report(place, before[place], position.next)

    def _is_gone(self, name: str) -> bool:
        """Not only for the moment in which a broker that has just started knows of no topic: what comes is another."""
        return self._absent.get(name, 0) >= GONE_LOOKS

    def _of_topic(self, positions: Mapping[Place, Position], name: str) -> dict[Place, Position]:
        return {place: position for place, position in positions.items() if place.topic == name}

    def _report(self, place: Place, before: int | None, start: int) -> None:
        if before is not None and before < start:
            self.lost[place.topic] += start - before
            log.warning(
                "Kafka topic %s: %d messages were trimmed before this node read them; going on with the oldest kept. "
                "Raise the topic's retention.ms or retention.bytes if nodes are away for so long",
                place,
                start - before,
            )
        if before is not None and before > start:
            log.warning("Kafka topic %s: the broker lost its newest %d messages; going on", place, before - start)

    def _say(self, name: str, why: str) -> None:
        """Once for each reason: it is looked for again every second."""
        if why and self._said.get(name, "") != why:
            log.warning("Kafka topic %s: %s", name, why)
        self._said[name] = why

    # --- committing --------------------------------------------------------------------------------------------------

    def unstored(self) -> dict[Place, Position]:
        """What moved, and what Kafka would soon forget."""
        stale = time.monotonic() - RENEW_S
        return {
            place: position
            for place, position in self.positions.items()
            if position.settle() != position.stored or position.stored_at < stale
        }

    async def store(self, cluster: Cluster, positions: Mapping[Place, Position]) -> None:
        """Raises TroubleError."""
        if not (self._keeps and positions):
            return
        reached, now = {place: position.settle() for place, position in positions.items()}, time.monotonic()
        for place in await cluster.store(reached):
            positions[place].stored, positions[place].stored_at = reached[place], now


# A second apart, and each answered.
GONE_LOOKS = 2
# Kafka forgets an offset that was not committed anew for seven days (offsets.retention.minutes), however quiet its
# topic is, and a cluster may be set to less: the shortest that anybody sets is a day.
RENEW_S = 3600.0
