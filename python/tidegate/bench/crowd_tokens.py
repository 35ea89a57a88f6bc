"""Tokens for crowds: a hundred thousand distinct users in a second where HS256 signs them, since PyJWT takes ten.

Rule: the same claims that `tidegate token` writes; the header and the parts that never change are encoded once.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.bench.rig import BRANDS, RigError

ISSUER = "attchat"  # the contract's default for jwt.allowed_issuers
LIFETIME_S = 14_400  # longer than any benchmark: a million held for ten minutes, three times on each server
RSA_BITS = 2048  # the least that RFC 7518 allows, and what most issuers have
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")


@dataclass(frozen=True, slots=True)
class Signer:
    algorithm: str
    sign: Callable[[bytes], bytes]
    settings: Mapping[str, str] = field(default_factory=dict)  # with which a gateway accepts what it signs


def signer(algorithm: str, secret: str) -> Signer:
    """HS256 signs with the secret; for the others a key is made up."""
    return mac(secret) if algorithm == "HS256" else private_key(algorithm)


def mac(secret: str) -> Signer:
    keyed = hmac.new(secret.encode(), digestmod=hashlib.sha256)

    def sign(signed: bytes) -> bytes:
        signature = keyed.copy()
        signature.update(signed)
        return signature.digest()

    return Signer("HS256", sign)


def private_key(algorithm: str) -> Signer:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415 - a tenth of a second
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415
    from jwt import get_algorithm_by_name  # noqa: PLC0415

    made: dict[str, Callable[[], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey]] = {
        "RS256": lambda: rsa.generate_private_key(65537, RSA_BITS),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }
    if algorithm not in made:
        raise RigError(f"no crowd has tokens of {algorithm}; choose one of {', '.join(ALGORITHMS)}")
    key, library = made[algorithm](), get_algorithm_by_name(algorithm)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return Signer(algorithm, lambda signed: library.sign(signed, key), {"GATEWAY_JWT_PUBLIC_KEY": pem})


def write(
    path: Path, signer: Signer, count: int, first: int = 0, progress: Callable[[int], object] = lambda done: None
) -> None:
    """One token a line, for users u{first} and up; `progress` is told how many there are, from time to time."""
    with path.open("w") as file:
        path.chmod(0o600)
        for number, token in enumerate(tokens(signer, count, first)):
            file.write(f"{token}\n")
            if number % PROGRESS_EVERY == 0:
                progress(number)


def tokens(signer: Signer, count: int, first: int = 0) -> Iterator[str]:
    header = _base64(b'{"alg":"%b","typ":"JWT"}' % signer.algorithm.encode())
    expires = int(time.time()) + LIFETIME_S
    for number in range(first, first + count):
        claims = {"user_id": f"u{number}", "brand_id": f"b{number % BRANDS}", "iss": ISSUER, "exp": expires}
        signed = header + b"." + _base64(json.dumps(claims, separators=(",", ":")).encode())
        yield (signed + b"." + _base64(signer.sign(signed))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


PROGRESS_EVERY = 500  # a tenth of a second of RS256
