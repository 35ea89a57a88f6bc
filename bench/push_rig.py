"""What `push.py` starts: im-gateway nodes with all that the profile works with, and crowds that are registered devices.

Rule: as in `rig.py`: loopback, free ports, a secret made up for the run, and each process ends with its driver. The
servers are those of the tests, since nobody else knows how to start them.
"""

import contextlib
import functools
import hashlib
import hmac
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import rig
from bench_run import BenchRun
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it is what the library names
from tidegate.bench.crowd_tokens import ISSUER, LIFETIME_S
from tidegate.bench.rig import BRANDS, START_S_MAX, Crowd, Process, RigError, Server, dying_with_us, free_port

sys.path.insert(0, str(rig.REPOSITORY))

from tests.etcd_server import EtcdServer
from tests.kafka_server import KafkaServer
from tests.servers import RedisServer
from tests.servers import Server as OutsideServer

TOPIC = "group_msg"
TOPICS = (TOPIC, "read_receipt", "read_receipt_events", "group_membership_change", "membership_change")
READY_S_MAX = 60.0  # joining a consumer group for the first time on a busy machine
BACKEND = str(Path(__file__).with_name("push_backend.py"))


class PushRun(BenchRun):
    """Its tokens have devices, and crowds may ack."""

    def token_file(self, algorithm: str, count: int, progress: Callable[[int], object] = lambda done: None) -> Path:
        path = self.directory / f"devices-{count}"
        if not path.exists():
            path.write_text("".join(f"{token}\n" for token in device_tokens(self.secret, count)))
            path.chmod(0o600)
        return path


def device_tokens(secret: str, count: int) -> Iterator[str]:
    """Of users u0 and up, a device each; profile attchat-gateway takes them too."""
    keyed = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    header, expires = _base64(b'{"alg":"HS256","typ":"JWT"}'), int(time.time()) + LIFETIME_S
    for number in range(count):
        claims = {"user_id": f"u{number}", "device_id": device_of(number), "brand_id": f"b{number % BRANDS}"}
        signed = header + b"." + _base64(json.dumps(claims | {"iss": ISSUER, "exp": expires}).encode())
        signature = keyed.copy()
        signature.update(signed)
        yield (signed + b"." + _base64(signature.digest())).decode()


def device_of(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def _base64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


# --- what the profile works with --------------------------------------------------------------------------------------


class Etcd(EtcdServer):
    def __init__(self) -> None:
        super().__init__()
        self._command = [*dying_with_us(), *self._command]

    def cpu_s(self) -> float:
        return time.clock_gettime((~self.pid << 3) | 2)

    def round_trips(self) -> int:
        """Requests that it has answered, by its own count; watches and lease renewals are streams and not in it."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=START_S_MAX) as answer:
            lines = answer.read().decode().splitlines()
        handled = [line for line in lines if line.startswith("grpc_server_handled_total{") and "unary" in line]
        return round(sum(float(line.rsplit(" ", 1)[1]) for line in handled))


class Kafka(KafkaServer):
    def __init__(self) -> None:
        super().__init__()
        self._command = [*dying_with_us(), *self._command]

    def start(self) -> None:
        super().start()
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})  # must live until it has answered
        for topic in admin.create_topics([NewTopic(name, 1, 1) for name in TOPICS]).values():
            topic.result(START_S_MAX)


class Redis(RedisServer):
    def __init__(self) -> None:
        super().__init__("--appendonly", "no")
        self._command = [*dying_with_us(), *self._command]


class Backend(Process):
    """`push_backend.py ROLE PORT`: `users` or `push`."""

    name = "limit"

    def __init__(self, role: str) -> None:
        self.port = free_port()
        command = [sys.executable, BACKEND, role, str(self.port)]
        super().__init__(command, name=f"the {role} backend", stdout=subprocess.DEVNULL)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not listens(self.port):
            self.check()
            if time.monotonic() > deadline:
                raise RigError(f"{self.program} was not ready after {START_S_MAX:.0f} s:\n{self.said()}")
            time.sleep(0.02)  # another process's readiness can only be asked


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return bool(probe.connect_ex(("127.0.0.1", port)) == 0)


class Reader(Process):
    """`push_backend.py read`: a bare consumer of the topic of groups."""

    def __init__(self, kafka: Kafka) -> None:
        command = [sys.executable, BACKEND, "read", kafka.address, TOPIC]
        super().__init__(command, name="the bare consumer", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def await_ready(self) -> None:
        self.read_json(READY_S_MAX)

    def take(self, count: int) -> Callable[[], rig.Answer]:
        """Begins to; what it returns waits until it has."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{count}\n")
        self.child.stdin.flush()
        return functools.partial(self.read_json, READY_S_MAX)


class Outside:
    """etcd, Kafka, Redis and the user service: from when they are first needed until the run ends."""

    def __init__(self, run: PushRun) -> None:
        self._lasting = run.lasting

    @functools.cached_property
    def etcd(self) -> Etcd:
        return self._lasting.enter_context(started(Etcd))

    @functools.cached_property
    def kafka(self) -> Kafka:
        return self._lasting.enter_context(started(Kafka))

    @functools.cached_property
    def redis(self) -> Redis:
        return self._lasting.enter_context(started(Redis))

    @functools.cached_property
    def users(self) -> Backend:
        return self._lasting.enter_context(Backend("users"))


Started = TypeVar("Started", bound=OutsideServer)


@contextlib.contextmanager
def started(make: Callable[[], Started]) -> Iterator[Started]:
    """A test's failure is a driver's `RigError`."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(make().running())
        except pytest.fail.Exception as missing:
            raise RigError(str(missing)) from None
        yield server


# --- nodes and crowds -------------------------------------------------------------------------------------------------


class Node(Server):
    """`tidegate serve --profile im-gateway` without the limits that a crowd on one machine runs into."""

    name = "tidegate"

    def __init__(self, run: PushRun, outside: Outside, connections: int, **settings: str) -> None:
        ports = [str(free_port()) for _ in range(3)]
        self.port, self.grpc_port = int(ports[0]), int(ports[1])
        self.acks = settings.get("ACK_MODE") == "ack"
        environment = {
            **dict(zip(("PORT", "GRPC_PORT", "METRICS_PORT"), ports, strict=True)),
            "AUTH_JWT_SECRET": run.secret,
            "AUTH_SERVICE_ADDR": "127.0.0.1:9",  # tokens are verified here, and nobody sends: neither is asked
            "IM_SERVICE_ADDR": "127.0.0.1:9",
            "USER_SERVICE_ADDR": outside.users.address,
            "ETCD_ENDPOINTS": outside.etcd.address,
            "KAFKA_BROKERS": outside.kafka.address,
            "REDIS_ADDR": f"127.0.0.1:{outside.redis.port}",
            "GATEWAY_NODE_ID": self.grpc_address,
            "TIDEGATE_SERVER_HOST": "127.0.0.1",
            "TIDEGATE_METRICS_HOST": "127.0.0.1",
            "TIDEGATE_GRPC_HOST": "127.0.0.1",
            "TIDEGATE_WS_SHARDS": str(rig.shards_for(connections)),
            "MAX_MESSAGES_PER_SECOND": "100000",  # acks are no send_msg, but the engine's own limit counts them
            "LOG_LEVEL": "error",
        }
        command = [sys.executable, "-m", "tidegate.cli", "serve", "--profile", "im-gateway"]
        super().__init__(command, environment | run.settings() | settings, name="tidegate", cwd=run.directory)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def url(self, room: str) -> str:
        return f"ws://127.0.0.1:{self.port}/ws?token={{token}}"

    def crowd_options(self, room: str) -> Sequence[str]:
        return ("--ack", "yes") if self.acks else ()

    def await_ready(self) -> None:
        deadline, said = time.monotonic() + READY_S_MAX, "nothing"
        while time.monotonic() < deadline:
            self.check()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=1).close()
                return
            except urllib.error.HTTPError as refused:
                with refused:
                    said = refused.read().decode()
            except OSError as error:
                said = str(error)
            time.sleep(0.05)  # another process's readiness can only be asked
        raise RigError(f"the node was not ready after {READY_S_MAX:.0f} s; it says {said}\n{self.said()}")


def node(run: PushRun, outside: Outside, stack: contextlib.ExitStack, connections: int, **settings: str) -> Node:
    return stack.enter_context(Node(run, outside, connections, **settings))


def crowd_of(run: PushRun, server: Server, room: str, count: int) -> Crowd:
    """All connected."""
    crowd = run.crowd(server, room, count)
    crowd.open(count)
    return crowd
