"""What a profile makes of its original's variables: the part that is the same for all.

Rule: a value that is set remembers its variable, so that an error about a setting can name what the person wrote.
"""

from collections.abc import Mapping

from tidegate.profile import FromEnvironment


class Environment:
    """The variables, and what was made of them so far."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._values: dict[str, object] = {}
        self._names: dict[str, str] = {}
        self.warnings: list[str] = []

    def text(self, name: str) -> str:
        """Without the spaces around it; empty if it is absent."""
        return self._environ.get(name, "").strip()

    def set(self, name: str, key: str, value: object) -> None:
        self._values[key], self._names[key] = value, name

    def has(self, key: str) -> bool:
        return key in self._values

    def found(self) -> FromEnvironment:
        return FromEnvironment(self._values, self._names, self.warnings)
