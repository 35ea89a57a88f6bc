"""The upgrade by the letter: RFC 6455 section 4.2.1, RFC 9112, and the Handshake line of the security checklist.

Rule: every refusal is a constant small answer that says `Connection: close` and ends the connection.
"""

import base64
import signal

import pytest

from tests.gateways import Gateway, running
from tests.wire.client import PING, Raw, frame, upgrade

GOOD = upgrade().decode("latin-1")
KEY = base64.b64encode(bytes(16)).decode()

HANDSHAKE_HEADERS = [
    *("Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol"),
    *("Sec-WebSocket-Extensions", "Origin", "Authorization", "Cookie", "User-Agent", "X-Forwarded-For"),
]


def without(header: str) -> bytes:
    return "\r\n".join(line for line in GOOD.split("\r\n") if not line.startswith(header)).encode("latin-1")


def replaced(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode("latin-1")


def with_header(line: str) -> bytes:
    return upgrade(extra=line + "\r\n")


REFUSED = {
    "no upgrade headers at all": (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426),
    "no Upgrade": (without("Upgrade:"), 426),
    "Upgrade to something else": (replaced("Upgrade: websocket", "Upgrade: h2c"), 426),
    "no version": (without("Sec-WebSocket-Version"), 426),
    "version 8": (replaced("Version: 13", "Version: 8"), 426),
    "version 13 twice": (with_header("Sec-WebSocket-Version: 13"), (400, 426)),
    "no Connection": (without("Connection:"), 400),
    "Connection without upgrade": (replaced("Connection: Upgrade", "Connection: keep-alive"), 400),
    "no Host": (without("Host:"), 400),
    "Host twice": (with_header("Host: y"), 400),
    "no key": (without("Sec-WebSocket-Key"), 400),
    "key twice": (with_header(f"Sec-WebSocket-Key: {KEY}"), 400),
    "key of 15 bytes": (upgrade(key=base64.b64encode(bytes(15)).decode()), 400),
    "key of 17 bytes": (upgrade(key=base64.b64encode(bytes(17)).decode()), 400),
    "key that is not base64": (upgrade(key="!" * 22 + "=="), 400),
    "empty key": (upgrade(key=" "), 400),
    "a body": (with_header("Content-Length: 5"), 400),
    "chunks": (with_header("Transfer-Encoding: chunked"), 400),
    "POST": (replaced("GET ", "POST "), 405),
    "HTTP/1.0": (replaced("HTTP/1.1", "HTTP/1.0"), (400, 505)),
    "HTTP/9.9": (replaced("HTTP/1.1", "HTTP/9.9"), (400, 505)),
    "a folded header": (with_header("X-Folded: a\r\n b"), 400),
    "a blank before the colon": (with_header("X-Blank : a"), 400),
    "a NUL in a header": (with_header("X-Nul: a\0b"), 400),
    "a bare CR in a header": (with_header("X-Cr: a\rb"), 400),
    "a header without a name": (with_header(": a"), 400),
    "a header without a colon": (with_header("nonsense"), 400),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600) + b"\r\n\r\n", 400),
    "101 headers": (upgrade(extra="".join(f"X-{i}: 1\r\n" for i in range(101))), 431),
    "20,000 headers": (upgrade(extra="".join(f"X-{i}: 1\r\n" for i in range(20_000))), 431),
    "a header of 1 MiB": (with_header("X-Large: " + "a" * (1 << 20)), 431),
    "a target of 20 kB": (upgrade("/ws?token=" + "a" * 20_000), (414, 431)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_upgrade_is_refused_with_its_status_and_the_connection_ends(echo: Gateway, name: str) -> None:
    request, expected = REFUSED[name]
    with Raw(echo.port) as client:
        status, headers, body = refused(client, request)
        assert status in (expected if isinstance(expected, tuple) else (expected,)), (status, body)
        assert headers["connection"].lower() == "close" or "upgrade" in headers["connection"].lower()
        assert "close" in headers["connection"].lower()
        if status == 426:
            assert headers["sec-websocket-version"] == "13"
        if status == 405:
            assert "GET" in headers["allow"]
        assert len(body) <= 256
        assert client.ended()


def refused(client: Raw, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The server may answer and end before all of a giant head was taken."""
    half = len(request) // 2
    try:
        client.send(request[:half])
        return client.response(request[half:])
    except (BrokenPipeError, ConnectionResetError):
        return client.response(b"")


def test_a_refused_connection_serves_no_second_request(echo: Gateway) -> None:
    with Raw(echo.port) as client:
        status, _, _ = client.response(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade())
        assert status == 426
        assert client.ended()
        assert b"101 Switching" not in client.buffer


@pytest.mark.parametrize("name", HANDSHAKE_HEADERS)
@pytest.mark.parametrize("value", ["\xff\xfe\x80", "\x01", "é" * 50, ",;=\"'", "\x7f"], ids=ascii)
def test_odd_bytes_in_a_handshake_header_cost_nobody_else(echo: Gateway, name: str, value: str) -> None:
    with Raw(echo.port) as client:
        status, _, _ = client.response(with_header(f"{name}: {value}"))
        assert status in {101, 400, 426}
    assert_serves(echo)


@pytest.mark.parametrize(
    "line",
    [
        "Sec-WebSocket-Protocol: " + "a," * 7000,
        "Sec-WebSocket-Protocol: a" + " " * 7000 + "b",
        "Sec-WebSocket-Extensions: " + "permessage-deflate;" * 700,
        "Sec-WebSocket-Extensions: " + "a;b=" + "\t" * 7000,
        "Sec-WebSocket-Extensions: " + '"' * 5000,
    ],
    ids=["protocols", "blanks", "offers", "tabs", "quotes"],
)
def test_long_lists_in_a_header_are_read_in_linear_time(echo: Gateway, line: str) -> None:
    with Raw(echo.port) as client:
        status, _, _ = client.response(with_header(line))
        assert status in {101, 400, 431}
    assert_serves(echo)


def test_an_upgrade_that_arrives_byte_by_byte_is_served(echo: Gateway) -> None:
    with Raw(echo.port) as client:
        for byte in upgrade():
            client.send(bytes([byte]))
        assert client.response(b"")[0] == 101


def test_frames_sent_right_behind_the_upgrade_are_not_lost(echo: Gateway) -> None:
    with Raw(echo.port) as client:
        assert client.response(upgrade() + frame(b"early"))[0] == 101
        assert client.read().payload == b"early"


@pytest.mark.parametrize(
    "opening", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["silent", "one byte", "half a head"]
)
def test_a_handshake_has_one_deadline_whatever_trickles_in(opening: bytes) -> None:
    with (
        running("echo", WS_HANDSHAKE_TIMEOUT="300ms", WS_CLOSE_TIMEOUT="300ms") as gateway,
        Raw(gateway.port) as client,
    ):
        client.send(opening or b"")
        client.socket.settimeout(0.05)
        for _ in range(200):  # 10 s at the most: far beyond the deadline
            try:
                client.send(b"a" if opening else b"")
                if not client.socket.recv(4096):
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        else:
            raise AssertionError("the handshake outlived its deadline")
        assert gateway.refused("handshake_timeout") == 1


def test_the_cap_on_connections_answers_503_before_the_token_is_looked_at() -> None:
    with (
        running("attchat-gateway", WS_MAX_CONNECTIONS="2") as gateway,
        Raw(gateway.port) as one,
        Raw(gateway.port) as two,
    ):
        target = gateway.authenticated().split(str(gateway.port))[1]
        one.open(target)
        two.open(target)
        with Raw(gateway.port) as third:
            status, headers, body = third.response(upgrade("/ws?token=bad"))
            assert (status, headers["retry-after"], body) == (503, "5", b'{"error":"max_connections"}')
        assert gateway.refused("max_connections") == 1
        assert gateway.metrics()["gateway_auth_failure_total"] == 0
        assert gateway.get("/health")[0] == 200
        one.reset()
        opened_again(gateway, target)


def opened_again(gateway: Gateway, target: str) -> None:
    """The place that a reset freed is given to the next client; how soon, only the gateway knows."""
    for _ in range(200):
        with Raw(gateway.port) as again:
            if again.response(upgrade(target))[0] == 101:
                return
    raise AssertionError("the place of a client that is gone was never given back")


def test_caps_an_address_and_a_user_are_counted_by_reason() -> None:
    with running("attchat-gateway", WS_MAX_CONNECTIONS_PER_ADDRESS="3", WS_MAX_CONNECTIONS_PER_USER="1") as gateway:
        target = gateway.authenticated().split(str(gateway.port))[1]
        with Raw(gateway.port, source="127.0.0.2") as one, Raw(gateway.port, source="127.0.0.3") as two:
            one.open(target)
            status, _, body = two.response(upgrade(target))
            assert (status, body) == (429, b'{"error":"max_connections_per_user"}')
        crowd = [Raw(gateway.port, source="127.0.0.9") for _ in range(4)]
        targets = [gateway.authenticated(user_id=f"u{i}").split(str(gateway.port))[1] for i in range(4)]
        statuses = sorted(client.response(upgrade(target))[0] for client, target in zip(crowd, targets, strict=True))
        assert statuses == [101, 101, 101, 429]  # which of the four is over is for the shards to say
        for client in crowd:
            client.socket.close()
        assert gateway.refused("max_connections_per_user") == 1
        assert gateway.refused("max_connections_per_address") == 1


def test_handshakes_beyond_the_rate_are_told_when_to_come_back() -> None:
    with running("echo", WS_HANDSHAKES_PER_SECOND="5") as gateway:
        answers = []
        for _ in range(30):
            with Raw(gateway.port) as client:
                answers.append(client.response(upgrade())[:2])
        assert {status for status, _ in answers} == {101, 503}
        assert all(headers["retry-after"] for status, headers in answers if status == 503)
        assert gateway.refused("handshake_rate") == sum(status == 503 for status, _ in answers)


def test_what_is_not_an_upgrade_reaches_the_http_app_on_the_same_port(echo: Gateway) -> None:
    with Raw(echo.port) as client:
        status, headers, body = client.response(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["content-type"]) == (200, "application/json")
        assert b"current_connections" in body
        # a second request might be an upgrade, and the HTTP app could not serve that
        assert headers["connection"] == "close"
        assert client.ended()
    assert echo.get("/nowhere")[0] == 404


PROXY_V1 = b"PROXY TCP4 198.51.100.7 127.0.0.1 40000 8086\r\n"
PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([198, 51, 100, 7, 127, 0, 0, 1]) + b"\x9c\x40\x1f\x96"


@pytest.mark.parametrize("header", [PROXY_V1, PROXY_V2], ids=["v1", "v2"])
def test_a_trusted_balancer_names_the_client(header: bytes) -> None:
    settings = {"WS_PROXY_PROTOCOL": "true", "WS_PROXY_TRUSTED": "127.0.0.0/8", "WS_MAX_CONNECTIONS_PER_ADDRESS": "1"}
    with (
        running("echo", asked_at_metrics=True, **settings) as gateway,
        Raw(gateway.port) as one,
        Raw(gateway.port) as two,
        Raw(gateway.port) as bare,
    ):
        assert one.response(header + upgrade())[0] == 101
        two.send(header + upgrade())
        assert two.ended() or b" 429 " in two.buffer
        bare.send(upgrade())
        assert bare.ended()


def assert_serves(gateway: Gateway) -> None:
    with Raw(gateway.port) as client:
        client.open()
        client.send(frame(b"still there?", PING))
        assert client.read().payload == b"still there?"


def test_a_second_sigterm_ends_a_gateway_that_drains() -> None:
    with running("echo", WS_SHUTDOWN_GRACE="30s", WS_CLOSE_TIMEOUT="30s") as gateway, Raw(gateway.port) as client:
        client.open()
        gateway.signal(signal.SIGTERM)
        assert client.read_close() == 1001  # and is never answered: the drain would last
        gateway.signal(signal.SIGTERM)
        gateway.wait(10)
