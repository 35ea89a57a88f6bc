"""What NATS may do to a gateway (crash, freeze, cut, lose its disk): the bus comes out with nothing lost, repeated or
out of order, and says truthfully whether it is ready.

Rule: real servers, real signals, cuts at any byte; a random one prints its seed.
"""

import asyncio
import random
from collections.abc import Callable

import pytest
import tidegate.buses._feed
import tidegate.buses.nats
from tidegate.buses import open_bus

from tests.buses import Gateway, NatsBackend, Settings, consuming, numbered, until
from tests.cutter import Cutter


async def test_kill_9_and_restart_in_traffic_loses_repeats_and_reorders_nothing(
    own_nats: NatsBackend, seed: int
) -> None:
    chance = random.Random(seed)
    server, gateway, count = own_nats.server, Gateway(), 1_500
    kills = set(chance.sample(range(50, count - 50), 3))
    async with consuming(own_nats.bus("one"), gateway):
        for number, item in enumerate(numbered(count)):
            await own_nats.keep(item)
            if number in kills:
                await in_thread(server.kill, server.start)
        await gateway.has(count)
    assert gateway.payloads == numbered(count)


async def test_a_kill_in_the_middle_of_a_burst_loses_repeats_and_reorders_nothing(
    own_nats: NatsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken connection itself is noticed, not its silence; what it swallowed comes before the ack wait is over."""
    monkeypatch.setattr(tidegate.buses._feed, "SILENCE_MAX_S", 1_000)
    gateway = Gateway()
    async with consuming(own_nats.bus("one"), gateway):
        await own_nats.publish(numbered(1))
        await gateway.has(1)
    await own_nats.publish(numbered(30_000, start=1))
    bus = own_nats.bus("one")
    async with consuming(bus, gateway):
        await gateway.has(5_000)
        await in_thread(own_nats.server.kill, own_nats.server.start)
        await gateway.has(30_001)
        assert bus.stats()["reconnects"] >= 1
    assert gateway.payloads == numbered(30_001)


async def test_a_lost_connection_never_cancels_or_repeats_a_hand_over_under_way(own_nats: NatsBackend) -> None:
    gateway = Gateway()
    bus = own_nats.bus("one")
    async with consuming(bus, gateway):
        gateway.gate.clear()
        await own_nats.publish(numbered(3_000))
        await gateway.until(lambda: gateway.entered > 0)
        await in_thread(own_nats.server.kill)
        await until(lambda: not bus.is_ready())
        await in_thread(own_nats.server.start)
        await until(lambda: bus.stats()["reconnects"] > 0)
        gateway.gate.set()
        await gateway.has(3_000)
        assert gateway.payloads == numbered(3_000)
        await until(bus.is_ready)


async def test_nats_absent_at_the_start_is_not_ready_and_waited_for(own_nats: NatsBackend) -> None:
    await in_thread(own_nats.server.kill)
    gateway, bus = Gateway(), own_nats.bus("one")
    run = asyncio.create_task(bus.run(gateway.deliver, gateway.receive))
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(run), 0.5)
        assert not bus.is_ready()
        await in_thread(own_nats.server.start)
        await until(bus.is_ready)
        await own_nats.publish(numbered(10))
        await gateway.has(10)
    finally:
        run.cancel()
        await asyncio.wait([run])
    assert gateway.payloads == numbered(10)


async def test_a_frozen_server_shows_as_not_ready_and_loses_nothing(own_nats: NatsBackend) -> None:
    gateway, bus = Gateway(), own_nats.bus("one")
    async with consuming(bus, gateway):
        await own_nats.publish(numbered(10))
        await gateway.has(10)
        own_nats.server.freeze()
        await until(lambda: not bus.is_ready())
        own_nats.server.thaw()
        await own_nats.publish(numbered(10, start=10))
        await gateway.has(20)
        await until(bus.is_ready)
    assert gateway.payloads == numbered(20)


async def test_connections_cut_at_any_byte_lose_repeat_and_reorder_nothing(own_nats: NatsBackend, seed: int) -> None:
    chance = random.Random(seed)
    gateway, count = Gateway(), 20_000
    async with Cutter(own_nats.server.port) as cutter:
        bus = open_bus(f"nats://127.0.0.1:{cutter.port}", Settings(own_nats.settings), node_id="one")
        async with consuming(bus, gateway):
            for start in range(0, count, 1_000):
                cutter.cut_after(chance.randrange(1, 60_000))
                await own_nats.publish(numbered(1_000, start=start))
            await gateway.until(lambda: len(gateway.messages) >= count or not cutter.armed)
            cutter.cut_after(None)
            await gateway.has(count)
        assert cutter.cuts > 0
    assert gateway.payloads == numbered(count)


async def test_a_server_that_lost_its_disk_is_followed_from_its_first_message(own_nats: NatsBackend) -> None:
    gateway, bus = Gateway(), own_nats.bus("one")
    async with consuming(bus, gateway):
        await own_nats.publish(numbered(100))
        await gateway.has(100)
        await in_thread(own_nats.server.kill, own_nats.server.wipe, own_nats.server.start)
        for item in numbered(300, start=100):
            await own_nats.keep(item)  # until there is a stream again, nobody confirms
        await gateway.has(400)
    assert gateway.payloads == numbered(400)
    assert gateway.messages[100].sequence == 1


async def test_a_stream_removed_and_made_again_is_followed_from_its_first_message(calm_nats: NatsBackend) -> None:
    gateway, bus = Gateway(), calm_nats.bus("one")
    async with consuming(bus, gateway):
        await calm_nats.publish(numbered(100))
        await gateway.has(100)
        await (await calm_nats.client()).jsm().delete_stream(calm_nats.stream)
        for item in numbered(100, start=100):
            await calm_nats.keep(item)
        await gateway.has(200)
    assert gateway.payloads == numbered(200)


@pytest.mark.parametrize("count", [10, 300], ids=["shorter", "longer"])
async def test_another_stream_of_the_same_name_is_recognised_whatever_its_length(
    calm_nats: NatsBackend, count: int
) -> None:
    """Made again before we looked: only its date, or its length, tells it from the one our position is in."""
    gateway, bus = Gateway(), calm_nats.bus("one")
    async with consuming(bus, gateway):
        await calm_nats.publish(numbered(100))
        await gateway.has(100)
    manager = (await calm_nats.client()).jsm()
    await manager.delete_stream(calm_nats.stream)
    await manager.add_stream(name=calm_nats.stream, subjects=[f"{calm_nats.stream.lower()}.>"])
    await calm_nats.publish(numbered(count, start=100))
    async with consuming(bus, gateway):
        await gateway.has(100 + count)
    assert gateway.payloads == numbered(100 + count)


async def test_a_consumer_removed_under_a_running_gateway_is_made_again_where_it_was(calm_nats: NatsBackend) -> None:
    gateway, bus = Gateway(), calm_nats.bus("one")
    async with consuming(bus, gateway):
        for start in range(0, 300, 100):
            await calm_nats.publish(numbered(100, start=start))
            await gateway.has(start + 100)
            manager = (await calm_nats.client()).jsm()
            await manager.delete_consumer(calm_nats.stream, f"gateway-{calm_nats.settings.client_id}-one")
        await calm_nats.publish(numbered(100, start=300))
        await gateway.has(400)
    assert gateway.payloads == numbered(400)


async def in_thread(*steps: Callable[[], None]) -> None:
    for step in steps:
        await asyncio.to_thread(step)
