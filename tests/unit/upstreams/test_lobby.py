"""The chat inside the process answers in the published shapes and refuses what the published backend refuses."""

import json
from typing import Any

import pytest
from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.upstreams._lobby import CHAT, Lobby

NOW = 1_761_395_696.0  # 2025-10-25T12:34:56Z
KEY = {"X-Internal-API-Key": "internal-key"}


def post(path: str, body: Any, headers: dict[str, str]) -> HttpRequest:
    return HttpRequest("POST", path, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def ask(lobby: Lobby, request: HttpRequest) -> tuple[int, Any]:
    answer: HttpAnswer = lobby.answer(request, NOW)
    return answer.status, json.loads(answer.body)


def validate(lobby: Lobby, token: object, headers: dict[str, str] = KEY) -> tuple[int, Any]:
    return ask(lobby, post("/api/internal/v1/auth/validate", {"token": token}, headers))


def members(lobby: Lobby, chat: object = CHAT, headers: dict[str, str] = KEY) -> tuple[int, Any]:
    return ask(lobby, HttpRequest("GET", f"/api/internal/v1/chats/{chat}/members", headers))


def as_user(lobby: Lobby, path: str, body: Any, token: str = "Jane Smith") -> tuple[int, Any]:
    return ask(lobby, post(path, body, {"Authorization": f"Bearer {token}"}))


def send(lobby: Lobby, token: str = "Jane Smith", **body: Any) -> tuple[int, Any]:
    return as_user(lobby, "/api/v1/messages", {"chatId": CHAT, "text": "hi"} | body, token)


def test_whoever_has_a_name_is_somebody():
    status, said = validate(Lobby(), "Jane Smith")
    assert status == 200
    assert said["valid"] is True
    user = said["user"]
    assert list(user) == ["id", "email", "phone", "first_name", "last_name", "full_name", "roles", "is_active"]
    assert (user["first_name"], user["last_name"], user["full_name"]) == ("Jane", "Smith", "Jane Smith")
    assert 0 < user["id"] < 2**53, "JavaScript clients must be able to say it"


def test_a_name_is_the_same_user_in_every_process():
    assert validate(Lobby(), "Jane")[1]["user"]["id"] == validate(Lobby(), "Jane")[1]["user"]["id"] == 87013781770865
    assert len({validate(Lobby(), f"user {number}")[1]["user"]["id"] for number in range(1000)}) == 1000


@pytest.mark.parametrize("token", ["bad", "bad token", "x" * 65, "line\nbreak", "\x00", " ", 7, ["a"], {"a": 1}])
def test_what_is_no_name_is_refused(token: object):
    assert validate(Lobby(), token) == (401, {"error": "Invalid token"})


@pytest.mark.parametrize("body", [{"token": ""}, {"token": None}, {}])
def test_no_token_at_all_is_the_gateways_mistake(body: dict[str, Any]):
    assert ask(Lobby(), post("/api/internal/v1/auth/validate", body, {}))[0] == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"token"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes):
    for path in ("/api/internal/v1/auth/validate", "/api/v1/messages", "/api/v1/messages/read"):
        request = post(path, body, {"Authorization": "Bearer Jane"})
        assert ask(Lobby(), request) == (400, {"error": "Invalid JSON"})


def test_a_configured_key_is_needed_for_the_internal_requests():
    lobby = Lobby("internal-key")
    for headers in ({}, {"X-Internal-API-Key": ""}, {"X-Internal-API-Key": "wrong-ä"}):
        assert validate(lobby, "Jane", headers) == (401, {"error": "Invalid API key"})
        assert members(lobby, headers=headers)[0] == 401
    assert validate(lobby, "Jane", {"x-internal-api-key": "internal-key"})[0] == 200
    assert validate(Lobby(), "Jane", {})[0] == 200


def test_everybody_who_authenticated_is_in_the_lobby_once():
    lobby = Lobby()
    assert members(lobby) == (200, {"chat_id": CHAT, "members": []})
    people = [validate(lobby, name)[1]["user"] for name in ("Jane", "John", "Jane")]
    validate(lobby, "bad")
    assert members(lobby)[1]["members"] == people[1:]


def test_other_chats_are_not_found():
    assert members(Lobby(), 2)[0] == 404
    assert send(Lobby(), chatId=2)[0] == 404


def test_the_members_are_bounded_and_who_came_last_stays():
    lobby = Lobby(members_max=2)
    for name in ("one", "two", "one", "three"):
        validate(lobby, name)
    assert [member["full_name"] for member in members(lobby)[1]["members"]] == ["one", "three"]


def test_a_message_has_the_contracts_shape():
    status, message = send(Lobby(), text="Hello back!")
    assert status == 201
    user = message.pop("user")
    assert list(user) == ["id", "name", "phone"]
    assert user["name"] == "Jane Smith"
    assert message == {
        "id": 1,
        "chat_id": 1,
        "type": "text",
        "text": "Hello back!",
        "reply_to": None,
        "attachments": [],
        "reactions": [],
        "read_count": 0,
        "mentions": None,
        "created_at": "2025-10-25T12:34:56Z",
        "edited_at": None,
        "is_edited": False,
    }


def test_a_message_is_understood_in_all_three_styles():
    camel = {"chatId": 1, "text": "hi", "replyToId": None, "attachmentIds": None}
    snake = {"chat_id": 1, "content": "hi", "reply_to_id": None, "attachment_ids": []}
    for body in (camel, snake, camel | snake):
        status, message = as_user(Lobby(), "/api/v1/messages", body)
        assert (status, message["text"]) == (201, "hi")


def test_a_reply_quotes_the_message():
    lobby = Lobby()
    first = send(lobby, text="first")[1]
    reply = send(lobby, token="John", text="second", replyToId=first["id"])[1]
    assert reply["reply_to"] == {
        "id": first["id"],
        "user": {"id": first["user"]["id"], "name": "Jane Smith"},
        "text": "first",
        "type": "text",
    }
    assert send(lobby, replyToId=99) == (404, {"error": "Message not found"})


def test_attachments_alone_are_a_message():
    status, message = send(Lobby(), text=None, attachmentIds=[5, 6])
    assert (status, message["text"], message["attachments"]) == (201, None, [{"id": 5}, {"id": 6}])


@pytest.mark.parametrize(
    "body",
    [
        {"text": "x" * 10_001},
        {"text": 7},
        {"text": ""},
        {"text": None},
        {"chatId": 0},
        {"chatId": "1"},
        {"chatId": None},
        {"chatId": True},
        {"replyToId": "1"},
        {"attachmentIds": 1},
        {"attachmentIds": ["1"]},
        {"attachmentIds": [1] * 101},
    ],
)
def test_a_message_that_breaks_a_limit_is_refused_with_the_reason(body: dict[str, Any]):
    status, said = send(Lobby(), **body)
    assert status == 422
    assert said["message"]


def test_the_longest_text_is_taken():
    assert send(Lobby(), text="ä" * 10_000)[0] == 201


def test_reactions_and_receipts_say_the_chat():
    lobby = Lobby()
    number = send(lobby)[1]["id"]
    status, said = as_user(lobby, f"/api/v1/messages/{number}/reactions", {"emoji": "+1"})
    assert (status, said["chat_id"]) == (200, CHAT)
    for body in ({"messageIds": [number]}, {"message_ids": [number]}, {"messageIds": [1], "message_ids": [1]}):
        status, said = as_user(lobby, "/api/v1/messages/read", body)
        assert (status, said["chat_id"]) == (200, CHAT)


@pytest.mark.parametrize("emoji", ["", "x" * 21, 1, None])
def test_a_reaction_is_1_to_20_characters(emoji: object):
    lobby = Lobby()
    number = send(lobby)[1]["id"]
    status, said = as_user(lobby, f"/api/v1/messages/{number}/reactions", {"emoji": emoji})
    assert status == 422
    assert said["message"]


def test_a_message_that_is_not_there_or_no_more_takes_no_reaction():
    lobby = Lobby(messages_max=2)
    numbers = [send(lobby)[1]["id"] for _ in range(3)]
    found = [as_user(lobby, f"/api/v1/messages/{n}/reactions", {"emoji": "+1"})[0] for n in (*numbers, 99)]
    assert found == [404, 200, 200, 404]


@pytest.mark.parametrize("numbers", [[], [1] * 101, ["1"], None, 1])
def test_receipts_are_for_1_to_100_messages(numbers: object):
    assert as_user(Lobby(), "/api/v1/messages/read", {"messageIds": numbers})[0] == 422


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic abc"}])
def test_users_requests_need_a_bearer(headers: dict[str, str]):
    for path in ("/api/v1/messages", "/api/v1/messages/1/reactions", "/api/v1/messages/read"):
        assert ask(Lobby(), post(path, {}, headers)) == (401, {"message": "Authentication required"})


def test_a_bearer_that_would_not_be_let_in_is_refused():
    assert send(Lobby(), token="bad one") == (401, {"error": "Invalid token"})


def test_other_paths_and_verbs_are_refused():
    assert ask(Lobby(), HttpRequest("GET", "/"))[0] == 404
    assert ask(Lobby(), HttpRequest("GET", "/api/v1/messages/9999999999999999999/reactions"))[0] == 404
    assert ask(Lobby(), HttpRequest("DELETE", "/api/v1/messages"))[0] == 405
