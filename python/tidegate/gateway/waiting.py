"""What a connection sends while the profile waits for a backend's answer to something it sent before.

Rule: a few messages wait here, then the rest waits in the client's socket, where TCP slows the client down; only what
was read before the engine knew of it comes on top, and that is bounded too.
"""

from collections import deque

from tidegate._core import CLOSED, FAILED, MESSAGE, OVERDUE
from tidegate.engine import Event

# So many wait before the socket is left alone: what a lively client has under way at once
HOLD_AT = 32
# Before it is read again: by then the next read is on its way when the last of these is served
LET_GO_AT = 8
# Of what was read before the hold took effect: one read of 64 KiB has 9,362 of the smallest messages
MESSAGES_MAX = 16_384
# And of such bytes: some reads, or eight messages of half a mebibyte
BYTES_MAX = 4 * 1024 * 1024

# Each comes at most once, so taking them beyond a bound keeps the queue bounded
LAST_WORDS = frozenset({CLOSED, FAILED, OVERDUE})


class Waiting:
    __slots__ = ("_bytes", "_held", "queue")

    def __init__(self) -> None:
        self.queue: deque[Event] = deque()
        self._bytes = 0
        self._held = False

    def add(self, event: Event) -> bool:
        """False for a message beyond the bounds."""
        if event[0] not in LAST_WORDS and (len(self.queue) >= MESSAGES_MAX or self._bytes >= BYTES_MAX):
            return False
        self.queue.append(event)
        self._bytes += payload_bytes(event)
        return True

    def take(self) -> Event:
        event = self.queue.popleft()
        self._bytes -= payload_bytes(event)
        return event

    def must_hold(self) -> bool:
        """True once, when enough waits."""
        if self._held or len(self.queue) < HOLD_AT:
            return False
        self._held = True
        return True

    def may_let_go(self) -> bool:
        """True once, when little is left of what made it hold."""
        if not self._held or len(self.queue) > LET_GO_AT:
            return False
        self._held = False
        return True


def payload_bytes(event: Event) -> int:
    return len(event[3]) if event[0] == MESSAGE else 0
