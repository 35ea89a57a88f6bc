"""Section 4 of the contract: who gets in, with which rooms and which first frame; and what the profile declares."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidegate.profile import (
    Action,
    Admit,
    Claims,
    Count,
    Refuse,
    Rejected,
    Verify,
)
from tidegate.profiles.attchat_gateway import (
    PROFILE,
    ROOM_FORBIDDEN,
    AttchatGateway,
    Identity,
    Rules,
)

from tests.profiles.attchat import (
    AGENT,
    ANYTHING,
    CUSTOMER,
    OPEN,
    UUID,
    frames,
    opened,
    upgrade,
)

JSON_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# --- section 4: the token --------------------------------------------------------------------------------------------


def test_the_token_is_taken_from_the_query() -> None:
    assert next(AttchatGateway(Rules()).on_open(upgrade({"token": "abc"}))) == Verify("abc")


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER   abc "])
def test_the_token_is_taken_from_the_header_when_the_query_has_none(header: str) -> None:
    assert next(AttchatGateway(Rules()).on_open(upgrade({}, authorization=header))) == Verify("abc")


def test_the_same_token_twice_is_one_token() -> None:
    assert next(AttchatGateway(Rules()).on_open(upgrade({"token": "abc"}, authorization="Bearer abc"))) == Verify("abc")


def is_auth_failure(admit: Action) -> bool:
    assert isinstance(admit, Admit)
    (frame,) = frames(admit)
    assert frame["type"] == "error"
    assert frame["payload"] == {"code": "AUTH_FAILED", "message": "Invalid token"}
    assert re.fullmatch(r"2025-12-12T02:30:05\.250000Z", frame["timestamp"])
    return admit.close == (1008, "AUTH_FAILED") and not admit.rooms and admit.session == b"" and admit.user is None


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({}, {}),
        ({"token": ""}, {}),
        ({}, {"authorization": "Basic abc"}),
        ({}, {"authorization": "Bearer"}),
        ({"token": "abc"}, {"authorization": "Bearer other"}),
    ],
)
def test_no_token_or_two_different_ones_fail_without_being_checked(
    query: dict[str, str], headers: dict[str, str]
) -> None:
    count, admit = AttchatGateway(Rules()).on_open(upgrade(query, **headers))
    assert isinstance(count, Count)
    assert count.name == "auth_failure"
    assert is_auth_failure(admit)


def test_a_rejected_token_gets_one_error_frame_on_an_upgraded_socket_then_1008() -> None:
    steps = AttchatGateway(Rules()).on_open(upgrade())
    next(steps)
    assert is_auth_failure(steps.send(Rejected("expired")))
    assert list(steps) == []


@pytest.mark.parametrize(
    "user", [None, "", 0, True, False, 1.5, [], {}, "a\nb", "a\x1fb", "x" * 257, "\ud800", 1 << 80]
)
def test_a_token_that_names_no_user_fails(user: object) -> None:
    steps = AttchatGateway(Rules()).on_open(upgrade({"token": "t", "user_id": "99"}))
    next(steps)
    count, admit = [steps.send(Claims({"user_id": user, "sub": "12345"})), *steps]
    assert isinstance(count, Count)
    assert is_auth_failure(admit)


@pytest.mark.parametrize("user", ["12345", 12345])
def test_both_generations_of_tokens_yield_a_decimal_string(user: object) -> None:
    admit = opened({"user_id": user, "username": "x", "role_id": 3, "token_version": 1})
    assert frames(admit)[0]["payload"]["user_id"] == "12345"
    assert admit.user == "12345"
    assert admit.rooms == ["user:12345"]


# --- section 4: admission --------------------------------------------------------------------------------------------


def test_the_first_frame_is_connected_with_every_key_of_the_contract() -> None:
    query = {"device": "web", "tags": "a,b", "tz": "UTC", "channel": "c", "room_id": "chat:1", "role": "loses"}
    assert frames(opened(AGENT, query)) == [
        {
            "type": "connected",
            "payload": {
                "conn_id": UUID,
                "user_id": "12345",
                "brand_id": "brand-1",
                "role": "cskh",
                "user_type": "cskh",
                "device": "web",
                "tags": "a,b",
                "tz": "UTC",
                "channel": "c",
                "room_id": "chat:1",
            },
            "timestamp": "2025-12-12T02:30:05Z",
        }
    ]


def test_what_is_unknown_is_an_empty_string() -> None:
    payload = frames(opened({"user_id": "1", "brand_id": 5, "role": None, "type": ["cskh"]}))[0]["payload"]
    assert payload.pop("conn_id") == UUID
    assert payload.pop("user_id") == "1"
    assert set(payload.values()) == {""}


def test_rooms_are_joined_in_the_contracts_order_default_query_claims() -> None:
    admit = opened({**AGENT, "rooms": ["vip:1", "chat:9"]}, {"room_id": "chat:5"})
    folders = ["folder:brand-1:all", "folder:brand-1:waiting", "folder:brand-1:active"]
    assert admit.rooms == ["user:12345", "brand:brand-1", *folders, "chat:5", "vip:1", "chat:9"]


def test_a_customer_gets_no_folders() -> None:
    assert opened(CUSTOMER).rooms == ["user:456", "brand:brand-1"]


@pytest.mark.parametrize("query", [{"type": "cskh"}, {"user_type": "cskh"}, {"user_type": "cskh", "brand_id": "other"}])
def test_the_query_cannot_make_a_customer_an_agent(query: dict[str, str]) -> None:
    assert opened(CUSTOMER, query).rooms == ["user:456", "brand:brand-1"]


def test_what_only_the_query_says_is_shown_but_opens_no_room() -> None:
    admit = opened({"user_id": "1"}, {"brand_id": "b", "user_type": "cskh", "user_id": "2"})
    assert admit.rooms == ["user:1"]
    payload = frames(admit)[0]["payload"]
    assert (payload["user_id"], payload["brand_id"], payload["user_type"]) == ("1", "b", "cskh")


def test_under_the_open_policy_the_query_fills_in_for_missing_claims_as_in_the_original() -> None:
    admit = opened({"user_id": "1"}, {"brand_id": "b", "user_type": "cskh"}, OPEN)
    assert admit.rooms == ["user:1", "brand:b", "folder:b:all", "folder:b:waiting", "folder:b:active", "@1"]


@pytest.mark.parametrize("room", ["a b", "chat:1\n", "chat.*", "chat:>", "@1", "é", "x" * 129])
def test_a_bad_room_in_the_query_is_an_error_frame_and_the_end(room: str) -> None:
    admit = opened(CUSTOMER, {"room_id": room})
    (frame,) = frames(admit)
    assert (frame["type"], frame["payload"]["code"]) == ("error", "INVALID_ROOM")
    assert admit.close == (1008, "INVALID_ROOM")
    assert not admit.rooms


def test_a_room_in_the_query_that_the_policy_forbids_is_not_joined_but_the_client_stays() -> None:
    admit = opened(CUSTOMER, {"room_id": "user:999"})
    assert "user:999" not in admit.rooms
    assert frames(admit)[0]["type"] == "connected"
    assert admit.texts[1:] == [ROOM_FORBIDDEN]
    assert admit.close is None


@pytest.mark.parametrize("rooms", ["vip:1", {"vip:1": 1}, 5, [None, 3, "bad name", "@1", "", "chat:1\n", ["vip:1"]]])
def test_bad_rooms_in_the_claim_are_skipped_silently(rooms: object) -> None:
    assert opened({**CUSTOMER, "rooms": rooms}).rooms == ["user:456", "brand:brand-1"]


def test_a_token_with_thousands_of_rooms_does_not_make_a_giant_session() -> None:
    admit = opened({**CUSTOMER, "rooms": [f"vip:{n}" for n in range(5000)]})
    assert len(admit.rooms) == 2 + 256
    assert len(admit.session) < 256 * 9


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("https://a.example", True),
        ("", True),
        ("https://A.example", False),
        ("https://a.example.evil", False),
        ("null", False),
    ],
)
def test_origins_are_compared_exactly_when_a_list_is_set(origin: str, passes: bool) -> None:
    rules = Rules(allowed_origins=frozenset({"https://a.example"}))
    step = next(AttchatGateway(rules).on_open(upgrade(None, **({"origin": origin} if origin else {}))))
    assert step == (Verify("t") if passes else Refuse(403, b'{"error":"origin_not_allowed"}'))


def test_without_a_list_every_origin_passes() -> None:
    assert next(AttchatGateway(Rules()).on_open(upgrade(None, origin="null"))) == Verify("t")


# --- sections 2, 3, 9 ------------------------------------------------------------------------------------------------


def test_the_settings_that_decide_arrive() -> None:
    settings = SimpleNamespace(
        rooms=SimpleNamespace(join_policy="claims", typing_requires_join=True),
        nats=SimpleNamespace(publish_unknown=True),
        ws=SimpleNamespace(allowed_origins=("https://a.example",)),
    )
    profile = PROFILE.build(settings)
    assert next(profile.on_open(upgrade(None, origin="https://b.example"))) == Refuse(
        403, b'{"error":"origin_not_allowed"}'
    )


@pytest.mark.parametrize(("ready", "word", "status"), [(True, "ok", "healthy"), (False, "down", "degraded")])
def test_the_welcome_has_the_originals_keys_and_tells_the_truth(ready: bool, word: str, status: str) -> None:
    profile = AttchatGateway(Rules())
    welcome = profile.welcome({"ready": ready, "consumers": 2, "streams": 2, "stats": {"total_rooms": 1}, "system": {}})
    assert set(welcome) == {
        *("architecture", "jetstream", "jetstream_info", "message", "nats", "status", "version", "stats", "system"),
    }
    assert (welcome["nats"], welcome["jetstream"], welcome["status"]) == (word, word, status)
    assert welcome["version"] == "2.0"
    assert welcome["jetstream_info"] == {"consumers": 2, "streams": 2}


@ANYTHING
@given(
    st.dictionaries(st.sampled_from(["user_id", "brand_id", "role", "type", "rooms"]), JSON_JUNK),
    st.dictionaries(st.sampled_from(["brand_id", "role", "user_type", "type", "room_id", "tags"]), st.text()),
    st.sampled_from(["member-prefix", "open", "claims"]),
)
def test_no_claims_and_no_query_raise(claims: dict[str, Any], query: dict[str, str], policy: Any) -> None:
    rules = Rules(join_policy=policy, publish_unknown=True, typing_requires_join=True)
    admit = opened(claims, query, rules)
    if admit.close is None:
        assert Identity.unpack(admit.session).pack() == admit.session
