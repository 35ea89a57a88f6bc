"""Lines of the security checklist that only a raw socket can break: what relay, limits and ports let through.

Rule: docs/security.md names these tests; one that goes makes a promise there untrue.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateways import SECRET, Gateway, running, token
from tests.wire.client import PING, READ_S_MAX, TEXT, Raw, close_frame, frame, upgrade

REPOSITORY = Path(__file__).parents[2]
PUBLISH_KEY = "a-publish-key-of-the-wire-tests-0123456789"
EVENT = b'{"type":"smuggled","room":"chat:smuggled","payload":{}}'


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    settings = {"PUBLISH_KEY": PUBLISH_KEY, "SERVER_READ_TIMEOUT": "500ms"}  # for a body that never comes
    with running("attchat-gateway", LOG_LEVEL="debug", **settings) as started:
        yield started


def path_of(made: str) -> str:
    return f"/ws?token={made}"


def everything(client: Raw, data: bytes) -> bytes:
    """All that the server sends until it ends the connection."""
    received = b""
    try:
        client.send(data)
        while more := client.socket.recv(65536):
            received += more
    except (BrokenPipeError, ConnectionResetError):
        pass  # it may end before all of a giant request was taken
    except TimeoutError:
        raise AssertionError(f"still open after {READ_S_MAX} s: {received[:200]!r}") from None
    return received


def publish_request(*headers: str, body: bytes = b"", key: str = PUBLISH_KEY) -> bytes:
    lines = ["POST /api/publish HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_every_proof_that_the_security_page_names_exists() -> None:
    rows = [line for line in (REPOSITORY / "docs" / "security.md").read_text().splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+){2,})`", row.split("|")[-2])}
    assert len(named) > 80
    sources = [*(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "rust_core").glob("*/[st]*/**/*.rs")]
    defined = {name for path in sources for name in re.findall(r"\b(?:def|fn) (\w+)\(", path.read_text())}
    assert not named - defined


# --- plain HTTP on the main port --------------------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"
HIDDEN = publish_request(f"Content-Length: {len(EVENT)}", body=EVENT)
SMUGGLED = {
    "length and chunks": publish_request("Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "chunks and length": publish_request(CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n" + HIDDEN),
    "two lengths": publish_request("Content-Length: 0", f"Content-Length: {len(HIDDEN)}", body=HIDDEN),
    "a list of lengths": publish_request(f"Content-Length: 0, {len(HIDDEN)}", body=HIDDEN),
    "a signed length": publish_request("Content-Length: +0", body=HIDDEN),
    "a negative length": publish_request("Content-Length: -1", body=HIDDEN),
    "chunks twice": publish_request(CHUNKED, CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "chunks by another name": publish_request("Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + HIDDEN),
    "a blank before the colon": publish_request("Transfer-Encoding : chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a folded coding": publish_request("Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n" + HIDDEN),
    "an empty chunked body": publish_request(CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "a chunk size beyond 64 bits": publish_request(CHUNKED, body=b"fffffffffffffffff0\r\n" + HIDDEN),
    "a chunk size with a sign": publish_request(CHUNKED, body=b"-1\r\n\r\n" + HIDDEN),
    "a trailer that is a request": publish_request(CHUNKED, body=b"0\r\nX: y\r\n\r\n" + HIDDEN),
    "a request behind a request": b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a body on GET": b"GET /stats HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "a request behind a refused upgrade": b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a request behind an upgrade with a body": upgrade(extra=f"Content-Length: {len(HIDDEN)}\r\n") + HIDDEN,
    "a request behind an upgrade with chunks": upgrade(extra=f"{CHUNKED}\r\n") + b"0\r\n\r\n" + HIDDEN,
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_hidden_second_request_is_never_served(gateway: Gateway, name: str) -> None:
    """The hidden one would publish; it has the right key, so nothing but the framing stands in its way."""
    before = gateway.metrics()["gateway_messages_from_nats_total"]
    with Raw(gateway.port) as client:
        received = everything(client, SMUGGLED[name])
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", received)) == 1, received
    assert b"connection: close" in received.lower()
    assert b" 202 " not in received
    assert b" 101 " not in received
    assert gateway.metrics()["gateway_messages_from_nats_total"] == before


def test_the_request_that_is_hidden_above_would_be_served_in_the_open(gateway: Gateway) -> None:
    with Raw(gateway.port) as client:
        assert b" 202 " in everything(client, HIDDEN)


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "/debug/pprof/", "/docs", "/openapi.json", "/swagger/", "/.env"]
)
def test_the_main_port_serves_no_page_of_operators_or_developers(gateway: Gateway, path: str) -> None:
    status, body = gateway.get(path)
    assert (status, body["error"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/api/publish", "/ws", "/stats", "/ready"])
def test_the_metrics_port_serves_metrics_only(gateway: Gateway, path: str) -> None:
    with Raw(gateway.metrics_port) as client:
        received = everything(client, HIDDEN.replace(b"/api/publish", path.encode()))
    assert received.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("opening", [b"", b"GET /metrics HTTP/1.1\r\nX-Slow: "], ids=["silent", "half a head"])
def test_a_request_on_the_metrics_port_has_one_deadline_whatever_trickles_in(gateway: Gateway, opening: bytes) -> None:
    with Raw(gateway.metrics_port) as client:
        client.send(opening)
        client.socket.settimeout(0.05)
        for _ in range(200):  # 10 s at the most: far beyond the 500 ms that the fixture allows
            try:
                client.send(b"a" if opening else b"")
                if not client.socket.recv(4096):
                    return
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return
    raise AssertionError("the request outlived its deadline")


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "CONNECT", "PATCH"])
def test_other_methods_are_refused_and_nothing_is_reflected(gateway: Gateway, method: str) -> None:
    with Raw(gateway.port) as client:
        received = everything(
            client, f"{method} /stats?x=reflected HTTP/1.1\r\nHost: x\r\nX-Y: reflected\r\n\r\n".encode()
        )
    assert re.match(rb"HTTP/1.1 (400|404|405) ", received), received
    assert b"reflected" not in received


@pytest.mark.parametrize(
    "path", ["/ws/", "/health/", "/stats/", "//ws", "/WS", "/ws;x", "/ws%00", "/./ws", "/ws/../stats"]
)
def test_a_path_that_is_almost_one_of_ours_is_not_found_and_redirects_nowhere(gateway: Gateway, path: str) -> None:
    """A redirect would quote the Host header, to send the client anywhere, and the query with its token."""
    for port in (gateway.port, gateway.metrics_port):
        with Raw(port) as client:
            received = everything(client, upgrade(f"{path}?token=reflected", host="evil.example"))
        assert re.match(rb"HTTP/1.1 404 ", received), received
        assert b"location:" not in received.lower()
        assert b"reflected" not in received
        assert b"evil" not in received


@pytest.mark.parametrize("where", ["path", "query", "header", "version", "key"])
def test_no_refusal_reflects_what_was_sent(gateway: Gateway, where: str) -> None:
    mark = "reflected<script>"
    request = {
        "path": f"GET /{mark} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "query": f"GET /ws?token={mark} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "header": upgrade(extra=f"Sec-WebSocket-Protocol: {mark}\r\n"),
        "version": upgrade().replace(b"Version: 13", b"Version: " + mark.encode()),
        "key": upgrade(key=mark),
    }[where]
    with Raw(gateway.port) as client:
        received = everything(client, request)
    assert received.startswith(b"HTTP/1.1 4")
    assert b"reflected" not in received


# --- tokens -----------------------------------------------------------------------------------------------------------


def rejected(client: Raw, request: bytes) -> str:
    """The code of the error frame on an upgraded socket that is closed with 1008 then."""
    assert client.response(request)[0] == 101
    error = json.loads(client.read().payload)
    assert client.read_close() == 1008
    assert set(error) == {"type", "payload", "timestamp"}
    return str(error["payload"]["code"])


def test_two_different_tokens_are_refused_whichever_is_good(gateway: Gateway) -> None:
    good, other, bad = token(), token(user_id="another"), token("not-the-secret-of-this-gateway-0123456789abcdef")
    for in_query, in_header in ((good, bad), (bad, good), (good, other)):
        with Raw(gateway.port) as client:
            request = upgrade(path_of(in_query), extra=f"Authorization: Bearer {in_header}\r\n")
            assert rejected(client, request) == "AUTH_FAILED"
    for first, second in ((good, bad), (bad, good), (good, other)):
        with Raw(gateway.port) as client:
            assert rejected(client, upgrade(path_of(first) + f"&token={second}")) == "AUTH_FAILED"
    with Raw(gateway.port) as client:
        twice = f"Authorization: Bearer {good}\r\nAuthorization: Bearer {other}\r\n"
        assert rejected(client, upgrade(extra=twice)) == "AUTH_FAILED"


def test_a_cached_token_lets_no_token_in_that_differs_from_it_in_one_character(gateway: Gateway) -> None:
    made = token(user_id="cached")
    with Raw(gateway.port) as client:
        client.open(path_of(made))
    header, payload, signature = made.split(".")
    for part in (0, 1, 2):
        parts = [header, payload, signature]
        # the first character of the part's last three bytes: none of its bits is spare
        parts[part] = parts[part][:-4] + ("A" if parts[part][-4] != "A" else "B") + parts[part][-3:]
        with Raw(gateway.port) as client:
            assert rejected(client, upgrade(path_of(".".join(parts)))) == "AUTH_FAILED"


def test_a_token_is_never_sent_back_nor_logged_even_at_debug(gateway: Gateway) -> None:
    made, bad = token(user_id="quiet"), "unsigned-" + "z" * 40
    for given in (made, bad, made[:-1], "eyJ" + "a" * 7000):
        with Raw(gateway.port) as client:
            protocols = f"Authorization: Bearer {given}\r\nSec-WebSocket-Protocol: chat, {given[:200]}\r\n"
            status, headers, _ = client.response(upgrade(path_of(given), extra=protocols))
            sent_back = str(headers).encode() + client.buffer + everything_read(client)
        assert status == 101
        assert given[:40].encode() not in sent_back
        assert "sec-websocket-protocol" not in headers
    log = gateway.log_text()
    for secret in (made, made.split(".")[2], bad, PUBLISH_KEY, SECRET):
        assert secret not in log


def everything_read(client: Raw) -> bytes:
    client.send(close_frame(1000))
    received = b""
    try:
        while more := client.socket.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


def test_a_refusal_is_logged_with_address_and_reason_at_debug(gateway: Gateway) -> None:
    with Raw(gateway.port, source="127.0.0.77") as client:
        assert rejected(client, upgrade(path_of(token("x" * 40)))) == "AUTH_FAILED"
        client.send(close_frame(1008))
        assert client.ended()
    number = logged(gateway, r"connection (\d+): upgrade from 127\.0\.0\.77")
    assert logged(gateway, rf"connection {number}: token refused: (\w+)") == "signature"
    assert "1008" in logged(gateway, rf"connection {number}: admitted as None, close (.*)")
    assert logged(gateway, rf"connection {number}: closed with (\d+)") == "1008"


def logged(gateway: Gateway, pattern: str) -> str:
    """What the pattern's group matched, once the log's thread has written it: a later scrape is answered in between."""
    for _ in range(500):
        if found := re.search(pattern, gateway.log_text()):
            return found[1]
        gateway.metrics()
    raise AssertionError(f"not in the log: {pattern}\n{gateway.log_text()[-2000:]}")


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [frame(b'{"type":"ping"}'), frame(b"", PING), frame(b"not json"), frame(b"", 10)],
    ids=["messages", "pings", "junk", "pongs"],
)
def test_a_client_beyond_its_rate_is_closed_with_1008_and_counted(gateway: Gateway, flood: bytes) -> None:
    before = gateway.refused("message_rate")
    with Raw(gateway.port) as client, Raw(gateway.port) as innocent:
        client.open(path_of(token()))
        innocent.open(path_of(token()))
        assert innocent.read().opcode == TEXT  # connected
        client.send(flood * 5_000)  # its burst is 200
        assert client.read_close() == 1008
        innocent.send(frame(b"still there?", PING))
        assert innocent.read().payload == b"still there?"
    assert gateway.refused("message_rate") == before + 1


def test_a_client_in_more_rooms_than_allowed_is_closed_with_1008_and_counted() -> None:
    with running("attchat-gateway", WS_MAX_ROOMS="10") as gateway, Raw(gateway.port) as client:
        client.open(path_of(token()))
        for number in range(12):
            client.send(frame(b'{"type":"join","room":"chat:%d"}' % number))
        assert client.read_close() == 1008
        assert gateway.refused("max_rooms") == 1


def test_no_header_of_a_client_changes_its_address() -> None:
    names = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP")
    with running("echo", WS_MAX_CONNECTIONS_PER_ADDRESS="1", LOG_LEVEL="debug") as gateway:
        extra = "".join(f"{name}: 203.0.113.9\r\n" for name in names)
        with Raw(gateway.port, source="127.0.0.5") as one:
            one.open(extra=extra)
            with Raw(gateway.port, source="127.0.0.5") as two:  # not before: shards accept in any order
                assert two.ended()
        assert gateway.refused("max_connections_per_address") == 1
        assert logged(gateway, r"upgrade from (\S+)") == "127.0.0.5"
        assert "203.0.113.9" not in gateway.log_text()


def test_a_proxy_header_of_a_client_is_no_request() -> None:
    """Off by default: who sends one unasked gets no second chance."""
    with running("echo") as gateway, Raw(gateway.port) as client:
        received = everything(client, b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n" + upgrade())
        assert received.startswith(b"HTTP/1.1 400 ")
        assert b" 101 " not in received
