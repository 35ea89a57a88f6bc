"""The contract of im-gateway, sections 4, 5 and 11: what clients send, and what they get in either dialect."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidegate.errors import UpstreamError
from tidegate.profile import Add, Admit, Join, Reply, Session, Span
from tidegate.profiles.im_gateway import PROFILE
from tidegate.protos import im_pb2

from tests.profiles.im import (
    DOWN,
    LAPTOP,
    NOW,
    PHONE,
    Clock,
    Driven,
    acked,
    carried_out,
    connected,
    profile,
    push_request,
    routed,
    said,
    session,
    upgrade,
    validated,
)


def error_of(driven: Driven) -> tuple[str, str]:
    """Code and id of the message."""
    (frame,) = driven.replies
    assert frame["type"] == "error"
    assert frame["error_message"]
    return frame["error_code"], frame["msg_id"]


# --- section 4: send_msg ---------------------------------------------------------------------------------------------

HELLO = {"type": "send_msg", "msg_id": "m1", "recipient": "user_123", "content": "Hello", "timestamp": 1_767_225_600}


def test_a_message_to_a_user_is_routed_and_then_acked() -> None:
    clock = Clock(NOW + 2)
    run = said(profile(), HELLO, {"im.route_user": routed(77)}, clock=clock)
    (call,) = run.requests
    assert call.payload.method == "im.v1.IMService/RoutePrivateMessage"
    assert call.payload.fields == {
        "msg_id": "m1",
        "sender_id": "user_7",
        "recipient_id": "user_123",
        "content": "Hello",
        "message_type": im_pb2.MESSAGE_TYPE_TEXT,
        "metadata": {},
        "client_timestamp": {"seconds": 1_767_225_600, "nanos": 0},
    }
    assert (call.payload.retries, call.payload.insists) == (1, False)
    expected = {"type": "ack", "msg_id": "m1", "sender": "", "content": "", "timestamp": int(NOW) + 2}
    assert run.replies == [expected | {"sequence_number": 77}]
    assert run.only(Span).seconds == pytest.approx(2)


def test_a_message_to_a_group_goes_to_the_other_method_with_the_whole_string() -> None:
    run = said(profile(), HELLO | {"recipient": "group_456"}, {"im.route_group": im_pb2.RouteGroupMessageResponse()})
    (call,) = run.requests
    assert call.payload.method == "im.v1.IMService/RouteGroupMessage"
    assert call.payload.fields["group_id"] == "group_456"
    assert run.replies[0]["type"] == "ack"


@pytest.mark.parametrize(
    ("said_so", "asked"),
    [
        ({"recipient_id": "bob", "recipient_type": "user"}, "im.route_user"),
        ({"recipient_id": "team", "recipient_type": "group"}, "im.route_group"),
        ({"recipient_id": "bob", "recipient_type": "planet"}, None),
        ({"recipient_id": "bob"}, None),
        ({"recipient": "bob"}, None),
        ({"recipient": "USER_1"}, None),
        ({"recipient": ""}, None),
        ({}, None),
    ],
)
def test_a_recipient_is_named_by_its_prefix_or_as_the_sdk_does(said_so: dict[str, str], asked: str | None) -> None:
    answers = {"im.route_user": routed(), "im.route_group": im_pb2.RouteGroupMessageResponse()}
    run = said(profile(), {"type": "send_msg", "msg_id": "m1", "content": "x"} | said_so, answers)
    if asked is None:
        assert error_of(run) == ("INVALID_RECIPIENT", "m1")
    assert run.calls == ([asked] if asked else [])


@pytest.mark.parametrize(
    ("timestamp", "sent"),
    [
        (0, None),
        (-5, None),
        (1, {"seconds": 1, "nanos": 0}),
        (10**11, {"seconds": 10**11, "nanos": 0}),
        (1_767_225_600_123, {"seconds": 1_767_225_600, "nanos": 123_000_000}),
        (2**63 - 1, None),
    ],
)
def test_a_clients_time_goes_along_if_it_is_one(timestamp: int, sent: object) -> None:
    run = said(profile(), HELLO | {"timestamp": timestamp}, {"im.route_user": routed()})
    assert run.requests[0].payload.fields.get("client_timestamp") == sent


def test_texts_in_extra_become_metadata() -> None:
    extra = {"lang": "de", "n": 5, "deep": {"a": "b"}}
    run = said(profile(), HELLO | {"extra": extra}, {"im.route_user": routed()})
    assert run.requests[0].payload.fields["metadata"] == {"lang": "de"}
    run = said(profile(), HELLO | {"extra": {str(n): "x" for n in range(1000)}}, {"im.route_user": routed()})
    assert len(run.requests[0].payload.fields["metadata"]) == 64


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (DOWN, "ROUTING_ERROR"),
        (UpstreamError("x", outcome="timeout"), "ROUTING_ERROR"),
        (UpstreamError("x", outcome="circuit_open"), "SERVICE_UNAVAILABLE"),
        (routed(error_code=7, error_message="no"), "IM_ERROR_CODE_SENSITIVE_CONTENT"),
        (routed(error_code=13, error_message="no"), "IM_ERROR_CODE_DELIVERY_FAILED"),
        (routed(error_code=99, error_message="no"), "IM_ERROR_CODE_99"),
    ],
)
def test_what_the_service_did_not_route_is_an_error_and_no_ack(answer: object, code: str) -> None:
    assert error_of(said(profile(), HELLO, {"im.route_user": answer})) == (code, "m1")


def test_every_code_of_the_service_has_its_name() -> None:
    for name, number in im_pb2.IMErrorCode.items():
        if number:
            run = said(profile(), HELLO, {"im.route_user": routed(error_code=number, error_message="x")})
            assert error_of(run)[0] == name


def test_the_services_text_is_passed_on() -> None:
    run = said(profile(), HELLO, {"im.route_user": routed(error_code=7, error_message="a bad word")})
    assert run.replies[0]["error_message"] == "a bad word"


# --- section 4: acks, heartbeats, what is none of it -----------------------------------------------------------------


def test_an_ack_that_nobody_waits_for_is_passed_over() -> None:
    run = acked(profile(), "m1")
    assert run.replies == []
    assert run.added("ack_unknown_total") == 1


def test_a_strict_gateway_answers_it() -> None:
    assert error_of(acked(profile(STRICT_ACK="true"), "m1")) == ("ACK_NOT_FOUND", "m1")


@pytest.mark.parametrize("status", ["received", "read"])
def test_an_ack_wakes_who_waits_for_it(status: str) -> None:
    to = profile()
    connected(to)
    waiting = Driven(to.on_request(push_request())).answer({})
    run = said(to, {"type": "ack", "msg_id": "m1", "status": status})
    assert run.woken == [waiting.waits_for.waits[0].ticket]  # type: ignore[union-attr]
    assert run.added("ack_success_total") == 1
    assert run.spans == ["im-gateway.ack.resolve"]


def test_a_late_ack_is_only_counted_even_by_a_strict_gateway() -> None:
    to = profile(STRICT_ACK="true")
    connected(to)
    carried_out(to.on_request(push_request()), {"registry.devices": {}})
    run = acked(to, "m1")
    assert (run.added("ack_late_total"), run.replies) == (1, [])
    assert error_of(acked(to, "m1"))[0] == "ACK_NOT_FOUND"


def test_a_heartbeat_is_answered_with_the_time() -> None:
    assert said(profile(), {"type": "heartbeat"}).replies == [{"type": "heartbeat", "timestamp": int(NOW)}]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"send_msg"',
        b"\xff",
        b'{"type":7}',
        b'{"type":"send_msg","content":[]}',
        b'{"type":"send_msg","timestamp":"now"}',
        b'{"type":"send_msg","timestamp":1.5}',
        b'{"type":"send_msg","timestamp":false}',
        b'{"type":"send_msg","timestamp":""}',
        b'{"type":"send_msg","timestamp":9223372036854775808}',
    ],
)
def test_what_is_no_frame_is_an_invalid_message(payload: bytes) -> None:
    assert error_of(said(profile(), payload)) == ("INVALID_MESSAGE", "")


@pytest.mark.parametrize("frame", [{}, {"type": ""}, {"type": None}, {"type": "nonsense"}, {"type": "SEND_MSG"}])
def test_other_types_are_unknown(frame: dict[str, object]) -> None:
    assert error_of(said(profile(), frame | {"msg_id": "m1"})) == ("UNKNOWN_MESSAGE_TYPE", "m1")


def test_null_is_as_absent() -> None:
    frame = dict.fromkeys(("msg_id", "recipient", "recipient_id", "recipient_type", "content", "timestamp", "extra"))
    run = said(profile(), frame | {"type": "send_msg", "recipient": "user_1"}, {"im.route_user": routed()})
    assert run.replies[0]["type"] == "ack"


def test_a_message_over_the_limit_is_dropped_with_an_error_and_one_at_it_is_not() -> None:
    to = profile(MAX_MESSAGE_SIZE="200")
    room = 200 - len(orjson.dumps(HELLO | {"content": ""}))
    assert said(to, HELLO | {"content": "x" * room}, {"im.route_user": routed()}).replies[0]["type"] == "ack"
    assert error_of(said(to, HELLO | {"content": "x" * (room + 1)})) == ("MESSAGE_TOO_LARGE", "m1")
    assert error_of(said(to, b"x" * 201)) == ("MESSAGE_TOO_LARGE", "")


# --- which messages overtake -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "urgent"),
    [
        (b'{"type":"ack","msg_id":"m1"}', True),
        (b'{"msg_id":"send_msg","type":"ack"}', True),
        (b'{"type":"heartbeat"}', False),
        (b'{"type":"send_msg","content":"ack","recipient":"user_1"}', False),
        (b'{"type":"\\u0073end_msg","content":"ack","recipient":"user_1"}', False),
        (b'"ack"', False),
        (b'{"ack"', False),
    ],
)
def test_only_acks_overtake_what_waits(payload: bytes, urgent: bool) -> None:
    assert profile().is_urgent(payload) is urgent


@given(st.binary(max_size=60) | st.sampled_from([b'{"type":"ack","msg_id":null}', b'{"type":"ack"}']))
def test_what_overtakes_waits_for_nothing(payload: bytes) -> None:
    to = profile()
    if to.is_urgent(payload):
        assert not said(to, payload).asked


# --- section 11: how much, how fast ----------------------------------------------------------------------------------


def test_the_101st_message_in_a_second_is_refused_and_the_next_second_is_new() -> None:
    to = profile()
    answers = {"im.route_user": routed()}
    for _ in range(100):
        assert said(to, HELLO, answers).replies[0]["type"] == "ack"
    run = said(to, HELLO)
    assert error_of(run) == ("RATE_LIMIT_EXCEEDED", "m1")
    assert run.added("rate_limited_total") == 1
    assert not run.closed
    later = session(now=NOW + 1)
    assert said(to, HELLO, answers, by=later).replies[0]["type"] == "ack"


def test_a_users_devices_share_a_rate_and_other_frames_and_users_have_nothing_to_do_with_it() -> None:
    to = profile(MAX_MESSAGES_PER_SECOND="2")
    answers = {"im.route_user": routed()}
    said(to, HELLO, answers, by=session(device=PHONE))
    said(to, HELLO, answers, by=session(device=LAPTOP, conn=2))
    assert error_of(said(to, HELLO, by=session(device=PHONE)))[0] == "RATE_LIMIT_EXCEEDED"
    assert said(to, {"type": "heartbeat"}).replies[0]["type"] == "heartbeat"
    assert said(to, HELLO, answers, by=session("user_8")).replies[0]["type"] == "ack"


def test_the_engine_answers_a_flood_in_the_same_words() -> None:
    template = PROFILE.notices[0].excess or b""
    frame = orjson.loads(template.replace(b"$UNIX_SECONDS", b"0"))
    refusal = said(profile(MAX_MESSAGES_PER_SECOND="1"), HELLO, {"im.route_user": routed()})
    to = profile(MAX_MESSAGES_PER_SECOND="1")
    said(to, HELLO, {"im.route_user": routed()})
    refusal = said(to, HELLO | {"msg_id": ""}, by=session(now=NOW + 0.5))
    assert frame == refusal.replies[0] | {"timestamp": 0}


# --- section 5: dialects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "asked", "sdk"),
    [("seed", None, False), ("sdk", None, True), ("seed", "sdk", True), ("sdk", "seed", False), ("seed", "x", False)],
)
def test_a_connection_chooses_its_dialect(configured: str, asked: str | None, sdk: bool) -> None:
    to = profile(WS_DIALECT=configured)
    query = {"token": "jwt"} | ({"dialect": asked} if asked else {})
    run = carried_out(to.on_open(upgrade(query=query)), {"auth.validate": validated(), "registry.register": True})
    admit = run.only(Admit)
    assert list(admit.rooms) == ["sdk:u:user_7" if sdk else "u:user_7"]
    assert len(admit.texts) == int(sdk)


def test_the_sdks_dialect_begins_with_who_one_is() -> None:
    (text,) = connected(profile(), sdk=True).only(Admit).texts
    expected = {"type": "auth_response", "success": True, "user_id": "user_7", "device_id": PHONE}
    assert orjson.loads(text) == expected | {"timestamp": int(NOW * 1000)}


@pytest.mark.parametrize(
    ("status", "shown"), [(0, "pending"), (1, "pending"), (2, "delivered"), (3, "delivered"), (5, "pending")]
)
def test_the_sdks_ack_says_whether_it_was_delivered(status: int, shown: str) -> None:
    run = said(profile(), HELLO, {"im.route_user": routed(delivery_status=status)}, by=session(sdk=True))
    assert run.replies[0]["status"] == shown
    assert run.replies[0]["timestamp"] == int(NOW * 1000)


def test_the_sdk_gets_heartbeats_and_errors_in_its_words() -> None:
    (beat,) = said(profile(), {"type": "heartbeat"}, by=session(sdk=True)).replies
    assert beat == {"type": "heartbeat_response", "timestamp": int(NOW * 1000)}
    (error,) = said(profile(), {"type": "x"}, by=session(sdk=True)).replies
    assert (error["code"], error["message"]) == (error["error_code"], error["error_message"])


def test_the_seeds_error_has_every_field_that_the_original_has() -> None:
    (frame,) = said(profile(), b"{").replies
    assert frame == {
        "type": "error",
        "msg_id": "",
        "sender": "",
        "content": "",
        "timestamp": int(NOW),
        "sequence_number": 0,
        "error_code": "INVALID_MESSAGE",
        "error_message": "Invalid message format",
    }


# --- anything at all -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("type", "msg_id", "recipient", "recipient_id", "recipient_type", "content", "timestamp", "extra", "status")
TYPES = st.sampled_from(["send_msg", "ack", "heartbeat", "", "other"])


@given(
    st.dictionaries(st.sampled_from(NAMES), JSON | st.text(), max_size=9),
    TYPES | JSON,
    st.sampled_from([routed(), routed(error_code=3), DOWN]),
    st.booleans(),
)
def test_nothing_that_a_client_says_raises(fields: dict, kind: object, answer: object, sdk: bool) -> None:  # type: ignore[type-arg]
    try:
        payload = orjson.dumps(fields | {"type": kind})
    except orjson.JSONEncodeError:
        return
    answers = {"im.route_user": answer, "im.route_group": answer}
    run = said(profile(STRICT_ACK="true"), payload, answers, by=session(sdk=sdk))
    assert all(type(action) in (Reply, Add, Span) for action in run.actions)


@given(st.binary(max_size=100))
def test_no_bytes_raise(payload: bytes) -> None:
    assert len(said(profile(), payload).replies) <= 1


def test_the_session_is_the_engines_to_keep_for_every_user_who_may_come() -> None:
    to = profile()
    data = connected(to, "üser_ñ漢|x", sdk=True).only(Admit).session
    run = carried_out(to.on_message(Session(1, data, NOW, str), b'{"type":"heartbeat"}', True))
    assert run.replies[0]["type"] == "heartbeat_response"
    assert Join not in {type(action) for action in run.actions}
