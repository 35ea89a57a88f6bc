"""What can go wrong in a way that a person must put right: each error says what is the matter and what cures it.

Rule: everything that ends a command with a message is a `TidegateError`; its class decides the exit code. The codes:

    0    it did what was asked; a server drained and stopped
    1    it failed, or one of the things it checked did
    2    the command line or the configuration is wrong: nothing was started
    3    the machine refuses: port in use, no descriptors, no permission
    130  interrupted (Ctrl-C); for `serve`: by a second Ctrl-C, before the drain was over
    143  terminated by a second SIGTERM, before the drain was over

    TidegateError
    ├── ConfigError     a setting, file or name that cannot be
    ├── StartError      the machine refuses a resource
    ├── BusError        a backend did not take or confirm a message
    └── UpstreamError   a backend gave no answer to a request
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar

OK = 0
FAILED = 1
USAGE = 2
RESOURCES = 3
# 128 + signal number, as shells report a process that a signal ended
INTERRUPTED = 130
TERMINATED = 143


class TidegateError(Exception):
    """`message` names what is the matter, `cure` what to do about it."""

    exit_code: ClassVar[int] = FAILED

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message, cure)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.cure}" if self.cure else self.message


class ConfigError(TidegateError):
    """A setting, file or name that cannot be."""

    exit_code = USAGE


class StartError(TidegateError):
    """The machine refuses a resource: a port, descriptors, memory."""

    exit_code = RESOURCES


class BusError(TidegateError):
    """A backend did not take or confirm a message."""


class UpstreamError(TidegateError):
    """A backend gave no answer to a request: not reached, too slow, or left alone for a while after many failures.

    `outcome` is one word for metrics: `unavailable` | `timeout` | `circuit_open` | `too_large`, or a gRPC status.
    """

    def __init__(self, message: str, cure: str = "", outcome: str = "unavailable") -> None:
        super().__init__(message, cure)
        self.outcome = outcome


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ConfigError:
    """For a name that a person chose from a list: says the nearest valid one and the list."""
    names = sorted(valid)
    nearest = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean {nearest[0]}? " if nearest else ""
    return ConfigError(f"unknown {kind} {name!r}", f"{guess}Valid: {', '.join(names) or 'none'}.")


def missing_package(what: str, error: ImportError, extra: str) -> ConfigError:
    """A library that is optional is not there."""
    cure = f"Install it with: pip install 'tidegate[{extra}]'"
    return ConfigError(f"{what} needs the package {error.name or 'of its extra'}", cure)
