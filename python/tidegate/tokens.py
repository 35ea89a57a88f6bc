"""Mints development tokens for `tidegate token`, `connect --mint` and the demo.

Rule: only with the configured secret. A gateway that verifies with a public key has no key to sign with, and must not.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.config.settings import Jwt
from tidegate.errors import ConfigError

# A working day's tries; nobody should find a token in a shell history that still works a year later
LIFETIME_S = 3600.0


@dataclass(frozen=True, slots=True)
class Person:
    """Whom the token is for; empty claims are left out."""

    user_id: str
    brand_id: str = ""
    type: str = ""
    role: str = ""
    rooms: Sequence[str] = ()


def mint(person: Person, jwt: Jwt, *, lifetime_s: float = LIFETIME_S, now: float | None = None) -> str:
    from jwt import encode  # noqa: PLC0415 - brings the cryptography library along
    from jwt.warnings import InsecureKeyLengthWarning  # noqa: PLC0415

    claims = _claims(person, jwt, int(time.time() if now is None else now), lifetime_s)
    secret, algorithm = _signing_key(jwt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # `serve` and `doctor` say it, with the cure
        return encode(claims, secret, algorithm=algorithm)


def _signing_key(jwt: Jwt) -> tuple[str, str]:
    secret = jwt.secret_key.get_secret_value()
    if not secret:
        what = "a public key, which can only verify" if jwt.public_key or jwt.public_key_file else "no key"
        cure = "Set jwt.secret_key (GATEWAY_JWT_SECRET_KEY), or let whoever holds the private key sign a token."
        raise ConfigError(f"can't mint a token: the configuration has {what}", cure)
    return secret, next((name for name in jwt.algorithms if name.startswith("HS")), "HS256")


def _claims(person: Person, jwt: Jwt, now: int, lifetime_s: float) -> dict[str, object]:
    claims: dict[str, object] = {"user_id": person.user_id, "iat": now, "exp": now + int(lifetime_s)}
    claims |= {"iss": jwt.allowed_issuers[0]} if jwt.allowed_issuers else {}
    claims |= {"aud": jwt.audience[0]} if jwt.audience else {}
    optional = {"brand_id": person.brand_id, "type": person.type, "role": person.role, "rooms": list(person.rooms)}
    return claims | {name: value for name, value in optional.items() if value}
