"""etcd URLs as people write them, and as whom to connect: the only file that reads passwords out of one.

`etcd://[user:password@]host[:port],host2[:port]`, or etcd's own way of writing endpoints: `http://host:port,...`, or
`host:port,...`. Rule: what is shown of a URL, in errors and `repr`, has no credentials in it.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tidegate.errors import ConfigError

PORT = 2379
SCHEMES = ("etcd", "http")
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9a-fA-F:.]+")


@dataclass(frozen=True, slots=True)
class Etcd:
    """Where to connect and as whom."""

    endpoints: tuple[str, ...]  # host:port
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return ", ".join(self.endpoints)


def parse(url: str) -> Etcd:
    """A comma list; the first credentials in it are for all."""
    credentials = ("", "")
    endpoints = []
    for piece in filter(None, (piece.strip() for piece in url.split(","))):
        try:
            parts = urlsplit(piece if "://" in piece else f"etcd://{piece}")
            host, port = parts.hostname, parts.port or PORT
        except ValueError:
            raise bad_url(url) from None
        if parts.scheme not in SCHEMES or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise bad_url(url)
        if not host or not HOST.fullmatch(host):
            raise bad_url(url)
        if parts.username and not credentials[0]:
            credentials = (unquote(parts.username), unquote(parts.password or ""))
        endpoints.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    if not endpoints:
        raise bad_url(url)
    return Etcd(tuple(dict.fromkeys(endpoints)), *credentials)


def bad_url(url: str) -> ConfigError:
    # Whatever comes before the last @ may be a password.
    shown = f"***@{url.rpartition('@')[2]}" if "@" in url else url
    cure = (
        "Write etcd://host:2379 or etcd://user:password@host:2379, with commas between several; "
        "percent-encode : @ / , in a password. TLS to etcd is not supported."
    )
    return ConfigError(f"{shown!r} is not the URL of an etcd", cure)
