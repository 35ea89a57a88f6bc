"""Members that stop reading: they pay themselves, by a close or by lost messages, and never the others or the gateway.

Rule: messages are published in windows that fit into an outbox, the next one when all who read have the last: whoever
is closed or loses a message did not read. No test here depends on how fast this machine is.
"""

import asyncio
from contextlib import AbstractContextManager

from tests.buses import NatsBackend, until
from tests.chaos.crowd import Readers, enter, event, leave, members, number_of, on_the_wire, rest_of, up_to_now
from tests.gateways import Gateway, running

MIB = 1 << 20
# A window stays below the outbox bound in bytes (1 MiB) and, where the policy is drop, in messages (256)
WINDOW_MESSAGES, MESSAGE_BYTES = 100, 10_000
ROOM = "chat:giant"


def started(backend: NatsBackend, **settings: str) -> AbstractContextManager[Gateway]:
    return running("attchat-gateway", NATS_URL=backend.server.url, NATS_STREAMS=backend.stream, **settings)


async def is_ready(gateway: Gateway) -> None:
    await until(lambda: gateway.get("/ready")[0] == 200)


def window(number: int, room: str = ROOM) -> list[bytes]:
    return [event(room, number * WINDOW_MESSAGES + n, MESSAGE_BYTES) for n in range(WINDOW_MESSAGES)]


def slow_closes(gateway: Gateway) -> float:
    return gateway.metrics()['gateway_errors_total{type="slow_close"}']


async def publish_to(readers: Readers, backend: NatsBackend, number: int) -> None:
    events = window(number)
    await asyncio.gather(backend.publish(events), asyncio.to_thread(readers.read_all, on_the_wire(events)))


async def test_fifty_that_never_read_cost_the_other_250_nothing_and_the_gateway_no_memory(
    calm_nats: NatsBackend,
) -> None:
    windows, slow, fast = 20, 50, 250  # 20 MB to each
    limits = {"WS_WRITE_TIMEOUT": "1s", "WS_BACKLOG_BYTES": "16MiB", "WS_OUTBOX_BYTES": "1MiB"}
    with started(calm_nats, **limits) as gateway:
        await is_ready(gateway)
        with members(gateway, ROOM, slow, tight=True) as stuck, members(gateway, ROOM, fast) as reading:
            readers = Readers(reading)
            before, peak = gateway.memory_bytes(), 0
            for number in range(windows):
                await publish_to(readers, calm_nats, number)
                peak = max(peak, gateway.memory_bytes())
            await until(lambda: gateway.get("/stats")[1]["current_connections"] == fast)
            assert slow_closes(gateway) >= slow
            # what slow ones owe is shared, but even if it were not: an outbox each and the backlog
            assert peak - before < (slow + 16) * MIB, f"grew by {(peak - before) / MIB:.0f} MiB"
            await publish_to(readers, calm_nats, windows)
            readers.close()
            for client in stuck:
                numbers, code = await asyncio.to_thread(rest_of, client)
                assert numbers == list(range(len(numbers))), "a gap before the close"
                assert len(numbers) < windows * WINDOW_MESSAGES
                assert code in (0, 1013)


async def test_a_slow_member_that_never_reads_its_close_is_cut_and_counted_once(calm_nats: NatsBackend) -> None:
    with started(calm_nats, WS_WRITE_TIMEOUT="1s") as gateway:
        await is_ready(gateway)
        with members(gateway, ROOM, 1, tight=True), members(gateway, ROOM, 1) as reading:
            readers, number = Readers(reading), 0
            while gateway.get("/stats")[1]["current_connections"] == 2:
                await publish_to(readers, calm_nats, number)
                number += 1
            readers.close()
            assert slow_closes(gateway) == 1


async def test_a_slow_member_that_reads_again_in_time_sees_why_it_was_closed(calm_nats: NatsBackend) -> None:
    with started(calm_nats, WS_WRITE_TIMEOUT="60s") as gateway:
        await is_ready(gateway)
        with members(gateway, ROOM, 1, tight=True) as (stuck,), members(gateway, ROOM, 1) as reading:
            readers, number = Readers(reading), 0
            while gateway.refused("slow_close") == 0:
                await publish_to(readers, calm_nats, number)
                number += 1
                assert number < 60, "60 MB are owed to somebody who never reads"
            readers.close()
            numbers, code = await asyncio.to_thread(rest_of, stuck)
            assert numbers == list(range(len(numbers)))
            assert code == 1013


async def test_with_the_policy_drop_the_newest_are_lost_and_counted_and_the_connection_stays(
    calm_nats: NatsBackend,
) -> None:
    policy = {"WS_OUTBOX_POLICY": "drop", "WS_OUTBOX_MESSAGES": "256", "WS_OUTBOX_BYTES": "8MiB"}
    with started(calm_nats, WS_WRITE_TIMEOUT="60s", **policy) as gateway:
        await is_ready(gateway)
        with members(gateway, ROOM, 3, tight=True) as stuck, members(gateway, ROOM, 3) as reading:
            readers, number = Readers(reading), 0
            while gateway.refused("queue_full") < 3 * 2 * WINDOW_MESSAGES:
                await publish_to(readers, calm_nats, number)
                number += 1
                assert number < 60, "60 MB fitted into 256 messages"
            published = number * WINDOW_MESSAGES
            kept = await asyncio.gather(*[asyncio.to_thread(up_to_now, client) for client in stuck])
            assert sum(published - len(numbers) for numbers in kept) == gateway.refused("queue_full")
            assert gateway.metrics()['gateway_errors_total{type="queue_full"}'] == gateway.refused("queue_full")
            for numbers in kept:
                assert numbers == list(range(len(numbers))), "an older message was dropped for a newer one"
            assert slow_closes(gateway) == 0
            await publish_to(readers, calm_nats, number)
            readers.close()
            for client in stuck:
                # who reads again gets what is published now
                assert number_of(await asyncio.to_thread(client.read)) == published


async def test_a_burst_to_a_giant_room_does_not_stop_a_small_one(calm_nats: NatsBackend) -> None:
    giant_size, windows = 800, 3
    with started(calm_nats, WS_OUTBOX_BYTES="8MiB", WS_BACKLOG_BYTES="4MiB") as gateway:
        await is_ready(gateway)
        giant, small = enter(gateway, ROOM, giant_size), enter(gateway, "chat:small", 3)
        try:
            to_giant = [event(ROOM, n, 1000) for n in range(windows * 100)]
            to_small = [event("chat:small", n, 100) for n in range(windows * 100)]
            mixed = [one for pair in zip(to_giant, to_small, strict=True) for one in pair]
            giant_readers, small_readers = Readers(giant), Readers(small)
            await asyncio.gather(
                calm_nats.publish(mixed),
                asyncio.to_thread(small_readers.read_all, on_the_wire(to_small)),
                asyncio.to_thread(giant_readers.read_all, on_the_wire(to_giant)),
            )
            giant_readers.close()
            small_readers.close()
            assert gateway.metrics()["gateway_messages_sent_total"] == len(to_giant) * giant_size + len(to_small) * 3
            assert slow_closes(gateway) == 0
        finally:
            leave([*giant, *small])
