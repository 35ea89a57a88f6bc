"""Starts what a benchmark needs (tidegate, the limit program, nats-server, crowds of clients) and reads what it used.

Rule: everything is on loopback, on free ports, with a secret made up for the run, and ends with the block that started
it. A server's CPU is its process clock (user + system, what /proc/PID/stat shows, but in nanoseconds); its memory is
VmRSS. Nothing here decides what is measured.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

Answer = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parent.parent
START_S_MAX = 30.0  # a busy machine starts Python, the extension and NATS in a few seconds
STOP_S_MAX = 10.0
ANSWER_S_MAX = 120.0  # the longest wait that a benchmark asks a generator for, and some
RUN_S_MAX = 1_800  # no process outlives this, whatever happens to its driver

# Descriptors of one thread's table left for connections: 20,000 less its own, and less the spread of SO_REUSEPORT,
# which deals connections out at random (16,000 +- 5 x 126)
CONNECTIONS_PER_SHARD = 16_000
CONNECTIONS_PER_CLIENT_THREAD = 19_000  # here the generator itself deals them out evenly
ONE_THREAD_MAX = 1_000  # a larger crowd gets two, so that one thread is not what is measured


class RigError(Exception):
    """Something needed does not start or answer; the text says the cure."""


def shards_for(connections: int) -> int:
    return max(os.cpu_count() or 1, -(-connections // CONNECTIONS_PER_SHARD))


def build() -> dict[str, Path]:
    """The two Rust programs, built if need be: name -> executable."""
    command = ["cargo", "build", "--release", "--quiet", "--message-format=json"]
    command += ["--package=tidegate-limit", "--package=tidegate-loadgen"]
    built = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False)
    if built.returncode:
        raise RigError("cargo can't build bench/limit and bench/loadgen; run cargo build -p tidegate-limit to see why")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return {m["target"]["name"]: Path(m["executable"]) for m in messages if m.get("executable")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dying_with_us() -> list[str]:
    """A prefix that has the kernel end the program when this one is gone, however it went; empty if there is none."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


class Process:
    """A child that ends with its `with` block, and what the kernel says of it."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None, **pipes: Any) -> None:
        self.program = Path(command[0]).name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        self.child = subprocess.Popen(
            [*dying_with_us(), *command], env={**os.environ, **(environment or {})}, stderr=self.log, text=True, **pipes
        )

    @property
    def pid(self) -> int:
        return self.child.pid

    def cpu_s(self) -> float:
        """User and system time of all its threads, those that ended included."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2_000:]

    def check(self) -> None:
        if self.child.poll() is not None:
            raise RigError(f"{self.program} ended with {self.child.returncode}:\n{self.said()}")

    def close(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        for stream in (self.child.stdin, self.child.stdout, self.log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def read_json(self) -> Answer:
        assert self.child.stdout is not None, "started without a pipe"
        if not select.select([self.child.stdout], [], [], ANSWER_S_MAX)[0]:
            raise RigError(f"{self.program} gave no answer for {ANSWER_S_MAX:.0f} s")
        line = self.child.stdout.readline()
        if not line:
            self.child.wait(STOP_S_MAX)
            self.check()
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise RigError(str(answer["error"]))
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Process, ABC):
    """What clients connect to."""

    name: str
    port: int
    greets = False  # whether a first message follows the 101

    @abstractmethod
    def url(self, room: str) -> str:
        """Template for the generator: client i, in its user's room, its brand's and `room`."""


class Limit(Server):
    name = "limit"

    def __init__(self, program: Path, threads: int, *options: str) -> None:
        command = [str(program), "--threads", str(threads), "--seconds-max", str(RUN_S_MAX), *options]
        super().__init__(command, stdout=subprocess.PIPE)
        ready = self.read_json()
        self.port = int(ready["port"])
        self.control = socket.create_connection(("127.0.0.1", ready["control"]), timeout=ANSWER_S_MAX)
        self.answers = self.control.makefile("r")

    def url(self, room: str) -> str:
        rooms = f"user:u{{i}},brand:b{{i%{BRANDS}}},{room}"
        return f"ws://127.0.0.1:{self.port}/ws?token={{token}}&rooms={rooms}"

    def ask(self, command: str) -> Answer:
        self.control.sendall(command.encode() + b"\n")
        answer: Answer = json.loads(self.answers.readline() or '{"error":"the limit program ended"}')
        if "error" in answer:
            raise RigError(str(answer["error"]))
        return answer

    def close(self) -> None:
        self.answers.close()
        self.control.close()
        super().close()


class Tidegate(Server):
    name = "tidegate"
    greets = True

    def __init__(self, secret: str, bus: str, connections: int, settings: Mapping[str, str]) -> None:
        self.port, self.publish_key = free_port(), secrets.token_hex(16)
        executable = Path(sys.executable).parent / "tidegate"
        if not executable.exists():
            raise RigError(f"{executable} is missing; run make build, and the benchmark with .venv/bin/python")
        environment = {
            "GATEWAY_SERVER_HOST": "127.0.0.1",
            "GATEWAY_SERVER_PORT": str(self.port),
            "GATEWAY_METRICS_PORT": str(free_port()),
            "GATEWAY_METRICS_HOST": "127.0.0.1",
            "GATEWAY_JWT_SECRET_KEY": secret,
            "GATEWAY_NATS_URL": bus,
            "GATEWAY_PUBLISH_KEY": self.publish_key,
            "GATEWAY_WS_MAX_CONNECTIONS": str(connections),
            "GATEWAY_WS_SHARDS": str(shards_for(connections)),
            "GATEWAY_NODE_ID": f"bench-{self.port}",
            "LOG_LEVEL": "warn",
            **settings,
        }
        super().__init__([str(executable), "serve", "--profile", "attchat-gateway"], environment)
        self._wait_until_ready()

    def url(self, room: str) -> str:
        return f"ws://127.0.0.1:{self.port}/ws?token={{token}}&room_id={room}"

    def stats(self) -> Answer:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=5) as answer:
            stats: Answer = json.load(answer)
        return stats

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            self.check()
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=1),
            ):
                return
            time.sleep(0.05)  # another process's readiness can only be asked
        said = self.said()
        self.close()
        raise RigError(f"tidegate was not ready after {START_S_MAX:.0f} s:\n{said}")


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


class Crowd(Process):
    """The load generator with clients of one server; each method is one of its commands."""

    def __init__(self, program: Path, server: Server, room: str, connections: int, tokens: Path) -> None:
        self.server = server
        threads = max(1 + (connections > ONE_THREAD_MAX), -(-connections // CONNECTIONS_PER_CLIENT_THREAD))
        command = [str(program), "--url", server.url(room), "--tokens", str(tokens), "--threads", str(threads)]
        command += ["--server-pid", str(server.pid), "--seconds-max", str(RUN_S_MAX)]
        command += ["--welcome", "yes" if server.greets else "no"]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, command: str) -> Answer:
        assert self.child.stdin is not None, "started with a pipe"
        with contextlib.suppress(BrokenPipeError):  # then the answer is missing too, and says why
            self.child.stdin.write(command + "\n")
            self.child.stdin.flush()
        return self.read_json()

    def open(self, count: int, per_second: int = 0, wait_s: int = 90) -> Answer:
        """Opens `count` more clients; all of them must stand in the end."""
        before = self.ask("stats")["open"]
        began_ns = time.monotonic_ns()
        self.ask(f"open {count} {per_second}")
        answer = self.ask(f"wait open {before + count} {wait_s}")
        if not answer["reached"]:
            raise RigError(f"{self.server.name}: {answer['open']} of {before + count} stand; {answer['failed']}")
        return {**answer, "seconds": (answer["last_opened_ns"] - began_ns) / 1e9}

    def wait_received(self, count: int, wait_s: int = 60) -> Answer:
        return self.ask(f"wait received {count} {wait_s}")


BRANDS = 100  # rooms of a hundredth of all clients, besides the user's own and the chat's
