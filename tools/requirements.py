"""Prints the runtime dependencies of pyproject.toml, one a line: pip can't install them without the package itself."""

import pathlib
import sys
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
sys.stdout.write("\n".join(project["dependencies"]) + "\n")
