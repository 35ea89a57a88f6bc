"""Fixtures for all tests: real servers, started once where tests leave them alone and anew where a test breaks them.

Rule: no silent skip. `--without-servers` is the only way to leave the tests out that need one, and the report says so.
"""

import secrets
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.buses import NatsBackend, RedisBackend, backend_on, redis_backend_on
from tests.etcd_server import EtcdServer
from tests.grpc_backend import GrpcBackend
from tests.kafka_backend import KafkaBackend, kafka_backend_on
from tests.kafka_server import KafkaServer
from tests.rest_backend import RestBackend
from tests.servers import NatsServer, RedisServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-servers", action="store_true", help="skip the tests that need a real server")


def pytest_configure() -> None:
    # a shell that starts the tests in the background makes them ignore it, and what they start as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers_wanted(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--without-servers"):
        pytest.skip("needs a real server, and --without-servers was given")


@pytest.fixture
def nats_server(servers_wanted: None) -> Iterator[NatsServer]:
    """A server of the test's own: it may kill, freeze and wipe it."""
    with NatsServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def calm_nats_server(servers_wanted: None) -> Iterator[NatsServer]:
    """One server for all tests that leave it running; each uses stream names of its own."""
    with NatsServer().running() as server:
        yield server


@pytest.fixture
async def own_nats(nats_server: NatsServer) -> AsyncIterator[NatsBackend]:
    async with backend_on(nats_server) as backend:
        yield backend


@pytest.fixture
async def calm_nats(calm_nats_server: NatsServer) -> AsyncIterator[NatsBackend]:
    async with backend_on(calm_nats_server) as backend:
        yield backend


@pytest.fixture
def redis_server(servers_wanted: None) -> Iterator[RedisServer]:
    """A server of the test's own: it may kill, freeze and restart it."""
    with RedisServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def calm_redis_server(servers_wanted: None) -> Iterator[RedisServer]:
    """One server for all tests that leave it running; each uses stream names of its own."""
    with RedisServer("--appendonly", "no").running() as server:
        yield server


@pytest.fixture
async def own_redis(redis_server: RedisServer) -> AsyncIterator[RedisBackend]:
    async with redis_backend_on(redis_server) as backend:
        yield backend


@pytest.fixture
async def calm_redis(calm_redis_server: RedisServer) -> AsyncIterator[RedisBackend]:
    async with redis_backend_on(calm_redis_server) as backend:
        yield backend


@pytest.fixture
def kafka_server(servers_wanted: None) -> Iterator[KafkaServer]:
    """A broker of the test's own: it may kill, freeze and wipe it."""
    with KafkaServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def calm_kafka_server(servers_wanted: None) -> Iterator[KafkaServer]:
    """One broker for all tests that leave it running; each uses topic names of its own."""
    with KafkaServer().running() as server:
        yield server


@pytest.fixture
async def own_kafka(kafka_server: KafkaServer) -> AsyncIterator[KafkaBackend]:
    async with kafka_backend_on(kafka_server) as backend:
        yield backend


@pytest.fixture
async def calm_kafka(calm_kafka_server: KafkaServer) -> AsyncIterator[KafkaBackend]:
    async with kafka_backend_on(calm_kafka_server) as backend:
        yield backend


@pytest.fixture
def etcd_server(servers_wanted: None) -> Iterator[EtcdServer]:
    """A server of the test's own: it may kill, freeze and wipe it."""
    with EtcdServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def calm_etcd(servers_wanted: None) -> Iterator[EtcdServer]:
    """One server for all tests that leave it running; each uses users of its own."""
    with EtcdServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def rest_process(servers_wanted: None) -> Iterator[RestBackend]:
    """Ask for `rest_backend` instead."""
    backend = RestBackend()
    try:
        yield backend
    finally:
        backend.remove()


@pytest.fixture
def rest_backend(rest_process: RestBackend) -> RestBackend:
    """One process for all tests, as new for each: it forgets, and comes back if a test killed or froze it."""
    if rest_process.is_alive():
        rest_process.thaw()
    else:
        rest_process.kill()
        rest_process.start()
    rest_process.reset()
    return rest_process


@pytest.fixture(scope="session")
def grpc_process(servers_wanted: None) -> Iterator[GrpcBackend]:
    """Ask for `grpc_backend` instead."""
    backend = GrpcBackend()
    try:
        yield backend
    finally:
        backend.remove()


@pytest.fixture
def grpc_backend(grpc_process: GrpcBackend) -> GrpcBackend:
    """As `rest_backend`: one process, as new for each test."""
    if grpc_process.is_alive():
        grpc_process.thaw()
    else:
        grpc_process.kill()
        grpc_process.start()
    grpc_process.reset()
    return grpc_process


@pytest.fixture
def seed() -> int:
    """For a random test; a failure shows it."""
    value = secrets.randbelow(2**32)
    print(f"seed {value}")
    return value
