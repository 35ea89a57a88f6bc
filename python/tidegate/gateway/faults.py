"""What goes wrong because of a profile, a client or a backend: always counted, logged at a bounded pace.

Rule: no log line holds a payload or a token. An exception's text may quote either, so a profile's error is logged
by its type and the lines of code it came through.
"""

import logging
import time
import traceback

from tidegate.counters import GatewayCounters

log = logging.getLogger("tidegate.gateway")

# A kind is logged at most so often: whoever floods us must not fill the disk as well
LOG_PACE_S = 1.0


class ProfileError(Exception):
    """A profile did what it may not. The text is ours, so it may be logged."""


class Faults:
    def __init__(self, counters: GatewayCounters) -> None:
        self._counters = counters
        self._due: dict[str, float] = {}  # kinds come from code, so they are few

    def profile(self, error: Exception) -> None:
        self._counters.profile_errors += 1
        self._counters.count_error("profile")
        if self._is_due("profile"):
            what = str(error) if isinstance(error, ProfileError) else type(error).__name__
            log.error("the profile failed: %s\n%s", what, came_through(error))

    def count(self, kind: str, detail: str = "") -> None:
        """`kind` becomes a label of the error metric; without a detail there is nothing to tell a person."""
        self._counters.count_error(kind)
        self.tell(kind, detail)

    def tell(self, kind: str, detail: str) -> None:
        if detail and self._is_due(kind):
            log.warning("%s: %s", kind, detail)

    def _is_due(self, kind: str) -> bool:
        now = time.monotonic()
        if now < self._due.get(kind, 0.0):
            return False
        self._due[kind] = now + LOG_PACE_S
        return True


def came_through(error: BaseException) -> str:
    """The lines of code an error came through, without its text."""
    return "".join(traceback.format_tb(error.__traceback__))
