"""Who is it? Verifies tokens (RFC 7519, RFC 8725) with the keys that the settings give, and remembers the good ones.

PyJWT's algorithms do the cryptography, each with a key prepared once; for HMAC that is the standard library. The claims
are checked here, because contracts accept what PyJWT refuses (a number in `sub`, an `aud` nobody asked about), and
because the time is an argument.
Rules: the algorithms are fixed beforehand and each has one key, so no token chooses how it is verified; other header
fields are ignored, but `crit` refuses (RFC 7515 section 4.1.11). No input makes `verify` raise. What a profile needs of
the claims (a user id, rooms) is the profile's to check.
"""

import binascii
import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from jwt import get_algorithm_by_name
from jwt.algorithms import Algorithm, HMACAlgorithm

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
        self._headers: dict[bytes, _Verifier] = {}  # as encoded, of tokens whose signature held
        self._cache = _Cache(jwt.cache_size)

    @property
    def cached(self) -> int:
        return len(self._cache)

    def verify(self, token: str) -> Claims | Rejected:
        if len(token) > TOKEN_BYTES_MAX:
            return Rejected("too_long")
        try:
            return Claims(self._claims(token, self._clock()))
        except _TokenError as refused:
            return Rejected(refused.reason)

    def _claims(self, token: str, now: float) -> dict[str, Any]:
        data, header, payload, signature = _split(token)
        verifier = self._headers.get(header) or _named_verifier(header, self._verifiers)
        digest = hashlib.sha256(data).digest() if verifier.is_dear else b""
        if digest and (known := self._cache.find(digest, now)) is not None:
            self.hits += 1
            return _object(known)
        self.misses += 1
        if not verifier.holds(data[: -len(signature) - 1], _decoded(signature)):
            raise _TokenError("signature")
        self._know(header, verifier)
        content = _decoded(payload)
        claims = _object(content)
        ends_at = _check_claims(claims, self._jwt, now)
        if digest:
            self._cache.keep(digest, content, ends_at)
        return claims

    def _know(self, header: bytes, verifier: "_Verifier") -> None:
        """An issuer's tokens all begin with the same text: it is read once. Who has no key can't fill this."""
        if header not in self._headers and len(header) <= HEADER_BYTES_MAX and len(self._headers) < HEADERS_MAX:
            self._headers[header] = verifier


class _TokenError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- signature --------------------------------------------------------------------------------------------------------


class _Verifier(NamedTuple):
    holds: Callable[[bytes, bytes], bool]  # what was signed, and the signature
    is_dear: bool  # costs more than to look whether the token is known


def _verifier(name: str, key: object) -> _Verifier:
    algorithm = get_algorithm_by_name(name)
    prepared = algorithm.prepare_key(key)
    if isinstance(algorithm, HMACAlgorithm):
        return _Verifier(_mac_verifier(prepared, algorithm.hash_alg), is_dear=False)
    return _Verifier(_signature_verifier(algorithm, prepared), is_dear=True)


def _mac_verifier(key: bytes, digest: Any) -> Callable[[bytes, bytes], bool]:
    """What PyJWT does with the key that it has checked, but the key is hashed once, not for each token."""
    keyed = hmac.new(key, digestmod=digest)

    def holds(signed: bytes, signature: bytes) -> bool:
        mac = keyed.copy()
        mac.update(signed)
        return hmac.compare_digest(mac.digest(), signature)

    return holds


def _signature_verifier(algorithm: Algorithm, key: Any) -> Callable[[bytes, bytes], bool]:
    def holds(signed: bytes, signature: bytes) -> bool:
        try:
            return bool(algorithm.verify(signed, key, signature))
        except Exception:  # a signature of odd shape makes some back ends raise: it does not hold
            return False

    return holds


def _split(token: str) -> tuple[bytes, bytes, bytes, bytes]:
    """The whole as bytes, and its parts: header, payload and signature (RFC 7515 section 3.1)."""
    try:
        data = token.encode("ascii")
        header, payload, signature = data.split(b".")
    except ValueError:
        raise _TokenError("malformed") from None
    if not (header and payload and signature):
        raise _TokenError("malformed")
    return data, header, payload, signature


def _named_verifier(part: bytes, verifiers: Mapping[str, _Verifier]) -> _Verifier:
    header = _object(_decoded(part))
    # `b64` changes what is signed (RFC 7797) and is critical by definition
    if "crit" in header or "b64" in header:
        raise _TokenError("crit")
    name = header.get("alg")
    verifier = verifiers.get(name) if isinstance(name, str) else None
    if verifier is None:
        raise _TokenError("algorithm")
    return verifier


def _decoded(part: bytes) -> bytes:
    """Base64url without padding (RFC 7515 section 2), and no other character."""
    try:
        return binascii.a2b_base64(part.translate(TO_BASE64) + PADDING[len(part) & 3], strict_mode=True)
    except ValueError:
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
    if type(value) is int:
        return value
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

# One issuer writes one header text, seldom two; a token's header has some 40 bytes, with a thumbprint in `kid` 150
HEADERS_MAX = 64
HEADER_BYTES_MAX = 512

# What only the other alphabet or padding has becomes a character that neither has
TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
# By the length's remainder; one character alone is no byte, and this padding makes it fail
PADDING = (b"", b"===", b"==", b"=")
