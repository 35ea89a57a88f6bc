"""What the demo shows: once where to connect and what to try, then what flows; live in a terminal, as lines elsewhere.

Rule: nothing to copy stands in the part that moves.
"""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tidegate.demo.tally import Tally


@dataclass(frozen=True, slots=True)
class Invitation:
    """What somebody in another terminal needs."""

    url: str  # http://host:port
    metrics_url: str
    publish_key: str
    jwt: Any  # the settings that tokens are minted with
    grpc: str = ""  # host:port where backends call, if any do


def program() -> str:
    """How this command is reached from another terminal in the same folder."""
    if shutil.which("tidegate"):
        return "tidegate"
    started = Path(sys.argv[0])
    if started.name == "tidegate":
        return shlex.quote(str(started))
    return f"{shlex.quote(sys.executable)} -m tidegate.cli"


@dataclass(slots=True)
class Rates:
    """Deliveries and messages a second between two looks."""

    at: float = 0.0
    sent: int = 0
    arrived: int = 0
    sent_rate: float = 0.0
    arrived_rate: float = 0.0

    def look(self, tally: Tally, now: float) -> None:
        sent, elapsed = sum(tally.sent.values()), max(now - self.at, 1e-3)
        self.sent_rate, self.arrived_rate = (sent - self.sent) / elapsed, (tally.arrived - self.arrived) / elapsed
        self.at, self.sent, self.arrived = now, sent, tally.arrived


def line(tally: Tally, rates: Rates, clients: int) -> str:
    p50, p99 = tally.latencies.quantiles_ms(0.5, 0.99)
    return (
        f"{clients} clients  {len(tally.members)} rooms  {rates.sent:,} messages ({rates.sent_rate:.0f}/s)  "
        f"{rates.arrived:,} deliveries ({rates.arrived_rate:.0f}/s)  latency p50 {p50:.2f} ms p99 {p99:.2f} ms"
    )


def panel(tally: Tally, rates: Rates, clients: int) -> Group:
    rooms = Table("room", "members", "messages", box=None, header_style="dim", pad_edge=False)
    for room, members in tally.members.items():
        rooms.add_row(Text(room, style="cyan"), str(len(members)), f"{tally.sent[room]:,}")
    last = Text("\n".join(tally.last), style="dim")
    return Group(Text(line(tally, rates, clients), style="bold"), Text(), rooms, Text(), last)


def console() -> Console:
    return Console(highlight=False, soft_wrap=True)
