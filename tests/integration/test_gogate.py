"""gogate as a real process before a real REST backend: section 13 of its contract, and what its users rely on."""

import asyncio
import contextlib
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.buses import until
from tests.certificates import Certificate
from tests.gateways import Gateway, stop
from tests.gogate import EVENT_S_MAX, Person, begun, node, person, starting
from tests.rest_backend import RestBackend

STOP_S_MAX = 20


@pytest.fixture
def gateway(rest_backend: RestBackend) -> Iterator[Gateway]:
    with node(rest_backend) as started:
        yield started


async def test_an_event_before_the_log_in_is_refused_and_the_same_socket_works_after(
    gateway: Gateway, rest_backend: RestBackend
) -> None:
    async with person(gateway) as client:
        await client.say("send_message", chat_id=1, text="x")
        assert await client.error() == ("Authentication required", "AUTH_REQUIRED")
        await client.say("auth", token="bad-token")
        message, code = await client.error()
        assert (message.partition(":")[0], code) == ("Authentication failed", "AUTH_FAILED")
        await client.log_in("user-7")
        await client.say("send_message", chat_id=1, text="x")
        assert (await client.hears("new_message"))["text"] == "x"
    assert [request.call for request in rest_backend.requests()] == ["auth", "auth", "send", "members"]


@pytest.mark.parametrize(("shape", "style"), [("original", "camel"), ("published", "snake"), ("published", "both")])
async def test_a_message_reaches_every_connection_of_every_member_with_the_backends_body(
    rest_backend: RestBackend, shape: str, style: str
) -> None:
    rest_backend.tell(shape=shape)
    with node(rest_backend, BACKEND_BODY_STYLE=style) as gateway:
        async with person(gateway, "user-1") as a, person(gateway, "user-1") as again, person(gateway, "user-2") as b:
            await a.say("send_message", chat_id=1, text="hello \u00e9")
            frames = [await one.raw() for one in (a, again, b)]
            assert frames[0] == frames[1] == frames[2]
            assert orjson.loads(frames[0])["data"]["text"] == "hello \u00e9"
    if style == "camel":
        (sent,) = rest_backend.requests("send")
        assert sent.body == '{"chatId":1,"text":"hello \u00e9","replyToId":null,"attachmentIds":null}'


async def test_typing_reaches_the_others_and_none_of_the_typists_connections(gateway: Gateway) -> None:
    async with person(gateway, "user-1") as a, person(gateway, "user-1") as again, person(gateway, "user-2") as b:
        await a.say("typing", chat_id=1, is_typing=True)
        typing = await b.hears("user_typing")
        assert (typing["user_id"], typing["chat_id"], typing["is_typing"]) == (a.id, 1, True)
        await b.say("send_message", chat_id=1, text="marker")
        for one in (a, again):
            assert (await one.hears("new_message"))["text"] == "marker"


@pytest.mark.parametrize("form", ["user_id", "id", "userId"])
async def test_members_in_each_form_are_reached(gateway: Gateway, rest_backend: RestBackend, form: str) -> None:
    rest_backend.tell(member_form=form, members={"5": [2]})
    async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
        await a.say("send_message", chat_id=5, text="only for two")
        assert (await b.hears("new_message"))["text"] == "only for two"


async def test_an_impossible_chat_costs_no_call_and_a_refusal_says_why(
    gateway: Gateway, rest_backend: RestBackend
) -> None:
    async with person(gateway, "user-1") as a:
        await a.say("send_message", chat_id=0, text="x")
        assert await a.error() == ("Invalid chat_id", "INVALID_CHAT")
        assert rest_backend.requests("send") == []
        rest_backend.tell(refuse={"send": [403, {"error": "x"}]})
        await a.say("send_message", chat_id=1, text="x")
        assert await a.error() == ("Failed to send message: x", "SEND_FAILED")


async def test_the_key_and_the_tokens_go_only_where_they_belong(gateway: Gateway, rest_backend: RestBackend) -> None:
    rest_backend.tell(chat_id_in=["send", "react", "read"])
    async with person(gateway, "user-1") as a:
        await a.say("send_message", chat_id=1, text="x")
        message = (await a.hears("new_message"))["id"]
        await a.say("add_reaction", message_id=message, emoji="+1")
        await a.hears("new_reaction")
        await a.say("mark_read", message_ids=[message])
        await a.hears("message_read")
    for request in rest_backend.requests():
        is_internal = request.call in ("auth", "members")
        assert ("x-internal-api-key" in request.headers) is is_internal, request.call
        assert request.headers.get("authorization") == (None if is_internal else "Bearer user-1"), request.call
    assert {request.call for request in rest_backend.requests()} == {"auth", "send", "members", "react", "read"}


async def test_reactions_and_receipts_reach_the_chat_of_a_message_that_passed_here(gateway: Gateway) -> None:
    async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
        await a.say("send_message", chat_id=1, text="x")
        message = (await a.hears("new_message"))["id"]
        await b.hears("new_message")
        await b.say("add_reaction", message_id=message, emoji="+1")
        for one in (a, b):
            assert (await one.hears("new_reaction"))["user_id"] == b.id
        await b.say("mark_read", message_ids=[message, 10**12])
        for one in (a, b):
            assert (await one.hears("message_read"))["message_ids"] == [message]
        assert (await b.hears("message_read"))["message_ids"] == [10**12], "an unknown one comes back to the reader"


async def test_a_thousand_events_in_one_burst_are_served_in_order(gateway: Gateway, rest_backend: RestBackend) -> None:
    async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
        before = gateway.memory_bytes()
        for number in range(1000):
            await a.say("send_message", chat_id=1, text=str(number))
        assert [(await b.hears("new_message"))["text"] for _ in range(1000)] == [str(n) for n in range(1000)]
        assert gateway.memory_bytes() - before < 32 << 20
    assert [request.json["text"] for request in rest_backend.requests("send")] == [str(n) for n in range(1000)]


async def test_a_user_with_fifty_devices_gets_everything_on_each_once(gateway: Gateway) -> None:
    async with contextlib.AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(person(gateway, "user-1")) for _ in range(50)]
        sender = await stack.enter_async_context(person(gateway, "user-2"))
        for number in range(5):
            await sender.say("send_message", chat_id=1, text=str(number))
        for device in devices:
            assert [(await device.hears("new_message"))["text"] for _ in range(5)] == list("01234")
        assert gateway.metrics()["gogate_users_online"] == 2


async def test_a_second_log_in_replaces_the_user(gateway: Gateway, rest_backend: RestBackend) -> None:
    rest_backend.tell(members={"1": [1, 2, 3], "5": [1, 3]})
    async with person(gateway, "user-1") as a, person(gateway, "user-3") as other:
        await a.log_in("user-2")
        await other.say("send_message", chat_id=5, text="for user 1")
        await other.hears("new_message")
        await a.hears_nothing_before(other)


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_flood_is_answered_by_the_engine_and_never_reaches_the_backend(rest_backend: RestBackend) -> None:
    with node(rest_backend, RATE_LIMIT_PER_CONNECTION="5") as gateway:
        async with person(gateway, "user-1") as a, person(gateway, "user-2") as b:
            for number in range(100):
                await a.say("send_message", chat_id=1, text=str(number))
            heard = [orjson.loads(await a.raw()) for _ in range(100)]
            limited = [frame for frame in heard if frame["data"].get("code") == "RATE_LIMITED"]
            sent = len(rest_backend.requests("send"))
            assert 8 <= sent <= 30, "ten at once, five a second"
            assert len(limited) == 100 - sent
            await b.hears("new_message")
            assert gateway.metrics()['gogate_rate_limited_total{scope="connection"}'] == len(limited)


async def test_one_connection_too_many_of_a_user_is_told_and_closed_and_a_place_given_back_counts(
    rest_backend: RestBackend,
) -> None:
    with node(rest_backend, MAX_CONNECTIONS_PER_USER="2") as gateway:
        async with person(gateway, "user-1") as first, person(gateway, "user-1"), person(gateway) as third:
            await third.say("auth", token="user-1")
            assert (await third.error())[1] == "TOO_MANY_CONNECTIONS"
            assert await close_code(third) == 4429
            await first.log_in("user-1")
            await first.log_in("user-2")
            async with person(gateway, "user-1"):
                pass


async def test_who_does_not_log_in_is_told_and_closed_4401(rest_backend: RestBackend) -> None:
    with node(rest_backend, AUTH_TIMEOUT="1") as gateway:
        async with person(gateway, "user-1") as quick, person(gateway) as slow:
            assert (await slow.error())[1] == "AUTH_TIMEOUT"
            assert await close_code(slow) == 4401
            await quick.say("send_message", chat_id=1, text="still here")
            await quick.hears("new_message")


async def test_a_log_in_that_was_under_way_when_the_time_ran_out_counts(rest_backend: RestBackend) -> None:
    rest_backend.tell(slow={"auth": 2.0})
    with node(rest_backend, AUTH_TIMEOUT="1") as gateway:
        async with person(gateway, "user-1") as slow:
            rest_backend.tell(slow={})
            await slow.say("send_message", chat_id=1, text="in")
            await slow.hears("new_message")


async def test_origins_connections_and_message_size_are_limited(rest_backend: RestBackend) -> None:
    limits = {"ALLOWED_ORIGINS": "https://a.example,*.b.example", "MAX_CONNECTIONS": "2", "MAX_MESSAGE_SIZE": "1000"}
    with node(rest_backend, **limits) as gateway:
        for origin, status in (("https://evil.example", 403), ("https://x.b.example", None)):
            refused = None
            try:
                async with person(gateway, origin=origin) as client:
                    await client.socket.send("x" * 1001)
                    assert await close_code(client) == 1009
            except InvalidStatus as answer:
                refused = answer.response.status_code
            assert refused == status, origin
        async with person(gateway), person(gateway):
            with pytest.raises(InvalidStatus, match="503"):
                async with person(gateway):
                    pass


async def close_code(client: Person) -> int:
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(EVENT_S_MAX):
            while True:
                await client.socket.recv()
    return client.socket.close_code or 0


# --- HTTP, start and stop ---------------------------------------------------------------------------------------------


def fetch(gateway: Gateway, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}{path}", timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers.get("Content-Type", ""), refused.read().decode()


def test_http_is_the_originals(gateway: Gateway) -> None:
    assert fetch(gateway, "/health") == (200, "application/json", '{"status":"ok","service":"gogate"}')
    status, kind, body = fetch(gateway, "/")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "/ws" in body
    assert "/health" in body
    assert fetch(gateway, "/ready")[0] == 200
    assert fetch(gateway, "/ws")[0] == 400
    assert [fetch(gateway, path)[0] for path in ("/stats", "/api/publish", "/nothing")] == [404, 404, 404]


async def test_the_contracts_metrics_are_on_the_same_port(gateway: Gateway, rest_backend: RestBackend) -> None:
    async with person(gateway, "user-1") as a:
        await a.say("send_message", chat_id=1, text="x")
        await a.hears("new_message")
        found = gateway.metrics()
    for name, value in {
        "gogate_connections": 1,
        "gogate_users_online": 1,
        "gogate_connections_total": 1,
        'gogate_auth_total{result="success"}': 1,
        'gogate_events_received_total{event="send_message"}': 1,
        'gogate_events_sent_total{event="new_message"}': 1,
        'gogate_backend_requests_total{call="send",status="201"}': 1,
        'gogate_backend_request_seconds_count{call="send"}': 1,
        "gogate_redis_published_total": 0,
    }.items():
        assert found[name] == value, name
    types = gateway.metric_types()
    assert types["gogate_backend_request_seconds"] == "histogram"
    assert {"gogate_events_dropped_total", "gogate_errors_total", "gogate_members_cache_total"} <= set(types)


async def test_a_drain_answers_who_has_asked_and_closes_1001(rest_backend: RestBackend) -> None:
    with node(rest_backend, SHUTDOWN_TIMEOUT="20") as gateway:
        async with person(gateway, "user-1") as a:
            rest_backend.tell(hold=["send"])
            await a.say("send_message", chat_id=1, text="last words")
            await begun(rest_backend)
            gateway.signal(signal.SIGTERM)
            while fetch(gateway, "/ready")[0] != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            rest_backend.tell(hold=[])
            assert (await a.hears("new_message"))["text"] == "last words"
            assert await close_code(a) == 1001
        assert gateway.wait(STOP_S_MAX) == 0


def test_a_start_without_the_internal_key_fails_and_says_so(rest_backend: RestBackend) -> None:
    gateway = starting(rest_backend, INTERNAL_API_KEY="")
    try:
        assert gateway.wait(STOP_S_MAX) == 2
        assert "INTERNAL_API_KEY" in gateway.log_text()
    except subprocess.TimeoutExpired:
        gateway.kill()
        raise


async def test_both_tls_files_make_the_port_wss(rest_backend: RestBackend, tmp_path: Path) -> None:
    certificate = Certificate(tmp_path, "gogate")
    files = {"TLS_CERT_FILE": str(certificate.file), "TLS_KEY_FILE": str(certificate.key_file)}
    gateway = starting(rest_backend, **files)
    try:
        await until(lambda: "serves on port" in gateway.log_text())
        url = f"wss://127.0.0.1:{gateway.port}/ws"
        async with connect(url, ssl=certificate.trusted(), compression=None) as socket:
            client = await Person(socket).log_in("user-1")
            await client.say("send_message", chat_id=1, text="sealed")
            assert (await client.hears("new_message"))["text"] == "sealed"
    finally:
        stop(gateway)


async def test_no_log_holds_a_token_or_the_key(rest_backend: RestBackend) -> None:
    with node(rest_backend, LOG_LEVEL="debug") as gateway:
        rest_backend.tell(refuse={"members": [500, {"error": "user-1"}]})
        async with person(gateway, "user-1-secret") as a:
            await a.say("send_message", chat_id=1, text="x")
            await a.say("nonsense")
            await a.error()
        log = gateway.log_text()
    assert "members_failed" in log
    assert "user-1-secret" not in log
    assert rest_backend.KEY not in log
