"""Lines of the security checklist that clients, tokens and backends can break: names, events, who may say what.

Rule: docs/security.md names these tests; one that goes makes a promise there untrue.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.gateways import Gateway, running
from tests.integration.client import Chat
from tests.servers import NatsServer
from tests.wire.client import Raw, frame

PUBLISH_KEY = "a-publish-key-of-the-security-tests-0123456789"
SIGNER = Ed25519PrivateKey.generate()
PUBLIC_KEY = SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running("attchat-gateway", PUBLISH_KEY=PUBLISH_KEY, JWT_PUBLIC_KEY=PUBLIC_KEY, LOG_LEVEL="debug") as started:
        yield started


async def published(gateway: Gateway, body: bytes) -> int:
    def post() -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{gateway.port}/api/publish", body, {"Authorization": f"Bearer {PUBLISH_KEY}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code

    return await asyncio.to_thread(post)


# --- rooms ------------------------------------------------------------------------------------------------------------

NO_ROOMS = [
    *(
        "chat:*",
        ">",
        "chat.>",
        "chat:>",
        "*",
        "chat:a b",
        "chat:a\n",
        "chat:a\r\nX: y",
        "chat:\x00",
        "chat:\x1f",
        "@12345",
    ),
    *("chat:\u2028", "chat:\u2029", "chat:é", "chat:\u202e", "chat:\ufeff", "chat:\x7f", "chat:a/../b", "chat:%2a"),
    *("chat:" + "a" * 124, "chat:\ud800"),
]


@pytest.mark.parametrize("policy", ["member-prefix", "open"])
async def test_no_wildcard_control_or_invisible_character_names_a_room(policy: str) -> None:
    with running("attchat-gateway", ROOMS_JOIN_POLICY=policy) as gateway:
        async with Chat(gateway.authenticated()) as chat:
            rooms = gateway.get("/stats")[1]["total_rooms"]
            for name in NO_ROOMS:
                for kind in ("join", "typing"):
                    await chat.socket.send(json.dumps({"type": kind, "room": name}))
                    if name == "chat:\ud800":  # no text at all: JSON that holds it is junk
                        continue
                    assert (await chat.receive())["code"] == "INVALID_ROOM", name
            await chat.nothing_came()
            assert gateway.get("/stats")[1]["total_rooms"] == rooms
        assert gateway.metrics()['gateway_errors_total{type="bad_json"}'] == 2


async def test_rooms_are_told_apart_by_every_byte(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as one, Chat(gateway.authenticated()) as other:
        await one.join("chat:Abc")
        await other.join("chat:abc")
        assert await published(gateway, b'{"type":"m","room":"chat:abc"}') == 202
        assert (await other.receive())["room"] == "chat:abc"
        await one.nothing_came()


@pytest.mark.parametrize("kind", ["join", "typing"])
async def test_join_and_typing_pass_the_same_check(gateway: Gateway, kind: str) -> None:
    async with Chat(gateway.authenticated(user_id="7", brand_id="b1", type="cskh")) as chat:
        for room in (
            "user:8",
            "user:70",
            "brand:b2",
            "brand:b11",
            "folder:b2:all",
            "folder:b11:all",
            "folder::all",
            "x",
        ):
            assert (await chat.ask(type=kind, room=room))["code"] == "ROOM_FORBIDDEN", room


async def test_the_room_in_the_url_passes_that_check_too(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated(user_id="7") + "&room_id=user:8") as chat:
        assert (await chat.receive())["code"] == "ROOM_FORBIDDEN"
        assert await published(gateway, b'{"type":"secret","room":"user:8"}') == 202
        await chat.nothing_came()


# --- text -------------------------------------------------------------------------------------------------------------

ODD_TEXT = "\u2028\u2029\u0085\"'\\</script>\u202e\ufeff\u0000\u001f😀\x7f"


async def test_odd_text_in_an_event_comes_back_as_it_was(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        await chat.join("chat:odd")
        event = {"type": "message", "room": "chat:odd", "payload": {"text": ODD_TEXT}}
        for ascii_only in (True, False):
            assert await published(gateway, json.dumps(event, ensure_ascii=ascii_only).encode()) == 202
            assert await chat.receive() == event


async def test_a_lone_surrogate_in_an_event_is_refused_and_the_next_event_delivered(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        await chat.join("chat:odd")
        for text in (rb"\ud800", rb"\udfff\ud800", b"\xed\xa0\x80", b"\xff"):
            body = b'{"type":"m","room":"chat:odd","payload":"' + text + b'"}'
            assert await published(gateway, body) == 400
        assert await published(gateway, b'{"type":"next","room":"chat:odd"}') == 202
        assert (await chat.receive())["type"] == "next"


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "</script>", "émile", "a@b.example", "😀"])
async def test_a_users_name_of_printable_text_round_trips(gateway: Gateway, name: str) -> None:
    async with Chat(gateway.authenticated(user_id=name)) as one, Chat(gateway.authenticated(user_id="w")) as other:
        assert one.hello["payload"]["user_id"] == name
        await one.join("chat:names")
        await other.join("chat:names")
        await one.send(type="typing", room="chat:names")
        assert (await other.receive())["payload"]["user_id"] == name


@pytest.mark.parametrize("name", ["a\u2028b", "a\u2029b", "a\x1fb", "a\nb", "a\x00b", "\u202eb", "\ud800", "x" * 257])
async def test_a_users_name_that_could_forge_a_line_or_a_field_is_no_name(gateway: Gateway, name: str) -> None:
    chat = Chat(gateway.authenticated(user_id=name))
    async with chat:
        assert chat.hello["payload"] == {"code": "AUTH_FAILED", "message": "Invalid token"}
        assert await chat.closed() == 1008


async def test_odd_text_in_the_query_is_dropped_from_what_is_shown(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated() + "&device=%E2%80%A8x&tags=%00&tz=%ED%A0%80&channel=ok") as chat:
        shown = chat.hello["payload"]
        assert (shown["device"], shown["tags"], shown["channel"]) == ("", "", "ok")
        assert shown["tz"].isprintable()


# --- who may say what -------------------------------------------------------------------------------------------------


async def test_a_client_cannot_speak_for_the_server_or_for_another_user(nats_server: NatsServer) -> None:
    settings = {"NATS_URL": nats_server.url, "NATS_PUBLISH_UNKNOWN": "true", "NATS_STREAMS": "CHAT"}
    with running("attchat-gateway", **settings) as gateway:
        await ready(gateway)
        mine, theirs = gateway.authenticated(user_id="mallory", brand_id="b1"), gateway.authenticated(user_id="alice")
        async with Chat(mine) as mallory, Chat(theirs) as alice:
            await mallory.join("chat:1")
            await alice.join("chat:1")
            for kind in ("connected", "error", "joined", "left", "pong", "Typing", "message"):
                forged = {"user_id": "alice", "brand_id": "b2", "chat_id": "9", "timestamp": "1970-01-01T00:00:00Z"}
                await mallory.send(type=kind, room="chat:1", payload=1, exclude_conn_id=alice.conn_id, **forged)
            for room in ("user:alice", "brand:b2", "@alice", "chat:*"):
                await mallory.send(type="message", room=room, payload="for you only")
            heard = [await alice.receive(), await alice.receive()]
            await alice.nothing_came()
        assert [event["type"] for event in heard] == ["Typing", "message"]  # neither is a type of the server's
        for event in heard:
            assert (event["user_id"], event["brand_id"]) == ("mallory", "b1")
            assert event["exclude_conn_id"] == mallory.conn_id
            assert "chat_id" not in event
            assert not event["timestamp"].startswith("1970")
        assert gateway.metrics()['gateway_errors_total{type="publish_refused"}'] == 9


async def ready(gateway: Gateway) -> None:
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(gateway.get, "/ready"))[0] != 200:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


# --- tokens in time ---------------------------------------------------------------------------------------------------


async def test_a_cached_token_is_refused_from_the_second_it_expires(gateway: Gateway) -> None:
    expires = int(time.time()) + 2
    made = jwt.encode({"user_id": "brief", "iss": "attchat", "exp": expires}, SIGNER, algorithm="EdDSA")
    hits = gateway.metrics()["tidegate_token_cache_hits_total"]
    async with Chat(f"{gateway.url}?token={made}"), Chat(f"{gateway.url}?token={made}"):
        assert gateway.metrics()["tidegate_token_cache_hits_total"] == hits + 1
    while time.time() < expires:  # noqa: ASYNC110 - its clock can't be turned
        await asyncio.sleep(0.05)
    async with Chat(f"{gateway.url}?token={made}") as late:
        assert late.hello["payload"]["code"] == "AUTH_FAILED"


# --- the truth --------------------------------------------------------------------------------------------------------


async def test_health_says_what_is_so_while_the_bus_is_away_and_after_it_came() -> None:
    server = NatsServer()
    with running("attchat-gateway", NATS_URL=server.url, NATS_RECONNECT_WAIT="50ms") as gateway:
        try:
            said = await asyncio.to_thread(gateway.get, "/health")
            assert (said[0], said[1]["status"], said[1]["nats"]) == (200, "degraded", "down")
            assert await asyncio.to_thread(gateway.get, "/ready") == (503, {"status": "not_ready", "reason": "nats"})
            await asyncio.to_thread(server.start)
            await ready(gateway)
            said = await asyncio.to_thread(gateway.get, "/health")
            assert (said[1]["status"], said[1]["nats"], said[1]["jetstream"]) == ("healthy", "ok", "ok")
        finally:
            await asyncio.to_thread(server.remove)


async def test_junk_from_clients_costs_nobody_and_is_not_logged(gateway: Gateway) -> None:
    junk: list[Any] = [b"[" * 10_000, b'{"a":' * 10_000, b'{"type":1}', b'{"type":["join"],"room":{}}', b"null", b"\0"]
    junk += [b'{"type":"join","room":"' + b"a" * 60_000 + b'"}', b'{"type":"junk-that-no-log-shows"}', b"1e999"]
    with Raw(gateway.port) as client:
        client.open(gateway.authenticated().split(str(gateway.port))[1])
        client.read()
        for payload in junk:
            client.send(frame(payload))
        client.send(frame(b'{"type":"ping"}'))
        while b"pong" not in (got := client.read().payload):
            assert b"INVALID_ROOM" in got
    assert "junk-that-no-log-shows" not in gateway.log_text()
    assert "aaaaaaaa" not in gateway.log_text()
