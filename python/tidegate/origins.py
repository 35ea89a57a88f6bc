"""Which web pages may connect: the check of the Origin header, the same for every profile that makes it.

Rule: exact match, or a subdomain where a `*.` says so; what can't be understood is refused. Programs that are no
browsers send no Origin and carry no ambient credentials: they pass.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

# One entry of ws.allowed_origins: an origin as browsers send it, or all subdomains of a name, on any scheme or on one
ORIGIN_PATTERN = r"[a-z][a-z0-9+.-]*://[^\s/*]+|([a-z][a-z0-9+.-]*://)?\*\.[^\s/*:]+"


class Origins:
    """`allowed` empty = all pages may."""

    def __init__(self, allowed: Iterable[str]) -> None:
        entries = list(allowed)
        self._exact = frozenset(entry for entry in entries if "*." not in entry)
        self._below = tuple(entry.split("*", 1) for entry in entries if "*." in entry)
        self._all = not entries

    def allows(self, origin: str) -> bool:
        return not origin or self._all or origin in self._exact or self._is_below(origin)

    def _is_below(self, origin: str) -> bool:
        """On any port: a wildcard is about names."""
        try:
            host = urlsplit(origin).hostname or ""
        except ValueError:
            return False
        return any(origin.startswith(scheme) and host.endswith(tail) and host != tail for scheme, tail in self._below)
