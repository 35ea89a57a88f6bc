"""What is good: each figure that has a goal, and the sentence that says whether it is reached.

Rule: a goal is a ratio to the limit program where that does the same work, because a ratio holds on other machines; an
absolute one says why it is none. What the generator limited is not judged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tidegate.bench.figures import Figure

Judgement: TypeAlias = Literal["good", "worse", "not judged"]

CONNECTION_BYTES = 512  # user memory, an authenticated client in three rooms
# What the first clients cost once, 3 MiB for a thousand: buffers of the shards, Python's heap, the token cache's table
ONCE_BYTES = 4 << 20
# Over HTTP a publish is a connection, a request and an answer of its own: milliseconds, of which the engine has little
HTTP_P50_US = 5_000.0
HTTP_P99_US = 25_000.0


@dataclass(frozen=True, slots=True)
class Goal:
    """`bound` on the ratio to the limit program; on tidegate's own value where `of` says so."""

    bound: float
    of: Literal["price", "rate", "value"] = "price"


@dataclass(frozen=True, slots=True)
class Verdict:
    judgement: Judgement
    found: str
    goal: str


def _memory(figure: Figure) -> Goal:
    return Goal(CONNECTION_BYTES + ONCE_BYTES / int(figure.case.replace(",", "")), "value")


# Row -> figure -> its goal; the rows and figures without one are shown for orientation
GOALS: dict[str, dict[str, Callable[[Figure], Goal]]] = {
    "connections": {"user memory a connection": _memory},
    "handshakes": {
        "handshakes": lambda _: Goal(0.7, "rate"),
        "server CPU a handshake": lambda _: Goal(2.5),
    },
    "fanout": {"server CPU a delivery": lambda _: Goal(1.25)},
    "latency over NATS": {"p50": lambda _: Goal(1.5), "p99": lambda _: Goal(2.0)},
    "latency over HTTP": {
        "p50": lambda _: Goal(HTTP_P50_US, "value"),
        "p99": lambda _: Goal(HTTP_P99_US, "value"),
    },
}


def judge(row: str, figure: Figure) -> Verdict | None:
    """None where there is no goal."""
    goal_of = GOALS.get(row, {}).get(figure.name)
    return judged(figure, goal_of(figure)) if goal_of else None


def judged(figure: Figure, goal: Goal) -> Verdict:
    found = figure.value("tidegate") if goal.of == "value" else figure.ratio()
    unit = {"price": "x the kernel's own price", "rate": "x the kernel's own rate", "value": figure.unit}[goal.of]
    side = "at least" if goal.of == "rate" else "at most"
    wanted = f"{side} {_number(goal.bound)}"
    if found is None:
        return Verdict("not judged", "the generator was the limit, not the server", wanted)
    is_good = found >= goal.bound if goal.of == "rate" else found <= goal.bound
    return Verdict("good" if is_good else "worse", f"{_number(found)} {unit}", wanted)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= HUNDRED else f"{value:.2f}"


HUNDRED = 100  # from here on, a fraction is noise
