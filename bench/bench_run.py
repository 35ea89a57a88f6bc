"""One run of a benchmark: its options, its servers side by side, its progress bar, and its figures at the end.

Rule: tidegate and the limit program stand at the same time and are measured in turn, run by run, so that what the
machine does meanwhile hits both.
"""

import argparse
import contextlib
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import crowd_tokens
import psutil
import rig
from backend import Backend, HttpBackend, NatsBackend
from results import Figures, save, show
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

OTHER_WORK_MAX = 0.05  # kernel threads alone stay below; more is somebody's build
RUNS = 3  # the median of three: one disturbed run does not count


class BenchRun:
    def __init__(self, name: str, about: str, argv: Sequence[str] | None = None, **numbers: int) -> None:
        self.name, self.about = name, about
        self.options = _options(name, about, numbers).parse_args(argv)
        self.quick: bool = self.options.quick
        self.runs: int = self.options.runs or (1 if self.quick else RUNS)
        self.figures = Figures()
        self.notes: list[str] = []
        self.secret = secrets.token_hex(32)
        self.directory = Path()
        self.programs: dict[str, Path] = {}
        self._began = Usage.now()
        self.nats: rig.Nats | None = None
        self._lasting = contextlib.ExitStack()  # until the end of the run
        self._stack = contextlib.ExitStack()
        self._backends: dict[int, Backend] = {}

    def __enter__(self) -> "BenchRun":
        _raise_soft_limits()
        self.directory = Path(self._lasting.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-bench-")))
        with Console(stderr=True).status("building the limit program and the generator"):
            self.programs = rig.build()
        self._began = Usage.now()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        self._lasting.close()
        if kind is None:
            self._finish()

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """What is started in this block ends with it."""
        whole, self._stack = self._stack, contextlib.ExitStack()
        backends, self._backends = self._backends, {}
        try:
            with self._stack:
                yield
        finally:
            self._stack, self._backends = whole, backends

    def limit(self, connections: int, *options: str) -> rig.Limit:
        threads = rig.shards_for(connections)
        return self._stack.enter_context(rig.Limit(self.programs["tidegate-limit"], threads, *options))

    def tidegate(self, connections: int, **settings: str) -> rig.Tidegate:
        bus = self.start_nats().url if self.options.bus == "nats" else "memory:"
        settings |= dict(assignment.split("=", 1) for assignment in self.options.env)
        return self._stack.enter_context(rig.Tidegate(self.secret, bus, connections, settings))

    def start_nats(self) -> rig.Nats:
        if self.nats is None:
            self.nats = self._lasting.enter_context(rig.Nats())
        return self.nats

    def servers(self, connections: int, *limit_options: str) -> list[rig.Server]:
        """The limit first: where only it is asked for, tidegate need not even be built."""
        found: list[rig.Server] = []
        if self.options.only != "tidegate":
            found.append(self.limit(connections, *limit_options))
        if self.options.only != "limit":
            found.append(self.tidegate(connections))
        return found

    def crowd(self, server: rig.Server, room: str, connections: int, tokens: int = 0) -> rig.Crowd:
        """A generator for up to `connections` clients at once, with so many distinct tokens (default: one each)."""
        path = self.directory / f"tokens-{tokens or connections}"
        if not path.exists():
            crowd_tokens.write(path, self.secret, tokens or connections)
        crowd = rig.Crowd(self.programs["tidegate-loadgen"], server, room, connections, path)
        return self._stack.enter_context(crowd)

    def publish(self, server: rig.Server, room: str, count: int, size: int, batch: int = 1) -> None:
        """`count` messages as fast as the server takes them; the limit program makes them itself, `batch` to a send."""
        if isinstance(server, rig.Limit):
            server.ask(f"publish {room} {count} {size} {batch}")
            return
        assert isinstance(server, rig.Tidegate), "there are two kinds of servers"
        if server.pid not in self._backends:
            self._backends[server.pid] = self._stack.enter_context(contextlib.closing(self._backend(server)))
        self._backends[server.pid].publish(room, count, size)

    def _backend(self, server: rig.Tidegate) -> Backend:
        if self.nats is None:
            return HttpBackend(server.port, server.publish_key)
        return NatsBackend(self.nats.port)

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[str], None]]:
        """A bar on stderr; call what it yields after each step, with what comes next."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{self.name}: {what}", total=total)
            yield lambda text: bar.update(task, advance=1, description=f"{self.name}: {text}")

    def _finish(self) -> None:
        figures = list(self.figures)
        other_work = Usage.now().other_share(self._began)
        if other_work > OTHER_WORK_MAX:
            self.notes.append(
                f"other work took {other_work:.0%} of the machine meanwhile: measure again on a quiet one"
            )
        show(self.about.partition("\n\n")[0].replace("\n", " "), figures, self.notes)
        if self.quick:
            print("A quick run: too short to quote, so it is not written to bench/results/.")
            return
        settings = {"runs": self.runs, "other_work_share": round(other_work, 3), **vars(self.options)}
        print(f"written to {save(self.name, figures, settings, self.notes).relative_to(rig.REPOSITORY)}")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds up to now: of the whole machine, and of this run with the processes of it that have ended."""

    wall: float
    busy: float
    ours: float

    @classmethod
    def now(cls) -> Self:
        times = psutil.cpu_times()
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        busy = sum(times) - times.idle - times.iowait
        return cls(time.monotonic(), busy, sum(usage.ru_utime + usage.ru_stime for usage in usages))

    def other_share(self, before: "Usage") -> float:
        """What others used of the machine since `before`; interrupts that no process pays for count as theirs."""
        others = (self.busy - before.busy) - (self.ours - before.ours)
        return max(0.0, others / ((self.wall - before.wall) * (psutil.cpu_count() or 1)))


def main(benchmark: Callable[[], None]) -> None:
    """Runs a benchmark's main function; what can't start is one line with the cure."""
    try:
        benchmark()
    except rig.RigError as error:
        sys.exit(f"bench: {error}")


def _options(name: str, about: str, numbers: dict[str, int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"bench/{name}.py", description=about)
    parser.add_argument(
        "--quick", action="store_true", help="small and short (< 15 s): shows that it works, not how fast"
    )
    parser.add_argument("--runs", type=int, default=0, help=f"median of so many (default {RUNS}; with --quick 1)")
    parser.add_argument("--only", choices=("tidegate", "limit"), help="one of the two servers")
    parser.add_argument("--bus", choices=("nats", "memory"), default="nats", help="what tidegate is published to by")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of tidegate, as an environment variable",
    )
    for number, default in numbers.items():
        parser.add_argument(f"--{number.replace('_', '-')}", type=int, default=0, help=f"default {default:,}")
    parser.set_defaults(**{f"default_{number}": default for number, default in numbers.items()})
    return parser


def _raise_soft_limits() -> None:
    """Children inherit it: their threads then hold as many descriptors as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
