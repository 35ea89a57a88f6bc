"""The contract of gogate, sections 1 to 8 and 10, decided without a socket, a backend or a clock."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidegate.profile import Add, Admit, Close, Count, Identify, Join, Leave, Notices, Refuse, Reply, Upgrade
from tidegate.profiles.gogate import PROFILE, TOKEN_BYTES_MAX, Gogate

from tests.profiles.gogate import JANE, MESSAGE, NOW, Run, answer, members, profile, said, session

USER = {"id": 1, "name": "John Doe", "phone": "+79991234567", "active": True}
VALID = answer(200, {"valid": True, "user": USER})


# --- section 1, 2: the upgrade ---------------------------------------------------------------------------------------


def opened(gogate: Gogate, origin: str | None = None) -> object:
    headers = {} if origin is None else {"origin": origin}
    (action,) = gogate.on_open(Upgrade(1, "uuid", "192.0.2.1", "/ws", {}, headers, NOW))
    return action


def test_an_upgrade_needs_no_credentials() -> None:
    assert opened(profile()) == Admit(b"")


@pytest.mark.parametrize("origin", [None, "https://app.example.com", "https://a.b.example.org:8443"])
def test_programs_and_allowed_pages_may_connect(origin: str | None) -> None:
    assert opened(profile(origins=("https://app.example.com", "*.example.org")), origin) == Admit(b"")


@pytest.mark.parametrize("origin", ["https://evil.example", "https://example.org", "https://notexample.org", "null"])
def test_other_pages_get_403(origin: str) -> None:
    refusal = opened(profile(origins=("https://app.example.com", "*.example.org")), origin)
    assert isinstance(refusal, Refuse)
    assert refusal.status == 403


# --- section 3: frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [b"", b"{", b"[]", b"7", b'"auth"', b'{"event":7}', b'{"event":["a"]}', b"\xff{}"])
def test_what_is_no_frame_is_answered_with_an_error(frame: bytes) -> None:
    assert Run(profile().on_message(session(), frame, True)).error == ("Invalid message format", "INVALID_FORMAT")


def test_unknown_keys_are_ignored() -> None:
    run = Run(
        profile().on_message(session(b""), b'{"event":"auth","x":1,"data":{"token":"t","y":2}}', True), {"auth": VALID}
    )
    assert run.replies[0]["event"] == "auth_success"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "token",
    "chat_id",
    "text",
    "reply_to_id",
    "attachment_ids",
    "is_typing",
    "message_id",
    "emoji",
    "message_ids",
)
ANY_ANSWER = st.builds(answer, st.integers(100, 599), st.binary(max_size=40) | JSON)


@given(
    st.sampled_from(["auth", "send_message", "typing", "add_reaction", "mark_read", "other", ""]),
    st.dictionaries(st.sampled_from(FIELDS), JSON | st.integers(0, 3), max_size=6) | JSON,
    st.sampled_from([b"", JANE]),
    st.dictionaries(st.just("any"), st.none() | ANY_ANSWER, min_size=1),
)
def test_nothing_that_a_client_or_a_backend_says_raises(event: str, data: object, by: bytes, lies: dict) -> None:  # type: ignore[type-arg]
    try:
        frame = orjson.dumps({"event": event, "data": data})
    except orjson.JSONEncodeError:
        return
    backend = dict.fromkeys(("auth", "members", "send", "react", "read"), lies["any"])
    Run(profile(redis="redis://x").on_message(session(by), frame, True), backend)


# --- section 4: log-in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["send_message", "typing", "add_reaction", "mark_read", "nonsense", ""])
def test_before_the_log_in_every_other_event_is_refused_and_the_backend_not_asked(event: str) -> None:
    run = said(event, {"chat_id": 1}, by=b"")
    assert run.error == ("Authentication required", "AUTH_REQUIRED")
    assert not run.calls


def test_a_good_token_becomes_a_session_a_room_and_an_answer() -> None:
    run = said("auth", {"token": "jwt"}, by=b"", backend={"auth": VALID})
    ((method, request),) = run.calls
    assert (method, request.verb, request.path) == ("auth", "POST", "/api/internal/v1/auth/validate")
    assert request.headers == {"X-Internal-API-Key": "internal-key"}
    assert orjson.loads(request.body or b"") == {"token": "jwt"}
    assert run.session == b"1\x1fJohn Doe\x1fjwt"
    assert Identify("1") in run.actions
    assert Join("user:1") in run.actions
    expected = {"user_id": 1, "name": "John Doe", "phone": "+79991234567"}
    assert run.replies == [{"event": "auth_success", "data": expected}]
    assert run.counted("gogate_auth_total") == ["success"]


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ({"user_id": 5, "name": "A"}, "A"),
        ({"userId": 5, "fullName": "B C"}, "B C"),
        ({"id": 5, "full_name": "D E", "first_name": "X"}, "D E"),
        ({"id": 5, "first_name": "F", "last_name": "G"}, "F G"),
        ({"id": 5, "first_name": "F"}, "F"),
        ({"id": 5, "name": None, "phone": 7}, ""),
    ],
)
def test_users_are_read_in_all_the_names_that_backends_use(user: dict[str, object], name: str) -> None:
    run = said("auth", {"token": "t"}, by=b"", backend={"auth": answer(200, {"valid": True, "user": user})})
    assert run.replies[0]["data"] == {"user_id": 5, "name": name, "phone": ""}


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (answer(401, {"error": "Token expired"}), "Token expired"),
        (answer(403, {"message": "Account blocked"}), "Account blocked"),
        (answer(500, b"<html>"), "status 500"),
        (answer(201, {"valid": True, "user": USER}), "status 201"),
        (answer(200, {"valid": False}), "Invalid token"),
        (answer(200, {"valid": False, "error": "Revoked"}), "Revoked"),
        (answer(200, {"valid": True, "user": {"name": "no id"}}), "Invalid token"),
        (answer(200, {"valid": True, "user": {"id": True}}), "Invalid token"),
        (answer(200, b"not json"), "Invalid token"),
        (None, "backend unavailable"),
    ],
)
def test_a_refused_token_says_why_and_the_socket_stays_open(backend: object, reason: str) -> None:
    run = said("auth", {"token": "t"}, by=b"", backend={"auth": backend})  # type: ignore[dict-item]
    assert run.error == (f"Authentication failed: {reason}", "AUTH_FAILED")
    assert not any(isinstance(action, Close | Join) for action in run.actions)
    assert run.counted("gogate_auth_total") == ["failure"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"token": 7}, "Invalid auth data"),
        ({"token": ["t"]}, "Invalid auth data"),
        ({"token": None}, "Token is required"),
        ([], "Invalid auth data"),
        ("x", "Invalid auth data"),
        ({"token": ""}, "Token is required"),
        ({}, "Token is required"),
        (None, "Token is required"),
    ],
)
def test_a_bad_token_field_is_named(data: object, message: str) -> None:
    assert said("auth", data, by=b"").error == (message, "INVALID_AUTH")


@pytest.mark.parametrize("token", ["a\r\nX-Internal-API-Key: b", "a\x1fb", "é", "x" * (TOKEN_BYTES_MAX + 1)])
def test_a_token_that_no_header_can_carry_never_reaches_the_backend(token: str) -> None:
    run = said("auth", {"token": token}, by=b"")
    assert run.error == ("Authentication failed: Invalid token", "AUTH_FAILED")
    assert not run.calls


def test_a_second_log_in_replaces_user_and_token() -> None:
    run = said("auth", {"token": "other"}, backend={"auth": VALID})
    assert (Leave("user:2") in run.actions, Join("user:1") in run.actions) == (True, True)
    assert run.session == b"1\x1fJohn Doe\x1fother"


def test_a_user_who_logs_in_again_counts_as_no_further_connection() -> None:
    run = said("auth", {"token": "new"}, by=b"1\x1fJohn Doe\x1fold", backend={"auth": VALID}, has_room=False)
    assert run.replies[0]["event"] == "auth_success"
    assert run.session == b"1\x1fJohn Doe\x1fnew"
    assert not any(isinstance(action, Leave) for action in run.actions)


def test_one_connection_too_many_of_a_user_is_told_and_closed() -> None:
    run = said("auth", {"token": "t"}, by=b"", backend={"auth": VALID}, has_room=False)
    assert run.error[1] == "TOO_MANY_CONNECTIONS"
    assert run.actions[-1] == Close(4429, "too many connections")
    assert not any(isinstance(action, Join) for action in run.actions)


def test_who_does_not_log_in_in_time_is_told_and_closed() -> None:
    run = Run(profile().on_overdue(session(b"")))
    assert run.error[1] == "AUTH_TIMEOUT"
    assert run.actions[-1] == Close(4401, "authentication timeout")


def test_who_logged_in_meanwhile_is_not_closed() -> None:
    assert Run(profile().on_overdue(session(JANE))).actions == []


# --- section 5, 6: send_message --------------------------------------------------------------------------------------


def sent(data: object, **options: object) -> Run:
    backend = {"send": answer(201, MESSAGE), "members": members(1, 2, 3)}
    return said("send_message", data, **({"backend": backend} | options))  # type: ignore[arg-type]


def test_a_message_goes_to_the_backend_and_its_body_to_all_members_byte_by_byte() -> None:
    run = sent({"chat_id": 1, "text": "hi"})
    assert run.asked == ["send", "members"]
    request = run.calls[0][1]
    assert (request.verb, request.path) == ("POST", "/api/v1/messages")
    assert request.headers == {"Authorization": "Bearer token-of-jane"}
    assert request.body == b'{"chatId":1,"text":"hi","replyToId":null,"attachmentIds":null}'
    ((rooms, _),) = run.published
    assert rooms == ["user:1", "user:2", "user:3"]
    (frame,) = (action.payload for action in run.actions if hasattr(action, "rooms"))
    assert frame == b'{"event":"new_message","data":' + MESSAGE + b"}"
    assert run.replies == []


def test_the_members_are_asked_with_the_internal_key_and_may_be_shared() -> None:
    request = sent({"chat_id": 9}).calls[1][1]
    assert (request.verb, request.path) == ("GET", "/api/internal/v1/chats/9/members")
    assert (request.headers, request.shared_s) == ({"X-Internal-API-Key": "internal-key"}, 2.0)


@pytest.mark.parametrize(
    ("style", "body"),
    [
        ("camel", {"chatId": 1, "text": "hi", "replyToId": 4, "attachmentIds": [5]}),
        ("snake", {"chat_id": 1, "content": "hi", "reply_to_id": 4, "attachment_ids": [5]}),
    ],
)
def test_bodies_have_the_style_of_the_backend(style: str, body: dict[str, object]) -> None:
    data = {"chat_id": 1, "text": "hi", "reply_to_id": 4, "attachment_ids": [5]}
    assert orjson.loads(sent(data, to=profile(body_style=style)).calls[0][1].body or b"") == body
    both = orjson.loads(sent(data, to=profile(body_style="both")).calls[0][1].body or b"")
    assert both.items() >= body.items()
    assert len(both) == 8


@pytest.mark.parametrize("chat", [0, -1, None])
def test_an_impossible_chat_is_refused_before_the_backend(chat: object) -> None:
    run = sent({"chat_id": chat, "text": "hi"})
    assert run.error == ("Invalid chat_id", "INVALID_CHAT")
    assert not run.calls


@pytest.mark.parametrize(
    ("event", "data", "message"),
    [
        ("send_message", {"chat_id": "1"}, "Invalid message data"),
        ("send_message", {"chat_id": 1.5}, "Invalid message data"),
        ("send_message", {"chat_id": True}, "Invalid message data"),
        ("send_message", {"chat_id": 2**63}, "Invalid message data"),
        ("send_message", {"chat_id": 1, "text": 7}, "Invalid message data"),
        ("send_message", {"chat_id": 1, "attachment_ids": ["x"]}, "Invalid message data"),
        ("send_message", [], "Invalid message data"),
        ("typing", {"chat_id": 1, "is_typing": "yes"}, "Invalid typing data"),
        ("add_reaction", {"message_id": "x", "emoji": "+1"}, "Invalid reaction data"),
        ("add_reaction", {"message_id": 1, "emoji": 5}, "Invalid reaction data"),
        ("mark_read", {"message_ids": 5}, "Invalid read data"),
        ("mark_read", "x", "Invalid read data"),
    ],
)
def test_wrong_types_in_data_are_named_and_the_backend_not_asked(event: str, data: object, message: str) -> None:
    run = said(event, data)
    assert run.error == (message, "INVALID_DATA")
    assert not run.calls


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (answer(403, {"error": "x"}), "x"),
        (answer(422, {"message": "text too long"}), "text too long"),
        (answer(500, {"error": 5}), "status 500"),
        (answer(204, b""), "status 204"),
        (answer(200, b"[1]"), "status 200"),
        (answer(200, b'{"a":'), "status 200"),
        (None, "backend unavailable"),
    ],
)
def test_a_message_that_the_backend_did_not_take_is_told_to_its_sender_only(backend: object, reason: str) -> None:
    run = sent({"chat_id": 1}, backend={"send": backend})
    assert run.error == (f"Failed to send message: {reason}", "SEND_FAILED")
    assert not run.published


def test_a_body_with_line_breaks_stays_one_line_for_clients_that_split_there() -> None:
    run = sent(
        {"chat_id": 1}, backend={"send": answer(200, b'{\n "id": 7,\n "text": "a\\nb"\n}'), "members": members(2)}
    )
    (frame,) = (action.payload for action in run.actions if hasattr(action, "rooms"))
    assert frame == b'{"event":"new_message","data":{"id":7,"text":"a\\nb"}}'


@pytest.mark.parametrize("backend", [None, answer(500), answer(200, []), answer(200, {"members": {}}), answer(201)])
def test_a_failed_member_look_up_is_counted_and_nobody_is_told(backend: object) -> None:
    run = sent({"chat_id": 1}, backend={"send": answer(200, MESSAGE), "members": backend})
    assert (run.replies, run.published) == ([], [])
    (count,) = (a for a in run.actions if isinstance(a, Count) and a.name == "members_failed")
    assert count.detail


@pytest.mark.parametrize("form", [{"user_id": 2}, {"id": 2}, {"userId": 2}, {"userId": 2, "id": 99}])
def test_members_are_read_in_all_forms_each_once(form: dict[str, int]) -> None:
    listed = members(form, form, {"name": "no id"}, {"id": "2"}, "junk", None)
    run = sent({"chat_id": 1}, backend={"send": answer(200, MESSAGE), "members": listed})
    assert run.published[0][0] == ["user:2"]


# --- typing ----------------------------------------------------------------------------------------------------------


def test_typing_reaches_the_others_and_none_of_the_senders_connections() -> None:
    run = said("typing", {"chat_id": 1, "is_typing": True}, backend={"members": members(1, 2, 3)})
    data = {"chat_id": 1, "user_id": 2, "name": "Jane Smith", "is_typing": True}
    assert run.published == [(["user:1", "user:3"], {"event": "user_typing", "data": data})]
    assert run.replies == []


def test_typing_by_a_stranger_is_dropped_silently() -> None:
    run = said("typing", {"chat_id": 1, "is_typing": True}, backend={"members": members(1, 3)})
    assert (run.replies, run.published) == ([], [])
    assert run.counted("gogate_events_dropped_total") == ["not_a_member"]


def test_typing_alone_in_a_chat_publishes_nothing() -> None:
    assert said("typing", {"chat_id": 1}, backend={"members": members(2)}).published == []


# --- section 8: reactions and read receipts --------------------------------------------------------------------------

REACTION = {"message_id": 124, "user_id": 2, "name": "Jane Smith", "emoji": "+1"}


def reacted(to: Gogate | None = None, response: object = None, **data: object) -> Run:
    backend = {"react": answer(201, response or {"message": "ok"}), "members": members(1, 2)}
    return said("add_reaction", {"message_id": 124, "emoji": "+1"} | data, backend=backend, to=to)


def test_a_reaction_is_sent_to_the_backend_as_the_user() -> None:
    method, request = reacted().calls[0]
    assert (method, request.verb, request.path) == ("react", "POST", "/api/v1/messages/124/reactions")
    assert (request.body, request.headers) == (b'{"emoji":"+1"}', {"Authorization": "Bearer token-of-jane"})


def test_without_a_chat_only_the_acting_connection_learns_of_a_reaction() -> None:
    run = reacted()
    assert run.replies == [{"event": "new_reaction", "data": REACTION}]
    assert (run.asked, run.published) == (["react"], [])


@pytest.mark.parametrize("name", ["chat_id", "chatId"])
def test_the_chat_in_the_backends_answer_comes_first(name: str) -> None:
    run = reacted(response={name: 7}, chat_id=8)
    assert run.calls[1][1].path.endswith("/chats/7/members")
    assert run.published == [(["user:1", "user:2"], {"event": "new_reaction", "data": REACTION})]
    assert run.replies == []


def test_a_chat_that_the_client_names_counts_if_its_user_is_a_member() -> None:
    run = reacted(chat_id=8)
    assert run.published[0][0] == ["user:1", "user:2"]
    backend = {"react": answer(200, {}), "members": members(1, 3)}
    stranger = said("add_reaction", {"message_id": 124, "emoji": "+1", "chat_id": 8}, backend=backend)
    assert stranger.published == []
    assert stranger.replies == [{"event": "new_reaction", "data": REACTION}]


def test_the_chat_of_a_message_that_passed_here_is_known() -> None:
    gogate = profile()
    sent({"chat_id": 1}, to=gogate)
    assert reacted(gogate).published[0][0] == ["user:1", "user:2"]


def test_read_receipts_are_grouped_by_chat_and_unknown_ones_come_back_to_the_reader() -> None:
    gogate = profile()
    for message, chat in ((1, 10), (2, 20), (3, 10)):
        body = orjson.dumps({"id": message})
        sent({"chat_id": chat}, to=gogate, backend={"send": answer(200, body), "members": members(2)})
    backend = {"read": answer(200, {}), "members": members(1, 2)}
    run = said("mark_read", {"message_ids": [1, 2, 3, 4]}, backend=backend, to=gogate)
    assert run.calls[0][1].body == b'{"messageIds":[1,2,3,4]}'
    assert [request.path.split("/")[-2] for _, request in run.calls[1:]] == ["10", "20"]
    assert [frame["data"]["message_ids"] for _, frame in run.published] == [[1, 3], [2]]
    assert run.replies == [{"event": "message_read", "data": {"message_ids": [4], "user_id": 2, "name": "Jane Smith"}}]


def test_a_chat_in_the_answer_is_the_chat_of_all_that_was_read() -> None:
    backend = {"read": answer(200, {"chat_id": 5}), "members": members(1, 2)}
    run = said("mark_read", {"message_ids": [1, 2]}, backend=backend)
    assert run.published[0][1]["data"]["message_ids"] == [1, 2]


@pytest.mark.parametrize(
    ("event", "data", "call", "status", "error"),
    [
        ("add_reaction", {"message_id": 1, "emoji": "x"}, "react", 204, ("add reaction", "REACTION_FAILED")),
        ("mark_read", {"message_ids": [1]}, "read", 201, ("mark as read", "READ_FAILED")),
    ],
)
def test_other_successes_than_the_contracts_do_not_count(
    event: str, data: object, call: str, status: int, error: tuple[str, str]
) -> None:
    run = said(event, data, backend={call: answer(status, {})})
    assert run.error == (f"Failed to {error[0]}: status {status}", error[1])


def test_a_backend_that_fails_is_told_to_the_log_without_its_words() -> None:
    run = sent({"chat_id": 1}, backend={"send": answer(503, {"error": "its own words"})})
    (count,) = (action for action in run.actions if isinstance(action, Count))
    assert (count.name, count.detail) == ("backend_error", "the backend answered a send call with status 503")


def test_a_refused_token_is_told_to_the_log_without_the_token() -> None:
    run = said("auth", {"token": "its-token"}, by=b"", backend={"auth": answer(401, {"error": "its-token"})})
    (count,) = (action for action in run.actions if isinstance(action, Count))
    assert count.name == "auth_failure"
    assert "its-token" not in count.detail


def test_an_unknown_event_is_named_and_counted_under_one_label() -> None:
    run = said("dance\n" * 50)
    assert run.error == ("Unknown event type", "UNKNOWN_EVENT")
    assert run.counted("gogate_events_received_total") == ["unknown"]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_users_connections_share_one_rate() -> None:
    gogate = profile(user_rate=5)
    codes = [said("nonsense", to=gogate).error[1] for _ in range(12)]
    assert codes == ["UNKNOWN_EVENT"] * 10 + ["RATE_LIMITED"] * 2
    assert said("nonsense", to=gogate, by=b"3\x1fX\x1ft").error[1] == "UNKNOWN_EVENT"
    assert said("nonsense", to=gogate, now=NOW + 1).error[1] == "UNKNOWN_EVENT"


def test_a_limited_event_is_discarded_and_counted() -> None:
    gogate = profile(user_rate=1)
    backend = {"send": answer(200, MESSAGE), "members": members(2)}
    runs = [sent({"chat_id": 1}, to=gogate, backend=backend) for _ in range(3)]
    assert [len(run.calls) for run in runs] == [2, 2, 0]
    assert runs[2].counted("gogate_rate_limited_total") == ["user"]


def test_every_counted_name_is_declared() -> None:
    declared = {family.name for family in PROFILE.families}
    run = sent({"chat_id": 1})
    counted = {action.family for action in run.actions if isinstance(action, Add)}
    assert counted
    assert counted <= declared
    excess = b'{"event":"error","data":{"message":"Rate limit exceeded","code":"RATE_LIMITED"}}'
    assert PROFILE.notices == (Notices(excess=excess),)


def test_nothing_that_leaves_here_holds_the_key_or_a_token() -> None:
    run = said("auth", {"token": "secret-token"}, by=b"", backend={"auth": None})
    told = b"".join(action.payload for action in run.actions if isinstance(action, Reply))
    assert b"secret-token" not in told
    assert b"internal-key" not in told
