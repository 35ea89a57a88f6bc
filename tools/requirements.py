"""Prints the runtime dependencies of pyproject.toml, one a line: pip can't install them without the package itself.

With names of extras as arguments: what these need instead.
"""

import pathlib
import re
import sys
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]


def needs(names: list[str]) -> list[str]:
    """An extra may be made of others, as `tidegate[kafka,etcd]`."""
    found = [line for name in names for line in project["optional-dependencies"][name]]
    inner = [re.fullmatch(r"tidegate\[(.*)\]", line) for line in found]
    plain = [line for line, match in zip(found, inner, strict=True) if match is None]
    return plain + [line for match in inner if match for line in needs(match[1].split(","))]


lines = needs(sys.argv[1:]) if sys.argv[1:] else project["dependencies"]
sys.stdout.write("\n".join(lines) + "\n")
