"""Start, readiness, signals, reload, drain and stop of the whole, with a native engine that only records."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tidegate import app as app_module
from tidegate import profiles
from tidegate._core import MESSAGE, PUBLISH
from tidegate.app import App, loop_factory, serve
from tidegate.config import Loaded, Settings
from tidegate.config.settings import Jwt, Metrics, Nats, Publish, Server, Ws
from tidegate.engine import Options
from tidegate.errors import INTERRUPTED, OK, TERMINATED, BusError, ConfigError, StartError
from tidegate.signals import Signals
from tidegate.supervise import HEALTHY_S, PAUSE_S_MAX, PAUSE_S_MIN, supervise

from tests.unit.gateway_fakes import FakeEngine

SECRET = "a-secret-of-the-tests-that-is-long-enough-0123456789"
EVENT = b'{"type":"x","room":"chat:1"}'


class NativeEngine(FakeEngine):
    """Drained once a test says so; its eventfd is readable while it has events."""

    last: "NativeEngine"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.port = options["port"] or 4711
        self.drained = False
        self.draining_within: int | None = None
        self.stopped = 0
        self.tls: tuple[bytes, bytes] | None = None
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        NativeEngine.last = self

    def fileno(self) -> int:
        return self._eventfd

    def happens(self, *events: Any) -> None:
        self.events.extend(events)
        os.eventfd_write(self._eventfd, 1)

    def drain(self, limit: int) -> list[Any]:
        taken = super().drain(limit)
        if not taken:
            os.eventfd_read(self._eventfd)
        return taken

    def stats(self) -> dict[str, int]:
        return {"connections": 5, "connections_now": 2, "rooms_now": 1}

    def set_tls(self, certificate: bytes, key: bytes) -> None:
        if certificate == b"damaged":
            raise ValueError("the certificate is damaged")
        self.tls = certificate, key

    def begin_drain(self, within_ms: int) -> None:
        self.draining_within = within_ms

    def is_drained(self) -> bool:
        return self.drained

    def stop(self) -> None:
        if not self.stopped:
            os.close(self._eventfd)
        self.stopped += 1


@pytest.fixture(autouse=True)
def native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "Engine", NativeEngine)


def settings(**sections: Any) -> Settings:
    given = {
        "server": Server(port=0),
        "metrics": Metrics(host="127.0.0.1", port=0),
        "jwt": Jwt(secret_key=SECRET),
        "nats": Nats(url="memory:app-tests"),
        "publish": Publish(key="a-key-of-the-tests"),
        "ws": Ws(shutdown_grace="10s"),
    }
    return Settings(**(given | sections))


SPEC = profiles.find("attchat-gateway")


@pytest.fixture
async def running() -> AsyncIterator[App]:
    async with App(settings(), SPEC) as app:
        await eventually(lambda: app.why_not_ready() is None)
        yield app


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is awaited sets no event
            await asyncio.sleep(0.001)


def ours() -> set[str]:
    """Names of the app's tasks that still live."""
    return {task.get_name() for task in asyncio.all_tasks()} & {"http", "metrics", "bus"}


async def get(path: str, *, port: int = 0) -> tuple[int, bytes]:
    """Over the abstract socket that the engine relays to, or from the metrics port."""
    if port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    else:
        reader, writer = await asyncio.open_unix_connection("\0" + NativeEngine.last.options["http_socket"])
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


# --- start ------------------------------------------------------------------------------------------------------------


async def test_a_started_app_serves_http_metrics_events_and_the_bus(running: App) -> None:
    assert await get("/ready") == (200, b'{"status":"ready"}')
    assert await get("/stats") == (200, b'{"total_connections":5,"current_connections":2,"total_rooms":1}')
    status, health = await get("/health")
    assert status == 200
    assert b'"nats":"ok"' in health
    status, exposition = await get("/metrics", port=running.metrics_port)
    assert status == 200
    assert b"gateway_connections_current 2" in exposition
    engine = NativeEngine.last
    engine.happens((MESSAGE, 1, b"", b"nope", True))
    await eventually(lambda: running.counters.errors["bad_json"] == 1)
    assert running.bus is not None
    await running.bus.publish("chat.events", EVENT)
    await eventually(lambda: (PUBLISH, "chat:1", EVENT, True, None) in engine.commands)


async def test_an_app_that_stops_leaves_nothing_behind(running: App) -> None:
    engine = NativeEngine.last
    await running.stop()
    await running.stop()
    assert engine.stopped == 1
    with pytest.raises(ConnectionRefusedError):
        await get("/ready")
    with socket.create_server(("127.0.0.1", running.metrics_port)):
        pass
    assert ours() == set()


async def test_a_metrics_port_in_use_stops_the_start_and_leaves_nothing_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        metrics = Metrics(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(StartError, match=r"in use.*metrics\.port"):
            async with App(settings(metrics=metrics), SPEC):
                pass
    assert ours() == set()


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (ValueError("option host: no"), ConfigError, "option host"),
        (OSError(98, "bind: Address already in use"), StartError, r"port 80 is in use.*server\.port"),
        (PermissionError(13, "bind: Permission denied"), StartError, r"no permission.*server\.port"),
        (OSError(24, "epoll: Too many open files"), StartError, "Too many open files.*doctor"),
    ],
)
async def test_what_the_engine_refuses_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], words: str
) -> None:
    def refuse(_options: Options) -> None:
        raise raised

    monkeypatch.setattr(app_module, "Engine", refuse)
    with pytest.raises(expected, match=words):
        async with App(settings(server=Server(port=80)), SPEC):
            pass
    assert ours() == set()


async def test_a_profile_without_bus_or_token_is_ready_at_once() -> None:
    async with App(settings(jwt=Jwt()), profiles.find("echo")) as app:
        assert app.why_not_ready() is None
        status, health = await get("/health")
        assert status == 200
        assert b'"profile":"echo"' in health
        assert (await get("/api/publish"))[0] == 405


async def test_a_bus_that_is_away_makes_the_node_not_ready_and_degraded(running: App) -> None:
    assert running.bus is not None
    running.bus.is_ready = lambda: False  # type: ignore[method-assign]
    status, body = await get("/ready")
    assert (status, body) == (503, b'{"status":"not_ready","reason":"memory"}')
    status, health = await get("/")
    assert status == 200
    assert b'"status":"degraded"' in health
    assert b'"consumers":0' in health


def test_an_unknown_profile_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'attchat'.*attchat-gateway"):
        profiles.find("attchat")
    assert [profiles.find(name).name for name in profiles.names()] == profiles.names()


def test_the_loop_is_uvloop_unless_asyncio_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_LOOP", raising=False)
    assert loop_factory().__module__.startswith("uvloop")
    monkeypatch.setenv("TIDEGATE_LOOP", "asyncio")
    assert loop_factory() is asyncio.new_event_loop


# --- drain ------------------------------------------------------------------------------------------------------------


async def test_a_drain_is_seen_at_ready_and_leaves_time_for_the_last_client(running: App) -> None:
    drain = asyncio.create_task(running.drain())
    engine = NativeEngine.last
    await eventually(lambda: engine.draining_within is not None)
    assert engine.draining_within == 8000
    assert await get("/ready") == (503, b'{"status":"not_ready","reason":"draining"}')
    with pytest.raises(BusError):
        await running._publish(EVENT)
    assert not drain.done()
    engine.drained = True
    await drain


async def test_a_drain_delivers_what_the_bus_had_accepted_and_takes_no_more(running: App) -> None:
    engine, bus = NativeEngine.last, running.bus
    assert bus is not None
    engine.drained = True
    await bus.publish("chat.events", EVENT)
    await eventually(lambda: len(engine.commands) == 1)
    await running.drain()
    await bus.publish("chat.events", EVENT)
    await asyncio.sleep(0)
    assert len(engine.commands) == 1


async def test_a_drain_ends_with_the_grace_time() -> None:
    async with App(settings(ws=Ws(shutdown_grace="50ms")), SPEC) as app:
        await app.drain()
        assert not NativeEngine.last.drained


# --- signals ----------------------------------------------------------------------------------------------------------


def announced(numbers: Sequence[signal.Signals], *, drained: bool) -> Callable[[App], None]:
    def ready(_app: App) -> None:
        NativeEngine.last.drained = drained
        loop = asyncio.get_running_loop()
        for turn, number in enumerate(numbers):
            loop.call_later(0.02 * turn, os.kill, os.getpid(), number)

    return ready


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_0(number: signal.Signals) -> None:
    assert await serve(settings(), SPEC, ready=announced([number], drained=True)) == OK
    assert NativeEngine.last.draining_within is not None
    assert NativeEngine.last.stopped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
async def test_a_second_signal_stops_at_once_with_its_own_code(number: signal.Signals, code: int) -> None:
    assert await serve(settings(), SPEC, ready=announced([signal.SIGTERM, number], drained=False)) == code
    assert NativeEngine.last.stopped


async def test_a_signal_during_the_start_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(options: Options) -> NativeEngine:
        os.kill(os.getpid(), signal.SIGTERM)
        engine = NativeEngine(options)
        engine.drained = True
        return engine

    monkeypatch.setattr(app_module, "Engine", slow)
    assert await serve(settings(), SPEC) == OK


async def test_signals_are_as_before_once_removed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals(on_hangup=lambda: None)
    signals.install()
    signals.remove()
    assert signal.getsignal(signal.SIGTERM) == before


# --- reload -----------------------------------------------------------------------------------------------------------


class RecordedLevel:
    def __init__(self) -> None:
        self.level = ""

    def set_level(self, level: str) -> None:
        self.level = level


def loaded(new: Settings) -> Callable[[], Loaded]:
    return lambda: Loaded(new, {}, (), None)


async def test_hangup_reloads_certificate_keys_and_level(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"cert")
    key.write_bytes(b"key")
    new = settings(
        server=Server(port=0, tls_cert=str(certificate), tls_key=str(key)),
        jwt=Jwt(secret_key=SECRET.upper()),
        log={"level": "debug"},
    )
    level = RecordedLevel()

    def ready(app: App) -> None:
        NativeEngine.last.drained = True
        before = app.auth.verify(token)
        os.kill(os.getpid(), signal.SIGHUP)

        def then() -> None:
            assert app.auth.verify(token) != before
            os.kill(os.getpid(), signal.SIGTERM)

        asyncio.get_running_loop().call_later(0.02, then)

    import jwt as pyjwt

    token = pyjwt.encode({"user_id": "7", "iss": "attchat"}, SECRET, "HS256")
    logs: Any = level
    assert await serve(settings(), SPEC, ready=ready, reload=loaded(new), logs=logs) == OK
    assert NativeEngine.last.tls == (b"cert", b"key")
    assert level.level == "debug"


async def test_what_cannot_be_reloaded_stays_and_the_rest_is_reloaded(
    running: App, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = tmp_path / "cert.pem"
    certificate.write_bytes(b"damaged")
    running.reload(loaded(settings(server=Server(tls_cert=str(certificate), tls_key=str(certificate)))))
    assert NativeEngine.last.tls is None
    assert "the certificate is damaged" in caplog.text
    assert [record.levelname for record in caplog.records if "stayed as before" in record.message] == ["ERROR"]


async def test_settings_that_are_wrong_reload_nothing_and_say_the_cure(
    running: App, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Loaded:
        raise ConfigError("ws.max_rooms = -1", "Put it right.")

    running.reload(load)
    assert "nothing was reloaded: ws.max_rooms = -1. Put it right." in caplog.text


# --- supervision ------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_a_task_that_dies_is_counted_and_started_again_ever_more_slowly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, counted, runs = Clock(), [], []
    quoted = "s3cret"  # a variable, since the traceback shows the line that raises

    async def run() -> None:
        runs.append(1)
        if len(runs) <= 12:
            raise RuntimeError(quoted)

    await supervise("bus", run, counted.append, clock.sleep, lambda: clock.now)
    assert counted == ["bus_restart"] * 12
    assert clock.slept[:3] == [PAUSE_S_MIN, 2 * PAUSE_S_MIN, 4 * PAUSE_S_MIN]
    assert clock.slept[-1] == max(clock.slept) == PAUSE_S_MAX
    assert "RuntimeError" in caplog.text
    assert quoted not in caplog.text


async def test_a_task_that_was_well_for_long_starts_again_soon() -> None:
    clock, runs = Clock(), []

    async def run() -> None:
        runs.append(1)
        clock.now += HEALTHY_S if len(runs) == 4 else 0
        if len(runs) <= 5:
            raise RuntimeError

    await supervise("bus", run, lambda _label: None, clock.sleep, lambda: clock.now)
    assert clock.slept[3] == PAUSE_S_MIN
    assert clock.slept[4] == 2 * PAUSE_S_MIN


async def test_a_supervised_task_ends_when_cancelled() -> None:
    async def run() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(supervise("bus", run, lambda _label: None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
