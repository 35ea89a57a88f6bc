"""Where settings come from: a file, the environment, the command line, a profile. Each is read into one `Layer`.

Values stay as they were written; `settings.py` reads and checks them. Rule: a layer only knows names: it says which are
unknown (and what was probably meant), never whether a value is good.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from tidegate.config.settings import DEFINITIONS
from tidegate.config.text import COMMON_NAMES, environment_name, flag, nearest, shown
from tidegate.errors import ConfigError
from tidegate.profile import ProfileSpec

FILE_NAME = "config.yaml"


@dataclass(slots=True)
class Layer:
    """What one source said, by setting key."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # key -> the source's name, as in `--print-config`
    lines: dict[str, int] = field(default_factory=dict)  # key -> line in the file
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(
        default_factory=dict
    )  # what a file says that are no settings: SECTION_KEY -> value

    def add(self, key: str, value: object, origin: str) -> None:
        self.values[key] = value
        self.origins[key] = origin

    def nested(self) -> dict[str, Any]:
        """As pydantic wants it: `{"ws": {"max_rooms": 10}}`."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = value
        return tree


# --- profile and command line -----------------------------------------------------------------------------------------


def profile_layer(spec: ProfileSpec) -> Layer:
    layer = Layer()
    for key, value in spec.defaults.items():
        _add_known(layer, key, value, f"profile {spec.name}")
    return layer


def command_line_layer(overrides: Mapping[str, object]) -> Layer:
    """None and () are options that were not given."""
    layer = Layer()
    for key, value in overrides.items():
        if value is not None and value != ():
            _add_known(layer, key, value, f"command line {flag(key)}")
    return layer


def _add_known(layer: Layer, key: str, value: object, origin: str) -> None:
    if key in DEFINITIONS:
        layer.add(key, value, origin)
    else:
        layer.problems.append(_unknown(key, value, origin))


def _unknown(key: str, value: object, origin: str) -> str:
    guess = nearest(key, list(DEFINITIONS))
    cure = f"did you mean {guess}?" if guess else "the README's table has them all"
    return f"{key} = {shown(key, value)} ({origin}): there is no such setting; {cure}"


# --- environment ------------------------------------------------------------------------------------------------------


def environment_layer(
    spec: ProfileSpec, environ: Mapping[str, str], variables: Mapping[str, str] | None = None
) -> Layer:
    """Blank means not set, as in the originals and as deployment templates leave it. `variables` are a file's."""
    layer = Layer()
    names = environment_names(spec)
    if spec.read_environment is not None:
        asked = _Asked(dict(variables or {}) | dict(environ))
        found = spec.read_environment(asked)
        for name in sorted(set(variables or {}) - asked.names):
            layer.warnings.append(f"{FILE_NAME}: what would be the variable {name} has no effect here")
        for key, value in found.values.items():
            layer.add(key, value, f"environment {found.names[key]}")
        layer.warnings += found.warnings
    for name, key in names.items():
        value = environ.get(name, "")
        if value.strip() and key not in layer.values:
            layer.add(key, _production(value) if name == "APP_ENV" else value, f"environment {name}")
    layer.warnings += _strangers(spec.env_prefix, environ, list(names))
    return layer


class _Asked(dict[str, str]):
    """Remembers which variables a profile knows."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def with_dotenv(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment, and what `.env` says where the environment says nothing."""
    path = folder / ".env"
    try:
        if not path.is_file() or path.stat().st_size > FILE_BYTES_MAX:
            return dict(environ)
        found = dotenv_values(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"can't read {path.name}: {why}", "Put it right, or remove it.") from None
    return {name: value for name, value in found.items() if value is not None} | dict(environ)


def environment_names(spec: ProfileSpec) -> dict[str, str]:
    """Variable -> key, the ones that win first: a profile's prefix, its single names, the common ones."""
    prefixed = {environment_name(spec.env_prefix, key): key for key in DEFINITIONS} if spec.env_prefix else {}
    return prefixed | {n: k for n, k in (COMMON_NAMES | dict(spec.env_names)).items() if n not in prefixed}


def _production(app_env: str) -> bool:
    return app_env.strip().lower() == "production"


def _strangers(prefix: str, environ: Mapping[str, str], names: list[str]) -> Iterator[str]:
    """Only a warning: Kubernetes and Docker put variables of this shape into every process by themselves."""
    for name in sorted(environ):
        if prefix and name.startswith(prefix) and name not in names and not SERVICE_LINK.search(name):
            guess = nearest(name, names)
            yield f"{name} is set, but no setting has that name" + (f"; did you mean {guess}?" if guess else "")


# Kubernetes "service links", for a Service whose name starts with ours
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")


# --- file -------------------------------------------------------------------------------------------------------------


def find_file(config_file: Path | None, search: Sequence[str]) -> Path | None:
    """The file asked for, which must exist, else the first `config.yaml` on the way, which need not."""
    if config_file is not None:
        if not config_file.is_file():
            raise ConfigError(f"no configuration file {config_file}", "Check the path given with --config.")
        return config_file
    return next((path for folder in search if (path := Path(folder) / FILE_NAME).is_file()), None)


def file_layer(path: Path | None, *, variables: bool = False) -> Layer:
    """With `variables`, a key that is no setting is one of those instead of a problem."""
    layer = Layer()
    if path is not None:
        root = _composed(path)
        if isinstance(root, yaml.MappingNode):
            _FileReader(path.name, layer, variables).section(root, "", 0)
        elif root is not None and root.tag != "tag:yaml.org,2002:null":
            raise ConfigError(
                f"{path} is no mapping", "Write sections and keys, for example `server:` and below it `  port: 8086`."
            )
    return layer


def _composed(path: Path) -> yaml.Node | None:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(
                f"{path} is larger than {FILE_BYTES_MAX} bytes", "It can't be a configuration: check --config."
            )
        # Not the loader written in C: deep nesting overflows its stack and kills the process
        return yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}", "Check its owner and permissions.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})", "Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {_yaml_fault(error)}", "Put that line right.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply", "Settings have two levels: section and key.") from None


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Line and reason without the line's text, which may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}: " if mark else ""
    return place + str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it can't be parsed")


class _FileReader:
    """Walks the tree of nodes instead of the finished dictionary, because nodes know their line and keep duplicates."""

    def __init__(self, name: str, layer: Layer, variables: bool) -> None:
        self._name = name
        self._layer = layer
        self._variables = variables
        self._constructor = yaml.constructor.SafeConstructor()

    def section(self, node: yaml.MappingNode, prefix: str, depth: int) -> None:
        self._constructor.flatten_mapping(node)
        for name_node, value_node in node.value:
            # Case counts as little as in the originals
            key = prefix + str(name_node.value if isinstance(name_node, yaml.ScalarNode) else "?").lower()
            if isinstance(value_node, yaml.MappingNode) and key not in DEFINITIONS and depth < DEPTH_MAX:
                self.section(value_node, key + ".", depth + 1)
            else:
                self._leaf(key, value_node, name_node.start_mark.line + 1)

    def _leaf(self, key: str, node: yaml.Node, line: int) -> None:
        layer, origin = self._layer, f"{self._name} line {line}"
        try:
            value = {} if isinstance(node, yaml.MappingNode) else self._constructor.construct_document(node)
        except (yaml.YAMLError, ValueError, RecursionError):
            layer.problems.append(f"{key} ({origin}): the value can't be read; put it in quotes")
            return
        if key in layer.lines:
            layer.problems.append(f"{key} ({origin}): it is already in line {layer.lines[key]}; remove one of them")
        elif key in DEFINITIONS and value is not None:
            layer.add(key, value, self._name)
            layer.lines[key] = line
        elif any(known.startswith(f"{key}.") for known in DEFINITIONS):
            if value is not None:
                layer.problems.append(f"{key} ({origin}): it is a section; write its keys indented below it")
        elif self._variables:
            layer.variables[key.upper().replace(".", "_")] = _variable(value)
        elif key not in DEFINITIONS:
            layer.problems.append(_unknown(key, value, origin))


def _variable(value: object) -> str:
    """As it would be written in the environment."""
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


# A hundred settings with comments are 20 KB; the bound keeps a mistaken --config from filling the memory
FILE_BYTES_MAX = 256 * 1024

# Section and key are two; more only happens by mistake, and aliases can nest for ever
DEPTH_MAX = 4
