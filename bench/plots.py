"""Figures over a growing size as an SVG: one line a server, its median, and the span of its runs.

Rule: the same figures give the same bytes; text stays text; no background, and colours that can be read on white and on
black. The machine and the date are in the picture, for a plot travels without its page.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

GREY = "#7d8590"  # 4.3 : 1 on white, 4.7 : 1 on GitHub's dark page
LINES = {  # name -> colour and dashes
    "tidegate": ("#e8590c", "-"),
    "limit": ("#1c7ed6", "-"),
    "tidegate, burst": ("#e8590c", "--"),
    "limit, burst": ("#1c7ed6", "--"),
}
INCHES = (7.2, 4.0)
STYLE = {
    "svg.hashsalt": "tidegate",  # else the ids in the file are new each time
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    x_label: str
    y_label: str
    log_y: bool = False


def draw(
    path: Path, plot: Plot, lines: Mapping[str, Mapping[int, Sequence[float]]], machine: Mapping[str, object]
) -> None:
    """`lines`: name -> size -> the values of all runs, their median in the middle."""
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=INCHES, layout="constrained")
        axes = canvas.add_subplot()
        for name, points in lines.items():
            colour, dashes = LINES.get(name, (GREY, "-."))
            sizes = sorted(points)
            medians = [median(points[size]) for size in sizes]
            axes.plot(sizes, medians, dashes, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
            low, high = ([pick(points[size]) for size in sizes] for pick in (min, max))
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        if plot.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.10g}"))
        axes.grid(visible=True, color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.legend(frameon=False)
        canvas.suptitle(plot.title, fontsize=12)
        axes.set_title(caption(machine), fontsize=8)
        canvas.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def caption(machine: Mapping[str, object]) -> str:
    today = datetime.datetime.now(tz=datetime.UTC).date()
    kind = f"{machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}"
    return f"{kind}; {today}, commit {machine['commit']}"
