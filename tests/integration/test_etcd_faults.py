"""The registry while its etcd is killed, frozen, wiped, cut off or compacted: connections stay, and everything heals.

Rule: nothing here tells the registry that something happened; it has to notice.
"""

import asyncio
import random
import time

import pytest
from aetcd import rpc
from tidegate.calls import Place
from tidegate.errors import UpstreamError
from tidegate.registries import CALL_S

from tests.cutter import Cutter
from tests.etcd_server import EtcdServer
from tests.registries import Node, in_waves, place, running, until

USERS = "/registry/users/"
# A machine under load; what is tested is that it ends, not when exactly
SLACK_S = 3.0


async def is_settled(node: Node, server: EtcdServer, expected: dict[str, str]) -> None:
    """Waits until etcd has just these places, and the node is well."""

    async def holds() -> bool:
        return await server.holds(USERS) == expected

    await until(holds)
    await node.is_ready()
    await until(lambda: node.registry.stats().unsettled == 0)


def keys(*places: Place) -> dict[str, str]:
    return {f"{USERS}{mine.user}/{mine.device}": f"one|{mine.connected_at}" for mine in places}


async def test_an_etcd_that_was_killed_comes_back_and_everybody_is_where_they_were(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url, "one") as one, running(etcd_server.url, "two") as two:
        stays, goes = place("user_1", conn=1), place("user_2", conn=2)
        # who has this knows the change by the watch alone, and no news is under way that would make it forget it
        await two.sees("user_2", {})
        assert await one.register(stays)
        assert await one.register(goes)
        await two.sees("user_2", {goes.device: "one"})
        etcd_server.kill()
        await one.is_ready(False)
        with pytest.raises(UpstreamError):
            await one.unregister(goes)
        with pytest.raises(UpstreamError):
            await one.register(place("user_3", conn=3))
        assert await two.devices("user_2") == {goes.device: "one"}, "as last known"
        etcd_server.start()
        await is_settled(one, etcd_server, keys(stays))
        await two.sees("user_2", {})
        await two.sees("user_1", {stays.device: "one"})
        assert one.registry.stats().watch_resumes >= 1
        assert one.registry.stats().watch_gaps == 1, "only the start"
        assert one.taken == []


async def test_an_etcd_that_lost_its_data_is_told_everything_again(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url, "one") as one, running(etcd_server.url, "two") as two:
        places = [place(f"user_{number}", conn=number) for number in range(1_500)]
        await in_waves(one.register, places)
        theirs = place("user_x", conn=1)
        assert await two.register(theirs)
        assert await one.devices("user_x") == {theirs.device: "two"}
        etcd_server.kill()
        etcd_server.wipe()
        etcd_server.start()
        await is_settled(
            one, etcd_server, keys(*places) | {f"{USERS}user_x/{theirs.device}": f"two|{theirs.connected_at}"}
        )
        await one.sees_nodes("one", "two")
        await two.sees("user_7", {places[7].device: "one"})
        assert one.taken == two.taken == []
        late = place("user_7", conn=9, name=places[7].device)
        assert await two.register(late)
        await until(lambda: one.taken == [7])
        await two.sees("user_7", {late.device: "two"})


async def test_calls_to_a_frozen_etcd_end_in_time_and_it_heals(etcd_server: EtcdServer) -> None:
    async with running(etcd_server.url) as node:
        stays, goes = place("user_1", conn=1), place("user_2", conn=2)
        assert await node.register(stays)
        assert await node.register(goes)
        etcd_server.freeze()
        began = time.monotonic()
        never = [place(f"user_{number}", conn=number) for number in range(10, 400)]
        calls = [node.register(mine) for mine in never] + [node.devices(f"user_{number}") for number in range(400, 600)]
        answers = await asyncio.gather(node.unregister(goes), *calls, return_exceptions=True)
        assert time.monotonic() - began < CALL_S + SLACK_S
        assert all(isinstance(answer, UpstreamError) for answer in answers)
        await node.is_ready(False)
        etcd_server.thaw()
        await is_settled(node, etcd_server, keys(stays))
        assert node.registry.stats().places == 1
        assert await node.register(never[0])
        await is_settled(node, etcd_server, keys(stays, never[0]))


async def test_a_node_cut_off_until_its_leases_ended_writes_its_places_again(etcd_server: EtcdServer) -> None:
    async with (
        Cutter(etcd_server.port) as cutter,
        running(f"etcd://127.0.0.1:{cutter.port}", ttl=2.0, renew_interval=0.5) as node,
    ):
        places = [place(f"user_{number}", conn=number) for number in range(300)]
        await in_waves(node.register, places)
        await cutter.shut()

        async def are_gone() -> bool:
            return not await etcd_server.holds("/registry/")

        await until(are_gone)
        cutter.unshut()
        await is_settled(node, etcd_server, keys(*places))
        assert node.registry.stats().lease_losses >= 1
        assert node.taken == []


async def test_a_device_that_moved_while_the_node_was_cut_off_is_taken(etcd_server: EtcdServer) -> None:
    async with (
        Cutter(etcd_server.port) as cutter,
        running(etcd_server.url, "two") as two,
        running(f"etcd://127.0.0.1:{cutter.port}", "one") as one,
    ):
        moves, stays = place("user_1", conn=1), place("user_2", conn=2)
        assert await one.register(moves)
        assert await one.register(stays)
        await one.sees("user_1", {moves.device: "one"})
        await cutter.shut()
        assert await two.register(place("user_1", conn=5, name=moves.device))
        cutter.unshut()
        await until(lambda: one.taken == [1])
        await one.sees("user_1", {moves.device: "two"})
        assert one.registry.stats().places == 1
        assert one.registry.stats().watch_gaps == 1


async def test_a_node_that_missed_compacted_events_checks_everything(etcd_server: EtcdServer) -> None:
    async with (
        Cutter(etcd_server.port) as cutter,
        running(etcd_server.url, "two") as two,
        running(f"etcd://127.0.0.1:{cutter.port}", "one") as one,
        etcd_server.client() as client,
    ):
        moves, deleted, stays = (place(f"user_{number}", conn=number) for number in range(3))
        for mine in (moves, deleted, stays):
            assert await one.register(mine)
        await one.sees("user_9", {})
        await cutter.shut()
        assert await two.register(place(moves.user, conn=5, name=moves.device))
        await client.delete(f"{USERS}{deleted.user}/{deleted.device}".encode())
        theirs = place("user_9", conn=6)
        assert await two.register(theirs)
        revision = (await client.put(b"unrelated", b"")).header.revision
        await client.kvstub.Compact(rpc.CompactionRequest(revision=revision, physical=True))
        cutter.unshut()
        await until(lambda: one.taken == [0])
        await one.sees("user_9", {theirs.device: "two"})
        await one.sees_nodes("one", "two")

        async def is_back() -> bool:
            return keys(deleted, stays).items() <= (await etcd_server.holds(USERS)).items()

        await until(is_back)
        assert one.registry.stats().watch_gaps == 2


async def test_devices_come_and_go_while_connections_break_and_it_ends_right(
    etcd_server: EtcdServer, seed: int
) -> None:
    """Whatever an answer was cut off from, etcd ends up with what is connected: no more, no less."""
    rng = random.Random(seed)
    async with Cutter(etcd_server.port) as cutter, running(f"etcd://127.0.0.1:{cutter.port}") as node:
        here: dict[int, Place] = {}

        async def live(conn: int) -> None:
            mine = place(f"user_{conn % 40}", conn=conn, since=1767225600 + conn)
            await asyncio.sleep(rng.random() * 2)
            try:
                assert await node.register(mine, others_max=1_000)
            except UpstreamError:
                return
            await asyncio.sleep(rng.random())
            if conn % 3:
                here[conn] = mine
                return
            try:
                await node.unregister(mine)
            except UpstreamError:
                return

        async def break_it() -> None:
            for _ in range(12):
                cutter.cut_after(rng.randrange(4_000))
                await asyncio.sleep(0.25)
            cutter.cut_after(None)

        await asyncio.gather(break_it(), *(live(conn) for conn in range(600)))
        await is_settled(node, etcd_server, keys(*here.values()))
        assert node.registry.stats().places == len(here)
        assert node.taken == []
        print(f"{len(here)} of 400 came in and stayed; {node.registry.stats()}")
