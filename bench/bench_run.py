"""A driver's run: the options that all of them have, nats-server, tidegate's settings, and its figures at the end.

Rule: what is measured is the driver's, how servers and crowds stand is `tidegate.bench.run`'s.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import rig
from results import save, show
from rich.console import Console
from tidegate.bench.backend import Backend, HttpBackend, NatsBackend
from tidegate.bench.run import OTHER_WORK_MAX, RUNS, Run, Usage

__all__ = ["OTHER_WORK_MAX", "RUNS", "BenchRun", "Usage", "main"]


class BenchRun(Run):
    def __init__(
        self,
        name: str,
        about: str,
        argv: Sequence[str] | None = None,
        choices: Mapping[str, Sequence[str]] | None = None,
        **numbers: int,
    ) -> None:
        self.about = about
        parser = _options(name, about, numbers)
        for choice, words in (choices or {}).items():
            parser.add_argument(f"--{choice}", choices=words, help="only this one")
        self.options = parser.parse_args(argv)
        quick: bool = self.options.quick
        super().__init__(name, self.options.runs or (1 if quick else RUNS), quick=quick, only=self.options.only)
        self.nats: rig.Nats | None = None

    def __enter__(self) -> Self:
        with Console(stderr=True).status("building the limit program and the generator"):
            self.programs = rig.build()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if kind is None:
            self._finish()

    def bus_url(self) -> str:
        return self.start_nats().url if self.options.bus == "nats" else "memory:"

    def settings(self) -> dict[str, str]:
        return dict(assignment.split("=", 1) for assignment in self.options.env)

    def start_nats(self) -> rig.Nats:
        if self.nats is None:
            self.nats = self.lasting.enter_context(rig.Nats())
        return self.nats

    def backend(self, server: rig.Tidegate) -> Backend:
        if self.nats is None:
            return HttpBackend(server.port, server.publish_key)
        return NatsBackend(self.nats.port)

    def _finish(self) -> None:
        figures, other_work = list(self.figures), self.other_share()
        if other_work > OTHER_WORK_MAX:
            self.notes.append(
                f"other work took {other_work:.0%} of the machine meanwhile: measure again on a quiet one"
            )
        show(self.about.partition("\n\n")[0].replace("\n", " "), figures, self.notes)
        if self.quick and self.options.json is None:
            print("A quick run: too short to quote, so it is not written to bench/results/.")
            return
        options = {name: value for name, value in vars(self.options).items() if name != "json"}
        settings = {"runs": self.runs, "other_work_share": round(other_work, 3), **options}
        path = save(self.name, figures, settings, self.notes, self.options.json)
        print(f"written to {path.relative_to(rig.REPOSITORY) if path.is_relative_to(rig.REPOSITORY) else path}")


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, not to bench/results/")
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
