"""One run of a benchmark: its servers side by side, its crowds, its progress bar, and what others did meanwhile.

Rule: tidegate and the limit program stand at the same time and are measured in turn, run by run, so that what the
machine does meanwhile hits both.
"""

import contextlib
import os
import resource
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tidegate.bench import crowd_tokens, rig
from tidegate.bench.backend import Backend, HttpBackend
from tidegate.bench.figures import Figures

OTHER_WORK_MAX = 0.05  # kernel threads alone stay below; more is somebody's build
RUNS = 3  # the median of three: one disturbed run does not count


class Run:
    """Servers and crowds that end with it. Published over HTTP to the bus `memory:`, unless a subclass knows better."""

    def __init__(self, name: str, runs: int = RUNS, *, quick: bool = False, only: str | None = None) -> None:
        self.name, self.runs, self.quick = name, runs, quick
        self.names = [server for server in ("limit", "tidegate") if only in (None, server)]
        self.programs: Mapping[str, Sequence[str]] = rig.PROGRAMS
        self.figures = Figures()
        self.notes: list[str] = []
        self.secret = secrets.token_hex(32)
        self.directory = Path()
        self._signers: dict[str, crowd_tokens.Signer] = {}
        self.began = Usage.now()
        self.lasting = contextlib.ExitStack()  # until the end of the run
        self._stack = contextlib.ExitStack()
        self._backends: dict[int, Backend] = {}

    def __enter__(self) -> Self:
        rig.raise_soft_limits()
        self.directory = Path(self.lasting.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-bench-")))
        self.began = Usage.now()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        self.lasting.close()

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

    def tidegate(self, connections: int, port: int = 0, **settings: str) -> rig.Tidegate:
        chosen = self.settings() | settings
        return self._stack.enter_context(rig.Tidegate(self.secret, self.bus_url(), connections, chosen, port))

    def bus_url(self) -> str:
        return "memory:"

    def settings(self) -> dict[str, str]:
        """Of every tidegate of this run, as environment variables."""
        return {}

    def servers(self, connections: int, *limit_options: str, **settings: str) -> list[rig.Server]:
        """The limit first: where only it is asked for, tidegate need not even be built. `settings` are tidegate's."""
        found: list[rig.Server] = []
        if "limit" in self.names:
            found.append(self.limit(connections, *limit_options))
        if "tidegate" in self.names:
            found.append(self.tidegate(connections, 0, **settings))
        return found

    def signer(self, algorithm: str) -> crowd_tokens.Signer:
        """One key an algorithm and run."""
        if algorithm not in self._signers:
            self._signers[algorithm] = crowd_tokens.signer(algorithm, self.secret)
        return self._signers[algorithm]

    def token_file(self, algorithm: str, count: int, progress: Callable[[int], object] = lambda done: None) -> Path:
        path = self.directory / f"tokens-{algorithm}-{count}"
        if not path.exists():
            crowd_tokens.write(path, self.signer(algorithm), count, progress=progress)
        return path

    def crowd(
        self,
        server: rig.Server,
        room: str,
        connections: int,
        tokens: int = 0,
        *,
        algorithm: str = "HS256",
        nice: int = 0,
        in_flight: int = 0,
        deflate: int = 0,
    ) -> rig.Crowd:
        """A generator for up to `connections` clients at once, with so many distinct tokens (default: one each)."""
        path = self.token_file(algorithm, tokens or connections)
        program = self.programs["tidegate-loadgen"]
        crowd = rig.Crowd(program, server, room, connections, path, nice=nice, in_flight=in_flight, deflate=deflate)
        return self._stack.enter_context(crowd)

    def publish(self, server: rig.Server, room: str, count: int, size: int, batch: int = 1) -> None:
        """`count` messages as fast as the server takes them; the limit program makes them itself, `batch` to a send."""
        if isinstance(server, rig.Limit):
            server.ask(f"publish {room} {count} {size} {batch}")
        elif isinstance(server, rig.Tidegate):
            if server.pid not in self._backends:
                self._backends[server.pid] = self._stack.enter_context(contextlib.closing(self.backend(server)))
            self._backends[server.pid].publish(room, count, size)

    def backend(self, server: rig.Tidegate) -> Backend:
        """What publishes to that gateway; closed with the part."""
        return HttpBackend(server.port, server.publish_key)

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[str], None]]:
        """A bar on stderr; call what it yields after each step, with what comes next."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{self.name}: {what}", total=total)
            yield lambda text: bar.update(task, advance=1, description=f"{self.name}: {text}")

    def other_share(self) -> float:
        """What others used of the machine since the run began."""
        return Usage.now().other_share(self.began)


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds up to now: of the whole machine, and of this run with the processes of it that have ended."""

    wall: float
    busy: float
    ours: float

    @classmethod
    def now(cls) -> Self:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.monotonic(), _busy_s(), sum(usage.ru_utime + usage.ru_stime for usage in usages))

    def other_share(self, before: "Usage") -> float:
        """What others used of the machine since `before`; interrupts that no process pays for count as theirs."""
        others = (self.busy - before.busy) - (self.ours - before.ours)
        return max(0.0, others / (max(self.wall - before.wall, SHORTEST_S) * (os.cpu_count() or 1)))


SHORTEST_S = 0.01  # a tick of /proc/stat: over less, nothing can be said
# /proc/stat: `cpu user nice system idle iowait irq softirq steal`, in ticks; guests are in `user` already
BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)


def _busy_s() -> float:
    """Of all cores together, since the machine started."""
    ticks = Path("/proc/stat").read_text().split(maxsplit=9)
    return sum(int(ticks[column]) for column in BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")
