"""Which event loops the tests here run on: asyncio's, and uvloop as well where a file says `ON_BOTH_LOOPS = True`.

The gateway runs on uvloop; what looks below the loop, at sockets, must be tried on both. Also the world around an
im-gateway. Rule: what a test may break is never shared.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.etcd_server import EtcdServer
from tests.im_services import ImServices
from tests.im_world import World
from tests.kafka_server import KafkaServer
from tests.servers import RedisServer


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if getattr(getattr(item, "module", None), "ON_BOTH_LOOPS", False):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture(scope="session")
def im_processes(servers_wanted: None) -> Iterator[ImServices]:
    """Ask for `im_services` instead."""
    with ImServices().running() as services:
        yield services


@pytest.fixture
def im_services(im_processes: ImServices) -> ImServices:
    """Three processes for all tests, as new for each: they forget, and come back if a test killed or froze them."""
    im_processes.renew()
    return im_processes


@pytest.fixture(scope="session")
def calm_world(
    im_processes: ImServices, calm_etcd: EtcdServer, calm_kafka_server: KafkaServer, calm_redis_server: RedisServer
) -> World:
    """For tests that leave the servers running; who tells services how to behave asks for `im_services` as well."""
    world = World(im_processes, calm_etcd, calm_kafka_server, calm_redis_server)
    world.makes_topics()
    return world


@pytest.fixture
def frail_world(
    calm_world: World, im_services: ImServices, etcd_server: EtcdServer, redis_server: RedisServer
) -> World:
    """Everything but its Kafka may be broken."""
    return World(im_services, etcd_server, calm_world.kafka, redis_server)
