"""Who is it? Verifies tokens (RFC 7519, RFC 8725) with the keys that the settings give, and remembers the good ones.

PyJWT's algorithms do the cryptography, each with a key prepared once. The claims are checked here, because contracts
accept what PyJWT refuses (a number in `sub`, an `aud` nobody asked about), and because the time is an argument.
Rules: the algorithms are fixed beforehand and each has one key, so no token chooses how it is verified; other header
fields are ignored, but `crit` refuses (RFC 7515 section 4.1.11). No input makes `verify` raise. What a profile needs of
the claims (a user id, rooms) is the profile's to check.
"""

import base64
import binascii
import hashlib
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from jwt import get_algorithm_by_name
from jwt.algorithms import Algorithm

from tidegate.config import public_key_text
from tidegate.config.keys import token_keys
from tidegate.config.settings import Jwt
from tidegate.errors import ConfigError
from tidegate.profile import Claims, Rejected


class Authenticator:
    """`verify` is for one thread; `hits`, `misses` and `cached` may be read from any."""

    def __init__(self, jwt: Jwt, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.hits = 0
        self.misses = 0
        self.reload(jwt)

    def reload(self, jwt: Jwt) -> None:
        """Takes new keys and rules and forgets every verified token. Raises ConfigError and keeps the old ones."""
        try:
            keys = token_keys(jwt.secret_key.get_secret_value(), public_key_text(jwt), jwt.algorithms)
        except ValueError as error:
            raise ConfigError(f"the token keys can't be used: {error}", "Check the settings under jwt.") from error
        verifiers = {name: _verifier(name, key) for name, key in keys.items()}
        self._jwt, self._verifiers = jwt, verifiers
        self._cache = _Cache(jwt.cache_size)

    @property
    def cached(self) -> int:
        return len(self._cache)

    def verify(self, token: str) -> Claims | Rejected:
        if len(token) > TOKEN_BYTES_MAX:
            return Rejected("too_long")
        now = self._clock()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._cache.find(digest, now)
        if known is not None:
            self.hits += 1
            return Claims(orjson.loads(known))
        self.misses += 1
        try:
            payload = _signed_payload(token, self._verifiers)
            claims = _object(payload)
            ends_at = _check_claims(claims, self._jwt, now)
        except _TokenError as refused:
            return Rejected(refused.reason)
        self._cache.keep(digest, payload, ends_at)
        return Claims(claims)


class _TokenError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- signature --------------------------------------------------------------------------------------------------------


class _Verifier(NamedTuple):
    algorithm: Algorithm
    key: Any


def _verifier(name: str, key: object) -> _Verifier:
    algorithm = get_algorithm_by_name(name)
    return _Verifier(algorithm, algorithm.prepare_key(key))


def _signed_payload(token: str, verifiers: Mapping[str, _Verifier]) -> bytes:
    """The middle part, once its signature holds (RFC 7515 section 5.2)."""
    parts = token.split(".")
    if len(parts) != 3 or not all(BASE64URL.fullmatch(part) for part in parts):
        raise _TokenError("malformed")
    header = _object(_decoded(parts[0]))
    # `b64` changes what is signed (RFC 7797) and is critical by definition
    if "crit" in header or "b64" in header:
        raise _TokenError("crit")
    name = header.get("alg")
    verifier = verifiers.get(name) if isinstance(name, str) else None
    if verifier is None:
        raise _TokenError("algorithm")
    if not _holds(verifier, f"{parts[0]}.{parts[1]}".encode(), _decoded(parts[2])):
        raise _TokenError("signature")
    return _decoded(parts[1])


def _holds(verifier: _Verifier, signed: bytes, signature: bytes) -> bool:
    try:
        return bool(verifier.algorithm.verify(signed, verifier.key, signature))
    except Exception:  # a signature of odd shape makes some back ends raise: it does not hold
        return False


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        raise _TokenError("malformed") from None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _TokenError("malformed") from None
    if not isinstance(value, dict):
        raise _TokenError("malformed")
    return value


# --- claims -----------------------------------------------------------------------------------------------------------


def _check_claims(claims: Mapping[str, Any], jwt: Jwt, now: float) -> float:
    """Until when the token is good, infinity without `exp`."""
    ends_at = _time(claims, "exp", float("inf")) + jwt.leeway if jwt.validate_exp else float("inf")
    if ends_at <= now:
        raise _TokenError("expired")
    if _time(claims, "nbf", 0.0) - jwt.leeway > now:
        raise _TokenError("not_yet_valid")
    issuer = claims.get("iss")
    if jwt.allowed_issuers and not (isinstance(issuer, str) and issuer in jwt.allowed_issuers):
        raise _TokenError("issuer")
    if jwt.audience:
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(one, str) and one in jwt.audience for one in named):
            raise _TokenError("audience")
    return ends_at


def _time(claims: Mapping[str, Any], name: str, absent: float) -> float:
    """A NumericDate (RFC 7519 section 2). null counts as absent, as in the originals."""
    value = claims.get(name)
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise _TokenError("malformed")
    return math.floor(value)


# --- cache ------------------------------------------------------------------------------------------------------------


class _Cache:
    """Least recently used first. Payloads are kept as bytes: a third of a dictionary's size, and unalterable."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, digest: bytes, now: float) -> bytes | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        ends_at, payload = entry
        if ends_at <= now:
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return payload

    def keep(self, digest: bytes, payload: bytes, ends_at: float) -> None:
        if self._size_max == 0 or len(payload) > CACHED_BYTES_MAX:
            return
        if len(self._entries) >= self._size_max:
            self._entries.popitem(last=False)
        self._entries[digest] = (ends_at, payload)


# A token is a few hundred bytes; the request head that carries one ends at 16 KiB. More is refused before it is hashed.
TOKEN_BYTES_MAX = 8192

# With a longer payload the promise of about 1 KB a cached token would not hold; such a token is verified each time
CACHED_BYTES_MAX = 2048

BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
