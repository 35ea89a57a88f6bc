"""Who is on this node: users, their devices and the connections these are on.

Hundreds of thousands of entries, so a user costs one `bytes` of 45 a device, which no garbage collector looks at.
Rule: pure; a device of a user is on one connection at most, the newest.
"""

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

# Device (a UUID as text, so that its case stays), connection, and whether that speaks the dialect of the SDK
_RECORD = struct.Struct("<36sQ?")
# Newest arrivals that groups have not looked at yet: some seconds of a reconnect storm. A group that slept longer is
# loaded again.
ARRIVALS_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    conn: int
    sdk: bool


class Devices:
    def __init__(self, arrivals_max: int = ARRIVALS_MAX) -> None:
        self._records: dict[str, bytes] = {}
        self._arrivals: deque[str] = deque(maxlen=arrivals_max)
        self._came = 0  # users that ever came: the position behind the newest arrival
        self.connections = 0
        self.sdk_connections = 0

    @property
    def users(self) -> Mapping[str, bytes]:
        """Their names are its keys."""
        return self._records

    def of(self, user: str) -> list[Device]:
        return [
            Device(name.decode(), conn, sdk) for name, conn, sdk in _RECORD.iter_unpack(self._records.get(user, b""))
        ]

    def find(self, user: str, device: str) -> Device | None:
        return next((found for found in self.of(user) if found.name == device), None)

    def add(self, user: str, device: Device) -> Device | None:
        """Whom it replaced."""
        others = [found for found in self.of(user) if found.name != device.name]
        before = self.find(user, device.name)
        self._store(user, [*others, device])
        self._count(device, 1)
        if before is not None:
            self._count(before, -1)
        self._arrivals.append(user)
        self._came += 1
        return before

    def remove(self, user: str, device: str, conn: int) -> bool:
        """False if the device has been on another connection since."""
        before = self.find(user, device)
        if before is None or before.conn != conn:
            return False
        self._store(user, [found for found in self.of(user) if found.name != device])
        self._count(before, -1)
        return True

    def _store(self, user: str, devices: list[Device]) -> None:
        if devices:
            self._records[user] = b"".join(_RECORD.pack(each.name.encode(), each.conn, each.sdk) for each in devices)
        else:
            self._records.pop(user, None)

    def _count(self, device: Device, step: int) -> None:
        self.connections += step
        self.sdk_connections += step if device.sdk else 0

    # --- arrivals ----------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Behind the newest arrival."""
        return self._came

    def arrived_since(self, position: int) -> Iterator[str] | None:
        """Users who came, or came again, since then; None if that is too long ago."""
        missed = self._came - position
        if missed > len(self._arrivals):
            return None
        return islice(reversed(self._arrivals), missed)
