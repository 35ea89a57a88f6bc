"""What is remembered of tokens: which ones, for how long, and that nobody else profits."""

import pytest
from tidegate.auth import HEADERS_MAX
from tidegate.config.settings import Jwt
from tidegate.profile import Claims, Rejected

from tests.unit.jwt_samples import (
    CLAIMS,
    NOW,
    OTHER_EC,
    PRIVATE,
    RSA,
    Clock,
    authenticator,
    by_hand,
    pem_of,
    token,
    why,
)


def remembering(clock=None, **changes):
    """Of an issuer whose signatures take long to verify."""
    return authenticator(clock, secret_key="", public_key=pem_of(PRIVATE["ES256"]), **changes)


def dear(claims=CLAIMS):
    return token(claims, PRIVATE["ES256"], "ES256")


def test_a_token_is_verified_once_and_known_until_it_expires():
    clock = Clock()
    auth = remembering(clock)
    made = dear(CLAIMS | {"exp": NOW + 60})
    first = auth.verify(made)
    clock.now = NOW + 59.9
    assert auth.verify(made) == first
    assert (auth.hits, auth.misses, auth.cached) == (1, 1, 1)
    clock.now = NOW + 60
    assert why(auth.verify(made)) == "expired"
    assert (auth.hits, auth.misses, auth.cached) == (1, 2, 0)


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_tokens_with_a_signature_are_remembered_whatever_its_kind(algorithm):
    auth = authenticator(public_key=pem_of(PRIVATE[algorithm]))
    made = token(CLAIMS, PRIVATE[algorithm], algorithm)
    assert auth.verify(made) == auth.verify(made) == Claims(CLAIMS)
    assert (auth.hits, auth.misses, auth.cached) == (1, 1, 1)


def test_tokens_with_a_mac_are_not_remembered_since_to_verify_one_costs_no_more():
    auth = authenticator()
    made = token()
    assert auth.verify(made) == auth.verify(made) == Claims(CLAIMS)
    assert (auth.hits, auth.misses, auth.cached) == (0, 2, 0)


def test_a_header_known_from_good_tokens_lets_no_other_token_in():
    auth = authenticator()
    header, payload, _ = token().split(".")
    auth.verify(token())
    assert why(auth.verify(f"{header}.{payload}.{'A' * 43}")) == "signature"
    assert why(auth.verify(f"{header}.{payload}.")) == "malformed"
    auth.reload(Jwt(secret_key="", public_key=pem_of(RSA)))
    assert why(auth.verify(token())) == "algorithm"


def test_headers_beyond_those_that_are_kept_are_read_each_time():
    auth = authenticator()
    for number in range(HEADERS_MAX + 3):
        made = token(headers={"kid": str(number)})
        assert auth.verify(made) == auth.verify(made) == Claims(CLAIMS)
    assert why(auth.verify(by_hand({"alg": "none"}, CLAIMS))) == "algorithm"


def test_a_remembered_token_lets_no_token_in_that_differs_in_one_character():
    auth, made = remembering(), dear()
    auth.verify(made)
    for place in range(len(made) - 1):
        changed = made[:place] + ("A" if made[place] != "A" else "B") + made[place + 1 :]
        assert isinstance(auth.verify(changed), Rejected), place
    assert auth.hits == 0


def test_what_a_caller_does_to_claims_stays_with_it():
    auth, made = remembering(), dear()
    auth.verify(made).values["user_id"] = "root"
    auth.verify(made).values["user_id"] = "root"
    assert auth.verify(made) == Claims(CLAIMS)


def test_the_least_recently_used_token_goes_first():
    auth = remembering(cache_size=2)
    a, b, c = (dear(CLAIMS | {"user_id": name}) for name in "abc")
    for made in (a, b, a, c):
        auth.verify(made)
    assert auth.cached == 2
    auth.verify(a)
    assert (auth.hits, auth.misses) == (2, 3)
    auth.verify(b)
    assert (auth.hits, auth.misses) == (2, 4)


def test_refusals_are_not_remembered():
    auth = remembering()
    for _ in range(3):
        assert why(auth.verify(token(CLAIMS, OTHER_EC, "ES256"))) == "signature"
    assert (auth.hits, auth.misses, auth.cached) == (0, 3, 0)


def test_long_payloads_are_not_kept():
    auth = remembering()
    made = dear(CLAIMS | {"x": "y" * 3000})
    assert isinstance(auth.verify(made), Claims)
    assert isinstance(auth.verify(made), Claims)
    assert (auth.hits, auth.cached) == (0, 0)


def test_without_a_cache_every_token_is_verified():
    auth, made = remembering(cache_size=0), dear()
    auth.verify(made)
    auth.verify(made)
    assert (auth.hits, auth.misses, auth.cached) == (0, 2, 0)


def test_new_keys_forget_the_tokens_of_the_old_ones():
    auth, made = remembering(), dear()
    assert isinstance(auth.verify(made), Claims)
    auth.reload(Jwt(public_key=pem_of(OTHER_EC)))
    assert why(auth.verify(made)) == "signature"
    assert auth.cached == 0
