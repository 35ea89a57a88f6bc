"""Sections 5 to 7 of the contract: what clients say, what goes to the backends and what comes from them."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidegate.profile import (
    BusMessage,
    Count,
    Join,
    Leave,
    Publish,
    Reply,
    SetSession,
    ToBus,
)
from tidegate.profiles.attchat_gateway import (
    INVALID_ROOM,
    ROOM_FORBIDDEN,
    AttchatGateway,
    Rules,
)

from tests.profiles.attchat import AGENT, ANYTHING, CLAIMS, CUSTOMER, OPEN, UUID, event, opened, said, session

JSON_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# --- section 5: what clients say -------------------------------------------------------------------------------------


def test_ping_is_answered_with_the_time_in_seconds() -> None:
    assert said(session(), {"type": "ping"}) == [Reply(b'{"type":"pong","timestamp":"2025-12-12T02:30:05Z"}')]


def test_pongs_of_two_seconds_differ() -> None:
    profile, who = AttchatGateway(Rules()), session()
    (first,) = profile.on_message(who, b'{"type":"ping"}', True)
    who.now += 1
    (second,) = profile.on_message(who, b'{"type":"ping"}', True)
    assert first == Reply(b'{"type":"pong","timestamp":"2025-12-12T02:30:05Z"}')
    assert second == Reply(b'{"type":"pong","timestamp":"2025-12-12T02:30:06Z"}')


def test_a_binary_message_that_holds_json_is_taken_like_text() -> None:
    (reply,) = AttchatGateway(Rules()).on_message(session(), b'{"type":"ping"}', False)
    assert isinstance(reply, Reply)


def test_joining_answers_every_time() -> None:
    expected = [Join("chat:123"), Reply(b'{"type":"joined","room":"chat:123"}')]
    who = session()
    assert said(who, {"type": "join", "room": "chat:123"}) == expected
    assert said(who, {"type": "join", "room": "chat:123"}) == expected


def test_leaving_answers_even_for_a_room_never_joined() -> None:
    assert said(session(), {"type": "leave", "room": "chat:123"}) == [
        Leave("chat:123"),
        Reply(b'{"type":"left","room":"chat:123"}'),
    ]


def test_nobody_can_leave_or_enter_the_hidden_room_by_which_users_are_reached() -> None:
    who = session(rules=OPEN)
    assert said(who, {"type": "leave", "room": "@456"}, OPEN) == [Reply(b'{"type":"left","room":"@456"}')]
    for kind in ("join", "typing"):
        assert said(who, {"type": kind, "room": "@456"}, OPEN) == [Reply(INVALID_ROOM)]


def test_typing_goes_to_all_others_on_all_nodes_and_says_who() -> None:
    who = session()
    (publish,) = said(who, {"type": "typing", "room": "chat:123"})
    assert isinstance(publish, Publish)
    assert (publish.room, publish.exclude, publish.all_nodes) == ("chat:123", who.conn, True)
    assert orjson.loads(publish.payload) == {
        "type": "typing",
        "room": "chat:123",
        "payload": {"user_id": "456", "type": "customer"},
        "timestamp": "2025-12-12T02:30:05Z",
    }


@pytest.mark.parametrize("kind", ["join", "leave", "typing"])
@pytest.mark.parametrize("rest", [{}, {"room": ""}, {"room": None}])
def test_without_a_room_nothing_happens(kind: str, rest: dict[str, Any]) -> None:
    assert said(session(), {"type": kind, **rest}) == []


@pytest.mark.parametrize("room", ["a b", "chat:1\n", "chat.*", "é", "x" * 129])
def test_joining_a_bad_name_is_a_flat_error(room: str) -> None:
    assert said(session(), {"type": "join", "room": room}) == [
        Reply(b'{"type":"error","code":"INVALID_ROOM","message":"invalid room_id"}')
    ]


@pytest.mark.parametrize("message", [{"type": "unknown"}, {"type": ""}, {"type": None}, {}, {"room": "chat:1"}])
def test_other_types_are_ignored(message: object) -> None:
    assert said(session(), message) == []


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"nope", b"[]", b"5", b"null", b'"ping"', b'{"type":', b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 10_000),
        *(b'{"type":5}', b'{"type":true}', b'{"type":"join","room":5}', b'{"type":"ping","room":{}}'),
        b'{"type":"join","room":"\\ud800"}',
    ],
)
def test_junk_is_counted_and_nothing_else(payload: bytes) -> None:
    assert said(session(), payload) == [Count("bad_json")]


FOREIGN = [
    "user:1",
    "brand:other",
    "folder:other:all",
    "folder:brand-10:all",
    "folder:brand-1:x:all",
    "misc",
    "chat",
    "xchat:1",
    "brand:brand-1:x",
]
OWN = ["chat:anything", "user:12345", "brand:brand-1", "folder:brand-1:all", "folder:brand-1:archive", "vip:1"]


@pytest.mark.parametrize("kind", ["join", "typing"])
@pytest.mark.parametrize("room", FOREIGN)
def test_member_prefix_keeps_everybody_out_of_rooms_that_are_not_theirs(kind: str, room: str) -> None:
    assert said(session({**AGENT, "rooms": ["vip:1"]}), {"type": kind, "room": room}) == [Reply(ROOM_FORBIDDEN)]


@pytest.mark.parametrize("room", OWN)
def test_member_prefix_admits_chats_and_what_is_ones_own(room: str) -> None:
    assert said(session({**AGENT, "rooms": ["vip:1"]}), {"type": "join", "room": room})[0] == Join(room)


def test_member_prefix_keeps_customers_out_of_folders() -> None:
    assert said(session(), {"type": "join", "room": "folder:brand-1:all"}) == [Reply(ROOM_FORBIDDEN)]


@pytest.mark.parametrize("room", [*FOREIGN, *OWN])
def test_open_admits_everybody_everywhere_as_the_original_does(room: str) -> None:
    assert said(session(rules=OPEN), {"type": "join", "room": room}, OPEN)[0] == Join(room)


def test_claims_admits_only_default_rooms_and_those_in_the_token() -> None:
    who = session({**AGENT, "rooms": ["vip:1", "chat:7"]}, CLAIMS)
    for room in ["user:12345", "brand:brand-1", "folder:brand-1:waiting", "vip:1", "chat:7"]:
        assert said(who, {"type": "join", "room": room}, CLAIMS)[0] == Join(room)
    for room in ["chat:8", "folder:brand-1:archive", *FOREIGN]:
        assert said(who, {"type": "join", "room": room}, CLAIMS) == [Reply(ROOM_FORBIDDEN)]


def test_typing_can_be_limited_to_members() -> None:
    rules = Rules(typing_requires_join=True)
    who, typing = session(rules=rules), {"type": "typing", "room": "chat:1"}
    assert said(who, typing, rules) == [Reply(ROOM_FORBIDDEN)]
    join, remembered, _ = said(who, {"type": "join", "room": "chat:1"}, rules)
    assert join == Join("chat:1")
    assert isinstance(remembered, SetSession)
    who.data = remembered.data
    assert isinstance(said(who, typing, rules)[0], Publish)
    _, forgotten, _ = said(who, {"type": "leave", "room": "chat:1"}, rules)
    assert isinstance(forgotten, SetSession)
    who.data = forgotten.data
    assert said(who, typing, rules) == [Reply(ROOM_FORBIDDEN)]


# --- section 7: to the backends, and from them -----------------------------------------------------------------------

PUBLISHING = Rules(publish_unknown=True)


def test_unknown_types_reach_the_backends_with_what_the_server_knows() -> None:
    who = session(rules=PUBLISHING)
    (sent,) = said(who, {"type": "message", "room": "chat:1", "payload": {"text": "hi"}, "user_id": "999"}, PUBLISHING)
    assert isinstance(sent, ToBus)
    assert sent.subject == "customer.events"
    assert orjson.loads(sent.data) == {
        "type": "message",
        "room": "chat:1",
        "user_id": "456",
        "brand_id": "brand-1",
        "payload": {"text": "hi"},
        "timestamp": "2025-12-12T02:30:05Z",
        "exclude_conn_id": UUID,
    }


@pytest.mark.parametrize(
    ("query", "subject"),
    [
        ({"type": "Notify"}, "notify.events"),
        ({"type": "a.b"}, "chat.events"),
        ({"type": "*"}, "chat.events"),
        ({"type": ">"}, "chat.events"),
        ({"type": "x" * 65}, "chat.events"),
        ({"type": "a b"}, "chat.events"),
        ({}, "customer.events"),
    ],
)
def test_a_client_chooses_one_token_of_the_subject_and_no_more(query: dict[str, str], subject: str) -> None:
    (sent,) = said(session(CUSTOMER, PUBLISHING, query), {"type": "m"}, PUBLISHING)
    assert isinstance(sent, ToBus)
    assert sent.subject == subject


def test_without_any_type_the_subject_is_chat() -> None:
    (sent,) = said(session({"user_id": "1"}, PUBLISHING), {"type": "m"}, PUBLISHING)
    assert isinstance(sent, ToBus)
    assert sent.subject == "chat.events"
    assert "brand_id" not in orjson.loads(sent.data)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "message", "room": "user:1"},
        {"type": "message", "room": "a b"},
        {"type": "connected", "room": "chat:1"},
    ],
)
def test_what_comes_back_as_an_event_cannot_get_round_the_join_policy_or_speak_for_the_server(message: object) -> None:
    assert said(session(rules=PUBLISHING), message, PUBLISHING) == [Count("publish_refused")]


def test_a_payload_nested_deeper_than_json_is_written_is_junk() -> None:
    deep = b'{"type":"m","payload":' + b"[" * 600 + b"]" * 600 + b"}"
    assert said(session(rules=PUBLISHING), deep, PUBLISHING) == [Count("bad_json")]


def test_an_event_goes_to_its_room_byte_for_byte() -> None:
    raw = b'{ "type":"message", "room":"chat:123", "user_id":"99", "payload":{"text":"ch\xc3\xa0o"} }'
    assert event(raw) == [Publish("chat:123", raw)]


def test_an_event_spares_the_connection_that_it_excludes() -> None:
    raw = orjson.dumps({"type": "message", "room": "chat:1", "exclude_conn_id": UUID})
    assert event(raw) == [Publish("chat:1", raw, exclude=UUID)]


@pytest.mark.parametrize("user", ["99", 99])
def test_an_event_without_a_room_goes_to_all_connections_of_its_user(user: object) -> None:
    raw = orjson.dumps({"type": "notify", "user_id": user, "exclude_conn_id": ""})
    assert event(raw) == [Publish("user:99", raw), Publish("@99", raw)]


def test_whoever_left_their_user_room_is_still_reached_as_a_user_and_never_twice() -> None:
    assert opened(CUSTOMER).rooms[0] == "user:456"
    left = said(session(), {"type": "leave", "room": "user:456"})
    assert left[:2] == [Leave("user:456"), Join("@456")]
    back = said(session(), {"type": "join", "room": "user:456"})
    assert back[:2] == [Join("user:456"), Leave("@456")]


def test_under_the_open_policy_strangers_in_a_user_room_get_nothing_that_is_for_the_user() -> None:
    raw = b'{"user_id":"456"}'
    message = BusMessage("CHAT", "chat.events", raw, 1, 0.0)
    assert list(AttchatGateway(OPEN).on_bus(message)) == [Publish("@456", raw)]
    assert opened(CUSTOMER, rules=OPEN).rooms[-1] == "@456"
    assert said(session(rules=OPEN), {"type": "leave", "room": "user:456"}, OPEN)[0] == Leave("user:456")


@pytest.mark.parametrize("data", [{}, {"brand_id": "b"}, {"chat_id": "1"}, {"room": "", "user_id": ""}, {"user_id": 0}])
def test_an_event_without_room_and_user_reaches_nobody(data: object) -> None:
    assert event(data) == [Count("no_target", detail="chat.events")]


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"x", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b"{" * 9999),
        *({"room": 5}, {"room": ["a"]}, {"user_id": True}, {"user_id": 1.5}),
        *({"room": "a", "exclude_conn_id": 5}, {"room": "a", "user_id": {"b": 1}}),
    ],
)
def test_an_event_that_cannot_be_read_is_dropped_and_counted(data: object) -> None:
    assert event(data) == [Count("nats_decode", detail="chat.events")]


# --- anything at all -------------------------------------------------------------------------------------------------


@ANYTHING
@given(st.dictionaries(st.sampled_from(["type", "room", "user_id", "exclude_conn_id"]), JSON_JUNK))
def test_no_event_raises(data: dict[str, Any]) -> None:
    try:
        raw = orjson.dumps(data)
    except orjson.JSONEncodeError:
        return
    for action in event(raw):
        assert isinstance(action, Publish | Count)


@ANYTHING
@given(
    st.dictionaries(st.sampled_from(["type", "room", "payload", "x"]), JSON_JUNK | st.sampled_from(["join", "typing"]))
)
def test_no_message_raises(message: dict[str, Any]) -> None:
    try:
        payload = orjson.dumps(message)
    except orjson.JSONEncodeError:
        return
    said(session(rules=PUBLISHING), payload, PUBLISHING)


@ANYTHING
@given(st.binary(max_size=64))
def test_no_bytes_raise(data: bytes) -> None:
    said(session(), data)
    event(data)
