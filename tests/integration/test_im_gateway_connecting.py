"""Who may connect to an im-gateway and where the registry has them: section 3 of its contract, checks 3 and 6 of 14.

Rule: who is refused gets a plain HTTP answer, and nothing of it is left in the registry.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect

from tests.buses import until
from tests.im import Device, Node, device, refused, token
from tests.im_backends import registered
from tests.im_services import ImServices
from tests.im_world import NEAR_S, Counted, World, devices, fresh, gateways_time, ids, pushing, until_registered

pytestmark = pytest.mark.timeout(150)  # the first test starts all servers, Kafka with two JVMs


@pytest.fixture(scope="module")
def process(calm_world: World) -> Iterator[Node]:
    with calm_world.node() as started:
        yield started


@pytest.fixture
def node(process: Node, im_services: ImServices) -> Node:
    """One for all tests here, with services as new."""
    return process


async def test_the_registry_has_a_device_while_it_is_connected(node: Node, calm_world: World) -> None:
    """14.3, the format, and that it is gone after; that it is renewed is proved with a short lease elsewhere."""
    user, (name,) = fresh(), ids(1)
    async with device(node, user, name):
        value = (await until_registered(calm_world, user, name))[name]
        assert re.fullmatch(r"[^|]+\|\d{10}", value)
        address, _, connected_at = value.partition("|")
        assert address == node.grpc_address
        assert abs(int(connected_at) - time.time()) < NEAR_S
    await until_registered(calm_world, user)


async def test_a_sixth_device_is_refused_and_one_of_the_five_may_connect_again(node: Node, calm_world: World) -> None:
    """14.6"""
    user, names = fresh(), ids(6)
    async with devices(node, user, *names[:5]) as five:
        assert await refused(node.door(user, names[5])) == 429
        async with device(node, user, names[2]) as again:
            assert (await five[2].ends())[1] == 4409
            await again.heartbeat()
            await until_registered(calm_world, user, *names[:5])
        await until_registered(calm_world, user, *(name for name in names[:5] if name != names[2]))
        async with device(node, user, names[5]) as sixth:
            await sixth.heartbeat()


async def test_who_has_no_good_token_is_refused_before_the_upgrade(
    node: Node, im_services: ImServices, calm_world: World
) -> None:
    user, name = fresh(), str(uuid.uuid4())
    assert await refused(node.url) == 401
    assert im_services.auth.count() == 0, "nobody has to be asked"
    assert await refused(f"{node.url}?token=bad-{user}") == 401
    assert await refused(node.url, additional_headers={"Authorization": "Basic dXNlcjpwYXNz"}) == 401
    im_services.auth.tell(lie={"ValidateToken": "nobody"})
    assert await refused(node.door(user, name)) == 401
    assert await registered(calm_world.etcd.url, user) == {}


@pytest.mark.parametrize(
    "name",
    ["phone", str(uuid.uuid1()), "00000000-0000-4000-c000-000000000000", str(uuid.uuid4()).replace("-", "")],
)
async def test_a_device_that_is_no_uuid_v4_is_refused(node: Node, name: str) -> None:
    assert await refused(node.door(fresh(), name)) == 400


async def test_a_uuid_may_have_capitals_and_keeps_them(node: Node, calm_world: World) -> None:
    user, name = fresh(), str(uuid.uuid4()).upper()
    async with device(node, user, name):
        await until_registered(calm_world, user, name)


async def test_a_token_may_come_in_a_header_and_that_of_the_query_goes_first(node: Node, calm_world: World) -> None:
    user, name = fresh(), str(uuid.uuid4())
    bearer = {"Authorization": f"Bearer {token(user, name)}"}
    async with connect(node.url, compression=None, additional_headers=bearer) as socket:
        await Device(socket, user, name).heartbeat()
        await until_registered(calm_world, user, name)
    async with device(node, user, additional_headers={"Authorization": "Bearer bad"}) as one:
        await one.heartbeat()


async def test_without_an_answer_of_the_auth_service_nobody_comes_in(node: Node, im_services: ImServices) -> None:
    async with device(node, fresh()) as inside:
        im_services.auth.tell(status={"ValidateToken": "UNAVAILABLE"})
        assert await refused(node.door(fresh(), str(uuid.uuid4()))) == 503
        await inside.heartbeat()
        im_services.auth.tell(status={})
        async with device(node, fresh()) as later:
            await later.heartbeat()


async def test_a_device_that_connects_again_replaces_its_first_connection_and_gets_the_pushes(
    node: Node, calm_world: World
) -> None:
    user, name = fresh(), str(uuid.uuid4())
    async with device(node, user, name) as first, pushing(node, fresh()) as (pusher, _):
        async with device(node, user, name) as second:
            (goodbye,), code = await first.ends()
            gateways_time(goodbye)
            assert goodbye.pop("error_message")
            assert goodbye == {
                "type": "close",
                "msg_id": "",
                "sender": "",
                "content": "",
                "sequence_number": 0,
                "error_code": "REPLACED",
            }
            assert code == 4409
            await until_registered(calm_world, user, name)
            push = asyncio.create_task(pusher.push(user))
            await second.receives()
            assert (await push).delivered_count == 1
            assert await registered(calm_world.etcd.url, user), "the first one's end did not take it away"
        await until_registered(calm_world, user)


async def test_the_number_of_connections_follows_them(node: Node) -> None:
    counted = Counted(node)
    async with devices(node, fresh(), *ids(3)):
        await counted.reaches("active_connections", 3)
        assert counted("total_connections_total") == 3
    await until(lambda: counted("active_connections") == 0)
