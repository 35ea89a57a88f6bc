"""What settings say together: contradictions that stop the start, and choices that only deserve a warning.

Each fault is a sentence with the key, the value, what is allowed and the cure. Rule: a single setting's own bounds
belong to `settings.py`; files that a setting names are opened here once, so that a start never fails later for them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from tidegate.config.keys import token_keys
from tidegate.config.settings import Jwt, Settings
from tidegate.config.text import default, environment_name, reason, shown
from tidegate.config.units import format_size
from tidegate.errors import ConfigError
from tidegate.profile import ProfileSpec


def contradictions(settings: Settings, spec: ProfileSpec) -> Iterator[str]:
    for check in (_token_faults, _tls_faults, _limit_faults):
        yield from check(settings)
    for key in (spec.bus, spec.registry, *spec.upstreams.values()):
        # where no URL is the default, no URL is a choice; what is a URL itself is no setting
        if key is not None and ":" not in key and (value_of(settings, key) or default(key)):
            yield from _url_faults(key, str(value_of(settings, key)))
    yield from _missing(settings, spec)
    jwt = settings.jwt
    if spec.needs_token and not (jwt.secret_key.get_secret_value() or jwt.public_key or jwt.public_key_file):
        name = environment_name(spec.env_prefix, "jwt.secret_key")
        yield (
            f"jwt.secret_key is missing: the profile {spec.name} admits nobody without a token; set {name} to the "
            "secret that signs them (new: openssl rand -hex 32), or jwt.public_key, or jwt.public_key_file"
        )


def _missing(settings: Settings, spec: ProfileSpec) -> Iterator[str]:
    upstreams = [str(value_of(settings, key)) for key in spec.upstreams.values() if ":" not in key]
    inside = bool(upstreams) and all(url.startswith("memory:") for url in upstreams)
    for key, name in () if inside else spec.required.items():
        value = value_of(settings, key)
        if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
            yield f"{key} is missing: the profile {spec.name} can't start without it; set {name} ({reason(key)})"


def unwise(settings: Settings) -> Iterator[str]:
    jwt = settings.jwt
    secret = jwt.secret_key.get_secret_value()
    if secret and len(secret.encode("utf-8", "surrogateescape")) < SECRET_BYTES_MIN:
        yield (
            f"jwt.secret_key is shorter than the {SECRET_BYTES_MIN} bytes that HS256 needs (RFC 7518 section 3.2) and "
            "can be guessed from one token; openssl rand -hex 32 makes a good one"
        )
    if jwt.public_key and jwt.public_key_file:
        yield "jwt.public_key and jwt.public_key_file are both set: the file is not read"
    if not jwt.validate_exp:
        yield "jwt.validate_exp is false: expired tokens are accepted"
    publish_key = settings.publish.key.get_secret_value()
    if publish_key and len(publish_key.encode("utf-8", "surrogateescape")) < PUBLISH_KEY_BYTES_MIN:
        yield f"publish.key is shorter than {PUBLISH_KEY_BYTES_MIN} bytes and can be guessed; openssl rand -hex 32"


def value_of(settings: Settings, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def public_key_text(jwt: Jwt) -> str:
    """The PEM text itself or from its file, read anew at each call so that SIGHUP sees a new one; '' without either."""
    if jwt.public_key or not jwt.public_key_file:
        return jwt.public_key
    return _readable("jwt.public_key_file", jwt.public_key_file).decode("utf-8", "replace")


def _token_faults(settings: Settings) -> Iterator[str]:
    secret = settings.jwt.secret_key.get_secret_value()
    if secret in REFUSED_SECRETS:
        yield (
            "jwt.secret_key is the placeholder that the original falls back to and everybody knows; make your own: "
            "openssl rand -hex 32"
        )
    try:
        token_keys(secret, public_key_text(settings.jwt), settings.jwt.algorithms)
    except ConfigError as error:
        yield str(error)
    except ValueError as error:
        yield f"{'jwt.algorithms' if 'no key that fits' in str(error) else _key_setting(settings.jwt)}: {error}"


def _key_setting(jwt: Jwt) -> str:
    if "-----BEGIN" in jwt.secret_key.get_secret_value():
        return "jwt.secret_key"
    return "jwt.public_key" if jwt.public_key else f"jwt.public_key_file = {jwt.public_key_file}"


def _tls_faults(settings: Settings) -> Iterator[str]:
    given = {key: path for key in ("server.tls_cert", "server.tls_key") if (path := value_of(settings, key))}
    if len(given) == 1:
        (here,) = given
        missing = "server.tls_key" if here == "server.tls_cert" else "server.tls_cert"
        yield f"{here} is set without {missing}: TLS needs both, plain HTTP neither"
    for key, path in given.items():
        try:
            _readable(key, path)
        except ConfigError as error:
            yield str(error)


def _readable(key: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(KEY_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no such path"
        raise ConfigError(
            f"{key} = {path}: can't read it ({why})", "Check the path, its owner and permissions."
        ) from error
    if not data or len(data) > KEY_BYTES_MAX:
        raise ConfigError(f"{key} = {path}: {len(data)} bytes are no key or certificate", "Check the path.")
    return data


def _limit_faults(settings: Settings) -> Iterator[str]:
    ws, server, metrics = settings.ws, settings.server, settings.metrics
    if ws.outbox_total < ws.outbox_bytes:
        yield (
            f"ws.outbox_total = {format_size(ws.outbox_total)}: it is for all connections together, so it must be "
            f"at least ws.outbox_bytes ({format_size(ws.outbox_bytes)})"
        )
    if ws.proxy_protocol and not ws.proxy_trusted:
        yield "ws.proxy_protocol is on and ws.proxy_trusted is empty: nobody could connect; list your balancers"
    hosts = {server.host, metrics.host}
    apart = metrics.enabled and not metrics.shared
    if apart and metrics.port == server.port != 0 and (len(hosts) == 1 or hosts & {"0.0.0.0", "::"}):  # noqa: S104
        yield f"metrics.port = {metrics.port}: it is server.port too; give it one of its own, or 0 for any free one"


def _url_faults(key: str, urls: str) -> Iterator[str]:
    """Only the shape: whether there is a bus of that scheme is for `buses` to say."""
    scheme = urls.partition("://")[0] if "://" in urls else ""
    for url in urls.split(","):
        try:
            # of several, the first says what the others are
            parts = urlsplit(url.strip() if "://" in url or not scheme else f"{scheme}://{url.strip()}")
            good = bool(parts.scheme) and (parts.scheme == "memory" or bool(parts.hostname)) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            cure = f"write {URL_EXAMPLES.get(key, 'scheme://host:port')}, or memory:"
            yield f"{key} = {shown(key, url.strip())}: it is no URL; {cure}"


URL_EXAMPLES = {
    "nats.url": "nats://host:4222 (commas between several)",
    "redis.url": "redis://host:6379/0",
    "backend.url": "http://host:8000",
    "kafka.url": "kafka://host:9092 (commas between several)",
    "registry.url": "etcd://host:2379 (commas between several)",
    "services.auth_url": "grpc://host:9095",
    "services.im_url": "grpc://host:9094",
    "services.user_url": "grpc://host:9096",
}

# What the original uses when no secret is set: whoever reads its source can sign tokens
REFUSED_SECRETS = frozenset({"change-me-in-production"})

# RFC 7518 section 3.2: an HMAC key at least as long as the hash
SECRET_BYTES_MIN = 32

# 128 bits: beyond guessing over a network
PUBLISH_KEY_BYTES_MIN = 16

# A certificate chain is under 10 KB
KEY_BYTES_MAX = 256 * 1024
