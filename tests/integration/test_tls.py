"""TLS on the main port of a real process: WebSocket and HTTP, what is refused, and certificates changed under traffic.

Rule: clients trust exactly the certificate of the test, so that a connection that opens proves which one was shown.
"""

import asyncio
import json
import os
import signal
import ssl
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.buses import until
from tests.certificates import Certificate, replace
from tests.gateways import Gateway, running, spawn
from tests.integration.client import Chat
from tests.wire.client import Raw, frame

ANSWER_S_MAX = 15
PUBLISH_KEY = "a-publish-key-of-the-tests-0123456789"


class SecureChat(Chat):
    """Over TLS, trusting one certificate."""

    def __init__(self, url: str, certificate: Certificate) -> None:
        super().__init__(url)
        self.trusted = certificate.trusted()

    async def __aenter__(self) -> "SecureChat":
        self.socket = await connect(self.url, ssl=self.trusted, compression=None, max_queue=None)
        self.hello = await self.receive()
        return self


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"), "shared")


@pytest.fixture(scope="module")
def gateway(certificate: Certificate) -> Iterator[Gateway]:
    settings = certificate.settings | {"WS_HANDSHAKE_TIMEOUT": "1s", "PUBLISH_KEY": PUBLISH_KEY}
    with running("attchat-gateway", asked_at_metrics=True, **settings) as started:
        yield started


@pytest.fixture(scope="module")
def echo(certificate: Certificate) -> Iterator[Gateway]:
    with running("echo", asked_at_metrics=True, **certificate.settings) as started:
        yield started


def wss(gateway: Gateway, url: str = "") -> str:
    return (url or gateway.url).replace("ws://", "wss://", 1)


def https(gateway: Gateway, certificate: Certificate, path: str, body: bytes | None = None) -> tuple[int, object]:
    headers = {"Authorization": f"Bearer {PUBLISH_KEY}", "Content-Type": "application/json"} if body else {}
    request = urllib.request.Request(f"https://127.0.0.1:{gateway.port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=ANSWER_S_MAX, context=certificate.trusted()) as answer:
        return answer.status, json.loads(answer.read())


async def told(gateway: Gateway, text: str, after: int) -> None:
    await until(lambda: text in gateway.log_text()[after:])


async def echoes(socket: ClientConnection, text: str) -> None:
    await socket.send(text)
    assert await asyncio.wait_for(socket.recv(), ANSWER_S_MAX) == text


# --- what works as without TLS ----------------------------------------------------------------------------------------


async def test_messages_of_all_sizes_come_back_whole_and_in_order_over_wss(
    echo: Gateway, certificate: Certificate
) -> None:
    sent = [os.urandom(size) for size in (0, 1, 16_383, 16_384, 16_385, 65_536, 300_000, 4_000_000)]
    async with connect(wss(echo), ssl=certificate.trusted(), compression=None, max_size=None) as socket:
        sending = asyncio.create_task(send_all(socket, sent))
        async with asyncio.timeout(ANSWER_S_MAX):
            assert [await socket.recv() for _ in sent] == sent
        await sending
        await socket.close(4321, "enough")
        assert socket.close_code == 4321


async def send_all(socket: ClientConnection, messages: list[bytes]) -> None:
    for message in messages:
        await socket.send(message)


async def test_http_over_tls_is_relayed_and_what_it_publishes_reaches_a_wss_client(
    gateway: Gateway, certificate: Certificate
) -> None:
    status, ready = await asyncio.to_thread(https, gateway, certificate, "/ready")
    assert (status, ready) == (200, {"status": "ready"})
    async with SecureChat(wss(gateway, gateway.authenticated()), certificate) as chat:
        await chat.join("chat:tls")
        # more than a record and than a read of the relay
        events = [{"type": "message", "room": "chat:tls", "payload": {"n": n, "fill": "x" * 900}} for n in range(60)]
        body = json.dumps(events).encode()
        status, _ = await asyncio.to_thread(https, gateway, certificate, "/api/publish", body)
        assert status == 202
        assert [(await chat.receive())["payload"]["n"] for _ in events] == list(range(60))


def test_an_answer_over_tls_ends_with_a_goodbye_so_that_nobody_takes_a_cut_for_its_end(
    gateway: Gateway, certificate: Certificate
) -> None:
    with Raw(gateway.port) as client:
        client.socket = certificate.trusted().wrap_socket(
            client.socket, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        )
        status, headers, body = client.response(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["connection"], json.loads(body)) == (200, "close", {"status": "ready"})
        assert client.socket.recv(1) == b""  # a cut would raise SSLEOFError


# --- what is refused, and costs nobody else ---------------------------------------------------------------------------


async def test_plain_text_on_a_tls_port_costs_its_sender_only(echo: Gateway, certificate: Certificate) -> None:
    before = echo.refused("tls")
    async with connect(wss(echo), ssl=certificate.trusted(), compression=None) as staying:
        for junk in (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4096), b"\x16\x03\x01\xff\xff" + bytes(70)):
            with Raw(echo.port) as plain:
                plain.send(junk)
                assert await asyncio.to_thread(plain.ended)
                assert b"HTTP/" not in plain.buffer
            await echoes(staying, "still here")
        assert echo.refused("tls") == before + 3


async def test_junk_inside_an_open_session_ends_that_session_only(echo: Gateway, certificate: Certificate) -> None:
    async with connect(wss(echo), ssl=certificate.trusted(), compression=None) as staying:
        with Raw(echo.port) as broken:
            fd = os.dup(broken.socket.fileno())
            broken.socket = certificate.trusted().wrap_socket(broken.socket, server_hostname="127.0.0.1")
            await asyncio.to_thread(broken.open)
            os.write(fd, b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that does not decrypt
            os.close(fd)
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
                await asyncio.to_thread(broken.read)
        await echoes(staying, "still here")


def test_tls_1_1_is_refused_by_the_gateway(echo: Gateway, certificate: Certificate) -> None:
    old = certificate.trusted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would refuse
    with Raw(echo.port) as client, pytest.raises(ssl.SSLError, match="_ALERT_"):
        old.wrap_socket(client.socket, server_hostname="127.0.0.1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_newer_versions_are_spoken(echo: Gateway, certificate: Certificate, version: ssl.TLSVersion) -> None:
    only = certificate.trusted()
    only.minimum_version = only.maximum_version = version
    with Raw(echo.port) as client:
        client.socket = only.wrap_socket(client.socket, server_hostname="127.0.0.1")
        client.open()
        client.send(frame(b"hello"))
        assert client.read().payload == b"hello"


@pytest.mark.parametrize("sent", ["nothing", "half a hello"])
def test_a_half_done_handshake_is_cut_after_the_handshake_timeout(
    gateway: Gateway, certificate: Certificate, sent: str
) -> None:
    before = gateway.refused("handshake_timeout")
    with Raw(gateway.port) as silent:
        if sent == "half a hello":
            silent.send(hello(certificate)[:100])
        assert silent.ended()
    assert gateway.refused("handshake_timeout") == before + 1


def test_a_handshake_done_without_a_request_is_cut_too(gateway: Gateway, certificate: Certificate) -> None:
    before = gateway.refused("handshake_timeout")
    with Raw(gateway.port) as silent:
        silent.socket = certificate.trusted().wrap_socket(silent.socket, server_hostname="127.0.0.1")
        assert silent.ended()
    assert gateway.refused("handshake_timeout") == before + 1


def hello(certificate: Certificate) -> bytes:
    """What a client sends first."""
    outgoing = ssl.MemoryBIO()
    client = certificate.trusted().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# --- certificates that change -----------------------------------------------------------------------------------------


async def test_after_a_hangup_newcomers_see_the_new_certificate_and_old_connections_go_on(tmp_path: Path) -> None:
    old, new = Certificate(tmp_path, "old"), Certificate(tmp_path, "new")
    with running("echo", asked_at_metrics=True, **old.settings) as gateway:
        async with connect(wss(gateway), ssl=old.trusted(), compression=None) as staying:
            new.write(old.file, old.key_file)
            gateway.signal(signal.SIGHUP)
            await until(lambda: "reloaded the certificate" in gateway.log_text())
            async with connect(wss(gateway), ssl=new.trusted(), compression=None) as newcomer:
                assert newcomer.transport.get_extra_info("ssl_object").getpeercert(binary_form=True) == new.der
                await echoes(newcomer, "new")
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(wss(gateway), ssl=old.trusted())
            await echoes(staying, "old")


BROKEN: dict[str, tuple[Callable[[Certificate, Certificate], None], str]] = {
    "an empty certificate": (lambda good, _: replace(good.file, b""), "Check the path"),
    "a certificate that is none": (lambda good, _: replace(good.file, b"nothing\n"), "-----BEGIN CERTIFICATE-----"),
    "a certificate cut short": (lambda good, _: replace(good.file, good.pem[:200]), "is the file complete"),
    "no certificate": (lambda good, _: good.file.unlink(), "Check the path"),
    "another's key": (lambda good, other: replace(good.key_file, other.key_pem), "the pair that was made together"),
}


async def test_a_broken_file_at_a_hangup_keeps_the_old_certificate_and_says_the_cure(tmp_path: Path) -> None:
    good, other = Certificate(tmp_path, "good"), Certificate(tmp_path, "other")
    with running("echo", asked_at_metrics=True, **good.settings) as gateway:
        async with connect(wss(gateway), ssl=good.trusted(), compression=None) as staying:
            for name, (spoil, cure) in BROKEN.items():
                seen = len(gateway.log_text())
                spoil(good, other)
                gateway.signal(signal.SIGHUP)
                await told(gateway, cure, seen)
                async with connect(wss(gateway), ssl=good.trusted(), compression=None) as newcomer:
                    await echoes(newcomer, name)
                await echoes(staying, name)
                good.write(good.file, good.key_file)
        log = gateway.log_text()
        assert "Traceback" not in log
        assert good.key_pem.splitlines()[1].decode() not in log


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_at_the_start_exits_2_and_says_the_cure(tmp_path: Path, name: str) -> None:
    spoil, cure = BROKEN[name]
    good, other = Certificate(tmp_path, "good"), Certificate(tmp_path, "other")
    spoil(good, other)
    gateway = spawn("echo", **good.settings)
    assert gateway.wait(20) == 2, gateway.log_text()
    assert cure in gateway.log_text()
    assert "server.tls_" in gateway.log_text() or "TLS" in gateway.log_text()
    assert "Traceback" not in gateway.log_text()
