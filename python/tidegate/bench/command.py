"""`tidegate bench`: the rows that an operator asks for, measured beside the limit program, judged and written down.

Rule: what is measured is each row's own file; here is how much of it fits into about a minute. A row that lost
something has no figures, and the others are measured all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tidegate.bench import connections, fanout, handshakes, latency
from tidegate.bench.nats_run import NatsRun
from tidegate.bench.preflight import check, refuse_what_fails
from tidegate.bench.report import Row, Summary, show, write
from tidegate.bench.rig import LostError, RigError, Server
from tidegate.bench.run import Run
from tidegate.config import Settings
from tidegate.doctor import read_machine
from tidegate.errors import FAILED, OK, ConfigError

SETTLE_S = 1.0  # the engine gives memory back within a second
SETTLE_QUICK_S = 0.1
ROOMS = (1, 100)  # members, for latency
RATE = 100  # messages a second
SIZE = 128  # bytes: a short chat line
FANOUT_SHARE = 2  # 100,000 deliveries a run: half a second
FANOUT_SHARE_QUICK = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. `quick` shows that everything works: its figures are not worth quoting."""

    rows: tuple[str, ...]
    connections: int
    members: int
    seconds: int
    runs: int
    quick: bool = False
    nats: str | None = None
    json: Path | None = None


def run(asked: Asked) -> int:
    """The exit code: 0 fine, 1 worse than a goal or lost; what can't run here raises."""
    limits = check(read_machine(Settings()), max(asked.connections, asked.members))
    refuse_what_fails(limits)
    if asked.json and not asked.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {asked.json} can't be written", "Name a file in a directory that exists.")
    whole = Run("bench")
    rows = [_measured(_run(name, asked), asked) for name in asked.rows]
    summary = Summary(rows, limits, whole.other_share())
    show(summary, Console())
    if asked.json:
        write(summary, asked.json, {key: value for key, value in _as_dict(asked).items() if key != "json"})
    return OK if summary.is_fine else FAILED


def _as_dict(asked: Asked) -> dict[str, object]:
    return {name: getattr(asked, name) for name in Asked.__dataclass_fields__}


def _run(name: str, asked: Asked) -> Run:
    if asked.nats and name == "latency":
        return NatsRun(asked.nats, name, asked.runs, quick=asked.quick)
    return Run(name, asked.runs, quick=asked.quick)


def _measured(run: Run, asked: Asked) -> Row:
    shown = run.name if run.name != "latency" else f"latency over {'NATS' if isinstance(run, NatsRun) else 'HTTP'}"
    try:
        with run:
            ROWS[run.name](run, asked)
    except LostError as lost:
        return Row(shown, lost=str(lost))
    except RigError as fault:
        raise ConfigError(f"{run.name} can't be measured here", str(fault)) from None
    return Row(shown, list(run.figures), is_quick=run.quick)


# --- the rows ---------------------------------------------------------------------------------------------------------


def _connections(run: Run, asked: Asked) -> None:
    connections.measure(run, asked.connections, SETTLE_QUICK_S if asked.quick else SETTLE_S)


def _handshakes(run: Run, asked: Asked) -> None:
    handshakes.measure(run, asked.connections)


def _fanout(run: Run, asked: Asked) -> None:
    share = FANOUT_SHARE_QUICK if asked.quick else FANOUT_SHARE
    fanout.measure(run, (asked.members,), fanout.Shape((SIZE,), alone=(True,), share=share))


def _latency(run: Run, asked: Asked) -> None:
    if isinstance(run, NatsRun):
        servers = run.servers(sum(ROOMS), "--nats", f"{run.host}:{run.port}", "--subject", run.bare_subject)
        publish: dict[str, latency.Publish] = {
            "limit": run.backend_of(run.bare_subject).publish,
            "tidegate": run.backend_of(run.subject).publish,
        }
    else:
        servers = run.servers(sum(ROOMS))
        publish = {server.name: _publisher(run, server) for server in servers}
    latency.measure(run, servers, publish, latency.Shape(ROOMS, (RATE,), asked.seconds))


def _publisher(run: Run, server: Server) -> latency.Publish:
    return lambda room, count, size: run.publish(server, room, count, size)


ROWS: dict[str, Callable[[Run, Asked], None]] = {
    "connections": _connections,
    "handshakes": _handshakes,
    "fanout": _fanout,
    "latency": _latency,
}
