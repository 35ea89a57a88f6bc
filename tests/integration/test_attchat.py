"""The contract of attchat-gateway against a real process: connecting, rooms, errors, HTTP, metrics, limits, drain.

The bus is the embedded one here; what needs NATS is in test_attchat_nats.py. Each name is a line of the contract.
"""

import asyncio
import base64
import hmac
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.gateways import SECRET, Gateway, running, spawn, token
from tests.integration.client import Chat

PUBLISH_KEY = "a-publish-key-of-the-tests-0123456789"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE_PEM = RSA_KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    settings = {"JWT_PUBLIC_KEY": PUBLIC_PEM.decode().replace("\n", "\\n"), "PUBLISH_KEY": PUBLISH_KEY}
    with running("attchat-gateway", LOG_LEVEL="debug", **settings) as started:
        yield started


def publish(gateway: Gateway, *events: dict[str, Any]) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.port}/api/publish",
        data=json.dumps(list(events)).encode(),
        headers={"Authorization": f"Bearer {PUBLISH_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(answer.status)


async def published(gateway: Gateway, *events: dict[str, Any]) -> None:
    assert await asyncio.to_thread(publish, gateway, *events) == 202


async def auth_failure(url: str, **headers: str) -> None:
    """Exactly one frame, AUTH_FAILED, then 1008."""
    async with connect(url, additional_headers=headers, compression=None) as socket:
        error = json.loads(await socket.recv())
        assert error["type"] == "error"
        assert error["payload"] == {"code": "AUTH_FAILED", "message": "Invalid token"}
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1008


async def test_a_token_of_either_generation_yields_the_user_id_as_a_string(gateway: Gateway) -> None:
    b_token = jwt.encode({"user_id": 12345, "iss": "attchat", "username": "u", "role_id": 3}, PRIVATE_PEM, "RS256")
    for url in (gateway.authenticated(), f"{gateway.url}?token={b_token}"):
        async with Chat(url) as chat:
            assert chat.hello["type"] == "connected"
            assert chat.hello["payload"]["user_id"] == "12345"
            assert all(isinstance(value, str) for value in chat.hello["payload"].values())


async def test_a_token_may_come_in_the_authorization_header(gateway: Gateway) -> None:
    async with Chat(gateway.url, Authorization=f"Bearer {token()}") as chat:
        assert chat.hello["payload"]["user_id"] == "12345"


def unsigned(algorithm: str) -> str:
    parts = ({"alg": algorithm, "typ": "JWT"}, {"user_id": "1", "iss": "attchat"})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


def family_confusion() -> str:
    """An HS256 token whose key is the text of the RSA public key; made by hand, because PyJWT refuses to."""
    body = unsigned("HS256")
    digest = hmac.digest(PUBLIC_PEM, body.encode(), "sha256")
    return body + "." + base64.urlsafe_b64encode(digest).decode().rstrip("=")


BAD_TOKENS = {
    "none at all": "",
    "junk": "not.a.token",
    "wrong secret": token("another-secret-that-is-long-enough-0123456789"),
    "expired": token(exp=int(time.time()) - 1),
    "not yet valid": token(nbf=int(time.time()) + 3600),
    "wrong issuer": token(iss="somebody"),
    "no user": token(user_id=""),
    "a user that is a list": token(user_id=["1"]),
    "user zero": token(user_id=0),
    "alg none": unsigned("none") + ".",
    "HMAC with the public key": family_confusion(),
    "100 kB": "a" * 100_000,
    "12 kB": token(padding="a" * 9_000),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_gets_one_error_frame_and_1008_and_is_counted(gateway: Gateway, name: str) -> None:
    bad = BAD_TOKENS[name]
    before = gateway.metrics()["gateway_auth_failure_total"]
    if len(bad) > 16_000:  # beyond the bound of a request head: refused before anything is looked at
        with pytest.raises(Exception, match=r"431|414"):
            await auth_failure(f"{gateway.url}?token={bad}")
        return
    await auth_failure(f"{gateway.url}?token={bad}")
    assert gateway.metrics()["gateway_auth_failure_total"] == before + 1
    assert not bad or bad not in gateway.log_text()


async def test_an_agent_hears_the_folders_of_its_brand_without_joining_and_a_customer_does_not(
    gateway: Gateway,
) -> None:
    agent = gateway.authenticated(user_id="a1", brand_id="b1", type="cskh")
    customer = gateway.authenticated(user_id="c1", brand_id="b1", type="customer")
    async with Chat(agent) as hears, Chat(customer) as deaf:
        await published(gateway, {"type": "message", "room": "folder:b1:waiting", "payload": 1})
        assert (await hears.receive())["payload"] == 1
        await deaf.nothing_came()


async def test_an_event_reaches_every_member_but_the_excluded_connection(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as one, Chat(gateway.authenticated()) as two:
        await one.join("chat:ex")
        await two.join("chat:ex")
        event = {"type": "message", "room": "chat:ex", "payload": {"text": "hi"}, "exclude_conn_id": one.conn_id}
        await published(gateway, event)
        assert (await two.receive())["payload"] == {"text": "hi"}
        await one.nothing_came()


async def test_an_event_with_only_a_brand_reaches_nobody_and_is_counted(gateway: Gateway) -> None:
    before = gateway.metrics()['gateway_errors_total{type="no_target"}']
    async with Chat(gateway.authenticated(brand_id="b9")) as chat:
        await published(gateway, {"type": "message", "brand_id": "b9", "payload": 1}, {"type": "x", "user_id": "12345"})
        assert (await chat.receive())["type"] == "x"  # sent after it, so the first would have come by now
    assert gateway.metrics()['gateway_errors_total{type="no_target"}'] == before + 1


async def test_an_event_for_a_user_reaches_all_tabs_even_one_that_left_its_user_room(gateway: Gateway) -> None:
    url = gateway.authenticated(user_id="u7")
    async with Chat(url) as one, Chat(url) as two:
        assert await one.ask(type="leave", room="user:u7") == {"type": "left", "room": "user:u7"}
        await published(gateway, {"type": "note", "user_id": "u7", "payload": 7})
        assert (await one.receive())["payload"] == (await two.receive())["payload"] == 7


async def test_ping_join_and_leave_are_answered_as_the_original_does(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        pong = await chat.ask(type="ping")
        assert set(pong) == {"type", "timestamp"}
        time.strptime(pong["timestamp"], "%Y-%m-%dT%H:%M:%SZ")
        assert await chat.ask(type="join", room="chat:1") == {"type": "joined", "room": "chat:1"}
        assert await chat.ask(type="join", room="chat:1") == {"type": "joined", "room": "chat:1"}
        assert await chat.ask(type="leave", room="chat:never") == {"type": "left", "room": "chat:never"}


async def test_typing_reaches_the_others_in_the_room_and_never_the_sender(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated(user_id="t1", type="customer")) as one, Chat(gateway.authenticated()) as two:
        await one.join("chat:t")
        await two.join("chat:t")
        await one.send(type="typing", room="chat:t")
        heard = await two.receive()
        assert (heard["type"], heard["room"]) == ("typing", "chat:t")
        assert heard["payload"] == {"user_id": "t1", "type": "customer"}
        await one.nothing_came()


async def test_nobody_joins_the_room_of_another_user(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated(user_id="spy")) as chat:
        for room in ("user:12345", "brand:other", "folder:b1:all"):
            refusal = await chat.ask(type="join", room=room)
            assert (refusal["type"], refusal["code"]) == ("error", "ROOM_FORBIDDEN")
        await chat.send(type="typing", room="user:12345")
        assert (await chat.receive())["code"] == "ROOM_FORBIDDEN"


async def test_a_bad_room_name_is_a_flat_error_on_join_and_a_close_in_the_query(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        refusal = await chat.ask(type="join", room="no blanks")
        assert refusal == {"type": "error", "code": "INVALID_ROOM", "message": "invalid room_id"}
        refusal = await chat.ask(type="join", room="a" * 129)
        assert refusal["code"] == "INVALID_ROOM"
    async with Chat(gateway.authenticated() + "&room_id=no%20blanks") as chat:
        assert chat.hello["payload"]["code"] == "INVALID_ROOM"
        assert await chat.closed() == 1008


JUNK = {
    "not JSON": "{nope",
    "a number": "42",
    "a list": "[]",
    "depth 10,000": "[" * 10_000 + "]" * 10_000,
    "binary noise": b"\x00\xff\xfe",
    "a type that is no string": '{"type":7}',
    "a room that is no string": '{"type":"join","room":{}}',
    "no room": '{"type":"join"}',
    "an empty room": '{"type":"leave","room":""}',
    "an unknown type": '{"type":"dance"}',
    "a lone surrogate": '{"type":"join","room":"\\ud800"}',
}


@pytest.mark.parametrize("name", JUNK)
async def test_junk_from_a_client_is_ignored_and_the_connection_stays(gateway: Gateway, name: str) -> None:
    async with Chat(gateway.authenticated()) as chat:
        await chat.socket.send(JUNK[name])
        answer = await chat.ask(type="ping")
        if answer["type"] == "error":  # a bad room name may be answered
            answer = await chat.receive()
        assert answer["type"] == "pong"


async def test_binary_frames_that_hold_json_are_read_like_text(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        await chat.socket.send(b'{"type":"join","room":"chat:bin"}')
        assert (await chat.receive())["type"] == "joined"


async def test_an_oversize_message_is_closed_with_1009(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        await chat.socket.send("a" * 65_537)
        assert await chat.closed() == 1009


def test_health_stats_and_ready_have_the_keys_of_the_contract(gateway: Gateway) -> None:
    status, health = gateway.get("/")
    assert status == 200
    expected = {
        "architecture",
        "jetstream",
        "jetstream_info",
        "message",
        "nats",
        "status",
        "version",
        "stats",
        "system",
    }
    assert set(health) >= expected
    assert health["version"] == "2.0"
    assert set(health["system"]) == {"cpu_used_percent", "ram_used_percent", "ram_used_mb", "net_mbps"}
    assert set(gateway.get("/stats")[1]) == {"total_connections", "current_connections", "total_rooms"}
    assert gateway.get("/ready") == (200, {"status": "ready"})
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/health", timeout=5) as answer:
        assert answer.read() == b"OK"


def test_cors_allows_every_origin_as_the_original_does(gateway: Gateway) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.port}/stats",
        method="OPTIONS",
        headers={"Origin": "https://a.example", "Access-Control-Request-Method": "GET"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        allowed = {name.strip() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
        assert allowed >= {"Origin", "Content-Type", "Accept", "Authorization"}


def test_publishing_over_http_needs_the_key_and_an_event(gateway: Gateway) -> None:
    def status(body: bytes, key: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{gateway.port}/api/publish", data=body, headers={"Authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                assert "error" in json.loads(refused.read())
                return refused.code

    assert status(b'{"type":"x","room":"chat:1"}', "wrong") == 401
    assert status(b"{nope", PUBLISH_KEY) == 400
    assert status(b'["no event"]', PUBLISH_KEY) == 400
    assert status(b'{"type":"x","payload":"' + b"a" * (1 << 20) + b'"}', PUBLISH_KEY) == 413
    assert status(b'{"type":"x","room":"chat:1"}', PUBLISH_KEY) == 202


async def test_metrics_carry_the_names_and_types_of_the_contract(gateway: Gateway) -> None:
    async with Chat(gateway.authenticated()) as chat:
        await chat.nothing_came()
        samples = gateway.metrics()
        names = {name.split("{")[0] for name in samples}
        assert names >= {
            *("gateway_connections_current", "gateway_connections_total", "gateway_rooms_total"),
            *("gateway_messages_received_total", "gateway_messages_sent_total", "gateway_messages_from_nats_total"),
            *("gateway_auth_success_total", "gateway_auth_failure_total", "gateway_message_latency_seconds_bucket"),
            *("gateway_errors_total", "tidegate_outbox_bytes", "tidegate_shard_lag_seconds", "tidegate_refused_total"),
        }
        assert samples["gateway_connections_current"] >= 1
        types = gateway.metric_types()
        assert types["gateway_rooms_total"] == "gauge"
        assert types["gateway_connections_total"] == types["gateway_errors_total"] == "counter"
        assert types["gateway_message_latency_seconds"] == "histogram"


def test_no_log_line_holds_a_token_a_key_or_a_payload(gateway: Gateway) -> None:
    log = gateway.log_text()
    assert log
    for secret in (SECRET, PUBLISH_KEY, token()[:40], "eyJ"):
        assert secret not in log


async def test_an_idle_client_that_answers_pings_stays_and_one_that_does_not_is_dropped() -> None:
    from tests.wire.client import PING, Raw

    with running("attchat-gateway", WS_PING_INTERVAL="200ms", WS_PONG_TIMEOUT="200ms") as gateway:
        async with Chat(gateway.authenticated()) as chat:
            with Raw(gateway.port) as mute:
                mute.open(gateway.authenticated().split(str(gateway.port))[1])
                mute.read()
                assert (await asyncio.to_thread(mute.read)).opcode == PING
                assert await asyncio.to_thread(mute.ended)
            await chat.nothing_came()
        assert gateway.refused("pong_timeout") == 1


async def test_the_origin_list_is_exact_and_refuses_null() -> None:
    with running("attchat-gateway", WS_ALLOWED_ORIGINS="https://a.example https://b.example") as gateway:
        async with Chat(gateway.authenticated(), Origin="https://a.example") as chat:
            await chat.nothing_came()
        for origin in ("https://a.example.evil.example", "null", "http://a.example", "https://A.example/"):
            with pytest.raises(Exception, match="403"):
                async with Chat(gateway.authenticated(), Origin=origin):
                    pass


async def test_sigterm_tells_every_client_1001_and_exits_0() -> None:
    with running("attchat-gateway", WS_SHUTDOWN_GRACE="1s") as gateway:
        async with Chat(gateway.authenticated()) as one, Chat(gateway.authenticated()) as two:
            gateway.signal(signal.SIGTERM)
            assert await one.closed() == 1001
            assert await two.closed() == 1001
        assert gateway.wait() == 0


BAD_STARTS = {
    "no secret": ({"JWT_SECRET_KEY": ""}, ["jwt.secret_key"]),
    "an impossible port": ({"SERVER_PORT": "70000"}, ["server.port", "70000"]),
    "a duration without a unit": ({"WS_PING_INTERVAL": "30"}, ["ws.ping_interval", "30s"]),
    "a nats URL that is none": ({"NATS_URL": "htp://x:y"}, ["nats.url", "nats://"]),
    "an unknown policy": ({"ROOMS_JOIN_POLICY": "members"}, ["rooms.join_policy", "member-prefix"]),
    "half of TLS": ({"SERVER_TLS_CERT": "nowhere.pem"}, ["server.tls_cert"]),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_an_impossible_setting_stops_the_start_and_says_the_cure(name: str) -> None:
    settings, words = BAD_STARTS[name]
    gateway = spawn("attchat-gateway", **settings)
    assert gateway.wait(20) == 2
    log = gateway.log_text()
    assert all(word in log for word in words), log
    assert "Traceback" not in log
    assert SECRET not in log


def test_a_port_in_use_is_named_although_another_gateway_could_share_it(gateway: Gateway) -> None:
    second = spawn("attchat-gateway", port=gateway.port)
    assert second.wait(20) == 3
    assert str(gateway.port) in second.log_text()
    assert "Traceback" not in second.log_text()


def test_an_unknown_key_in_the_file_is_named_with_the_nearest_valid_one(tmp_path: Any) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("ws:\n  max_conections: 5\nserver:\n  prot: 1\n")
    command = [sys.executable, "-m", "tidegate.cli", "serve", "--config", str(config), "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "ws.max_conections" in done.stderr
    assert "ws.max_connections" in done.stderr
    assert "server.port" in done.stderr
