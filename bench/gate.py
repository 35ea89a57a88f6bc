"""`make bench-quick`: a short form of every benchmark, which fails when a figure is worse than the last accepted one.

A figure is tidegate's ratio to the limit program, because both feel the same machine; CPU rather than rates, because a
shared machine takes time away and not work. It is worse when it exceeds the accepted one by more than noise: the spread
of the accepted passes, or the floor of its kind if that is more. What seems worse is measured again before it counts.
`make bench-accept` writes bench/accepted.json, deliberately: the commit that carries it says why the figures changed.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rig import REPOSITORY, RigError

ACCEPTED = REPOSITORY / "bench" / "accepted.json"
PASSES = 5  # of which the spread is noise: three would often be too close together by chance
RUNS = 3  # a pass takes their median
QUIET_MAX = 0.1  # share of the machine that others may take while figures are accepted
PART_S_MAX = 300  # one takes ten seconds; this is for a machine that does everything at once

# The least that is more than noise, as a share, on a machine that others leave alone
MEMORY = 0.05  # memory comes by the page and the arena, whenever a thread asks first
CPU = 0.15  # caches, interrupts and which core a thread wakes on
BURST = 0.5  # a burst lasts milliseconds: how much of it goes out together depends on who wakes first
LATENCY = 0.6  # a few wake-ups of a sleeping machine, each as long as all that we do
# With nine tenths of the machine taken by others, passes of one build differed by 12 to 30 % where 15 are allowed
BUSY = 2.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A figure of a part: every case of it is held that has `case` in its name."""

    figure: str
    floor: float
    case: str = ""
    of: Literal["ratio", "value"] = "ratio"  # `value`: tidegate's own, where no machine shows in it


@dataclass(frozen=True, slots=True)
class Part:
    """A driver's short form: `bench/NAME.py --quick`, and what is held of its figures."""

    name: str
    options: tuple[str, ...]
    watched: tuple[Watched, ...]


# A driver joins by one line here, and `make bench-accept`
PARTS = (
    Part("connections", ("--only=tidegate",), (Watched("user memory a connection", MEMORY, of="value"),)),
    Part("handshakes", (), (Watched("server CPU a handshake", CPU),)),
    Part(
        "fanout",
        (),
        (Watched("server CPU a delivery", CPU, "alone"), Watched("server CPU a delivery", BURST, "burst")),
    ),
    Part("latency", (), (Watched("p50", LATENCY), Watched("server CPU a message", CPU))),
    Part("rooms", (), (Watched("server CPU a delivery", CPU),)),
    Part("messages", (), (Watched("server CPU a message", CPU),)),
)


# --- deciding ---------------------------------------------------------------------------------------------------------

Verdict = Literal["good", "better", "worse", "not accepted yet", "not measured"]


@dataclass(frozen=True, slots=True)
class Held:
    """One figure beside the accepted one; lower is better for all of them."""

    name: str
    was: float | None
    now: float | None
    noise: float

    @property
    def allowed(self) -> float:
        return (self.was or 0.0) * (1 + self.noise)

    @property
    def verdict(self) -> Verdict:
        if self.now is None:
            return "not measured"
        if self.was is None:
            return "not accepted yet"
        if self.now > self.allowed:
            return "worse"
        return "better" if self.now < self.was * (1 - self.noise) else "good"


def noise_of(samples: Sequence[float], floor: float) -> float:
    """As a share of the median."""
    return max(floor, (max(samples) - min(samples)) / median(samples))


def values_of(part: Part, figures: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`part | case | figure` -> what is held of it; what the generator limited is left out."""
    found = {}
    for figure in figures:
        for watched in part.watched:
            value = figure["ratio"] if watched.of == "ratio" else figure["tidegate_median"]
            if figure["figure"] == watched.figure and watched.case in figure["case"] and value is not None:
                found[f"{part.name} | {figure['case']} | {watched.figure}"] = float(value)
    return found


def floor_of(name: str) -> float:
    """Of a figure named as in `values_of`; 0 for one that is held no more."""
    part_name, _, rest = name.partition(" | ")
    case, _, figure = rest.rpartition(" | ")
    watched = (one for part in PARTS if part.name == part_name for one in part.watched)
    return next((one.floor for one in watched if one.figure == figure and one.case in case), 0.0)


def compare(now: Mapping[str, float], accepted: Mapping[str, Sequence[float]], share: float) -> list[Held]:
    """`share` of the machine went to others meanwhile."""
    held = []
    for name in dict.fromkeys([*now, *accepted]):
        samples, floor = accepted.get(name), floor_of(name) * (BUSY if share > QUIET_MAX else 1.0)
        was = median(samples) if samples else None
        held.append(Held(name, was, now.get(name), noise_of(samples, floor) if samples else floor))
    return held


def least(first: Mapping[str, float], again: Mapping[str, float]) -> dict[str, float]:
    """Of two measurements, the better of each: noise makes figures worse, hardly ever better."""
    return {name: min(value, again.get(name, value)) for name, value in first.items()}


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(parts: Sequence[Part], tree: Path = REPOSITORY) -> tuple[dict[str, float], float]:
    """The held figures of each part of a tree, and the largest share of the machine that others took meanwhile."""
    values: dict[str, float] = {}
    share = 0.0
    with tempfile.TemporaryDirectory(prefix="tidegate-gate-") as directory:
        for part in parts:
            file = Path(directory) / f"{part.name}.json"
            _run(part, file, tree)
            result = json.loads(file.read_text())
            values |= values_of(part, result["figures"])
            share = max(share, float(result["settings"]["other_work_share"]))
    return values, share


def _run(part: Part, file: Path, tree: Path) -> None:
    python = sys.executable if tree == REPOSITORY else str(tree / ".venv" / "bin" / "python")
    command = [python, str(tree / "bench" / f"{part.name}.py"), "--quick", f"--runs={RUNS}"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*command, *part.options, "--json", str(file)],
            stdout=subprocess.PIPE,  # its own table; the bar on stderr is for who waits
            text=True,
            timeout=PART_S_MAX,
            check=False,
        )
        if done.returncode:
            raise RigError(f"bench/{part.name}.py --quick ended with {done.returncode}; run it alone to see why")
        return
    raise RigError(f"bench/{part.name}.py --quick takes longer than {PART_S_MAX} s; measure on a quieter machine")


# --- the two verbs ----------------------------------------------------------------------------------------------------


def check() -> int:
    """0 nothing is worse, 1 something is, 2 there is nothing to compare with."""
    now, share = measured(PARTS)
    accepted = json.loads(ACCEPTED.read_text()) if ACCEPTED.exists() else {"figures": {}}
    held = compare(now, accepted["figures"], share)
    if doubtful := {one.name.partition(" | ")[0] for one in held if one.verdict == "worse"}:
        again, more = measured([part for part in PARTS if part.name in doubtful])
        share = max(share, more)
        held = compare(least(now, again), accepted["figures"], share)
    show(held)
    return conclude(held, accepted, share)


def conclude(held: Sequence[Held], accepted: Mapping[str, Any], share: float) -> int:
    if share > QUIET_MAX:
        print(f"Other work took up to {share:.0%} of the machine meanwhile: twice the noise is allowed for.")
    for one in held:
        if one.verdict == "worse" and one.was and one.now:
            print(f"{one.name}: was {one.was:.3g}, is {one.now:.3g}, allowed {one.allowed:.3g}")
    if any(one.verdict == "worse" for one in held):
        commit = accepted.get("commit")
        print(f"Slower than accepted on {accepted.get('date')} at {commit}. First see whether it is the machine:")
        print(f"`make bench-against COMMIT={commit}` measures both today. Then find out why, or accept it with")
        print("`make bench-accept` and say in the commit what it buys.")
        return 1
    if any(one.verdict in ("not accepted yet", "not measured") for one in held):
        print("Not every figure can be compared: on a quiet machine, run `make bench-accept` and commit")
        print("bench/accepted.json; the commit says why these figures are the ones to keep.")
        return 2
    if any(one.verdict == "better" for one in held):
        print("Better than accepted: `make bench-accept` keeps it won.")
    return 0


def accept(on_a_busy_machine: bool) -> int:
    samples: dict[str, list[float]] = {}
    worst = 0.0
    for number in range(PASSES):
        print(f"pass {number + 1} of {PASSES}", flush=True)
        values, share = measured(PARTS)
        worst = max(worst, share)
        for name, value in values.items():
            samples.setdefault(name, []).append(value)
    if worst > QUIET_MAX and not on_a_busy_machine:
        raise RigError(f"other work took up to {worst:.0%} of the machine; stop it, or say --on-a-busy-machine")
    write(samples, worst)
    show(compare({name: median(values) for name, values in samples.items()}, samples, worst))
    print(f"written to {ACCEPTED.relative_to(REPOSITORY)}; commit it, and say why these figures are the ones to keep")
    return 0


def write(samples: Mapping[str, Sequence[float]], share: float) -> None:
    from results import machine, today  # noqa: PLC0415 - asks git and rustc

    content = {
        "date": today(),
        "commit": machine()["commit"],
        "machine": machine(),
        "other_work_share": round(share, 3),
        "is_quiet": share <= QUIET_MAX,
        "figures": {name: [round(value, 4) for value in values] for name, values in samples.items()},
    }
    ACCEPTED.write_text(json.dumps(content, indent=1) + "\n")


STYLES: dict[Verdict, str] = {
    "good": "green",
    "better": "bold green",
    "worse": "bold red",
    "not accepted yet": "yellow",
    "not measured": "yellow",
}


def show(held: Sequence[Held]) -> None:
    table = Table("figure", box=None, pad_edge=False)
    for column in ("was", "is", "allowed"):
        table.add_column(column, justify="right")
    table.add_column("")
    for one in held:
        was, now = ("" if value is None else f"{value:.3g}" for value in (one.was, one.now))
        allowed = "" if one.was is None else f"{one.allowed:.3g}"
        table.add_row(one.name, was, now, allowed, f"[{STYLES[one.verdict]}]{one.verdict}[/]")
    console = Console()
    console.width = max(console.width, TABLE_COLUMNS_MIN)
    console.print(table)


TABLE_COLUMNS_MIN = 110  # where the output is no terminal, rich would wrap at 80


def main() -> int:
    parser = argparse.ArgumentParser("bench/gate.py", description=__doc__)
    parser.add_argument("--accept", action="store_true", help=f"measure {PASSES} passes and write bench/accepted.json")
    parser.add_argument("--on-a-busy-machine", action="store_true", help="accept although others use the machine")
    options = parser.parse_args()
    try:
        return accept(options.on_a_busy_machine) if options.accept else check()
    except RigError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    sys.exit(main())
