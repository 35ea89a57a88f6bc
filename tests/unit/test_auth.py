"""Tokens: what is accepted, what is refused and why, and what the cache may remember."""

import base64
import datetime
import hashlib
import hmac
import json
import random

import jwt as pyjwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate.auth import TOKEN_BYTES_MAX, Authenticator
from tidegate.config.keys import public_key
from tidegate.config.settings import Jwt
from tidegate.errors import ConfigError
from tidegate.profile import Claims, Rejected

SECRET = "0123456789abcdef" * 4
NOW = 1_800_000_000.0
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
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


def by_hand(header, payload, secret=SECRET, digest=hashlib.sha256):
    """Signed with HMAC whatever the header says: what a library would not make."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.new(secret if isinstance(secret, bytes) else secret.encode(), signed, digest).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def why(result):
    assert isinstance(result, Rejected), result
    return result.reason


# --- both generations -------------------------------------------------------------------------------------------------


def test_a_token_of_generation_a_gives_its_claims():
    assert authenticator().verify(token()) == Claims(CLAIMS)


def test_a_token_of_generation_b_is_accepted_beside_generation_a():
    auth = authenticator(public_key=pem_of(RSA))
    claims = {"iss": "attchat", "user_id": 12345, "username": "x", "role_id": 1, "token_version": 3}
    assert auth.verify(token(claims, RSA, "RS256")) == Claims(claims)
    assert auth.verify(token()) == Claims(CLAIMS)


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_the_kind_of_the_key_decides_the_algorithm(algorithm):
    auth = authenticator(secret_key="", public_key=pem_of(PRIVATE[algorithm]))
    assert auth.verify(token(CLAIMS, PRIVATE[algorithm], algorithm)) == Claims(CLAIMS)
    for other, key in PRIVATE.items():
        if other != algorithm:
            assert why(auth.verify(token(CLAIMS, key, other))) == "algorithm"
    assert why(auth.verify(token())) == "algorithm"


def test_ed448_is_accepted_too():
    key = ed448.Ed448PrivateKey.generate()
    assert authenticator(public_key=pem_of(key)).verify(token(CLAIMS, key, "EdDSA")) == Claims(CLAIMS)


@pytest.mark.parametrize("algorithm", ["HS384", "HS512", "RS512", "PS256"])
def test_other_algorithms_of_a_family_must_be_listed(algorithm):
    key = SECRET if algorithm.startswith("HS") else RSA
    made = token(CLAIMS, key, algorithm)
    assert why(authenticator(public_key=pem_of(RSA)).verify(made)) == "algorithm"
    listed = authenticator(public_key=pem_of(RSA), algorithms=[algorithm])
    assert listed.verify(made) == Claims(CLAIMS)
    assert why(listed.verify(token(CLAIMS, RSA, "RS256"))) == "algorithm"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": 12345},
        {"aud": "somebody"},
        {"aud": ["a", "b"]},
        {"jti": 5},
        {"iat": 9_999_999_999},
        {"iat": "yesterday"},
        {"nbf": None, "exp": None},
        {"rooms": ["chat:1"], "user_id": 1 << 60},
    ],
)
def test_what_the_contract_accepts_is_not_refused_for_the_librarys_taste(claims):
    assert authenticator().verify(token(CLAIMS | claims)) == Claims(CLAIMS | claims)


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_token_signed_by_somebody_else_is_refused():
    auth = authenticator(public_key=pem_of(RSA))
    assert why(auth.verify(token(key="x" * 64))) == "signature"
    assert why(auth.verify(token(CLAIMS, OTHER_RSA, "RS256"))) == "signature"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, 5, ["HS256"], {"a": 1}])
def test_no_token_goes_without_a_signature(alg):
    made = by_hand({"alg": alg, "typ": "JWT"}, CLAIMS)
    assert why(authenticator(public_key=pem_of(RSA)).verify(made)) == "algorithm"
    head, payload, _ = made.split(".")
    assert why(authenticator().verify(f"{head}.{payload}.")) == "malformed"


def test_a_public_key_never_serves_as_an_hmac_secret():
    pem = pem_of(RSA)
    made = by_hand({"alg": "HS256"}, CLAIMS, pem)
    assert why(authenticator(secret_key="", public_key=pem).verify(made)) == "algorithm"
    assert why(authenticator(public_key=pem).verify(made)) == "signature"


def test_an_rsa_header_over_an_hmac_signature_is_refused():
    made = by_hand({"alg": "RS256"}, CLAIMS)
    assert why(authenticator().verify(made)) == "algorithm"
    assert why(authenticator(public_key=pem_of(RSA)).verify(made)) == "signature"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("signature", [b"x", b"\0" * 64, b"\xff" * 256, b"\0" * 10])
def test_signatures_of_odd_shape_are_refused(algorithm, signature):
    auth = authenticator(public_key=pem_of(PRIVATE[algorithm]))
    head, payload, _ = token(CLAIMS, PRIVATE[algorithm], algorithm).split(".")
    odd = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    assert why(auth.verify(f"{head}.{payload}.{odd}")) == "signature"


@pytest.mark.parametrize(
    "extra", [{"kid": "../../etc/passwd"}, {"jku": "http://x"}, {"x5u": "http://x"}, {"jwk": {"kty": "oct", "k": "AA"}}]
)
def test_hints_at_other_keys_are_ignored(extra):
    assert authenticator().verify(by_hand({"alg": "HS256"} | extra, CLAIMS)) == Claims(CLAIMS)
    forged = by_hand({"alg": "HS256"} | extra, CLAIMS, b"\0")
    assert why(authenticator().verify(forged)) == "signature"


@pytest.mark.parametrize(
    "extra", [{"crit": ["exp"]}, {"crit": []}, {"crit": None}, {"crit": ["b64"], "b64": True}, {"b64": False}]
)
def test_critical_extensions_are_refused(extra):
    assert why(authenticator().verify(by_hand({"alg": "HS256"} | extra, CLAIMS))) == "crit"


def test_every_single_changed_character_breaks_a_token():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    auth = authenticator()
    made = token()
    for place in range(len(made) - 1):  # the last character of a signature has spare bits
        changed = made[:place] + rng.choice([c for c in "ABCxyz019-_" if c != made[place]]) + made[place + 1 :]
        assert isinstance(auth.verify(changed), Rejected), place


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 1}, "expired"),
        ({"exp": NOW + 0.9}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": -5}, "expired"),
        ({"exp": "2099"}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": [1]}, "malformed"),
        ({"nbf": NOW + 1}, "not_yet_valid"),
        ({"nbf": "soon"}, "malformed"),
        ({"iss": "other"}, "issuer"),
        ({"iss": "attchat "}, "issuer"),
        ({"iss": ["attchat"]}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": {"attchat": 1}}, "issuer"),
    ],
)
def test_claims_that_do_not_hold_are_refused(claims, reason):
    assert why(authenticator().verify(by_hand({"alg": "HS256"}, CLAIMS | claims))) == reason


@pytest.mark.parametrize("claims", [{"exp": NOW + 1}, {"nbf": NOW}, {"nbf": 0}, {"exp": 1 << 62}])
def test_claims_at_the_edge_hold(claims):
    assert isinstance(authenticator().verify(token(CLAIMS | claims)), Claims)


def test_numbers_without_end_are_refused():
    assert why(authenticator().verify(by_hand({"alg": "HS256"}, b'{"iss":"attchat","exp":1e999}'))) == "malformed"
    assert why(authenticator().verify(by_hand({"alg": "HS256"}, b'{"iss":"attchat","exp":NaN}'))) == "malformed"


def test_a_missing_issuer_is_refused_unless_the_list_is_empty():
    made = token({"user_id": "1"})
    assert why(authenticator().verify(made)) == "issuer"
    assert authenticator(allowed_issuers=[]).verify(made) == Claims({"user_id": "1"})
    assert isinstance(authenticator(allowed_issuers=["a", "attchat"]).verify(token()), Claims)


def test_leeway_stretches_both_ends():
    auth = authenticator(leeway="30s")
    assert isinstance(auth.verify(token(CLAIMS | {"exp": NOW - 29})), Claims)
    assert isinstance(auth.verify(token(CLAIMS | {"nbf": NOW + 30})), Claims)
    assert why(auth.verify(token(CLAIMS | {"exp": NOW - 30}))) == "expired"


def test_expiry_is_not_looked_at_when_switched_off():
    assert isinstance(authenticator(validate_exp=False).verify(token(CLAIMS | {"exp": 1})), Claims)


@pytest.mark.parametrize(
    ("audience", "good"), [("me", True), (["x", "me"], True), ("x", False), ([], False), (None, False), ([5], False)]
)
def test_an_audience_that_is_asked_for_must_be_named(audience, good):
    result = authenticator(audience=["me", "us"]).verify(by_hand({"alg": "HS256"}, CLAIMS | {"aud": audience}))
    assert result == (Claims(CLAIMS | {"aud": audience}) if good else Rejected("audience"))


# --- malformed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b",
        "e30.e30.e30.e30",
        "eyJ.e30.AA",
        "\x00.\x00.\x00",
        "\ud800",
        "é.é.é",
        " " + "a.b.c",
        "=.=.=",
    ],
)
def test_what_is_no_token_is_refused(text):
    assert why(authenticator().verify(text)) == "malformed"


@pytest.mark.parametrize("payload", [b"", b"[]", b"5", b"null", b"{", b"\xff\xfe", b'{"a":1}x', b"[" * 3000])
def test_a_payload_that_is_no_object_is_refused(payload):
    made = by_hand({"alg": "HS256"}, payload)
    assert why(authenticator().verify(made)) == "malformed"


def test_a_token_of_100_kb_is_refused_unread():
    auth = authenticator()
    assert why(auth.verify("a" * 100_000)) == "too_long"
    assert why(auth.verify(token(CLAIMS | {"x": "y" * TOKEN_BYTES_MAX}))) == "too_long"
    assert (auth.hits, auth.misses) == (0, 0)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_makes_verify_raise(text):
    assert isinstance(FUZZED.verify(text), Rejected)


@settings(deadline=None)
@given(st.binary(max_size=120), st.binary(max_size=120))
def test_no_signed_bytes_make_verify_raise(header, payload):
    assert isinstance(FUZZED.verify(by_hand(header, payload)), Rejected)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
moments = st.integers(0, 4_000_000_000) | st.floats(0, 4e9) | json_values
plausible = st.fixed_dictionaries(
    {"iss": st.sampled_from(["attchat", "attchat", "attchat", "other", None])},
    optional={
        "exp": moments,
        "nbf": moments,
        "iat": json_values,
        "aud": json_values,
        "sub": json_values,
        "jti": json_values,
    },
)


@settings(deadline=None)
@given(plausible)
def test_whatever_is_accepted_pyjwt_accepts_as_well(claims):
    made = by_hand({"alg": "HS256"}, claims)
    if isinstance(Authenticator(Jwt(secret_key=SECRET)).verify(made), Claims):
        options = {"verify_sub": False, "verify_aud": False, "verify_jti": False, "verify_iat": False}
        present = by_hand({"alg": "HS256"}, {name: value for name, value in claims.items() if value is not None})
        pyjwt.decode(present, SECRET, algorithms=["HS256"], issuer=["attchat"], options=options)


FUZZED = authenticator(public_key=pem_of(RSA))


# --- cache ------------------------------------------------------------------------------------------------------------


def test_a_token_is_verified_once_and_known_until_it_expires():
    clock = Clock()
    auth = authenticator(clock)
    made = token(CLAIMS | {"exp": NOW + 60})
    first = auth.verify(made)
    clock.now = NOW + 59.9
    assert auth.verify(made) == first
    assert (auth.hits, auth.misses, auth.cached) == (1, 1, 1)
    clock.now = NOW + 60
    assert why(auth.verify(made)) == "expired"
    assert (auth.hits, auth.misses, auth.cached) == (1, 2, 0)


def test_what_a_caller_does_to_claims_stays_with_it():
    auth = authenticator()
    auth.verify(token()).values["user_id"] = "root"
    auth.verify(token()).values["user_id"] = "root"
    assert auth.verify(token()) == Claims(CLAIMS)


def test_the_least_recently_used_token_goes_first():
    auth = authenticator(cache_size=2)
    a, b, c = (token(CLAIMS | {"user_id": name}) for name in "abc")
    for made in (a, b, a, c):
        auth.verify(made)
    assert auth.cached == 2
    auth.verify(a)
    assert (auth.hits, auth.misses) == (2, 3)
    auth.verify(b)
    assert (auth.hits, auth.misses) == (2, 4)


def test_refusals_are_not_remembered():
    auth = authenticator()
    for _ in range(3):
        assert why(auth.verify(token(key="x" * 64))) == "signature"
    assert (auth.hits, auth.misses, auth.cached) == (0, 3, 0)


def test_long_payloads_are_not_kept():
    auth = authenticator()
    made = token(CLAIMS | {"x": "y" * 3000})
    assert isinstance(auth.verify(made), Claims)
    assert isinstance(auth.verify(made), Claims)
    assert (auth.hits, auth.cached) == (0, 0)


def test_without_a_cache_every_token_is_verified():
    auth = authenticator(cache_size=0)
    auth.verify(token())
    auth.verify(token())
    assert (auth.hits, auth.misses, auth.cached) == (0, 2, 0)


def test_new_keys_forget_the_tokens_of_the_old_ones():
    auth = authenticator()
    made = token()
    assert isinstance(auth.verify(made), Claims)
    auth.reload(Jwt(secret_key="another secret, also long enough"))
    assert why(auth.verify(made)) == "signature"


def test_keys_that_cannot_be_used_leave_the_old_ones(tmp_path):
    auth = authenticator()
    with pytest.raises(ConfigError, match="not PEM"):
        auth.reload(Jwt(secret_key=SECRET, public_key="nonsense"))
    with pytest.raises(ConfigError, match="can't read"):
        auth.reload(Jwt(public_key_file=str(tmp_path / "none.pem")))
    assert isinstance(auth.verify(token()), Claims)


def test_a_key_file_is_read_anew_on_reload(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text(pem_of(OTHER_RSA))
    settings = Jwt(public_key_file=str(path))
    auth = Authenticator(settings, Clock())
    made = token(CLAIMS, RSA, "RS256")
    assert why(auth.verify(made)) == "signature"
    path.write_text(pem_of(RSA))
    auth.reload(settings)
    assert auth.verify(made) == Claims(CLAIMS)


def test_without_any_key_nobody_gets_in():
    auth = authenticator(secret_key="")
    assert why(auth.verify(token())) == "algorithm"
    assert why(auth.verify(by_hand({"alg": "HS256"}, CLAIMS, b""))) == "algorithm"


# --- PEM as people paste it -------------------------------------------------------------------------------------------


def certificate(private):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sample")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1, start, start + datetime.timedelta(days=1))
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("kind", ["pkix", "pkcs1", "certificate"])
@pytest.mark.parametrize(
    "pasted",
    [
        lambda pem: pem,
        lambda pem: pem.replace("\n", "\\n"),
        lambda pem: f'"{pem.strip()}"',
        lambda pem: "'" + pem.replace("\n", "\\n") + "'",
        lambda pem: "\ufeff" + pem,
        lambda pem: '\ufeff"' + pem.replace("\n", "\\n") + '"',
        lambda pem: pem.replace("\n", "\r\n"),
        lambda pem: pem.replace("\n", "\\r\\n"),
        lambda pem: "\n\n  " + pem.replace("\n", "\n   ") + "  ",
    ],
    ids=[
        "as is",
        "literal newlines",
        "quotes",
        "both",
        "byte order mark",
        "mark and quotes",
        "CRLF",
        "literal CRLF",
        "indented",
    ],
)
def test_a_public_key_is_understood_however_it_was_pasted(kind, pasted):
    forms = {
        "pkix": lambda: pem_of(RSA),
        "pkcs1": lambda: pem_of(RSA, PublicFormat.PKCS1),
        "certificate": lambda: certificate(RSA),
    }
    auth = authenticator(secret_key="", public_key=pasted(forms[kind]()))
    assert auth.verify(token(CLAIMS, RSA, "RS256")) == Claims(CLAIMS)


def test_weak_and_strange_keys_are_refused():
    weak = rsa.generate_private_key(65537, 1024)
    with pytest.raises(ValueError, match="1024 bits"):
        public_key(pem_of(weak))
    with pytest.raises(ValueError, match="none of RSA"):
        public_key(pem_of(ec.generate_private_key(ec.SECP224R1())))
