"""What only the drivers have beside `tidegate.bench.rig`: the two programs as cargo builds them, and a nats-server.

Rule: what `tidegate bench` needs too is in the package; it is named again here, so that a driver has one place to ask.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tidegate.bench.rig import (
    BRANDS,
    START_S_MAX,
    Answer,
    Crowd,
    Limit,
    LostError,
    Process,
    RigError,
    Server,
    Tidegate,
    free_port,
    shards_for,
)

__all__ = [
    "BRANDS",
    "REPOSITORY",
    "START_S_MAX",
    "Answer",
    "Crowd",
    "Limit",
    "LostError",
    "Nats",
    "Process",
    "RigError",
    "Server",
    "Tidegate",
    "build",
    "free_port",
    "shards_for",
]

REPOSITORY = Path(__file__).resolve().parent.parent


def build() -> dict[str, list[str]]:
    """The two Rust programs, built if need be: name -> command. A change shows at once, without a new extension."""
    command = ["cargo", "build", "--release", "--quiet", "--message-format=json"]
    command += ["--package=tidegate-limit", "--package=tidegate-loadgen"]
    built = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False)
    if built.returncode:
        raise RigError("cargo can't build bench/limit and bench/loadgen; run cargo build -p tidegate-limit to see why")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return {m["target"]["name"]: [m["executable"]] for m in messages if m.get("executable")}


class Nats(Process):
    """nats-server with JetStream in a directory of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.store = tempfile.mkdtemp(prefix="tidegate-bench-")
        beside = Path(sys.executable).parent / "nats-server"
        binary = str(beside) if beside.exists() else shutil.which("nats-server")
        if binary is None:
            raise RigError("nats-server is not installed; run make setup")
        super().__init__(
            [binary, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.store], stdout=subprocess.DEVNULL
        )

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                raise RigError(f"nats-server did not start:\n{self.said()}")
            time.sleep(0.02)  # another process's readiness can only be asked

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
            return probe.recv(4) == b"INFO"
        return False

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.store, ignore_errors=True)
