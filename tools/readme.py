"""Writes into README.md what must not drift from the code: the settings, the source of `echo`, the measured figures.

`make format` runs it; tests/test_tidy.py fails where the file differs. Rule: figures come from bench/results/ only.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from tidegate.config import settings_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def section(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + content.strip("\n") + "\n" + found[2], text)


def echo_source() -> str:
    return f"```python\n{(ROOT / 'python/tidegate/profiles/echo.py').read_text().strip()}\n```"


def newest_results() -> dict[str, dict[str, Any]]:
    """The last result of each benchmark: files are DATE-NAME.json."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("readme"):
            newest[re.sub(r"^\d{4}-\d{2}-\d{2}-", "", path.stem)] = result
    return newest


def figures() -> str:
    """Each result brings its own rows (`readme`: what, tidegate, limit, ratio), so that no figure is typed by hand."""
    results = newest_results()
    if not results:
        return "Not measured yet on this version: `make bench` prints them for your machine."
    lines = ["| what | tidegate | the raw epoll program | ratio |", "|---|---|---|---|"]
    for result in results.values():
        lines += [f"| {' | '.join(row)} |" for row in result["readme"]]
    machine = next(iter(results.values()))["machine"]
    days = sorted({result["date"] for result in results.values()})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    lines += ["", f"Measured {when} on {machine['summary']}, clients on the same machine; medians."]
    return "\n".join(lines)


def rendered(text: str) -> str:
    text = section(text, "settings", settings_table())
    text = section(text, "echo", echo_source())
    return section(text, "figures", figures())


def main() -> int:
    text = README.read_text()
    README.write_text(rendered(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
