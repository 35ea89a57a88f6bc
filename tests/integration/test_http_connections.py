"""The HTTP upstream beside servers that a test scripts byte by byte: what it sends, and what it makes of broken peers.

The server is in the test's own loop, so "the server has closed" is exact: its FIN is in the kernel, and the client's
event loop has not looked at it yet.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tidegate.calls import HttpRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import Upstream
from tidegate.upstreams._circuit import FAILURES_MAX
from tidegate.upstreams._pool import Pool

from tests.integration.test_tls import Certificate
from tests.upstreams import auth, members, opened, outcome, send

ON_BOTH_LOOPS = True
LINGER_NOT = struct.pack("ii", 1, 0)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Peer:
    """One connection as the server sees it."""

    def __init__(self, server: "Scripted", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """The next one, whole."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), b":0")
        body = await self._reader.readexactly(int(length.split(b":")[1]))
        self._server.requests.append(head + body)
        return head + body

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    def finish(self) -> None:
        """The FIN is with the client's kernel when this returns; closing the transport would send it a turn later."""
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as twin:
            twin.shutdown(socket.SHUT_WR)

    async def reset(self) -> None:
        """Likewise a RST: closing happens in the next turn, before any loop looks at its sockets."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self._writer.transport.abort()
        await asyncio.sleep(0)

    async def gone(self) -> None:
        """Until the client has closed."""
        while await self._reader.read(65536):
            pass


class Scripted:
    """A server whose connections a test plays by hand; `connections` counts them."""

    def __init__(self, play: Callable[[Peer], Awaitable[None]]) -> None:
        self._play = play
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._play(Peer(self, reader, writer))
        finally:
            writer.close()

    @property
    def first_lines(self) -> list[str]:
        return [request.split(b" HTTP/")[0].decode() for request in self.requests]


@contextlib.asynccontextmanager
async def scripted(
    play: Callable[[Peer], Awaitable[None]], path: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Scripted, Upstream]]:
    script = Scripted(play)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=tls)
    script.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
    async with server, opened(script.url) as upstream:
        yield script, upstream


def always(answer: bytes) -> Callable[[Peer], Awaitable[None]]:
    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.say(answer)

    return play


# --- what it sends ----------------------------------------------------------------------------------------------------


async def test_a_request_on_the_wire_is_what_the_profile_asked_and_nothing_that_surprises() -> None:
    async with scripted(always(OK), "/base/path/") as (server, upstream):
        request = HttpRequest("POST", "/api/%D0%9F?x=%20&y=+", {"X-Internal-API-Key": "k ey"}, b'{"a":"\xc3\xa4"}')
        assert (await upstream.call("auth", request)).body == b"{}"
        await upstream.call("members", HttpRequest("GET", "/a/../b"))
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert first == "POST /base/path/api/%D0%9F?x=%20&y=+ HTTP/1.1"
        assert body == b'{"a":"\xc3\xa4"}'
        assert headers.pop("user-agent").startswith("tidegate/")
        assert headers == {
            "host": server.url.removeprefix("http://").removesuffix("/base/path/"),
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "content-length": "10",
            "x-internal-api-key": "k ey",
        }
        assert server.first_lines[1] == "GET /base/path/a/../b"
        assert b"content-type" not in server.requests[1].lower()


async def test_requests_use_the_same_connection_again() -> None:
    async with scripted(always(OK)) as (server, upstream):
        for _ in range(20):
            await upstream.call("send", send("hi"))
            await upstream.call("members", members())
        assert (server.connections, len(server.requests)) == (1, 40)


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b", "\x7f", "\ud800"])
async def test_a_header_value_that_would_be_two_headers_is_never_sent(value: str) -> None:
    async with scripted(always(OK)) as (server, upstream):
        with pytest.raises(UpstreamError, match="control characters") as refused:
            await upstream.call("send", send("hi", token=f"secret{value}"))
        assert "secret" not in repr(refused.value)
        assert upstream.stats().requests == {("send", "unavailable"): 1}
        assert server.connections == 0


@pytest.mark.parametrize("path", ["", "api", "/a b", "/a\r\nX: y", "/ä", "/a#b", "http://elsewhere/"])
async def test_a_path_that_is_not_encoded_is_never_sent(path: str) -> None:
    async with scripted(always(OK)) as (server, upstream):
        with pytest.raises(UpstreamError, match="not percent-encoded"):
            await upstream.call("members", HttpRequest("GET", path))
        assert server.connections == 0


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with scripted(always(OK)) as (server, upstream):
        assert await outcome(upstream, "auth", auth("user-1")) == "200"
        assert server.connections == 1


# --- what it takes for an answer --------------------------------------------------------------------------------------


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with scripted(always(moved)) as (server, upstream):
        assert await outcome(upstream, "send", send("hi")) == "307"
        assert await outcome(upstream, "members", members()) == "307"
        assert len(server.requests) == 2


async def test_a_cookie_is_not_sent_back() -> None:
    with_cookie = OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=stolen; Path=/\r\n\r\n")
    async with scripted(always(with_cookie)) as (server, upstream):
        for _ in range(2):
            assert await outcome(upstream, "auth", auth("user-1")) == "200"
        assert b"cookie" not in b"".join(server.requests).lower()


async def test_a_compressed_answer_is_refused_rather_than_handed_on_or_inflated() -> None:
    packed = OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    async with scripted(always(packed)) as (_, upstream):
        with pytest.raises(UpstreamError, match="turn that off"):
            await upstream.call("auth", auth("user-1"))
        assert not upstream.stats().circuit_open


@pytest.mark.parametrize(
    "head", [b"Content-Length: 1048577", b"Transfer-Encoding: chunked", b"Connection: close"], ids=str
)
async def test_an_answer_without_end_is_read_up_to_the_bound_only(head: bytes) -> None:
    """However its length is told, or not told."""

    async def play(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        while True:
            peer.say(b"10000\r\n" + b" " * 65536 + b"\r\n")
            await peer._writer.drain()

    async with scripted(play) as (_, upstream):
        with pytest.raises(UpstreamError, match="more than 1048576 bytes"):
            await upstream.call("members", members())
        assert upstream.stats().requests == {("members", "too_large"): 1}


async def test_an_answer_of_exactly_the_bound_is_one() -> None:
    size = 1024 * 1024
    async with scripted(always(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)) as (_, upstream):
        assert len((await upstream.call("members", members())).body) == size


# --- peers that break -------------------------------------------------------------------------------------------------


BROKEN = {
    "closed without an answer": b"",
    "closed in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "closed in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{",
    "closed in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a line without end": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
}


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_a_post_whose_answer_breaks_off_fails_and_is_sent_once(answer: bytes, is_reset: bool) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        peer.say(answer)
        if is_reset:
            await peer.reset()

    async with scripted(play) as (server, upstream):
        assert await outcome(upstream, "send", send("hi")) == "unavailable"
        assert server.first_lines == ["POST /api/v1/messages"]
        assert upstream.stats().requests == {("send", "unavailable"): 1}


async def test_twenty_broken_answers_open_the_circuit() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()

    async with scripted(play) as (server, upstream):
        for _ in range(FAILURES_MAX + 5):
            assert await outcome(upstream, "send", send("hi")) == "unavailable"
        assert len(server.requests) == FAILURES_MAX
        assert upstream.stats().requests == {("send", "unavailable"): FAILURES_MAX, ("send", "circuit_open"): 5}


async def test_a_get_is_repeated_once_when_the_connection_was_closed_before_an_answer() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        if len(server.requests) > 1:
            peer.say(OK)

    async with scripted(play) as (server, upstream):
        assert await outcome(upstream, "members", members()) == "200"
        assert len(server.requests) == 2


async def test_a_get_is_not_repeated_twice() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.reset()

    async with scripted(play) as (server, upstream):
        assert await outcome(upstream, "members", members()) == "unavailable"
        assert len(server.requests) == 2
        assert upstream.stats().requests == {("members", "unavailable"): 1}


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("backend"), "backend")


def presenting(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.file, certificate.key_file)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Certificate) -> None:
    async with scripted(always(OK), tls=presenting(certificate)) as (server, upstream):
        with pytest.raises(UpstreamError, match="its certificate is not trusted"):
            await upstream.call("send", send("hi"))
        assert server.requests == []


async def test_https_keeps_its_connections_and_loses_no_post_when_they_are_closed(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = certificate.trusted()
    monkeypatch.setattr("tidegate.upstreams.http.Pool", lambda limit: Pool(limit, ssl=trusting))
    peers: list[Peer] = []

    async def play(peer: Peer) -> None:
        peers.append(peer)
        for _ in range(5):
            await peer.request()
            peer.say(OK)
        await peer.gone()

    async with scripted(play, tls=presenting(certificate)) as (server, upstream):
        for number in range(25):
            assert await outcome(upstream, "send", send(str(number))) == "200"
            if number % 5 == 4:
                peers[-1].finish()
        assert (server.connections, len(server.requests)) == (5, 25)


async def test_plain_http_where_https_is_spoken_fails_with_a_cure() -> None:
    async def play(peer: Peer) -> None:
        peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with scripted(play) as (server, _), opened(server.url.replace("http:", "https:")) as upstream:
        with pytest.raises(UpstreamError, match="does it speak https on this port"):
            await upstream.call("send", send("hi"))


async def test_a_peer_that_accepts_and_says_nothing_is_given_up_on() -> None:
    """Not after the whole time-out, when not even the connection stands."""

    async def play(peer: Peer) -> None:
        await peer.gone()

    async with scripted(play) as (server, _), opened(server.url.replace("http:", "https:"), timeout=0.2) as upstream:
        with pytest.raises(UpstreamError, match=r"no connection within|did not answer within"):
            await upstream.call("send", send("hi"))
        assert upstream.stats().requests == {("send", "timeout"): 1}


# --- the keep-alive race ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
async def test_no_post_is_lost_to_a_server_that_closes_idle_connections(is_reset: bool) -> None:
    """The server is gone before the client's loop has noticed: the kernel knows, and it is asked."""
    peers: list[Peer] = []

    async def play(peer: Peer) -> None:
        peers.append(peer)
        await peer.request()
        peer.say(OK)
        await peer.gone()

    async with scripted(play) as (server, upstream):
        for number in range(50):
            assert await outcome(upstream, "send", send(str(number))) == "200"
            if is_reset:
                await peers[-1].reset()
            else:
                peers[-1].finish()
        assert len(server.requests) == 50
        assert server.connections == 50


async def test_a_post_that_met_the_close_on_its_way_fails_and_is_not_sent_again() -> None:
    """What is left of the race: the server had decided to close when the request came."""

    async def play(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.request()

    async with scripted(play) as (server, upstream):
        assert await outcome(upstream, "send", send("one")) == "200"
        assert await outcome(upstream, "send", send("two")) == "unavailable"
        assert await outcome(upstream, "send", send("three")) == "200"
        assert len(server.requests) == 3


async def test_all_idle_connections_closed_at_once_cost_no_request() -> None:
    """As a server does that restarts."""
    peers: list[Peer] = []
    everybody = asyncio.Event()

    async def play(peer: Peer) -> None:
        peers.append(peer)
        if len(peers) == 30:
            everybody.set()
        while True:
            await peer.request()
            await everybody.wait()
            peer.say(OK)

    async with scripted(play) as (server, upstream):
        for _ in range(2):
            outcomes = await asyncio.gather(*[outcome(upstream, "send", send("hi")) for _ in range(30)])
            assert set(outcomes) == {"200"}
            for peer in peers[-30:]:
                peer.finish()
        assert (server.connections, len(server.requests)) == (60, 60)
