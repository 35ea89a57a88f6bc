"""What a node knows of each of its places, in one int: a node has 600,000 of them, and Python's objects are large.

conn, the second of its connect, the number of its lease, and the revision of etcd that wrote it. The int takes 48
bytes; with the key and the dictionary a place is some 190 bytes, where a tuple of four would be 330.
Rule: pure; the fields never mean anything here.
"""

from collections.abc import Iterator
from typing import NamedTuple

# Of the engine; seconds until the year 2514; leases granted by a process; writes ever done to an etcd
CONN_BITS, SINCE_BITS, LEASE_BITS, REVISION_BITS = 64, 34, 32, 50
SINCE_AT = CONN_BITS
LEASE_AT = SINCE_AT + SINCE_BITS
REVISION_AT = LEASE_AT + LEASE_BITS


class Hold(NamedTuple):
    conn: int
    since: int
    lease: int  # a number of `Leases`; 0 = on none
    revision: int


class Held:
    def __init__(self) -> None:
        self._packed: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, key: str) -> bool:
        return key in self._packed

    def get(self, key: str) -> Hold | None:
        packed = self._packed.get(key)
        return None if packed is None else unpacked(packed)

    def set(self, key: str, hold: Hold) -> None:
        # as it is in the dictionary already, if it is: one str a key
        self._packed[key] = hold.conn | hold.since << SINCE_AT | hold.lease << LEASE_AT | hold.revision << REVISION_AT

    def pop(self, key: str) -> Hold | None:
        packed = self._packed.pop(key, None)
        return None if packed is None else unpacked(packed)

    def clear(self) -> None:
        self._packed.clear()

    def slices(self, size: int) -> Iterator[list[str]]:
        """All keys that are there now, some at a time: who goes through them lets others run in between."""
        keys = list(self._packed)
        for start in range(0, len(keys), size):
            yield keys[start : start + size]


def unpacked(packed: int) -> Hold:
    return Hold(
        packed & ((1 << CONN_BITS) - 1),
        packed >> SINCE_AT & ((1 << SINCE_BITS) - 1),
        packed >> LEASE_AT & ((1 << LEASE_BITS) - 1),
        packed >> REVISION_AT,
    )
