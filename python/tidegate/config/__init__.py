"""From files, environment and command line to one frozen `Settings`, or to a list of everything that is wrong with it.

Settings are defined in `settings.py`, sources in `sources.py`. Strongest first: command line, environment,
config.yaml, the profile's defaults, defaults. Rule: what can't work stops the start, with the key, the value, what is
allowed and the nearest valid name; what is merely unwise is a warning. No secret is ever in a message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tidegate.config.checks import contradictions, public_key_text, unwise, value_of
from tidegate.config.settings import DEFINITIONS, Settings
from tidegate.config.sources import (
    Layer,
    command_line_layer,
    environment_layer,
    file_layer,
    find_file,
    profile_layer,
    with_dotenv,
)
from tidegate.config.text import allowed, effective, example, reason, settings_schema, settings_table, shown, unit
from tidegate.errors import ConfigError
from tidegate.profile import ProfileSpec

__all__ = ["Loaded", "Row", "Settings", "describe", "load", "public_key_text", "settings_schema", "settings_table"]


@dataclass(frozen=True, slots=True)
class Loaded:
    settings: Settings
    sources: Mapping[str, str]  # key -> "default", "profile NAME", "config.yaml", "environment X", "command line --x"
    warnings: tuple[str, ...]
    file: Path | None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `serve --print-config`."""

    key: str
    value: str  # secrets are masked
    source: str
    unit: str
    reason: str


def load(
    spec: ProfileSpec,
    *,
    config_file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str],
    search: Sequence[str] = (".", "./config"),
) -> Loaded:
    """Raises ConfigError with every fault found."""
    file = find_file(config_file, search)
    if spec.dotenv:
        environ = with_dotenv(environ, Path(search[0]) if search else Path())
    from_file = file_layer(file, variables=spec.yaml_variables)
    layers = [
        command_line_layer(overrides or {}),
        environment_layer(spec, environ, from_file.variables),
        from_file,
        profile_layer(spec),
    ]
    sources = dict.fromkeys(DEFINITIONS, "default")
    for layer in reversed(layers):
        sources |= layer.origins
    problems = [problem for layer in layers for problem in layer.problems]
    settings, faults = _validated(layers, sources)
    problems += faults
    if settings is not None:
        problems += contradictions(settings, spec)
    if problems or settings is None:
        raise _refusal(problems)
    warnings = [warning for layer in layers for warning in layer.warnings]
    return Loaded(settings, sources, (*warnings, *unwise(settings)), file)


def describe(loaded: Loaded) -> list[Row]:
    return [
        Row(key, effective(key, value_of(loaded.settings, key)), loaded.sources[key], unit(key), reason(key))
        for key in DEFINITIONS
    ]


# --- faults -----------------------------------------------------------------------------------------------------------


def _validated(layers: Sequence[Layer], sources: Mapping[str, str]) -> tuple[Settings | None, list[str]]:
    try:
        return Settings.from_layers([layer.nested() for layer in layers]), []
    except ValidationError as error:
        faults = {
            ".".join(str(part) for part in fault["loc"][:2] if isinstance(part, str)): fault for fault in error.errors()
        }
    raw: dict[str, object] = {}
    lines: dict[str, int] = {}
    for layer in reversed(layers):
        raw |= layer.values
        lines |= layer.lines
    return None, [_wrong_value(key, raw.get(key), sources, lines, fault) for key, fault in faults.items()]


def _wrong_value(key: str, value: object, sources: Mapping[str, str], lines: Mapping[str, int], fault: Any) -> str:
    source = sources.get(key, "default")
    origin = (
        source if source.startswith(("command", "environment")) or key not in lines else f"{source} line {lines[key]}"
    )
    what = f"allowed is {allowed(key)}{example(key)}" if key in DEFINITIONS else "there is no such setting"
    if isinstance(value, str) and value.startswith("tcp://") and source.startswith("environment"):
        what += "; Kubernetes sets this variable for a Service of that name: set enableServiceLinks: false in the pod"
    elif fault["type"] == "value_error":
        what = f"{fault['ctx']['error']}; {what}"
    return f"{key} = {shown(key, value)} ({origin}): {what}"


def _refusal(problems: Sequence[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(problems[0], CURE)
    listed = "".join(f"\n  - {problem}" for problem in problems[:PROBLEMS_MAX])
    more = f"\n  and {len(problems) - PROBLEMS_MAX} more" if len(problems) > PROBLEMS_MAX else ""
    return ConfigError(f"{len(problems)} settings are wrong:{listed}{more}", "\n" + CURE)


CURE = "Put it right and start again; the README's table lists every setting."

# A file in the wrong format yields hundreds; the first ones say so
PROBLEMS_MAX = 20
