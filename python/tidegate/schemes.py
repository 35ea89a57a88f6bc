"""What buses, upstreams and registries have in common: one file a kind, found by the scheme of a URL.

Rule: an error names the scheme only, for what follows it may hold a password, and says the cure: the nearest scheme, or
the package to install.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from tidegate.errors import missing_package, unknown_name

HOST_AND_PORT = re.compile(r"(?!memory:)(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}(,.*)?")


@dataclass(frozen=True)
class Schemes:
    """Of one package of implementations, each in a file of its scheme's name."""

    kind: str  # as errors say it: bus, upstream, registry
    package: str
    path: Iterable[str]  # the package's __path__
    same: Mapping[str, str] = field(default_factory=dict)  # schemes that are ways to reach what is named otherwise
    extras: Mapping[str, str] = field(default_factory=dict)  # of libraries that are optional
    bare: str = ""  # what `host:port` alone means; "" = nothing

    def of(self, url: str) -> str:
        """The name of the file. ConfigError for a scheme that there is not."""
        if self.bare and HOST_AND_PORT.fullmatch(url):
            return self.bare
        written = url.partition(":")[0].strip().lower() if ":" in url else ""
        scheme = self.same.get(written, written)
        files = [module.name for module in pkgutil.iter_modules(self.path) if not module.name.startswith("_")]
        if scheme not in files:
            valid = [f"{name}:" for name in [*files, *self.same]]
            raise unknown_name(f"{self.kind} URL scheme", written if written.isalnum() else "", valid)
        return scheme

    def module(self, url: str) -> ModuleType:
        scheme = self.of(url)
        try:
            return importlib.import_module(f"{self.package}.{scheme}")
        except ModuleNotFoundError as error:
            if scheme not in self.extras:
                raise
            raise missing_package(f"{self.kind} {scheme}:", error, self.extras[scheme]) from None
