"""When to leave a backend alone: after many failures in a row calls fail at once, until one of them gets through.

closed -> failures_max failures in a row -> open for open_s -> one call decides: an answer closes, a failure opens anew.
Rule: no I/O and no clock here; whoever was admitted says once how it ended.
"""

# Figures of the gogate contract; those of other backends are beside their upstream
FAILURES_MAX = 20
OPEN_S = 5.0
# The ticket of a call that decides nothing alone; those that do are numbered from 1
ORDINARY = 0


class Circuit:
    def __init__(self, failures_max: int = FAILURES_MAX, open_s: float = OPEN_S) -> None:
        self.failures_max = failures_max
        self.open_s = open_s
        self._failures = 0
        self._open_until: float | None = None  # None = closed
        self._probe = ORDINARY  # the ticket of the call that decides now
        self._probes = 0

    def is_open(self) -> bool:
        return self._open_until is not None

    def lets_through(self, now: float) -> bool:
        return self._open_until is None or (now >= self._open_until and self._probe == ORDINARY)

    def admit(self, now: float) -> int | None:
        """A ticket, or None: fail at once."""
        if self._open_until is None:
            return ORDINARY
        if not self.lets_through(now):
            return None
        self._probes += 1
        self._probe = self._probes
        return self._probe

    def answered(self) -> bool:
        """Whoever got an answer, it came: the backend is there. True if this closed the circuit."""
        was_open = self.is_open()
        self._failures = 0
        self._open_until = None
        self._probe = ORDINARY
        return was_open

    def failed(self, ticket: int, now: float) -> bool:
        """True if this opened the circuit, or keeps it open. Late news from before it opened changes nothing."""
        if self._open_until is None:
            self._failures += 1
            if self._failures < self.failures_max:
                return False
        elif ticket == ORDINARY or ticket != self._probe:
            return False
        self._open_until = now + self.open_s
        self._probe = ORDINARY
        return True

    def abandoned(self, ticket: int) -> None:
        """Its caller went away before anything was known: the next call may decide."""
        if ticket == self._probe:
            self._probe = ORDINARY
