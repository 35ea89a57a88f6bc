"""NATS URLs as people write them, and as whom to connect: the only file that sees the passwords in them.

Rule: an address carries no credentials, so neither our log lines nor the library's can; errors show URLs without them.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tidegate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Server:
    """Where to connect and as whom; its `repr` is safe to log."""

    address: str  # scheme://host:port
    user: str | None = None
    password: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return self.address


def parse_servers(url: str) -> list[Server]:
    """A comma list; a piece without a scheme takes the first one's."""
    if any(char.isspace() or not char.isprintable() for char in url.replace(", ", ",").strip()):
        raise bad_url(url)
    pieces = [piece.strip() for piece in url.split(",") if piece.strip()]
    scheme = pieces[0].partition("://")[0].lower() if pieces and "://" in pieces[0] else "nats"
    servers = []
    for piece in pieces:
        try:
            parts = urlsplit(piece if "://" in piece else f"{scheme}://{piece}")
            default = {"ws": 80, "wss": 443}.get(scheme, 4222)
            host, port = parts.hostname, parts.port or default
        except ValueError:
            raise bad_url(url) from None
        same_sort = parts.scheme in SCHEMES and (parts.scheme in WEBSOCKET) == (scheme in WEBSOCKET)
        if not same_sort or not host or not HOST.fullmatch(host) or parts.query or parts.fragment:
            raise bad_url(url)
        if parts.path not in ("", "/") and parts.scheme not in WEBSOCKET:
            raise bad_url(url)
        address = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"
        user, password = (unquote(value) if value else None for value in (parts.username, parts.password))
        servers.append(Server(address, user, password) if password else Server(address, token=user))
    if not servers:
        raise bad_url(url)
    return servers


def bad_url(url: str) -> ConfigError:
    # Whatever comes before the last @ may be a password.
    shown = f"***@{url.rpartition('@')[2]}" if "@" in url else url
    cure = (
        "Write nats://host:4222 or tls://user:password@host:4222, with commas between several; "
        "percent-encode : @ / , in a password."
    )
    return ConfigError(f"nats.url {shown!r} is not a NATS URL", cure)


SCHEMES = ("nats", "tls", "ws", "wss")
WEBSOCKET = ("ws", "wss")
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9a-fA-F:.]+(%[A-Za-z0-9]+)?")
