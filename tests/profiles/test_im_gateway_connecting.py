"""The contract of im-gateway, section 3: who may connect, the same device again, and leaving."""

from dataclasses import asdict
from typing import Any

import orjson
import pytest
from tidegate.calls import Enter, Place
from tidegate.profile import Admit, Claims, Close, Log, Refuse, Rejected, Send, Verify
from tidegate.profiles.im_gateway import PROFILE, TOKEN_BYTES_MAX

from tests.profiles.im import (
    DOWN,
    LAPTOP,
    NOW,
    PHONE,
    TABLET,
    Driven,
    carried_out,
    connected,
    gone,
    profile,
    session,
    upgrade,
    validated,
)

SECRET = "a-secret-of-the-tests-that-is-long-enough-0123456789"


def refused(driven: Driven) -> int:
    refusal = driven.only(Refuse)
    assert "error" in orjson.loads(refusal.body)
    return int(refusal.status)


# --- section 3: connecting -------------------------------------------------------------------------------------------


def test_a_good_token_becomes_a_place_in_the_registry_and_a_session() -> None:
    run = connected(profile())
    ask, enter = run.requests
    assert ask.payload.fields == {"access_token": "jwt"}
    assert enter.payload == Enter(Place("user_7", PHONE, 1, int(NOW)), others_max=5)
    admit = run.only(Admit)
    assert (list(admit.rooms), list(admit.texts), admit.close) == (["u:user_7"], [], None)
    assert run.only(Log).fields == {"user": "user_7", "device": PHONE, "peer": "192.0.2.1"}


@pytest.mark.parametrize("header", ["Bearer jwt", "bearer jwt", "BEARER  jwt "])
def test_a_token_may_come_in_a_header(header: str) -> None:
    answers = {"auth.validate": validated(), "registry.register": True}
    run = carried_out(profile().on_open(upgrade(query={}, authorization=header)), answers)
    assert run.requests[0].payload.fields == {"access_token": "jwt"}
    assert run.only(Admit)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "jwt"])
def test_without_a_token_no_service_is_asked(header: str) -> None:
    run = carried_out(profile().on_open(upgrade(query={}, authorization=header)))
    assert refused(run) == 401
    assert not run.calls


def test_a_token_in_the_query_comes_first_and_one_that_fits_in_no_header_is_none() -> None:
    run = carried_out(
        profile().on_open(upgrade(query={"token": "mine"}, authorization="Bearer other")), {"auth.validate": DOWN}
    )
    assert run.requests[0].payload.fields == {"access_token": "mine"}
    run = carried_out(profile().on_open(upgrade(query={"token": "x" * (TOKEN_BYTES_MAX + 1)})))
    assert refused(run) == 401


def test_a_token_that_the_auth_service_does_not_accept_gets_401_and_is_counted() -> None:
    run = carried_out(profile().on_open(upgrade()), {"auth.validate": validated(valid=False)})
    assert refused(run) == 401
    assert run.counted == ["auth_failure"]
    assert run.added("connection_errors_total") == 1


def test_an_auth_service_that_is_down_gets_503_and_a_time_to_come_again() -> None:
    run = carried_out(profile().on_open(upgrade()), {"auth.validate": DOWN})
    assert refused(run) == 503
    assert run.only(Refuse).retry_after_s == 1


@pytest.mark.parametrize("user", ["", "a/b", "a b", "a\x1fb", "a\nb", "x" * 256])
def test_a_user_who_can_be_no_key_gets_401(user: str) -> None:
    assert refused(carried_out(profile().on_open(upgrade()), {"auth.validate": validated(user)})) == 401


@pytest.mark.parametrize("device", [PHONE, TABLET, "5F0c2c9e-8a39-4C2e-bD0b-2f7a3a1b0001"])
def test_a_device_is_a_uuid_v4_in_any_case(device: str) -> None:
    assert connected(profile(), device=device).only(Admit)


@pytest.mark.parametrize(
    "device",
    [
        "",
        "phone",
        PHONE.replace("-", ""),
        PHONE.replace("-4c2e", "-1c2e"),
        PHONE.replace("-9d0b", "-cd0b"),
        PHONE + "\n",
    ],
)
def test_any_other_device_gets_400_and_the_registry_is_not_asked(device: str) -> None:
    run = carried_out(profile().on_open(upgrade()), {"auth.validate": validated(device=device)})
    assert refused(run) == 400
    assert run.calls == ["auth.validate"]


def test_a_sixth_device_gets_429() -> None:
    run = carried_out(profile().on_open(upgrade()), {"auth.validate": validated(), "registry.register": False})
    assert refused(run) == 429
    assert not run.all(Admit)


def test_a_registry_that_is_down_gets_503_and_nobody_is_here() -> None:
    to = profile()
    run = carried_out(to.on_open(upgrade()), {"auth.validate": validated(), "registry.register": DOWN})
    assert refused(run) == 503
    assert connected(to).closed == []


@pytest.mark.parametrize(
    ("allowed", "empty", "origin", "good"),
    [
        ("*", "true", "https://any.example", True),
        ("*", "true", "", True),
        ("*", "false", "", False),
        ("https://a.example", "true", "https://a.example", True),
        ("https://a.example", "true", "https://b.example", False),
        ("https://a.example", "true", "", True),
        ("https://a.example", "true", "null", False),
    ],
)
def test_origins_are_looked_at_before_a_token_is(allowed: str, empty: str, origin: str, good: bool) -> None:
    to = profile(SECURITY_ALLOWED_ORIGINS=allowed, SECURITY_ALLOW_EMPTY_ORIGIN=empty)
    headers: dict[str, Any] = {"origin": origin} if origin else {}
    run = carried_out(to.on_open(upgrade(**headers)), {"auth.validate": DOWN})
    assert refused(run) == (503 if good else 403)
    assert run.calls == (["auth.validate"] if good else [])


# --- tokens that are checked here ------------------------------------------------------------------------------------


def verified(claims: dict[str, object]) -> Driven:
    answers = {"registry.register": True}
    return carried_out(profile(AUTH_JWT_SECRET=SECRET).on_open(upgrade()), answers, verified=Claims(claims))


def test_with_the_secret_a_token_is_checked_here() -> None:
    run = verified({"user_id": "user_7", "device_id": PHONE})
    assert run.only(Verify).token == "jwt"
    assert run.calls == ["registry.register"]
    assert run.only(Admit)


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({}, 401),
        ({"user_id": 7, "device_id": PHONE}, 401),
        ({"user_id": "a\ud800b", "device_id": PHONE}, 401),
        ({"user_id": "user_7"}, 400),
        ({"user_id": "user_7", "device_id": 5}, 400),
    ],
)
def test_claims_of_any_shape_are_refused_by_a_status(claims: dict[str, object], status: int) -> None:
    assert refused(verified(claims)) == status


def test_a_token_that_is_wrong_here_gets_401() -> None:
    run = carried_out(profile(AUTH_JWT_SECRET=SECRET).on_open(upgrade()), verified=Rejected("expired"))
    assert refused(run) == 401
    assert run.added("connection_errors_total") == 1


# --- the same device again, and leaving ------------------------------------------------------------------------------


def test_the_newest_connection_of_a_device_counts() -> None:
    to = profile()
    connected(to, conn=1)
    run = connected(to, conn=2)
    ((conn, frame),) = run.sent
    assert (conn, frame["type"], frame["error_code"]) == (1, "close", "REPLACED")
    assert run.closed == [(1, 4409)]
    assert run.actions.index(run.only(Send)) < run.actions.index(run.only(Close)) < run.actions.index(run.only(Admit))
    assert gone(to, conn=1).calls == [], "it is not the connection that the registry knows"
    assert gone(to, conn=2).calls == ["registry.unregister"]


def test_another_device_replaces_nobody() -> None:
    to = profile()
    connected(to, device=PHONE, conn=1)
    assert connected(to, device=LAPTOP, conn=2).closed == []


def test_leaving_takes_the_place_back_and_a_registry_that_is_down_is_counted() -> None:
    to = profile()
    connected(to)
    run = carried_out(to.on_close(session(), 1001), {"registry.unregister": DOWN})
    ((place),) = (call.payload for call in run.requests)
    assert (place.user, place.device, place.conn) == ("user_7", PHONE, 1)
    assert run.counted == ["unregister"]
    assert run.only(Log).fields == {"user": "user_7", "device": PHONE, "code": 1001}


def test_a_device_that_another_node_has_now_is_told_so_and_closed() -> None:
    to = profile()
    connected(to, device=PHONE, conn=1)
    connected(to, device=LAPTOP, conn=2, sdk=True)
    for device, conn, now in ((PHONE, 1, int(NOW)), (LAPTOP, 2, int(NOW * 1000))):
        send, close = to.on_taken(Place("user_7", device, conn, 0), NOW)
        assert isinstance(send, Send)
        frame = orjson.loads(send.payload)
        assert (frame["error_code"], frame["timestamp"]) == ("REPLACED", now)
        assert (send.conn, close) == (conn, Close(4409, "replaced", conn))


def test_a_connection_whose_device_was_elsewhere_before_the_registry_answered_is_closed_at_once() -> None:
    to = profile()
    assert list(to.on_taken(Place("user_7", PHONE, 1, 0), NOW)) == []
    run = connected(to, device=PHONE, conn=1)
    assert run.closed == [(1, 4409)]
    assert connected(to, device=PHONE, conn=2).closed == [(1, 4409)], "and nobody after it but the first"


def test_what_the_engine_says_is_in_the_clients_dialect() -> None:
    seed, sdk = ({name: json_of(text) for name, text in asdict(one).items()} for one in PROFILE.notices)
    assert [connected(profile(), sdk=sdk).only(Admit).dialect for sdk in (False, True)] == [0, 1]
    assert {name: frame["error_code"] for name, frame in seed.items()} == {
        "excess": "RATE_LIMIT_EXCEEDED",
        "silence": "HEARTBEAT_TIMEOUT",
        "farewell": "SERVER_SHUTDOWN",
    }
    assert {frame["timestamp"] for frame in seed.values()} == {"seconds"}
    assert {frame["timestamp"] for frame in sdk.values()} == {"milliseconds"}
    assert seed["farewell"]["error_message"] == "Server is shutting down"
    assert sdk["excess"]["code"] == "RATE_LIMIT_EXCEEDED"


def json_of(template: bytes) -> dict[str, Any]:
    for place, name in ((b"$UNIX_SECONDS", b'"seconds"'), (b"$UNIX_MILLIS", b'"milliseconds"')):
        template = template.replace(place, name)
    read: dict[str, Any] = orjson.loads(template)
    return read
