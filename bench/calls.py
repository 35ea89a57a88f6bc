"""Events of clients that a backend must be asked for: how many a second, what each costs, and what it adds to the call.

The profile is gogate, the backend a process beside it that answers at once (`calls_backend.py`). 10,000 clients log in,
then write and type in chats of two: a log-in and a message are one request each, a chat's members are asked for every
two seconds. The latency of one message at a time, from the client's send to its read, stands beside that of the same
request sent to the backend directly, which is the column `limit`. An event without its answer ends the benchmark.
"""

import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from bench_run import BenchRun, main
from messages import main_thread_s
from rig import Answer, Crowd, LostError, Process, RigError, Server, free_port, shards_for

CONNECTIONS = 10_000
CONNECTIONS_QUICK = 500
TIMES = 4  # events of each client, by kind
ALONE = 3_000  # one at a time
ALONE_QUICK = 300
SETTLE_S = 2.0  # until the allocator has given back what opening took
WAIT_S = 120.0
START_S_MAX = 30.0
KEY = "internal-key-of-the-benchmark"
# What whoever runs this may have set for a gateway of their own; empty is the default
FOREIGN = (
    "REDIS_URL",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_USER",
    "MEMBERS_CACHE_TTL_MS",
    "METRICS_PORT",
    "TLS_CERT_FILE",
    "TLS_KEY_FILE",
    "BACKEND_TIMEOUT",
    "BACKEND_BODY_STYLE",
)


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    text: str
    answers: int  # messages that come of one event


LOG_IN = Kind("log-in", '{"event":"auth","data":{"token":"user-1{i}"}}', 1)
MESSAGE = Kind("message", '{"event":"send_message","data":{"chat_id":1{i/2},"text":"hello"}}', 2)
TYPING = Kind("typing", '{"event":"typing","data":{"chat_id":1{i/2},"is_typing":true}}', 1)


class Backend(Process):
    def __init__(self) -> None:
        self.port = free_port()
        command = [sys.executable, str(Path(__file__).with_name("calls_backend.py")), str(self.port)]
        super().__init__(command, name="the backend", stdout=subprocess.DEVNULL)

    def await_ready(self) -> None:
        await_port(self, self.port)


class Gogate(Server):
    """`tidegate serve --profile gogate`, without the limits that a crowd on one machine runs into."""

    name = "tidegate"

    def __init__(self, backend: Backend, connections: int, directory: Path, settings: dict[str, str]) -> None:
        self.port = free_port()
        environment = dict.fromkeys(FOREIGN, "") | {
            "PORT": str(self.port),
            "BACKEND_API_URL": f"http://127.0.0.1:{backend.port}",
            "INTERNAL_API_KEY": KEY,
            "AUTH_TIMEOUT": "0",
            "RATE_LIMIT_PER_CONNECTION": "0",
            "RATE_LIMIT_PER_USER": "0",
            "TIDEGATE_WS_SHARDS": str(shards_for(connections)),
            "LOG_LEVEL": "error",
        }
        command = [sys.executable, "-m", "tidegate.cli", "serve", "--profile", "gogate"]
        super().__init__(command, environment | settings, name="tidegate", cwd=directory)

    def url(self, room: str) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def await_ready(self) -> None:
        await_port(self, self.port)

    def logged_in(self) -> int:
        """Users with a connection, as `/metrics` has them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=WAIT_S) as answer:
            lines = answer.read().decode().splitlines()
        return round(next(float(line.split()[1]) for line in lines if line.startswith("gogate_users_online ")))


def await_port(process: Process, port: int) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        process.check()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)  # another process's readiness can only be asked
    raise RigError(f"{process.program} was not ready after {START_S_MAX:.0f} s:\n{process.said()}")


def calls() -> None:
    with BenchRun("calls", __doc__ or "", connections=CONNECTIONS, times=TIMES) as run:
        count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        times = run.options.times or TIMES
        with run.progress(run.runs, f"{count:,} connections") as step:
            for _ in range(run.runs):
                with run.part():
                    measure(run, count, times)
                step("again")
        run.notes.append(f"{count:,} connections in chats of two, {times} events of each; all were answered")


def measure(run: BenchRun, count: int, times: int) -> None:
    backend = run.lasting.enter_context(Backend())
    server = run.lasting.enter_context(Gogate(backend, count, run.directory, run.settings()))
    empty = server.rss_bytes()
    crowd = run.crowd(server, "", count, tokens=1)
    crowd.open(count)
    send(run, crowd, LOG_IN, count, 1)
    if (users := server.logged_in()) != count:
        raise LostError(f"{count:,} clients logged in, and {users:,} users are there")
    time.sleep(SETTLE_S)
    memory = run.figures.of("authenticated", "user memory a connection", "bytes", 0)
    memory.add(server.name, (server.rss_bytes() - empty) / count)
    for kind in (MESSAGE, TYPING):
        send(run, crowd, kind, count, times)
    alone(run, backend, server, ALONE_QUICK if run.quick else ALONE)
    crowd.close()
    server.close()
    backend.close()


def send(run: BenchRun, crowd: Crowd, kind: Kind, count: int, times: int) -> None:
    server, events = crowd.server, count * times
    crowd.ask("reset")
    cpu, python, began = server.cpu_s(), main_thread_s(server), time.monotonic()
    crowd.ask(f"send {times} {kind.text}")
    answer = crowd.wait("other", events * kind.answers, wait_s=WAIT_S)
    seconds = time.monotonic() - began
    cpu, python = server.cpu_s() - cpu, main_thread_s(server) - python
    check(kind, answer, events)
    run.figures.of(kind.name, "events", "1/s", 0).add(server.name, events / seconds, answer)
    run.figures.of(kind.name, "server CPU an event", "us").add(server.name, cpu / events * 1e6)
    run.figures.of(kind.name, "of it in Python's thread", "us").add(server.name, python / events * 1e6)


def check(kind: Kind, answer: Answer, events: int) -> None:
    seen = {key: answer[key] for key in ("texts_sent", "other", "failed")}
    if seen != {"texts_sent": events, "other": events * kind.answers, "failed": {}}:
        raise LostError(f"{kind.name}: {events:,} events, {kind.answers} answers to each; {seen}")


# --- one at a time ----------------------------------------------------------------------------------------------------


def alone(run: BenchRun, backend: Backend, server: Gogate, count: int) -> None:
    """The same message, to the backend and through the gateway."""
    with Client(server.port) as client:
        client.ask('{"event":"auth","data":{"token":"user-11"}}', b"auth_success")
        frame = '{"event":"send_message","data":{"chat_id":10,"text":"hello"}}'
        through = timed(lambda: client.ask(frame, b"new_message"), count)
    direct = timed(directly(backend), count)
    for name, value in (("p50", median), ("p99", lambda all: quantiles(all, n=100)[98])):
        figure = run.figures.of("one message at a time", name, "us", 0)
        figure.add("limit", value(direct) * 1e6)
        figure.add(server.name, value(through) * 1e6)


def timed(ask: Callable[[], None], count: int) -> list[float]:
    for _ in range(count // 10):
        ask()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
    return found


def directly(backend: Backend) -> Callable[[], None]:
    """Over one kept connection, as a gateway would; a bare socket, so that no client library is measured."""
    connection = socket.create_connection(("127.0.0.1", backend.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = json.dumps({"chatId": 10, "text": "hello", "replyToId": None, "attachmentIds": None}).encode()
    head = b"POST /api/v1/messages HTTP/1.1\r\nHost: backend\r\nAuthorization: Bearer user-11\r\n"
    request = head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def ask() -> None:
        connection.sendall(request)
        if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
            raise RigError("the backend refused a message")

    return ask


class Client:
    """A WebSocket client on a bare socket: texts below 64 KiB, whole frames."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(UPGRADE)
        answer = http.client.HTTPResponse(self._socket)
        answer.begin()
        if answer.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            raise RigError(f"tidegate answered the upgrade with {answer.status}")

    def ask(self, text: str, wanted: bytes) -> None:
        data = text.encode()
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self._socket.sendall(b"\x81" + length + bytes(4) + data)
        if wanted not in self._socket.recv(65536):
            raise RigError(f"no {wanted.decode()} came of an event")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

if __name__ == "__main__":
    main(calls)
