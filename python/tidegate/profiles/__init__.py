"""Protocols, one pure file each, found by name. Rule: the file's name is the profile's, with `-` for `_`."""

import importlib
import pkgutil

from tidegate.errors import unknown_name
from tidegate.profile import ProfileSpec

DEFAULT = "attchat-gateway"


def names() -> list[str]:
    """Of all profiles in this folder, without importing them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ProfileSpec:
    """A name that is not there is a ConfigError that says the nearest one and the list."""
    if name not in names():
        raise unknown_name("profile", name, names())
    spec: ProfileSpec = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").PROFILE
    return spec
