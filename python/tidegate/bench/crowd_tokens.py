"""HS256 tokens for crowds: a hundred thousand distinct users in a second, where PyJWT takes ten.

Rule: the same claims that `tidegate token` writes; the header and the parts that never change are encoded once.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path

from tidegate.bench.rig import BRANDS

ISSUER = "attchat"  # the contract's default for jwt.allowed_issuers
LIFETIME_S = 3_600  # longer than any benchmark


def write(path: Path, secret: str, count: int, first: int = 0) -> None:
    """One token a line, for users u{first} and up."""
    path.write_text("\n".join(tokens(secret, count, first)) + "\n")
    path.chmod(0o600)


def tokens(secret: str, count: int, first: int = 0) -> Iterator[str]:
    header = _base64(b'{"alg":"HS256","typ":"JWT"}')
    expires = int(time.time()) + LIFETIME_S
    keyed = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    for number in range(first, first + count):
        claims = {"user_id": f"u{number}", "brand_id": f"b{number % BRANDS}", "iss": ISSUER, "exp": expires}
        signed = header + b"." + _base64(json.dumps(claims, separators=(",", ":")).encode())
        signature = keyed.copy()
        signature.update(signed)
        yield (signed + b"." + _base64(signature.digest())).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
