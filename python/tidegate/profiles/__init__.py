"""Protocols, one pure file each, found by name. Rule: the file's name is the profile's, with `-` for `_`.

What would make a file too long to read lies beside it in `_NAME_*.py`, as pure as the profile itself.
"""

import importlib
import pkgutil

from tidegate.errors import missing_package, unknown_name
from tidegate.profile import ProfileSpec

DEFAULT = "attchat-gateway"


def names() -> list[str]:
    """Of all profiles in this folder, without importing them."""
    files = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in files)


def find(name: str) -> ProfileSpec:
    """A name that is not there is a ConfigError that says the nearest one and the list."""
    if name not in names():
        raise unknown_name("profile", name, names())
    try:
        spec: ProfileSpec = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").PROFILE
    except ModuleNotFoundError as error:
        if name not in EXTRAS:
            raise
        raise missing_package(f"the profile {name}", error, EXTRAS[name]) from None
    return spec


# Profiles whose libraries are optional.
EXTRAS = {"im-gateway": "im"}
