"""Everything an im-gateway has around it, as one thing that tests start nodes in: services, etcd, Kafka and Redis.

Rule: servers are shared by tests that leave them alone, so each test has users and groups of its own (`fresh`), and
looks at how a node's counters changed, never at what they are.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tidegate.protos import im_gateway_pb2 as pb

from tests import im
from tests.buses import until
from tests.etcd_server import EtcdServer
from tests.im_backends import Pusher, Records, addresses, registered
from tests.im_services import ImServices
from tests.kafka_server import KafkaServer
from tests.servers import RedisServer

GROUPS, RECEIPTS, MEMBERSHIP = "group_msg", "read_receipt", "group_membership_change"
HOP = {"x-gateway-hop": "1"}  # metadata of a call that another node has passed on
# The original's parts spell them both ways
TOPICS = (GROUPS, RECEIPTS, "read_receipt_events", MEMBERSHIP, "membership_change")
CREATED_S_MAX = REGISTERED_S_MAX = 20  # milliseconds on a quiet machine
NEAR_S = 60  # between a clock here and one there; a wrong unit is off by decades


@dataclass(frozen=True)
class World:
    """Who is around, by URL, and the processes behind the URLs for tests that break them."""

    services: ImServices
    etcd: EtcdServer
    kafka: KafkaServer
    redis: RedisServer

    def node(self, **environ: str) -> AbstractContextManager[im.Node]:
        """One more gateway in it, ready."""
        return im.node(self.services, self.etcd.url, self.kafka.url, self.redis.url, **environ)

    def starting(self, **environ: str) -> im.Node:
        return im.starting(self.services, self.etcd.url, self.kafka.url, self.redis.url, **environ)

    def records(self) -> Records:
        return Records(self.kafka.url)

    def makes_topics(self) -> None:
        """So that no test waits until a node finds a topic that another test was the first to write to."""
        admin = AdminClient({"bootstrap.servers": addresses(self.kafka.url)})
        for made in admin.create_topics([NewTopic(topic, 1) for topic in TOPICS]).values():
            made.result(CREATED_S_MAX)


def fresh(prefix: str = "user") -> str:
    """A user or a group that no other test has."""
    return f"{prefix}_{uuid.uuid4().hex[:12]}"


def ids(count: int) -> list[str]:
    """Device ids, in order, so that lists of them compare."""
    return sorted(str(uuid.uuid4()) for _ in range(count))


def gateways_time(frame: dict[str, Any], unit: int = 1) -> None:
    """Takes it out of the frame, after a look: `unit` is how many of it are a second."""
    assert abs(frame.pop("timestamp") / unit - time.time()) < NEAR_S


async def until_registered(world: World, user: str, *names: str) -> dict[str, str]:
    """What etcd has once it has exactly these devices."""
    async with asyncio.timeout(REGISTERED_S_MAX):
        while set(found := await registered(world.etcd.url, user)) != set(names):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


def outcome(answer: pb.PushMessageResponse) -> tuple[bool, int, list[str]]:
    """Of a push: success, devices that have it, devices that have not."""
    return answer.success, answer.delivered_count, list(answer.failed_devices)


class Counted:
    """How a node's metrics change from now on."""

    def __init__(self, node: im.Node) -> None:
        self._node, self._before = node, node.metrics()

    def __call__(self, name: str) -> float:
        """Without the prefix that all of the contract's names have."""
        name = f"im_gateway_{name}"
        return self._node.metrics().get(name, 0.0) - self._before.get(name, 0.0)

    async def reaches(self, name: str, value: float) -> None:
        """Exactly that much, soon."""
        await until(lambda: self(name) >= value)
        assert self(name) == value


@contextlib.asynccontextmanager
async def devices(node: im.Node, user: str, *names: str, **options: Any) -> AsyncIterator[list[im.Device]]:
    """Several devices of a user on a node."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(im.device(node, user, name, **options)) for name in names]


@contextlib.asynccontextmanager
async def pushing(node: im.Node, user: str) -> AsyncIterator[tuple[Pusher, im.Device]]:
    """A backend that pushes to a node, and one device of a user there."""
    async with Pusher(node.grpc_address) as pusher, im.device(node, user) as device:
        yield pusher, device
