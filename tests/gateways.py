"""Real gateway processes for tests: started on free ports, watched, and ended by their own id.

Rule: a gateway that does not come up shows its log in the failure; nothing is left running after the block.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt

from tests.servers import free_port

SECRET = "a-secret-of-the-tests-that-is-long-enough-0123456789"
START_S_MAX = 20  # a cold start on a busy machine; usually under a second
STOP_S_MAX = 40  # above the longest grace time a test sets


def token(secret: str = SECRET, **claims: Any) -> str:
    body = {"user_id": "12345", "iss": "attchat", "exp": int(time.time()) + 3600} | claims
    return jwt.encode(body, secret, algorithm="HS256")


class Gateway:
    """One `tidegate serve` process and what a test wants to ask it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, metrics_port: int, log: Path) -> None:
        self.process, self.port, self.metrics_port, self.log = process, port, metrics_port, log

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def authenticated(self, secret: str = SECRET, **claims: Any) -> str:
        return f"{self.url}?token={token(secret, **claims)}"

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read() or b"null")

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels, as scraped: `gateway_errors_total{type="bad_json"}` -> value."""
        samples = (line.rsplit(" ", 1) for line in self._exposition() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def metric_types(self) -> dict[str, str]:
        declared = (line.split() for line in self._exposition() if line.startswith("# TYPE "))
        return {name: kind for _, _, name, kind in declared}

    def _exposition(self) -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read(), "utf-8").splitlines()

    def refused(self, reason: str) -> float:
        return self.metrics()[f'tidegate_refused_total{{reason="{reason}"}}']

    def memory_bytes(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("VmRSS"))

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_S_MAX) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.is_alive():
            self.process.kill()
        self.process.wait(5)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


def environment(port: int, metrics_port: int, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "LOG_", "APP_"))}
    return inherited | {
        "GATEWAY_SERVER_HOST": "127.0.0.1",
        "GATEWAY_SERVER_PORT": str(port),
        "GATEWAY_METRICS_PORT": str(metrics_port),
        "GATEWAY_METRICS_HOST": "127.0.0.1",
        **settings,
    }


def start(profile: str, *, port: int = 0, arguments: tuple[str, ...] = (), **settings: str) -> Gateway:
    """Settings are environment variables without the prefix: `WS_PING_INTERVAL="1s"`."""
    gateway = spawn(profile, port=port, arguments=arguments, **settings)
    await_health(gateway)
    return gateway


def spawn(
    profile: str,
    *,
    port: int = 0,
    arguments: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    **settings: str,
) -> Gateway:
    """The process alone; whether it comes up is the caller's question. `environ`: variables by their whole names."""
    port = port or free_port()
    metrics_port = free_port(but=port)
    if environ is not None:
        # one of the originals that have a port for everything
        metrics_port, environ = port, {"PORT": str(port), **environ}
    names = {
        name if name.startswith(("LOG_", "APP_")) else f"GATEWAY_{name}": value for name, value in settings.items()
    }
    if profile == "attchat-gateway":
        names = {"GATEWAY_NATS_URL": "memory:", "GATEWAY_JWT_SECRET_KEY": SECRET} | names
    log = Path(tempfile.mkdtemp(prefix="tidegate-test-")) / "gateway.log"
    command = [sys.executable, "-m", "tidegate.cli", "serve", "--profile", profile, *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(port, metrics_port, names | dict(environ or {})),
            cwd=log.parent,
        )
    return Gateway(process, port, metrics_port, log)


def await_health(gateway: Gateway, *, asked_at_metrics: bool = False) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and gateway.is_alive():
        with contextlib.suppress(OSError, ValueError):
            if gateway.metrics() if asked_at_metrics else gateway.get("/health")[0] == 200:
                return
        time.sleep(0.02)  # the only way to learn that another process listens
    log = gateway.log_text()
    gateway.kill()
    raise AssertionError(f"the gateway did not come up:\n{log}")


@contextlib.contextmanager
def running(profile: str, *, asked_at_metrics: bool = False, **options: Any) -> Iterator[Gateway]:
    """A gateway for the length of a block. Behind a PROXY header `/health` can't be asked: the metrics port can."""
    gateway = spawn(profile, **options)
    await_health(gateway, asked_at_metrics=asked_at_metrics)
    try:
        yield gateway
    finally:
        stop(gateway)


def stop(gateway: Gateway) -> None:
    """The first SIGTERM drains, the next one stops at once; two that come together may be one to the kernel."""
    for _ in range(50):
        if gateway.is_alive():
            gateway.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            gateway.wait(0.2)
            return
    gateway.kill()
    raise AssertionError(f"the gateway ignored SIGTERM:\n{gateway.log_text()}")
