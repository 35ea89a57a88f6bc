"""The machine's load as `/health` shows it: four texts read from /proc when somebody asks, "N/A" where it doesn't say.

Rule: rates are over the time since the last question, so nothing runs while nobody asks.
"""

import time
from collections.abc import Callable
from pathlib import Path

UNKNOWN = "N/A"
# Two probes in one second share an answer: a rate over less time is noise
INTERVAL_S = 1.0


class System:
    def __init__(
        self,
        read: Callable[[str], str] = lambda name: Path(name).read_text(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._at = float("-inf")
        self._cpu = _cpu_ticks(self._text("/proc/stat"))
        self._net = (clock(), _net_bytes(self._text("/proc/net/dev")))
        self._shown: dict[str, str] = {}

    def load(self) -> dict[str, str]:
        now = self._clock()
        if now - self._at >= INTERVAL_S:
            self._at = now
            self._shown = {"cpu_used_percent": self._cpu_used(), **self._memory(), "net_mbps": self._net_rate(now)}
        return self._shown

    def _text(self, name: str) -> str:
        try:
            return self._read(name)
        except OSError:
            return ""

    def _cpu_used(self) -> str:
        before, self._cpu = self._cpu, _cpu_ticks(self._text("/proc/stat"))
        if before is None or self._cpu is None or self._cpu[1] <= before[1]:
            return UNKNOWN
        busy, total = self._cpu[0] - before[0], self._cpu[1] - before[1]
        return f"{100 * max(0, busy) / total:.2f}%"

    def _memory(self) -> dict[str, str]:
        fields = dict(line.split(":", 1) for line in self._text("/proc/meminfo").splitlines() if ":" in line)
        try:
            total = int(fields["MemTotal"].split()[0])
            used = total - int(fields["MemAvailable"].split()[0])
        except (KeyError, ValueError, IndexError):
            return {"ram_used_percent": UNKNOWN, "ram_used_mb": UNKNOWN}
        return {"ram_used_percent": f"{100 * used / max(1, total):.2f}%", "ram_used_mb": f"{used / 1024:.2f}"}

    def _net_rate(self, now: float) -> str:
        (then, before), self._net = self._net, (now, _net_bytes(self._text("/proc/net/dev")))
        moved = self._net[1]
        if before is None or moved is None or now <= then:
            return UNKNOWN
        return f"{8 * max(0, moved - before) / (now - then) / 1e6:.2f}"


def _cpu_ticks(stat: str) -> tuple[int, int] | None:
    """Busy and all ticks since the boot, summed over the cores."""
    first = stat.partition("\n")[0].split()
    # user nice system idle iowait irq softirq steal; guest time is in user already
    if len(first) < 6 or first[0] != "cpu" or not all(field.isdigit() for field in first[1:9]):
        return None
    ticks = [int(field) for field in first[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _net_bytes(dev: str) -> int | None:
    """Received and sent by all interfaces but the loopback."""
    total = None
    for line in dev.splitlines():
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and name.strip() != "lo" and len(fields) >= 9 and fields[0].isdigit() and fields[8].isdigit():
            total = (total or 0) + int(fields[0]) + int(fields[8])
    return total
