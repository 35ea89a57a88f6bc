"""A real Kafka broker for tests: one node that is its own controller (KRaft), on loopback, in a small Java heap.

Rule: as any server of the tests (`tests/servers.py`). What it confirmed survives `kill` (it is in the kernel's cache,
as on any Kafka), and `wipe` takes it away.
"""

import atexit
import functools
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.servers import REPOSITORY, Server, free_port

JARS = REPOSITORY / ".venv" / "kafka"
CURE = (
    "Install it with: make kafka (which needs Java 17 or later and Maven: sudo apt-get install -y "
    "default-jre-headless maven), or leave out the tests that need it with: pytest --without-servers"
)
CLUSTER = "MkU3OEVBNTcwNTJENDM2Qk"  # any 16 bytes in base64
FORMAT_S_MAX = 60  # 2 s on a quiet machine
# It greets before it has heard from its own controller; then a question about the cluster waits no longer than that.
PROBE_S = 1.0
QUIET = """
Configuration:
  status: ERROR
  Appenders: {Console: {name: out, target: SYSTEM_OUT, PatternLayout: {pattern: "%d %p %c %m%n"}}}
  Loggers: {Root: {level: WARN, AppenderRef: [{ref: out}]}}
"""


class KafkaServer(Server):
    """A broker that makes topics with one partition when they are first written to."""

    name = "kafka"
    scheme = "kafka"
    start_s_max = 60  # 3 s on a quiet machine; a JVM that starts wants a core for itself

    def __init__(self, *options: str) -> None:
        """`options` are lines of server.properties."""
        port, directory = free_port(), Path(tempfile.mkdtemp(prefix="tidegate-kafka-"))
        properties = directory / "server.properties"
        properties.write_text(
            "\n".join([*broker(port, free_port(but=port)), f"log.dirs={directory / 'data'}", *options])
        )
        (directory / "log4j2.yaml").write_text(QUIET)
        heap = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
        command = [*java(heap, directory), "kafka.Kafka", str(properties)]
        super().__init__(command, port, directory)
        self.wipe()

    def wipe(self) -> None:
        super().wipe()
        shutil.copytree(formatted(), self.directory / "data")

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            silent = {"bootstrap.servers": self.address, "log_level": 0, "error_cb": lambda error: None}
            return bool(AdminClient(silent).list_topics(timeout=PROBE_S).brokers)
        except (OSError, KafkaException):
            return False


def broker(port: int, controller_port: int) -> list[str]:
    return [
        "process.roles=broker,controller",
        "node.id=1",
        f"controller.quorum.voters=1@127.0.0.1:{controller_port}",
        f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names=CONTROLLER",
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "num.partitions=1",
        "offsets.topic.replication.factor=1",
        "offsets.topic.num.partitions=4",
        "transaction.state.log.replication.factor=1",
        "transaction.state.log.min.isr=1",
        "transaction.state.log.num.partitions=4",
        "share.coordinator.state.topic.replication.factor=1",
        "share.coordinator.state.topic.min.isr=1",
        "group.initial.rebalance.delay.ms=0",
        # a session that dies with the broker would keep it fenced after a quick restart
        "broker.session.timeout.ms=3000",
        "broker.heartbeat.interval.ms=500",
    ]


@functools.cache
def formatted() -> Path:
    """An empty store as the storage tool makes it, once for all servers of a session: that takes a JVM of its own."""
    parent = Path(tempfile.mkdtemp(prefix="tidegate-kafka-formatted-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    properties = parent / "server.properties"
    properties.write_text("\n".join([*broker(9092, 9093), f"log.dirs={parent / 'data'}"]))
    (parent / "log4j2.yaml").write_text(QUIET)
    command = [*java(["-Xmx128m", "-XX:TieredStopAtLevel=1"], parent), "kafka.tools.StorageTool", "format"]
    made = subprocess.run(
        [*command, "-t", CLUSTER, "-c", str(properties)],
        capture_output=True,
        text=True,
        timeout=FORMAT_S_MAX,
        check=False,
    )
    if made.returncode != 0:
        pytest.fail(f"Kafka's storage could not be formatted:\n{(made.stdout + made.stderr)[-2000:]}")
    return parent / "data"


def java(options: Sequence[str], directory: Path) -> list[str]:
    found = shutil.which("java")
    if found is None or not any(JARS.glob("kafka_*.jar")):
        pytest.fail(f"Kafka is not installed. {CURE}")
    log4j = f"-Dlog4j2.configurationFile={directory / 'log4j2.yaml'}"
    return [found, *options, log4j, "-cp", f"{JARS}/*"]
