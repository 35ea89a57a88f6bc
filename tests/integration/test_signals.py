"""Signals to a real process: SIGHUP reads files again, SIGTERM and SIGINT drain, a second one ends at once.

Rule: time is only bounded from above, and far above: what is compared is order, who was told what, and exit codes.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.buses import until
from tests.gateways import Gateway, running
from tests.integration.client import Chat
from tests.servers import NatsServer, free_port
from tests.wire.client import Raw, frame, upgrade

ANSWER_S_MAX = 15
# Above any grace time here, far below the close time-out that would hold the exit up if anything could
EXIT_S_MAX = 20
OLD_SECRET = "the-secret-before-the-hangup-0123456789-abcdefgh"
NEW_SECRET = "the-secret-after-the-hangup-0123456789-abcdefghi"


async def told(gateway: Gateway, text: str, after: int = 0) -> None:
    await until(lambda: text in gateway.log_text()[after:])


# --- SIGHUP -----------------------------------------------------------------------------------------------------------


class File:
    """A config.yaml that is changed while the gateway runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("info", OLD_SECRET)

    def write(self, level: str, secret: str) -> None:
        self.path.write_text(f"log:\n  level: {level}\njwt:\n  secret_key: {secret}\n")


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "config.yaml")


@pytest.fixture
def configured(file: File) -> Iterator[Gateway]:
    """Level and secret come from the file alone."""
    with running("attchat-gateway", arguments=("--config", str(file.path)), JWT_SECRET_KEY="") as gateway:
        yield gateway


async def hang_up(gateway: Gateway, expected: str = "reloaded the log level") -> None:
    seen = len(gateway.log_text())
    gateway.signal(signal.SIGHUP)
    await told(gateway, expected, seen)


async def is_admitted(url: str) -> bool:
    async with connect(url, compression=None) as socket:
        return '"connected"' in str(await asyncio.wait_for(socket.recv(), ANSWER_S_MAX))


async def test_a_hangup_takes_the_log_level_from_the_file(configured: Gateway, file: File) -> None:
    url = configured.authenticated(OLD_SECRET)
    async with Chat(url):
        assert "upgrade from" not in configured.log_text()
    file.write("debug", OLD_SECRET)
    await hang_up(configured)
    async with Chat(url):
        await told(configured, "upgrade from")
    file.write("error", OLD_SECRET)
    await hang_up(configured, "reloaded the token keys")
    async with Chat(url):
        pass
    # whatever the level hides is hidden: the last hangup's own line for the level was the first to be
    assert configured.log_text().count("reloaded the log level") == 1


async def test_after_a_hangup_old_tokens_are_refused_new_ones_accepted_and_open_connections_stay(
    configured: Gateway, file: File
) -> None:
    old, new = configured.authenticated(OLD_SECRET), configured.authenticated(NEW_SECRET)
    async with Chat(old) as staying:
        assert not await is_admitted(new)
        assert await is_admitted(old)  # from the memory of verified tokens, which the hangup must empty
        file.write("info", NEW_SECRET)
        await hang_up(configured)
        assert not await is_admitted(old)
        assert await is_admitted(new)
        await staying.join("chat:still-here")
    for secret in (OLD_SECRET, NEW_SECRET):
        assert secret not in configured.log_text()


BAD_FILES = {
    "no YAML": "log: [",
    "an unknown key": "lag:\n  level: info\n",
    "an impossible level": f"log:\n  level: loud\njwt:\n  secret_key: {OLD_SECRET}\n",
    "no secret": "log:\n  level: debug\n",
}


async def test_a_file_that_is_wrong_at_a_hangup_changes_nothing_and_is_told(configured: Gateway, file: File) -> None:
    async with Chat(configured.authenticated(OLD_SECRET)) as staying:
        for text in BAD_FILES.values():
            file.path.write_text(text)
            await hang_up(configured, "nothing was reloaded: ")
            assert await is_admitted(configured.authenticated(OLD_SECRET))
        file.path.unlink()
        await hang_up(configured, "nothing was reloaded: ")
        await staying.nothing_came()
    assert "upgrade from" not in configured.log_text()
    assert "Traceback" not in configured.log_text()


# --- the drain --------------------------------------------------------------------------------------------------------


async def closed(socket: ClientConnection, number: int, order: list[int]) -> int | None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.recv()
    order.append(number)
    return socket.close_code


async def answers(socket: ClientConnection) -> None:
    await asyncio.wait_for(await socket.ping(), ANSWER_S_MAX)


async def one_of_the_rest_is_served(sockets: list[ClientConnection], order: list[int]) -> bool:
    """Asks whoever has not been closed, one after the other; False when all have been."""
    for number, socket in enumerate(sockets):
        if number not in order:
            with contextlib.suppress(ConnectionClosed):
                await answers(socket)
                return True
    return False


@contextlib.asynccontextmanager
async def crowd(gateway: Gateway, size: int) -> AsyncIterator[list[ClientConnection]]:
    sockets = [await connect(gateway.url, compression=None, ping_interval=None) for _ in range(size)]
    try:
        yield sockets
    finally:
        await asyncio.gather(*[socket.close() for socket in sockets])


async def test_a_crowd_is_told_1001_one_after_the_other_over_the_grace_time() -> None:
    with running("echo", WS_SHUTDOWN_GRACE="2s") as gateway:
        async with crowd(gateway, 500) as sockets:
            order: list[int] = []
            leaving = [asyncio.create_task(closed(socket, n, order)) for n, socket in enumerate(sockets)]
            gateway.signal(signal.SIGTERM)
            await until(lambda: bool(order))
            # the first are gone, and others are served: nobody is told all at once
            assert await one_of_the_rest_is_served(sockets, order)
            await until(lambda: len(order) >= len(sockets) // 2)
            assert await one_of_the_rest_is_served(sockets, order)
            async with asyncio.timeout(ANSWER_S_MAX):
                assert set(await asyncio.gather(*leaving)) == {1001}
            assert sorted(order) == list(range(500))
        assert await asyncio.to_thread(gateway.wait, EXIT_S_MAX) == 0


@contextlib.contextmanager
def stubborn() -> Iterator[tuple[Gateway, Raw]]:
    """A gateway with one client that has been told 1001 and does not answer: the drain goes on until the grace ends."""
    with (
        running("echo", WS_SHUTDOWN_GRACE="60s", WS_CLOSE_TIMEOUT="60s") as gateway,
        Raw(gateway.port) as client,
    ):
        client.open()
        gateway.signal(signal.SIGTERM)
        assert client.read_close() == 1001
        yield gateway, client


def test_newcomers_during_a_drain_are_refused_with_503_and_a_time_to_come_back() -> None:
    with stubborn() as (gateway, _):
        for _ in range(3):
            with Raw(gateway.port) as newcomer:
                status, headers, _body = newcomer.response(upgrade())
                assert status == 503
                assert int(headers["retry-after"]) > 0
                assert newcomer.ended()
        status, ready = gateway.get("/ready")
        assert (status, ready["reason"]) == (503, "draining")
        assert gateway.get("/health")[0] == 200
        assert gateway.refused("draining") == 3


def test_a_hangup_during_a_drain_does_no_harm() -> None:
    with stubborn() as (gateway, client):
        gateway.signal(signal.SIGHUP)
        assert gateway.get("/ready")[0] == 503
        client.send(frame(b"\x03\xe9", 8))
        assert client.ended()
        assert gateway.wait(EXIT_S_MAX) == 0


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once_with_its_exit_code(second: signal.Signals, code: int) -> None:
    with stubborn() as (gateway, client):
        gateway.signal(second)
        assert gateway.wait(EXIT_S_MAX) == code
        assert client.ended()
    assert "stopped before the drain was over" in gateway.log_text()


async def test_ctrl_c_drains_like_sigterm() -> None:
    with running("echo", WS_SHUTDOWN_GRACE="1s") as gateway:
        async with crowd(gateway, 3) as sockets:
            gateway.signal(signal.SIGINT)
            async with asyncio.timeout(ANSWER_S_MAX):
                assert [await closed(socket, 0, []) for socket in sockets] == [1001] * 3
        assert await asyncio.to_thread(gateway.wait, EXIT_S_MAX) == 0


def speechless(client: Raw) -> None:
    """Opens and never answers the close."""
    client.open()


def stuffed(client: Raw) -> None:
    """Opens, asks for megabytes and reads nothing of them."""
    client.open()
    client.send(frame(bytes(4_000_000)))


def unfinished(client: Raw) -> None:
    """Never ends its request."""
    client.send(upgrade()[:40])


def relayed(client: Raw) -> None:
    """Announces a body to the HTTP app that never comes."""
    client.send(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")


@pytest.mark.parametrize("behave", [speechless, stuffed, unfinished, relayed])
def test_clients_that_do_not_go_hold_nothing_up_beyond_the_grace_time(behave: Callable[[Raw], None]) -> None:
    endless = {"WS_CLOSE_TIMEOUT": "120s", "WS_WRITE_TIMEOUT": "120s", "WS_HANDSHAKE_TIMEOUT": "120s"}
    with running("echo", WS_SHUTDOWN_GRACE="1s", **endless) as gateway, contextlib.ExitStack() as open_clients:
        for _ in range(10):
            behave(open_clients.enter_context(Raw(gateway.port)))
        assert gateway.get("/health")[0] == 200
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(EXIT_S_MAX) == 0
    assert "Traceback" not in gateway.log_text()


# --- without its bus --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_gateway_whose_nats_never_was_there_drains_and_exits_0(number: signal.Signals) -> None:
    with running("attchat-gateway", NATS_URL=f"nats://127.0.0.1:{free_port()}", WS_SHUTDOWN_GRACE="2s") as gateway:
        async with Chat(gateway.authenticated()) as chat:
            gateway.signal(number)
            assert await chat.closed() == 1001
        assert await asyncio.to_thread(gateway.wait, EXIT_S_MAX) == 0
    assert "Traceback" not in gateway.log_text()


@pytest.mark.parametrize("loss", [NatsServer.kill, NatsServer.freeze], ids=["dead", "frozen"])
async def test_a_gateway_that_lost_nats_drains_and_exits_0(
    nats_server: NatsServer, loss: Callable[[NatsServer], None]
) -> None:
    settings = {"NATS_URL": nats_server.url, "WS_SHUTDOWN_GRACE": "2s", "NATS_PUBLISH_UNKNOWN": "true"}
    with running("attchat-gateway", **settings) as gateway:
        await until(lambda: gateway.get("/ready")[0] == 200)
        async with Chat(gateway.authenticated()) as chat:
            loss(nats_server)
            await chat.send(type="order", room="chat:1", payload={})  # its confirmation will never come
            await chat.nothing_came()
            gateway.signal(signal.SIGTERM)
            assert await chat.closed() == 1001
        assert await asyncio.to_thread(gateway.wait, EXIT_S_MAX) == 0
    assert "Traceback" not in gateway.log_text()
