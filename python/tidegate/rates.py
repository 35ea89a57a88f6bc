"""How often something may happen for each of many keys, such as a user on several connections.

It remembers only when a key's budget would be full again (the generic cell rate algorithm), and forgets a key whose
budget is: memory is for those who were busy a moment ago. Rule: pure; the time comes with each question.
"""

# A look at every key costs a microsecond for ten of them; so seldom, it does not show
FORGET_EVERY_S = 10.0
WINDOW_S = 1.0
# Times since the epoch have steps of a quarter of a microsecond, and each sum may be off by one
ROUNDING_S = 1e-5


class Rates:
    """`rate` a second for each key, 0 = no limit, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._token_s = 1 / rate if rate else 0.0
        self._most_s = self._token_s * max(1, burst)
        self._full_at: dict[int | str, float] = {}
        self._forget_at = 0.0

    def take(self, key: int | str, now: float) -> bool:
        """Whether it may happen once more."""
        if not self._token_s:
            return True
        if now >= self._forget_at:
            self._forget(now)
        full_at = max(self._full_at.get(key, now), now) + self._token_s
        if full_at - now > self._most_s + ROUNDING_S:
            return False
        self._full_at[key] = full_at
        return True

    def _forget(self, now: float) -> None:
        self._forget_at = now + FORGET_EVERY_S
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}

    def __len__(self) -> int:
        return len(self._full_at)


class Windows:
    """At most `most` for each key within a second that begins with the key's first, as im-gateway's contract counts."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._began: dict[str, float] = {}
        self._taken: dict[str, int] = {}
        self._forget_at = 0.0

    def take(self, key: str, now: float) -> bool:
        """Whether it may happen once more. 0 = no limit."""
        if not self._most:
            return True
        if now >= self._forget_at:
            self._forget(now)
        began = self._began.get(key)
        # a clock that was set back must not keep anybody waiting
        if began is None or not began <= now < began + WINDOW_S:
            self._began[key], self._taken[key] = now, 0
        self._taken[key] += 1
        return self._taken[key] <= self._most

    def _forget(self, now: float) -> None:
        self._forget_at = now + FORGET_EVERY_S
        self._began = {key: began for key, began in self._began.items() if began + WINDOW_S > now}
        self._taken = {key: self._taken[key] for key in self._began}
