"""The registry on a real etcd: what other programs see, leases that live and are lost, crowds, and two endpoints.

What happens when etcd itself fails is in `test_etcd_faults.py`. ON_BOTH_LOOPS: gRPC has a poller of its own.
"""

import asyncio
import re
import time

import pytest
from aetcd import rpc
from tidegate.errors import UpstreamError
from tidegate.registries import CALL_S, open_registry

from tests.cutter import Cutter
from tests.etcd_server import EtcdServer
from tests.registries import Node, Settings, Ttl, device, ended, in_waves, place, running, until

ON_BOTH_LOOPS = True
USERS = "/registry/users/"
GATEWAYS = "/registry/gateways/"
# etcd grants none that is shorter
SHORT = {"ttl": 2.0, "renew_interval": 0.5}


async def test_any_reader_of_etcd_sees_the_place_in_the_originals_format(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url, "10.0.3.7:9093") as node:
        mine = place("user_7", since=1767225600)
        assert await node.register(mine)
        found = await etcd_server.holds(USERS)
        assert found == {f"{USERS}user_7/{mine.device}": "10.0.3.7:9093|1767225600"}
        assert all(re.fullmatch(r"[^|]+\|\d{10}", value) for value in found.values())
        nodes = await etcd_server.holds(GATEWAYS)
        assert list(nodes) == [f"{GATEWAYS}10.0.3.7:9093"]
        await node.unregister(mine)
        assert await etcd_server.holds(USERS) == {}
    assert await etcd_server.holds("/registry/") == {}, "a node that ends leaves nothing"


async def test_a_place_outlives_its_lease_as_long_as_its_node_lives(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url, **SHORT) as node, etcd_server.client() as client:
        mine = place()
        assert await node.register(mine)
        lease = (await client.get(f"{USERS}{mine.user}/{mine.device}".encode())).lease
        began = time.monotonic()
        while time.monotonic() < began + 3 * SHORT["ttl"]:  # the time itself is what must pass
            left = await client.get_lease_info(lease)
            assert left.TTL >= 0
            await asyncio.sleep(0.1)
        assert len(await etcd_server.holds(USERS)) == 1
        assert node.registry.stats().lease_losses == 0
        assert node.registry.is_ready()


async def test_a_node_that_dies_is_forgotten_with_its_devices(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url, "two") as two:
        dying = Node(open_registry(etcd_server.url, Settings(Ttl(**SHORT)), node="one"), "one")
        task = asyncio.create_task(dying.registry.run(dying.lost))
        await dying.is_ready()
        mine = place()
        assert await dying.register(mine)
        await two.sees(mine.user, {mine.device: "one"})
        await two.sees_nodes("one", "two")
        await ended(task)  # nobody says goodbye
        await two.sees(mine.user, {})
        await two.sees_nodes("two")
        await dying.registry.close(1)


async def test_leases_revoked_by_hand_are_replaced_and_every_place_is_written_again(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node, etcd_server.client() as client:
        places = [place(f"user_{number}", conn=number) for number in range(2_500)]
        await in_waves(node.register, places)
        before = await etcd_server.holds(USERS)
        leases = {pair.lease for pair in await client.get_prefix(b"/registry/")}
        assert len(leases) == 3, "a thousand places share one"
        for lease in leases:
            await client.revoke_lease(lease)
        await until(lambda: node.registry.stats().puts_again >= len(places))

        async def are_back() -> bool:
            return await etcd_server.holds(USERS) == before

        await until(are_back)
        await node.sees_nodes("one")
        assert len(await etcd_server.holds(GATEWAYS)) == 1
        assert node.taken == []
        assert node.registry.stats().places == len(places)
        await until(lambda: node.registry.stats().unsettled == 0)


async def test_a_key_deleted_by_hand_is_back_while_its_connection_lives(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node, etcd_server.client() as client:
        mine, other = place(), place("user_8", conn=2)
        assert await node.register(mine)
        assert await node.register(other)
        await client.delete_prefix(b"/registry/")

        async def is_back() -> bool:
            return len(await etcd_server.holds("/registry/")) == 3

        await until(is_back)
        await node.unregister(other)
        await node.unregister(mine)
        assert await etcd_server.holds(USERS) == {}
        assert node.taken == []


async def test_a_place_that_a_stranger_wrote_over_is_theirs_and_not_taken_back(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node, etcd_server.client() as client:
        mine = place(conn=42)
        assert await node.register(mine)
        key = f"{USERS}{mine.user}/{mine.device}"
        await client.put(key.encode(), b"gateway-x:9093|1767225600")
        await until(lambda: node.taken == [42])
        await node.unregister(mine)
        assert await etcd_server.holds(USERS) == {key: "gateway-x:9093|1767225600"}
        await node.sees(mine.user, {mine.device: "gateway-x:9093"})


async def test_what_no_gateway_wrote_is_nobodys_device(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node, etcd_server.client() as client:
        for key, value in {
            b"user_7/good": b"two|1767225600",
            b"user_7/no-bar": b"two",
            b"user_7/no-node": b"|1767225600",
            b"user_7/deep/er": b"two|1767225600",
            b"user_7/latin-\xe9": b"two|1767225600",
            b"user_7/bytes": b"\xff\xfe|1767225600",
            b"\xff\xff": b"two|1",
        }.items():
            await client.put(USERS.encode() + key, value)
        await client.put(GATEWAYS.encode() + b"\xff", b"x")
        found = await node.devices("user_7")
        assert found["good"] == "two"
        assert not {"no-bar", "no-node", "deep/er", "bytes"} & set(found)
        await node.sees_nodes("one")
        assert node.registry.is_ready()


async def test_a_look_up_is_shared_kept_and_dropped_by_what_other_nodes_do(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url, "one") as one, running(etcd_server.url, "two") as two:
        answers = await asyncio.gather(*(one.devices("user_7") for _ in range(100)))
        stats = one.registry.stats()
        assert answers == [{}] * 100
        assert (stats.cache_misses, stats.cache_merged, stats.cache_hits) == (1, 99, 0)
        await one.devices("user_7")
        assert one.registry.stats().cache_hits == 1
        trips = one.registry.stats().round_trips
        mine = place()
        assert await two.register(mine)
        await one.sees("user_7", {mine.device: "two"})
        assert one.registry.stats().round_trips <= trips + 2, "asked again once the event was here, not before"


async def test_five_thousand_registrations_and_look_ups_need_few_round_trips(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node:
        places = [place(f"user_{number // 2}", conn=number) for number in range(5_000)]
        trips = node.registry.stats().round_trips
        assert all(await in_waves(node.register, places))
        registered = node.registry.stats().round_trips - trips
        assert registered <= 150, "two for a hundred and twenty, and a lease for a thousand"
        found = await in_waves(lambda mine: node.devices(mine.user), places)
        assert all(mine.device in devices for mine, devices in zip(places, found, strict=True))
        assert node.registry.stats().round_trips - trips - registered <= 30
        await in_waves(node.unregister, places)
        assert await etcd_server.holds(USERS) == {}
        assert node.registry.stats().round_trips - trips <= 250
        print(f"{registered} round trips for 5,000 registrations, {node.registry.stats().round_trips - trips} in all")


async def test_a_crowd_comes_and_goes(etcd_server: EtcdServer) -> None:
    """Prints what it costs; asserts only that it ends right."""
    async with running(etcd_server.url) as node:
        places = [place(f"user_{number}", conn=number) for number in range(20_000)]
        began, trips = time.perf_counter(), node.registry.stats().round_trips
        assert all(await in_waves(node.register, places))
        seconds = time.perf_counter() - began
        stats = node.registry.stats()
        assert stats.places == len(places)
        assert stats.leases == len(places) // 1_000 + 1, "the node's own key hangs on one too"
        print(f"{len(places)} registered in {seconds:.1f} s by {stats.round_trips - trips} round trips")
        began = time.perf_counter()
        await in_waves(node.unregister, places)
        print(f"and gone in {time.perf_counter() - began:.1f} s")
        assert node.registry.stats().places == 0
        assert await etcd_server.holds(USERS) == {}


async def test_a_caller_that_gives_up_was_never_registered(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node:
        for turns in range(12):  # cancelled at another point each time
            mine = place(f"user_{turns}")
            call = asyncio.create_task(node.register(mine))
            for _ in range(turns * turns):
                await asyncio.sleep(0)
            was_done = call.done()
            await ended(call)
            if not was_done:

                async def is_gone(user: str = mine.user) -> bool:
                    return not await etcd_server.holds(f"{USERS}{user}/")

                await until(lambda: node.registry.stats().unsettled == 0)
                await until(is_gone)


async def test_a_device_whose_second_connection_gave_up_keeps_its_first(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node:
        name = device()
        first = place(conn=1, name=name, since=1767225600)
        assert await node.register(first)
        for turns in range(12):
            call = asyncio.create_task(node.register(place(conn=2, name=name, since=1767225700)))
            for _ in range(turns * turns):
                await asyncio.sleep(0)
            if call.done():
                break
            await ended(call)

            async def is_the_firsts() -> bool:
                return await etcd_server.holds(USERS) == {f"{USERS}user_7/{name}": "one|1767225600"}

            await until(is_the_firsts)
        assert node.taken == []


async def test_a_node_survives_the_death_of_one_endpoint(etcd_server: EtcdServer) -> None:
    """Two ways to the same etcd; the one in use goes away, then comes back while the other goes."""
    async with (
        Cutter(etcd_server.port) as first,
        Cutter(etcd_server.port) as second,
        running(f"etcd://127.0.0.1:{first.port},127.0.0.1:{second.port}") as node,
    ):
        for number, (gone, back) in enumerate(((first, second), (second, first), (first, second))):
            back.unshut()
            await gone.shut()
            assert await node.register(place(f"user_{number}", conn=number))
            await node.is_ready()
            assert len(await node.devices(f"user_{number}")) == 1
        assert len(await etcd_server.holds(USERS)) == 3


async def test_a_node_leaves_an_endpoint_that_is_frozen(etcd_server: EtcdServer) -> None:
    with EtcdServer().running() as frozen:
        frozen.freeze()
        async with running(f"{frozen.url},{etcd_server.address}") as node:
            assert await node.register(place())
            assert len(await etcd_server.holds(USERS)) == 1
        frozen.thaw()


async def test_an_etcd_with_users_wants_the_right_password_and_no_error_shows_it(etcd_server: EtcdServer) -> None:
    await give_password(etcd_server, "root", "s3cret/&")
    right = f"etcd://root:s3cret%2F%26@{etcd_server.address}"
    async with running(right) as node:
        mine = place()
        assert await node.register(mine)
        etcd_server.kill()
        etcd_server.start()  # which forgets who had logged in

        async def is_registered() -> bool:
            try:
                return await node.register(place(name=mine.device))
            except UpstreamError:
                return False

        await until(is_registered)
        await node.is_ready()
    async with running(f"etcd://root:wrong-hunter2@{etcd_server.address}", ready=False) as node:
        with pytest.raises(UpstreamError) as refused:
            await node.register(mine)
        assert "hunter2" not in repr(refused.value) + repr(refused.value.__cause__)
        assert not node.registry.is_ready()


async def give_password(server: EtcdServer, user: str, password: str) -> None:
    channel = rpc.insecure_channel(server.address)
    auth = rpc.AuthStub(channel)
    await auth.UserAdd(rpc.AuthUserAddRequest(name=user, password=password))
    await auth.RoleAdd(rpc.AuthRoleAddRequest(name="root"))
    await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=user, role="root"))
    await auth.AuthEnable(rpc.AuthEnableRequest())
    await channel.close()


async def test_where_nothing_listens_calls_end_in_time() -> None:
    async with running("etcd://127.0.0.1:1", ready=False) as node:
        began = time.monotonic()
        for number in range(20):
            with pytest.raises(UpstreamError) as failed:
                await node.register(place(f"user_{number}"))
            assert failed.value.outcome in ("unavailable", "circuit_open", "timeout")
        with pytest.raises(UpstreamError):
            await node.nodes()
        with pytest.raises(UpstreamError):
            await node.devices("user_7")
        assert time.monotonic() - began < 23 * CALL_S
        assert not node.registry.is_ready()
        assert node.registry.stats().places == 0
