"""The file that stays of a benchmark: its figures with machine, commit and settings, in bench/results/.

Rule: a figure is never kept without its machine and its commit.
"""

import datetime
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rig import REPOSITORY
from tidegate.bench import figures as measured
from tidegate.bench.figures import Figure, Figures, show

__all__ = ["RESULTS", "Figure", "Figures", "machine", "save", "show", "today"]

RESULTS = REPOSITORY / "bench" / "results"


def save(
    name: str,
    figures: Sequence[Figure],
    settings: Mapping[str, object],
    notes: Sequence[str],
    path: Path | None = None,
) -> Path:
    """Into bench/results/DATE-NAME.json, or where `path` says."""
    if path is None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{today()}-{name}.json"
    content = {
        "benchmark": name,
        "date": today(),
        "machine": machine(),
        "settings": settings,
        "notes": notes,
        "figures": [figure.as_json() for figure in figures],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def today() -> str:
    return str(datetime.datetime.now(tz=datetime.UTC).date())


def machine() -> dict[str, object]:
    return measured.machine() | {
        "rust": _said(["rustc", "--version"]),
        "commit": _said(["git", "rev-parse", "--short=12", "HEAD"]),
        "uncommitted_changes": bool(_said(["git", "status", "--porcelain", "--untracked-files=no"])),
    }


def _said(command: list[str]) -> str:
    try:
        run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return run.stdout.strip()
