"""The cache of where users are: an entry for each user who was asked for, also for one who is nowhere.

It may be wrong for as long as an event is on its way; without events, for as long as an entry lasts. The lives of
entries are spread, so that what was asked for in one burst is not asked for again in one.
Rule: no clock and no I/O here; the time comes as an argument. Bounded in entries, the oldest goes first.
"""

import random
from collections.abc import Mapping
from typing import NamedTuple

# The original's figures
FOUND_S = 300.0
NOWHERE_S = 120.0
SPREAD = 0.2
# Users who are written to within five minutes: about 60 MB; more than that and the oldest is asked for again
ENTRIES_MAX = 100_000

Devices = Mapping[str, str]


class Entry(NamedTuple):
    until: float
    devices: Devices


class Places:
    def __init__(self, entries_max: int = ENTRIES_MAX, rng: random.Random | None = None) -> None:
        self._entries_max = entries_max
        self._random = rng or random.Random()  # noqa: S311 - spreads load, keeps no secret
        self._entries: dict[str, Entry] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, user: str, now: float) -> Devices | None:
        """Empty for who is known to be nowhere; None if that is not known."""
        entry = self._entries.get(user)
        if entry is None:
            return None
        if entry.until <= now:
            del self._entries[user]
            return None
        return entry.devices

    def keep(self, user: str, devices: Devices, now: float) -> None:
        seconds = FOUND_S if devices else NOWHERE_S
        seconds *= self._random.uniform(1 - SPREAD, 1 + SPREAD)
        self._entries.pop(user, None)
        self._entries[user] = Entry(now + seconds, devices)
        while len(self._entries) > self._entries_max:
            del self._entries[next(iter(self._entries))]

    def drop(self, user: str) -> None:
        self._entries.pop(user, None)

    def clear(self) -> None:
        self._entries.clear()
