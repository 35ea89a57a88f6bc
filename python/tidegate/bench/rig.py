"""Starts what a benchmark needs (tidegate, the limit program, crowds of clients) and reads what each used.

Rule: everything is on loopback, on free ports, with a secret made up for the run, takes no setting from whoever runs
it, and ends with the block that started it. A server's CPU is its process clock (user + system, what /proc/PID/stat
shows, but in nanoseconds); its memory is VmRSS. Nothing here decides what is measured.
"""

import contextlib
import json
import os
import resource
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

Answer = dict[str, Any]

# The two programs as the wheel has them; who has the sources may build them alone and say so to `Run`
PROGRAMS: Mapping[str, Sequence[str]] = {
    "tidegate-limit": (sys.executable, "-m", "tidegate.bench.limit"),
    "tidegate-loadgen": (sys.executable, "-m", "tidegate.bench.loadgen"),
}
START_S_MAX = 30.0  # a busy machine starts Python, the extension and NATS in a few seconds
STOP_S_MAX = 10.0
ANSWER_S_MAX = 30.0  # beyond the time that a command may take by itself: a full machine is slow to answer
PUBLISH_S_MAX = 120.0  # the limit program answers when a million members have the message
OPENED_PER_S_MIN = 3_000  # a crowd that comes in slower than this is not waited for
RUN_S_MAX = 1_800  # no process outlives this, whatever happens to its driver

DESCRIPTORS_MAX = 1 << 30  # where there is no limit
DESCRIPTORS_OWN = 1_000  # of a thread's table, beside its connections: far more than it needs
SPREAD = 0.8  # of a table: SO_REUSEPORT deals connections out at random, 16,000 +- 5 x 126 of 20,000
ONE_THREAD_MAX = 1_000  # a larger crowd gets two, so that one thread is not what is measured
# In the wheel the limit program has the engine's allocator, whose huge pages would be 2 KB of each connection of 10,000
WITHOUT_HUGE_PAGES = {"MIMALLOC_ALLOW_THP": "0"}
# Settings that whoever runs this has for gateways of their own
FOREIGN_SETTINGS = ("GATEWAY_", "LOG_", "APP_", "TIDEGATE_")


class RigError(Exception):
    """Something needed does not start or answer; the text says the cure."""


class LostError(RigError):
    """A connection, or a message that a server had taken, did not arrive: there is no figure for that."""


def shards_for(connections: int) -> int:
    """So many that each holds its share in its own table of descriptors."""
    return max(os.cpu_count() or 1, -(-connections // int(descriptors() * SPREAD)))


def client_threads_for(connections: int) -> int:
    """Here the generator itself deals connections out, evenly."""
    return max(1 + (connections > ONE_THREAD_MAX), -(-connections // (descriptors() - DESCRIPTORS_OWN)))


def descriptors() -> int:
    """What one thread's table may hold: the hard limit, which `raise_soft_limits` makes everybody's."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else max(hard, DESCRIPTORS_OWN + 1)


def raise_soft_limits() -> None:
    """Children inherit it: their threads then hold as many descriptors as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, name: str = "", **pipes: Any
    ) -> None:
        self.program = name or Path(command[0]).name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_SETTINGS)}
        self.child = subprocess.Popen(
            [*dying_with_us(), *command], env={**inherited, **(environment or {})}, stderr=self.log, text=True, **pipes
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

    def read_json(self, wait_s: float = 0) -> Answer:
        """`wait_s`: how long what was asked may take by itself."""
        if self.child.stdout is None:
            raise RigError(f"{self.program} was started without a pipe")
        if not select.select([self.child.stdout], [], [], wait_s + ANSWER_S_MAX)[0]:
            raise RigError(f"{self.program} gave no answer for {wait_s + ANSWER_S_MAX:.0f} s")
        line = self.child.stdout.readline()
        if not line:
            self.child.wait(STOP_S_MAX)
            self.check()
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise RigError(str(answer["error"]))
        return answer

    def await_ready(self) -> None:
        """Until it serves; whoever does not says why."""

    def __enter__(self) -> Self:
        try:
            self.await_ready()
        except BaseException:  # Ctrl-C too: what was started must not stay
            self.close()
            raise
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

    def crowd_options(self, room: str) -> Sequence[str]:
        """Of the generator, after its own: what else a client must do to be in `room`."""
        return ()


class Limit(Server):
    name = "limit"

    def __init__(self, program: Sequence[str], threads: int, *options: str) -> None:
        command = [*program, "--threads", str(threads), "--seconds-max", str(RUN_S_MAX), *options]
        super().__init__(command, WITHOUT_HUGE_PAGES, name="the limit program", stdout=subprocess.PIPE)
        self.control: socket.socket | None = None

    def await_ready(self) -> None:
        ready = self.read_json()
        self.port = int(ready["port"])
        self.control = socket.create_connection(("127.0.0.1", ready["control"]), timeout=PUBLISH_S_MAX)
        self.answers = self.control.makefile("r")

    def url(self, room: str) -> str:
        rooms = f"user:u{{i}},brand:b{{i%{BRANDS}}},{room}"
        return f"ws://127.0.0.1:{self.port}/ws?token={{token}}&rooms={rooms}"

    def ask(self, command: str) -> Answer:
        if self.control is None:
            raise RigError(f"{self.program} was asked before it was ready")
        self.control.sendall(command.encode() + b"\n")
        answer: Answer = json.loads(self.answers.readline() or '{"error":"the limit program ended"}')
        if "error" in answer:
            raise RigError(str(answer["error"]))
        return answer

    def close(self) -> None:
        if self.control is not None:
            self.answers.close()
            self.control.close()
        super().close()


class Tidegate(Server):
    name = "tidegate"
    greets = True

    def __init__(self, secret: str, bus: str, connections: int, settings: Mapping[str, str], port: int = 0) -> None:
        self.port, self.publish_key = port or free_port(), secrets.token_hex(16)
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
        self.directory = tempfile.mkdtemp(prefix="tidegate-bench-")  # with no config.yaml that would be read
        command = [sys.executable, "-m", "tidegate.cli", "serve", "--profile", "attchat-gateway"]
        super().__init__(command, environment, name="tidegate", cwd=self.directory)

    def url(self, room: str) -> str:
        return f"ws://127.0.0.1:{self.port}/ws?token={{token}}&room_id={room}"

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def stats(self) -> Answer:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=5) as answer:
            stats: Answer = json.load(answer)
        return stats

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            self.check()
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=1),
            ):
                return
            time.sleep(0.05)  # another process's readiness can only be asked
        raise RigError(f"tidegate was not ready after {START_S_MAX:.0f} s:\n{self.said()}")


class Crowd(Process):
    """The load generator with clients of one server; each method is one of its commands."""

    def __init__(
        self,
        program: Sequence[str],
        server: Server,
        room: str,
        connections: int,
        tokens: Path,
        *,
        nice: int = 0,
        in_flight: int = 0,
        deflate: int = 0,
    ) -> None:
        """`nice` gives way to the server; `in_flight`: handshakes under way at once, if not the generator's default.

        One client in `deflate` takes compressed messages; 0 = none.
        """
        self.server = server
        command = [*program, "--url", server.url(room), "--tokens", str(tokens)]
        command += ["--threads", str(client_threads_for(connections))]
        command += ["--server-pid", str(server.pid), "--seconds-max", str(RUN_S_MAX)]
        command += ["--welcome", "yes" if server.greets else "no"]
        command += server.crowd_options(room)
        command += ["--in-flight", str(in_flight)] if in_flight else []
        command += ["--deflate", str(deflate)] if deflate else []
        command = ["nice", f"-n{nice}", *command] if nice else command
        super().__init__(command, name="the load generator", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, command: str, wait_s: float = 0) -> Answer:
        if self.child.stdin is None:
            raise RigError(f"{self.program} was started without a pipe")
        with contextlib.suppress(BrokenPipeError):  # then the answer is missing too, and says why
            self.child.stdin.write(command + "\n")
            self.child.stdin.flush()
        return self.read_json(wait_s)

    def open(self, count: int, per_second: int = 0) -> Answer:
        """Opens `count` more clients; all of them must stand in the end."""
        wait_s = 90 + count // (per_second or OPENED_PER_S_MIN)
        before = self.ask("stats")["open"]
        began_ns = time.monotonic_ns()
        self.ask(f"open {count} {per_second}")
        answer = self.wait("open", before + count, wait_s)
        if not answer["reached"]:
            raise LostError(f"{self.server.name}: {answer['open']} of {before + count} stand; {answer['failed']}")
        return {**answer, "seconds": (answer["last_opened_ns"] - began_ns) / 1e9}

    def wait(self, what: str, count: int, wait_s: float) -> Answer:
        return self.ask(f"wait {what} {count} {wait_s}", wait_s)

    def wait_received(self, count: int, wait_s: int = 60) -> Answer:
        return self.wait("received", count, wait_s)


BRANDS = 100  # rooms of a hundredth of all clients, besides the user's own and the chat's
