"""Tokens: what is accepted, and what is refused and why."""

import base64
import datetime
import random

import jwt as pyjwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate.auth import TOKEN_BYTES_MAX, Authenticator
from tidegate.config.keys import public_key
from tidegate.config.settings import Jwt
from tidegate.errors import ConfigError
from tidegate.profile import Claims, Rejected

from tests.unit.jwt_samples import (
    CLAIMS,
    NOW,
    OTHER_RSA,
    PRIVATE,
    RSA,
    SECRET,
    Clock,
    authenticator,
    by_hand,
    pem_of,
    signed_text,
    token,
    why,
)

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


@pytest.mark.parametrize("odd", ["+", "/", "=", "==", "===", "!", "\n", " ", "\0", ".", "A", "AA=", "AA=="])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_base64url_is_refused_even_if_signed(odd, place):
    texts = [base64.urlsafe_b64encode(part).decode() for part in (b'{"alg":"HS256"}', b'{"iss":"attchat"} ')]
    assert "=" not in "".join(texts)
    assert isinstance(authenticator().verify(signed_text(".".join(texts))), Claims)
    texts[place] += odd
    assert why(authenticator().verify(signed_text(".".join(texts)))) == "malformed"


@pytest.mark.parametrize("odd", ["+", "/", "=", "==", "!", "\n", " ", "\0", ".", "AA"])
def test_a_signature_that_is_no_base64url_is_refused(odd):
    made = token()
    assert why(authenticator().verify(made + odd)) == "malformed"
    assert why(authenticator().verify(f"{made[:-3]}{odd}{made[-2:]}")) in {"malformed", "signature"}


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


# --- other keys -------------------------------------------------------------------------------------------------------


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
