"""Tokens, good and bad, and authenticators that stand still in time: what the tests of `auth` are made of."""

import base64
import hashlib
import hmac
import json

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tidegate.auth import Authenticator
from tidegate.config.settings import Jwt
from tidegate.profile import Rejected

SECRET = "0123456789abcdef" * 4
NOW = 1_800_000_000.0
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
PRIVATE = {
    "RS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "ES256K": ec.generate_private_key(ec.SECP256K1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
CLAIMS = {"iss": "attchat", "user_id": "12345"}


def pem_of(private, form=PublicFormat.SubjectPublicKeyInfo):
    return private.public_key().public_bytes(Encoding.PEM, form).decode()


class Clock:
    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def authenticator(clock=None, **changes):
    return Authenticator(Jwt(**({"secret_key": SECRET} | changes)), clock or Clock())


def token(claims=CLAIMS, key=SECRET, algorithm="HS256", headers=None):
    return pyjwt.encode(claims, key, algorithm, headers=headers)


def by_hand(header, payload, secret=SECRET):
    """Signed with HMAC whatever the header says: what a library would not make."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return signed_text(".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), secret)


def signed_text(text, secret=SECRET):
    key = secret if isinstance(secret, bytes) else secret.encode()
    signature = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def why(result):
    assert isinstance(result, Rejected), result
    return result.reason
