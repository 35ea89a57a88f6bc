"""The last step before the engine: a batch of commands goes in whole, or all but the malformed ones.

Rule: commands go in the order of the decisions, and one connection's bad command never costs another connection its
good one.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from tidegate._core import ADMIT, CLOSE, PUBLISH, PUBLISH_ROOMS, REFUSE, Messages, Rule
from tidegate.engine import Command, Event
from tidegate.gateway.faults import Faults, ProfileError

INTERNAL_ERROR = b'{"error":"internal"}'
# What the engine raises for a command that it can't read; it carries out none of the batch then
MALFORMED = (TypeError, ValueError, OverflowError)


class EngineLike(Protocol):
    """What the gateway asks of `tidegate._core.Engine`."""

    def drain(self, limit: int) -> list[Event]: ...
    def submit(self, commands: Sequence[Command]) -> bool: ...
    def publish(self, messages: Messages, first: int, rule: Rule) -> tuple[int, int, int, bool]: ...
    def pressed(self) -> bool: ...
    def uuid(self, conn: int) -> str: ...
    def claim_user(self, user: str) -> bool: ...


class HandOver:
    """`decided` takes what was decided since it was last called."""

    def __init__(self, engine: EngineLike, faults: Faults, decided: Callable[[], list[Command]]) -> None:
        self._engine = engine
        self._faults = faults
        self._decided = decided
        self._is_due = False  # a submission, later in this turn of the loop

    def flush(self) -> None:
        self._is_due = False
        if commands := self._decided():
            self._submit(commands)

    def flush_soon(self) -> None:
        """With what others decide in this turn of the loop: a submission costs as much as several commands in it."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def submit(self, commands: Sequence[Command]) -> bool:
        """What has nothing to do with those. Says whether the engine is pressed."""
        if self._is_due:
            self.flush()
        return self._submit(commands)

    def _submit(self, commands: Sequence[Command]) -> bool:
        try:
            return self._engine.submit(commands)
        except MALFORMED:
            for command in commands:
                self._submit_one(command)
            return self._engine.pressed()

    def _submit_one(self, command: Command) -> None:
        try:
            self._engine.submit([command])
        except MALFORMED as error:
            self._faults.profile(ProfileError(f"malformed command {command[0]}: {type(error).__name__}"))
            if command[0] == ADMIT:
                self._engine.submit([(REFUSE, command[1], 500, INTERNAL_ERROR, None)])
            elif command[0] != PUBLISH and command[0] != PUBLISH_ROOMS and command[0] != REFUSE:
                self._engine.submit([(CLOSE, command[1], 1011, "internal error")])
