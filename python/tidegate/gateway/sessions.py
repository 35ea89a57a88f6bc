"""Sessions that a profile changed a moment ago: events that were on their way then still carry the old one.

Two generations of FRESH_S each, so nothing is kept for a connection that is only idle. Rule: the newest counts.
"""

# Far longer than an event waits between the engine and the pump; short enough that a storm of logins is soon forgotten
FRESH_S = 10.0


class FreshSessions:
    __slots__ = ("_old", "_turns_at", "_young", "any")

    def __init__(self) -> None:
        self.any = False  # spares the look-up for profiles that never change a session
        self._young: dict[int, bytes] = {}
        self._old: dict[int, bytes] = {}
        self._turns_at = 0.0

    def set(self, conn: int, data: bytes) -> None:
        self.any = True
        self._young[conn] = data

    def get(self, conn: int, carried: bytes) -> bytes:
        found = self._young.get(conn)
        return found if found is not None else self._old.get(conn, carried)

    def age(self, now: float) -> None:
        """Once a batch. The first call after a change starts the clock, so each is kept for one FRESH_S at least."""
        if self.any and now >= self._turns_at:
            self._old, self._young = self._young, {}
            self._turns_at = now + FRESH_S
            self.any = bool(self._old)
