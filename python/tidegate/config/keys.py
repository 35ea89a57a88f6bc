"""Keys that verify tokens: from the text an operator pasted to a key object and the algorithms it may be used with.

People paste PEM into environment variables, so it arrives with literal `\\n`, quotes, a byte order mark or carriage
returns; all of that is put right here. Rule: a key belongs to one family, and the family decides the algorithms,
never a token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

# RFC 7518 section 3.1, RFC 8037 section 3.1; the first one of a family is what a token is expected to use
HMAC_ALGORITHMS = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
EDWARDS_ALGORITHMS = ("EdDSA",)
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}
ALGORITHMS = (*HMAC_ALGORITHMS, *RSA_ALGORITHMS, *CURVE_ALGORITHMS.values(), *EDWARDS_ALGORITHMS)


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key and every algorithm that its kind allows."""

    key: PublicKey
    algorithms: tuple[str, ...]


def public_key(text: str) -> VerificationKey:
    """Reads PKCS#1, PKIX or an X.509 certificate. ValueError says what is wrong, never what the text was."""
    pem = normalise_pem(text)
    label = re.search(r"-----BEGIN ([A-Z0-9 ]+)-----", pem)
    if label is None:
        raise ValueError("it is not PEM: it must hold a line -----BEGIN PUBLIC KEY----- and its end")
    if "PRIVATE" in label[1]:
        raise ValueError("it is a private key; a gateway needs the public half only: openssl pkey -pubout")
    key = _load(label[1], pem.encode())
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS_MIN:
            raise ValueError(f"RSA with {key.key_size} bits is too weak; {RSA_BITS_MIN} is the least")
        return VerificationKey(key, RSA_ALGORITHMS)
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVE_ALGORITHMS:
        return VerificationKey(key, (CURVE_ALGORITHMS[key.curve.name],))
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return VerificationKey(key, EDWARDS_ALGORITHMS)
    raise ValueError("it is none of RSA, EC (P-256, P-384, P-521, secp256k1), Ed25519 or Ed448")


def _load(label: str, pem: bytes) -> object:
    try:
        if "CERTIFICATE" in label:
            return x509.load_pem_x509_certificate(pem).public_key()
        return load_pem_public_key(pem)
    except Exception as error:  # the library's parser raises its own and OpenSSL's kinds
        raise ValueError(f"the {label.lower()} in it is damaged") from error


def token_keys(secret: str, pem: str, chosen: Sequence[str] = ()) -> dict[str, bytes | PublicKey]:
    """Algorithm -> the one key that verifies it. An empty `chosen` means the usual algorithm of each key.

    ValueError says which algorithm has no key, or what is wrong with a key.
    """
    if re.search(r"-----BEGIN|ssh-(rsa|ed25519) ", secret):
        raise ValueError(
            "the secret is a key file's text, which others may know; a public key belongs into jwt.public_key"
        )
    keys: dict[str, bytes | PublicKey] = {}
    usual: list[str] = []
    if secret:
        keys |= dict.fromkeys(HMAC_ALGORITHMS, secret.encode("utf-8", "surrogateescape"))
        usual.append(HMAC_ALGORITHMS[0])
    if pem.strip():
        public = public_key(pem)
        keys |= dict.fromkeys(public.algorithms, public.key)
        usual.append(public.algorithms[0])
    for algorithm in chosen:
        if algorithm not in keys:
            raise ValueError(f"{algorithm} has no key that fits; the configured ones allow {', '.join(keys) or 'none'}")
    return {algorithm: keys[algorithm] for algorithm in (chosen or usual)}


def normalise_pem(text: str) -> str:
    text = text.strip().removeprefix("\ufeff").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    text = text.replace("\\r", "").replace("\\n", "\n").replace("\r", "")
    return "\n".join(line.strip() for line in text.split("\n")).strip() + "\n"


# RFC 7518 section 3.3 wants 2048; 1024 is broken by those who can pay, and no library signs with less by default
RSA_BITS_MIN = 2048
