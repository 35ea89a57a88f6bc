"""What an operator reads at the end: figures, verdicts, how loaded the machine was and what limits it.

Rule: a verdict names its figure and its goal, and what made the figures worse is said before anybody quotes them.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tidegate.bench.figures import FULL, Figure, cell, machine
from tidegate.bench.run import OTHER_WORK_MAX
from tidegate.bench.verdict import Verdict, judge
from tidegate.doctor import Check

STYLES = {"good": "green", "worse": "bold red", "not judged": "yellow"}


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark's figures, or what it lost."""

    name: str
    figures: Sequence[Figure] = ()
    lost: str = ""
    is_quick: bool = False  # too short to be judged

    def verdicts(self) -> list[tuple[Figure, Verdict | None]]:
        return [(figure, None if self.is_quick else judge(self.name, figure)) for figure in self.figures]


@dataclass(frozen=True, slots=True)
class Summary:
    rows: Sequence[Row]
    limits: Sequence[Check]
    other_share: float

    def verdicts(self) -> list[Verdict]:
        return [verdict for row in self.rows for _, verdict in row.verdicts() if verdict is not None]

    @property
    def worse(self) -> int:
        return sum(verdict.judgement == "worse" for verdict in self.verdicts())

    @property
    def is_fine(self) -> bool:
        return not self.worse and not any(row.lost for row in self.rows)

    def sentence(self) -> str:
        lost, judged = sum(bool(row.lost) for row in self.rows), len(self.verdicts())
        if lost:
            return f"{lost} of {len(self.rows)} benchmarks lost something: please report it with the lines above."
        if self.worse:
            return f"{self.worse} of {judged} figures are worse than their goal."
        if not judged:
            return "It works, and nothing was lost. Too short to be judged: leave --quick out for that."
        return f"Nothing was lost, and no figure of {judged} is worse than its goal."


def show(summary: Summary, console: Console) -> None:
    console.print(_table(summary.rows))
    for style, line in _verdicts(summary.rows):
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    for line in [*_conditions(summary), *_cures(summary.limits)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    style = STYLES["good" if summary.is_fine else "worse"]
    console.print(summary.sentence(), style=style, markup=False, highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row]) -> Table:
    """Fits into 80 columns."""
    table = Table("", box=None, pad_edge=False)
    for column in ("tidegate", "limit program", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        for case in dict.fromkeys(figure.case for figure in row.figures):
            table.add_row(f"[bold]{escape(row.name)}[/], {escape(case)}")
            for figure in row.figures:
                if figure.case == case:
                    table.add_row(*_cells(figure))
    return table


def _cells(figure: Figure) -> list[str]:
    ratio = figure.ratio()
    values = [cell(figure, server) for server in ("tidegate", "limit")]
    return [escape(f"  {figure.name} [{figure.unit}]"), *values, "" if ratio is None else f"{ratio:.2f}"]


def _verdicts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each with its style."""
    found = []
    for row in rows:
        if row.lost:
            found.append((STYLES["worse"], f"lost   {row.name}: {row.lost}"))
        for figure, verdict in row.verdicts():
            if verdict is not None:
                said = f"{row.name}, {figure.case}: {figure.name}: {verdict.found}; goal: {verdict.goal}"
                found.append((STYLES[verdict.judgement], f"{verdict.judgement:<6} {said}"))
    return found


def _conditions(summary: Summary) -> list[str]:
    found = machine()
    lines = [
        f"Measured on {found['cores']} cores ({found['cpu']}), {found['memory_gib']} GiB, Linux {found['kernel']}; "
        f"other work took {summary.other_share:.0%} of the machine meanwhile."
    ]
    if summary.other_share > OTHER_WORK_MAX:
        lines.append("That is enough to change these figures: measure again on a quiet machine before you quote them.")
    if any(count for row in summary.rows for figure in row.figures for count in figure.full.values()):
        lines.append(FULL)
    return lines


def _cures(limits: Sequence[Check]) -> list[str]:
    """What holds this machine back, whether or not it did this time."""
    return [f"This machine is limited by {check.name}: {check.found}. {check.cure}" for check in limits]


def write(summary: Summary, path: Path, settings: Mapping[str, object]) -> None:
    content = {
        "date": str(datetime.datetime.now(tz=datetime.UTC).date()),
        "machine": machine(),
        "settings": settings,
        "other_work_share": round(summary.other_share, 3),
        "is_fine": summary.is_fine,
        "rows": [_row_as_json(row) for row in summary.rows],
        "limits": [{"name": check.name, "found": check.found, "cure": check.cure} for check in summary.limits],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _row_as_json(row: Row) -> dict[str, object]:
    figures = [
        figure.as_json() | {"verdict": verdict.judgement if verdict else None} for figure, verdict in row.verdicts()
    ]
    return {"row": row.name, "lost": row.lost, "figures": figures}
