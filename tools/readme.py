"""Writes into README.md what must not drift from the code: the settings, the source of `echo`, the measured figures.

`make format` runs it; tests/test_tidy.py fails where the file differs. Rule: figures come from bench/results/ only.
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from tidegate.config import settings_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
# What is worth a row, in this order: benchmark -> its figures
SHOWN = {
    "connections": ("user memory a connection",),
    "handshakes": ("handshakes", "server CPU a handshake"),
    "fanout": ("server CPU a delivery",),
    "latency": ("p50", "p99"),
    "rooms": ("server CPU a delivery",),
    "million": ("user memory a connection", "connections lost"),
}
SHOWN_OF_PEERS = (
    "user memory a connection",
    "handshakes",
    "server CPU a handshake",
    "server CPU a delivery",
    "p50",
    "p99",
    "messages",
)
OTHER_WORK_MAX = 0.05  # as the benchmarks themselves tell it


def section(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + content.strip("\n") + "\n" + found[2], text)


def echo_source() -> str:
    return f"```python\n{(ROOT / 'python/tidegate/profiles/echo.py').read_text().strip()}\n```"


def newest_results() -> dict[str, dict[str, Any]]:
    """The last result of each benchmark: files are DATE-NAME.json."""
    paths = sorted((ROOT / "bench" / "results").glob("*.json"))
    return {path.stem[11:]: json.loads(path.read_text()) for path in paths if path.stem[11:] in SHOWN}


def figures() -> str:
    """Rows for what a reader asks first, and what made the figures worse or incomparable."""
    results = newest_results()
    if not results:
        return "Not measured yet on this version: `make bench` prints them for your machine."
    lines = ["| benchmark | case | figure | tidegate | the raw epoll program | ratio |", "|---|---|---|---|---|---|"]
    for name, shown in SHOWN.items():
        lines += [
            row(name, found) for found in results.get(name, {"figures": []})["figures"] if found["figure"] in shown
        ]
    return "\n".join([*lines, "", *conditions(results)])


def row(name: str, found: dict[str, Any]) -> str:
    ours, theirs = (number(found.get(f"{server}_median")) for server in ("tidegate", "limit"))
    what = f"{found['figure']}, {found['unit']}"
    return f"| {name} | {found['case']} | {what} | {ours} | {theirs} | {number(found['ratio'])} |"


def number(value: float | None) -> str:
    """Three digits, as more would be noise; none where the generator was what limited it."""
    if value is None:
        return "-"
    return f"{float(f'{value:.3g}'):,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def conditions(results: dict[str, dict[str, Any]]) -> list[str]:
    machine = next(iter(results.values()))["machine"]
    days = sorted({result["date"] for result in results.values()})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    kernel = machine["kernel"].partition("-")[0]
    size = f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']:.0f} GiB, Linux {kernel}"
    loads = {name: result["settings"]["other_work_share"] for name, result in results.items()}
    runs = {name: runs_of(result) for name, result in results.items()}
    once = [name for name, count in runs.items() if count == 1]
    busy = [f"{name} {share:.0%}" for name, share in loads.items() if share > OTHER_WORK_MAX]
    lines = [
        f"Measured {when} on {size}, with the clients on the same machine; user memory; medians of "
        f"{max(runs.values())} runs" + (f", one run of {' and '.join(once)}." if once else ".")
    ]
    return lines + ([f"Other work took part of the machine meanwhile: {', '.join(busy)}."] if busy else [])


def runs_of(result: dict[str, Any]) -> int:
    return max(len(found["runs"]["tidegate"]) for found in result["figures"])


def peers() -> str:
    """What rivals need for the same, as multiples of tidegate's figure in the same run."""
    paths = {path.stem[11:]: path for path in sorted((ROOT / "bench" / "results").glob("*-peers*.json"))}
    if not paths:
        return "Not measured yet on this version: `make bench-peers` does it."
    return "\n\n".join(table_of_peers(json.loads(path.read_text())) for path in paths.values())


def table_of_peers(result: dict[str, Any]) -> str:
    names = [name for name in result["settings"]["servers"] if name not in ("tidegate", "limit")]
    lines = [f"| case | figure | tidegate | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for found in result["figures"]:
        if found["figure"] in SHOWN_OF_PEERS:
            ours = found["tidegate_median"]
            theirs = (times(found.get(f"{name}_median"), ours) for name in names)
            what = f"{found['figure']}, {found['unit']}"
            case = found["case"].partition(": ")[2]
            lines.append(f"| {case} | {what} | {number(ours)} | {' | '.join(theirs)} |")
    return "\n".join([*lines, "", "\n".join(f"- {note}" for note in result["notes"])])


def times(theirs: float | None, ours: float) -> str:
    return "-" if theirs is None else f"{number(theirs)} (x {number(theirs / ours)})"


def rendered(text: str) -> str:
    text = section(text, "settings", settings_table())
    text = section(text, "echo", echo_source())
    text = section(text, "peers", peers())
    return section(text, "figures", figures())


def main() -> int:
    text = README.read_text()
    README.write_text(rendered(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
