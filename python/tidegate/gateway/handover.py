"""The last step before the engine: a batch of commands goes in whole, or all but the malformed ones.

Rule: one connection's bad command never costs another connection its good one.
"""

from collections.abc import Sequence
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
    def __init__(self, engine: EngineLike, faults: Faults) -> None:
        self._engine = engine
        self._faults = faults

    def submit(self, commands: Sequence[Command]) -> bool:
        """Says whether the engine is pressed."""
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
