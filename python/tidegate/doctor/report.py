"""The doctor's table for people, and the exit code for scripts."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tidegate.config import Settings
from tidegate.doctor.checks import Check, Verdict, judge
from tidegate.doctor.probes import read_peers
from tidegate.doctor.readings import read_machine
from tidegate.errors import FAILED, OK, ConfigError
from tidegate.profile import ProfileSpec

STYLES: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
# What the defaults say nothing about
UNKNOWN_BY_DEFAULTS = {"TLS", "token secret"}


def report(
    settings: Settings,
    spec: ProfileSpec | None,
    *,
    load_test: bool = False,
    config_fault: ConfigError | None = None,
) -> int:
    """Prints every check; 1 if any fails. With a fault in the configuration, `settings` are the defaults, and without
    a `spec` nobody is asked anything."""
    peers = read_peers(settings, spec) if spec is not None else ()
    serves_grpc = spec is not None and bool(spec.services)
    checks = judge(read_machine(settings, peers, serves_grpc=serves_grpc), settings, load_test=load_test)
    if config_fault is not None:
        fault = Check("configuration", "wrong; the defaults are checked", "right", "fail", str(config_fault))
        checks = [fault, *(check for check in checks if check.name not in UNKNOWN_BY_DEFAULTS)]
    show(checks, Console(highlight=False))
    return FAILED if any(check.verdict == "fail" for check in checks) else OK


def show(checks: Sequence[Check], console: Console) -> None:
    table = Table("", "check", "found", "needed", box=None, pad_edge=False)
    for check in checks:
        table.add_row(f"[{STYLES[check.verdict]}]{check.verdict}[/]", check.name, check.found, check.needed)
    console.print(table)
    for check in checks:
        if check.cure:
            console.print(f"{check.name}: {check.cure}", style=STYLES[check.verdict], markup=False, soft_wrap=True)
    if not any(check.cure for check in checks):
        console.print("Everything is as it should be.", style="green")
