"""What the demo's clients saw: did every message reach every member of its room, once and in order, and how fast?

Rule: pure; the time comes with each call. A message carries its number in its room and when it was sent.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# All of `--once` as it is by default, two minutes of the live view; sorting them takes two milliseconds
LATENCIES_MAX = 10_000
# What fits on a screen beside the rest
SHOWN_MAX = 8


@dataclass(slots=True)
class Latencies:
    """The last ones, in seconds."""

    _ring: "array[float]" = field(default_factory=lambda: array("d"))
    _next: int = 0

    def add(self, seconds: float) -> None:
        if len(self._ring) < LATENCIES_MAX:
            self._ring.append(seconds)
        else:
            self._ring[self._next] = seconds
            self._next = (self._next + 1) % LATENCIES_MAX

    def quantiles_ms(self, *shares: float) -> list[float]:
        """Milliseconds below which such a share lies; 0 before the first."""
        ordered = sorted(self._ring)
        if not ordered:
            return [0.0 for _ in shares]
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 for share in shares]


class Tally:
    """Counts what was sent to rooms against what their members received."""

    def __init__(self, members: Mapping[str, Sequence[str]]) -> None:
        self.members = members
        self.sent = dict.fromkeys(members, 0)
        self.arrived = 0
        self.strays = 0  # twice, out of order, or never sent
        self.latencies = Latencies()
        self.last: deque[str] = deque(maxlen=SHOWN_MAX)
        self._next = {(client, room): 1 for room, clients in members.items() for client in clients}

    def send(self, room: str) -> int:
        """The number of the next message to the room."""
        self.sent[room] += 1
        return self.sent[room]

    def receive(self, client: str, room: str, number: int, latency_s: float) -> None:
        if self._next.get((client, room)) != number or number > self.sent[room]:
            self.strays += 1
            return
        self._next[client, room] = number + 1
        self.arrived += 1
        self.latencies.add(latency_s)

    @property
    def seen(self) -> int:
        return self.arrived + self.strays

    @property
    def expected(self) -> int:
        """Deliveries that complete the picture: each message once to each member."""
        return sum(count * len(self.members[room]) for room, count in self.sent.items())

    def is_complete(self) -> bool:
        return self.arrived == self.expected and not self.strays

    def summary(self) -> str:
        """The one line of `--once`."""
        p50, p99 = self.latencies.quantiles_ms(0.5, 0.99)
        sent, latency = sum(self.sent.values()), f"latency p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        if self.is_complete():
            return f"ok: {sent:,} messages, {self.arrived:,} deliveries, each in order and once; {latency}"
        missing = self.expected - self.arrived
        lost = f"{missing:,} of {self.expected:,} deliveries missing, {self.strays:,} out of order or twice"
        return f"failed: {sent:,} messages, {lost}; {latency}"
