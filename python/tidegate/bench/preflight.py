"""Whether this machine can hold both ends of the crowd that was asked for: the doctor's checks, before anything starts.

Rule: what fails is said with its cure and nothing is started; what only slows things down is told with the figures.
"""

from collections.abc import Sequence

from tidegate.config import Settings
from tidegate.doctor import Check, Readings
from tidegate.doctor.checks import (
    CONNECTION_BYTES,
    PROCESS_BYTES,
    check_backlog,
    check_conntrack,
    check_descriptors,
    check_files,
)
from tidegate.errors import ConfigError

# A socket of the client and one of the server, and what the gateway knows of it
PAIR_BYTES = 2 * CONNECTION_BYTES


def check(machine: Readings, connections: int) -> list[Check]:
    """What limits `connections` here, in the order in which one would put it right."""
    one_end, both_ends = _settings(connections), _settings(2 * connections)
    checks = [
        check_descriptors(machine, one_end),
        check_files(machine, both_ends),
        check_backlog(machine, one_end),
        check_conntrack(machine, one_end),
        _check_memory(machine, connections),
    ]
    return [found for found in checks if found.verdict != "ok"]


def refuse_what_fails(checks: Sequence[Check]) -> None:
    for found in checks:
        if found.verdict == "fail":
            raise ConfigError(
                f"this machine can't hold that: {found.name} is {found.found}, needed is {found.needed}",
                f"{found.cure[:1].upper()}{found.cure[1:]}. Or ask for fewer: --connections and --members.",
            )


def _settings(connections: int) -> Settings:
    return Settings.model_validate({"ws": {"max_connections": connections}})


def _check_memory(machine: Readings, connections: int) -> Check:
    """The doctor's counts the gateway's end alone; here the clients' is on the same machine."""
    needed = connections * PAIR_BYTES + 2 * PROCESS_BYTES
    text = f"{needed / 2**20:,.0f} MiB for both ends of {connections:,} connections"
    if machine.memory is None or machine.memory >= needed:
        return Check("memory", "enough", text, "ok")
    fits = max(0, machine.memory - 2 * PROCESS_BYTES) // PAIR_BYTES
    return Check("memory", f"{machine.memory / 2**20:,.0f} MiB available", text, "fail", f"{fits:,} fit")
