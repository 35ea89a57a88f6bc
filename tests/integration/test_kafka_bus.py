"""What Kafka may do to a gateway (crash, restart, freeze, trim, forget): the bus comes out with nothing lost or out of
order and nothing repeated but at the seam of a crash, and says truthfully whether it is ready and how far behind it is.

Rule: real brokers and real signals.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest
from confluent_kafka import KafkaException
from tidegate.buses import Bus, open_bus
from tidegate.buses.kafka import CONSUMER, probe
from tidegate.errors import BusError

from tests.buses import WAIT_S_MAX, Gateway, Settings, consuming, numbered
from tests.kafka_backend import KafkaBackend, kafka_backend_on
from tests.kafka_server import KafkaServer
from tests.servers import free_port

pytestmark = pytest.mark.timeout(180)  # a broker is a JVM that starts, and a busy machine starts it in half a minute
SEAM_MAX = 1  # a producer sends one message at a time, and one whose confirmation was lost again


async def in_thread(*steps: Callable[[], None]) -> None:
    for step in steps:
        await asyncio.to_thread(step)


async def becomes(condition: Callable[[], bool]) -> None:
    """As `until`, for as long as a broker may take to come back."""
    async with asyncio.timeout(3 * WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - another process's state can only be asked
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def trying(bus: Bus, gateway: Gateway) -> AsyncIterator[None]:
    """A bus that runs and need not become ready."""
    task = asyncio.create_task(bus.run(gateway.deliver, gateway.receive, gateway.offer))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await bus.close()
        assert task.cancelled()


async def keep(backend: KafkaBackend, item: bytes) -> None:
    """Repeats until the broker confirms, whatever happens to it: kept once or more often."""
    async with asyncio.timeout(3 * WAIT_S_MAX):
        while True:
            try:
                return await backend.publish([item])
            except KafkaException:
                await backend.close()
                await asyncio.sleep(0.05)


async def confirmed(bus: Bus, subject: str, data: bytes) -> None:
    """Repeats a publish as its senders do: a busy broker may need longer than one waits, to make a topic above all."""
    async with asyncio.timeout(3 * WAIT_S_MAX):
        while True:
            try:
                return await bus.publish(subject, data)
            except BusError as error:
                print(f"{subject}: {error}")


def without_repeats(payloads: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(payloads))


# --- a broker that goes and comes ------------------------------------------------------------------------------------


async def test_a_broker_killed_under_a_publisher_that_keeps_trying_loses_nothing(own_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), own_kafka.bus("one")
    total, kills = 600, (0.3, 0.6)

    async def publish() -> None:
        for item in numbered(total):
            await keep(own_kafka, item)

    async with consuming(bus, gateway):
        publisher = asyncio.create_task(publish())
        for share in kills:
            await becomes(lambda share=share: len(gateway.messages) >= total * share)  # type: ignore[misc]
            await in_thread(own_kafka.server.kill, own_kafka.server.start)
        await publisher
        await becomes(lambda: gateway.payloads[-1:] == numbered(total)[-1:])
        await becomes(bus.is_ready)
        assert bus.stats()["reconnects"] >= 1
    assert without_repeats(gateway.payloads) == numbered(total)
    assert len(gateway.payloads) <= total + SEAM_MAX * len(kills)
    sequences = [message.sequence for message in gateway.messages]
    assert sequences == sorted(set(sequences)), "nothing that Kafka kept once may be handed over twice"


async def test_a_hand_over_under_way_survives_the_broker(own_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), own_kafka.bus("one")
    async with consuming(bus, gateway):
        gateway.gate.clear()
        await own_kafka.publish(numbered(3_000))
        await gateway.until(lambda: gateway.entered > 0)
        await in_thread(own_kafka.server.kill)
        await becomes(lambda: not bus.is_ready())
        await in_thread(own_kafka.server.start)
        gateway.gate.set()
        await becomes(lambda: len(gateway.messages) >= 3_000)
        await becomes(bus.is_ready)
    assert gateway.payloads == numbered(3_000)


async def test_a_broker_absent_at_the_start_is_waited_for(
    own_kafka: KafkaBackend, caplog: pytest.LogCaptureFixture
) -> None:
    await in_thread(own_kafka.server.stop)
    gateway, bus = Gateway(), own_kafka.bus("one")
    async with trying(bus, gateway):
        with caplog.at_level(logging.WARNING):
            await becomes(lambda: "retrying" in caplog.text)
        assert not bus.is_ready()
        bus.broadcast(b"nobody hears this")
        assert bus.stats()["broadcasts_dropped"] == 1
        await in_thread(own_kafka.server.start)
        await becomes(bus.is_ready)
        await own_kafka.publish(numbered(10))
        await gateway.has(10)
    assert gateway.payloads == numbered(10)


async def test_a_frozen_broker_shows_as_not_ready_and_loses_nothing(own_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), own_kafka.bus("one")
    async with consuming(bus, gateway):
        await own_kafka.publish(numbered(10))
        await gateway.has(10)
        own_kafka.server.freeze()
        await becomes(lambda: not bus.is_ready())
        with pytest.raises(BusError, match="may be kept or not"):
            await bus.publish(f"{own_kafka.stream}x.y", b"refused in bounded time")
        own_kafka.server.thaw()
        await keep(own_kafka, b"10")
        await becomes(lambda: len(gateway.messages) >= 11)
        await becomes(bus.is_ready)
    assert without_repeats(gateway.payloads) == numbered(11)


async def test_a_bus_stops_in_bounded_time_beside_a_frozen_broker_and_repeats_only_what_it_could_not_commit(
    own_kafka: KafkaBackend,
) -> None:
    gateway = Gateway()
    try:
        async with consuming(own_kafka.bus("one", commit_interval=3600), gateway):
            await own_kafka.publish(numbered(10))
            await gateway.has(10)
            own_kafka.server.freeze()
            began = time.monotonic()
        print(f"stopped in {time.monotonic() - began:.1f} s")
    finally:
        own_kafka.server.thaw()
    after = Gateway()
    async with consuming(own_kafka.bus("one"), after):
        await own_kafka.publish([b"10"])
        await becomes(lambda: after.payloads[-1:] == [b"10"])
    assert after.payloads in (numbered(11), [b"10"]), "all or nothing of it was committed"


async def test_a_disk_that_was_lost_is_followed_from_its_new_beginning(own_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), own_kafka.bus("one")
    async with consuming(bus, gateway):
        await own_kafka.publish(numbered(100))
        await gateway.has(100)
        await becomes(lambda: own_kafka.committed("one") == {0: 100})
        await in_thread(own_kafka.server.kill, own_kafka.server.wipe, own_kafka.server.start)
        await own_kafka.close()
        await in_thread(lambda: own_kafka.create(own_kafka.stream))
        await own_kafka.publish(numbered(50, start=100))
        await becomes(lambda: len(gateway.messages) >= 150)
    assert gateway.payloads == numbered(150)


# --- where a node begins ---------------------------------------------------------------------------------------------


async def test_a_topic_made_later_is_read_from_its_beginning(calm_kafka_server: KafkaServer) -> None:
    async with kafka_backend_on(calm_kafka_server, partitions=0) as backend:
        gateway, bus = Gateway(), backend.bus("one")
        async with consuming(bus, gateway):
            assert bus.lag_by_stream() == {backend.stream: 0}
            await backend.publish(numbered(100), partition=-1)  # the broker makes it
            await gateway.has(100)
        assert gateway.payloads == numbered(100)
        assert await asyncio.to_thread(backend.committed, "one") == {0: 100}


@pytest.mark.parametrize("seen", [True, False], ids=["seen to be gone", "at once"])
async def test_a_topic_deleted_and_made_again_is_another_one_and_read_from_its_beginning(
    calm_kafka: KafkaBackend, caplog: pytest.LogCaptureFixture, seen: bool
) -> None:
    gateway, bus = Gateway(), calm_kafka.bus("one", commit_interval=0.01)
    # If it was seen to be gone, more than there was before: at the old position there is something again.
    again = 200 if seen else 50
    async with consuming(bus, gateway):
        await calm_kafka.publish(numbered(100))
        await gateway.has(100)
        await becomes(lambda: calm_kafka.committed("one") == {0: 100})
        await calm_kafka.close()  # a producer that looks for its topic would make it anew
        await in_thread(lambda: calm_kafka.delete(calm_kafka.stream))
        if seen:
            await becomes(lambda: "no such topic" in caplog.text)
            assert bus.is_ready()
        await in_thread(lambda: calm_kafka.create(calm_kafka.stream))
        await calm_kafka.publish(numbered(again, start=100))
        await becomes(lambda: len(gateway.messages) >= 100 + again)
        assert bus.is_ready()
    assert gateway.payloads == numbered(100 + again)
    assert gateway.messages[100].sequence == 1


async def test_a_partition_added_while_a_node_runs_or_is_away_is_read_from_its_beginning(
    calm_kafka: KafkaBackend,
) -> None:
    gateway = Gateway()
    async with consuming(calm_kafka.bus("one"), gateway):
        await in_thread(lambda: calm_kafka.grow(2))
        await calm_kafka.close()
        await calm_kafka.publish(numbered(10), partition=1)
        await gateway.has(10)
    await in_thread(lambda: calm_kafka.grow(3))
    await calm_kafka.close()
    await calm_kafka.publish(numbered(10, start=10), partition=2)
    async with consuming(calm_kafka.bus("one"), gateway):
        await gateway.has(20)
    assert gateway.payloads == numbered(20)


async def test_a_crash_before_the_first_commit_loses_nothing(calm_kafka: KafkaBackend) -> None:
    """Where a node starts is committed at once: it never hands over anything here, and never stops in order."""
    await calm_kafka.publish([b"before the node was there"])
    gateway = Gateway(failure=RuntimeError("crash"))
    with contextlib.suppress(RuntimeError):
        async with consuming(calm_kafka.bus("one", commit_interval=3600), gateway) as task:
            await calm_kafka.publish(numbered(10))
            await asyncio.wait([task])
    after = Gateway()
    async with consuming(calm_kafka.bus("one"), after):
        await after.has(10)
    assert after.payloads == numbered(10)


async def test_offsets_are_committed_at_the_interval_and_at_the_stop(calm_kafka: KafkaBackend) -> None:
    gateway = Gateway()
    async with consuming(calm_kafka.bus("one", commit_interval=0.05), gateway):
        await calm_kafka.publish(numbered(100))
        await gateway.has(100)
        await becomes(lambda: calm_kafka.committed("one") == {0: 100})
    async with consuming(calm_kafka.bus("one", commit_interval=3600), gateway):
        await calm_kafka.publish(numbered(100, start=100))
        await gateway.has(200)
        assert await asyncio.to_thread(calm_kafka.committed, "one") == {0: 100}
    assert await asyncio.to_thread(calm_kafka.committed, "one") == {0: 200}


async def test_what_waits_longer_than_its_hand_over_holds_back_the_offsets_and_nothing_else(
    calm_kafka: KafkaBackend,
) -> None:
    served: set[int] = set()
    gateway = Gateway(is_served=lambda: bool(served))
    async with consuming(calm_kafka.bus("one", commit_interval=0.05), gateway):
        await calm_kafka.publish(numbered(10))
        await gateway.has(10)
        gateway.is_served = None
        await calm_kafka.publish(numbered(10, start=10))
        await gateway.has(20)
    assert await asyncio.to_thread(calm_kafka.committed, "one") == {0: 0}
    after = Gateway()
    async with consuming(calm_kafka.bus("one", commit_interval=0.05), after):
        await after.has(20)
        await becomes(lambda: calm_kafka.committed("one") == {0: 20})
    assert after.payloads == numbered(20)


async def test_messages_trimmed_while_a_node_was_away_are_counted_and_it_goes_on_with_the_oldest_kept(
    calm_kafka: KafkaBackend, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway()
    async with consuming(calm_kafka.bus("one"), gateway):
        await calm_kafka.publish(numbered(10))
        await gateway.has(10)
    await calm_kafka.publish(numbered(5_000, start=10))
    await in_thread(lambda: calm_kafka.trim(4_010))
    bus = calm_kafka.bus("one")
    async with consuming(bus, gateway):
        await gateway.has(1_010)
    assert gateway.payloads[10:] == numbered(1_000, start=4_010)
    assert bus.lost_by_stream() == {calm_kafka.stream: 4_000}
    assert "4000 messages were trimmed" in caplog.text


async def test_messages_trimmed_under_a_hand_over_that_waits_are_counted_and_it_goes_on(
    calm_kafka: KafkaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As little is fetched ahead as can be, so that most of what comes meanwhile is still with the broker.
    monkeypatch.setitem(CONSUMER, "queued.max.messages.kbytes", 1)
    monkeypatch.setitem(CONSUMER, "queued.min.messages", 1)
    gateway, bus = Gateway(), calm_kafka.bus("one", max_bytes=1024)
    large = [b"%06d" % number + bytes(2_000) for number in range(3_000)]
    async with consuming(bus, gateway):
        gateway.gate.clear()
        await calm_kafka.publish([b"held"])
        await gateway.until(lambda: gateway.entered == 1)
        await calm_kafka.publish(large)
        await in_thread(lambda: calm_kafka.trim(2_901))
        gateway.gate.set()
        await becomes(lambda: gateway.payloads[-1:] == large[-1:])
        await becomes(bus.is_ready)
    received = gateway.payloads[1:]
    gap = len(large) - len(received)
    assert gap > 0
    assert received[-100:] == large[-100:]
    assert received == sorted(set(received))
    assert bus.lost_by_stream() == {calm_kafka.stream: gap}


# --- what is in a topic ----------------------------------------------------------------------------------------------


async def test_several_partitions_and_topics_keep_their_order_each(calm_kafka_server: KafkaServer, seed: int) -> None:
    chance = random.Random(seed)
    async with kafka_backend_on(calm_kafka_server, partitions=4) as backend:
        second = f"{backend.stream}b"
        await asyncio.to_thread(backend.create, second, 2)
        places = [(backend.stream, number) for number in range(4)] + [(second, number) for number in range(2)]
        sent = [(*chance.choice(places), b"%d" % number) for number in range(5_000)]
        one, two = Gateway(), Gateway()
        bus = backend.bus("one", topics=[backend.stream, second])
        async with consuming(bus, one), consuming(backend.bus("two", topics=[backend.stream, second]), two):
            await backend.write([(topic, f"{topic}/{number}", item, number) for topic, number, item in sent])
            await one.has(len(sent))
            await two.has(len(sent))
            assert bus.lag_by_stream() == {backend.stream: 0, second: 0}
        for gateway in (one, two):
            for place in places:
                mine = [m for m in gateway.messages if m.subject == f"{place[0]}/{place[1]}"]
                assert [m.data for m in mine] == [item for *at, item in sent if tuple(at) == place]
                assert [m.sequence for m in mine] == list(range(1, len(mine) + 1))
                assert {m.stream for m in mine} == {place[0]}


async def test_records_without_a_value_are_counted_and_odd_keys_are_text(calm_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), calm_kafka.bus("one")
    topic = calm_kafka.stream
    async with consuming(bus, gateway):
        await calm_kafka.write([(topic, b"\xff\x00k", b"1", 0), (topic, "k", None, 0), (topic, "", b"", 0)])
        await calm_kafka.write([(topic, "gruppe \u00e4", b"3", 0)])
        await gateway.has(3)
        assert bus.stats()["decode_errors"] == 1
        await becomes(lambda: bus.stats()["lag"] == 0)
    assert [(m.subject, m.data, m.sequence) for m in gateway.messages] == [
        ("\ufffd\x00k", b"1", 1),
        ("", b"", 3),
        ("gruppe \u00e4", b"3", 4),
    ]


async def test_only_committed_transactions_arrive_and_leave_no_lag(calm_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), calm_kafka.bus("one")
    async with consuming(bus, gateway):
        await asyncio.to_thread(calm_kafka.transaction, [b"dropped"], commit=False)
        await asyncio.to_thread(calm_kafka.transaction, numbered(3), commit=True)
        await gateway.has(3)
        await becomes(lambda: bus.stats()["lag"] == 0)
    assert gateway.payloads == numbered(3)


async def test_the_lag_is_known_while_a_hand_over_waits(calm_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), calm_kafka.bus("one")
    async with consuming(bus, gateway):
        assert bus.lag_by_stream() == {calm_kafka.stream: 0}
        gateway.gate.clear()
        await calm_kafka.publish(numbered(1_000))
        await becomes(lambda: bus.lag_by_stream() == {calm_kafka.stream: 1_000})
        await calm_kafka.publish(numbered(500, start=1_000))
        await becomes(lambda: bus.stats()["lag"] == 1_500)
        gateway.gate.set()
        await becomes(lambda: bus.stats()["lag"] == 0)
    assert gateway.payloads == numbered(1_500)


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_publishing_makes_a_topic_and_says_why_it_can_not(calm_kafka: KafkaBackend) -> None:
    bus = calm_kafka.bus("one")
    await confirmed(bus, f"{calm_kafka.stream}made.by.us", b"hello")
    with pytest.raises(BusError, match="first word names the topic"):
        await bus.publish(".events", b"x")
    with pytest.raises(BusError, match="did not take"):
        await bus.publish("no such name.events", b"x")
    with pytest.raises(BusError, match="did not take"):
        await bus.publish(calm_kafka.subject, bytes(4 * 1024 * 1024))  # the broker's limit is 1 MiB
    await bus.publish(calm_kafka.subject, b"and goes on")
    await bus.close()


async def test_nobody_listening_is_a_bus_error_in_bounded_time() -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        bus = open_bus(f"kafka://127.0.0.1:{free_port()}", Settings(), node_id="one")
        with pytest.raises(BusError, match="not confirmed within 5 s"):
            await bus.publish("chat.events", b"x")
        await bus.close()


async def test_without_a_broadcast_topic_every_broadcast_is_dropped_and_counted(calm_kafka: KafkaBackend) -> None:
    one, two = Gateway(), Gateway()
    first = calm_kafka.bus("one", broadcast_topic="")
    async with consuming(first, one), consuming(calm_kafka.bus("two", broadcast_topic=""), two):
        first.broadcast(b"into the void")
        assert first.stats()["broadcasts_dropped"] == 1
        await calm_kafka.publish([b"x"])
        await two.has(1)
    assert two.broadcasts == []


async def test_what_others_write_to_the_broadcast_topic_is_counted_and_not_received(calm_kafka: KafkaBackend) -> None:
    gateway, bus = Gateway(), calm_kafka.bus("one")
    async with consuming(bus, gateway):
        await calm_kafka.write([(calm_kafka.settings.broadcast_topic, "", b"no node of ours", 0)])
        await becomes(lambda: bus.stats()["decode_errors"] == 1)
    assert gateway.broadcasts == []


async def test_a_probe_tells_a_broker_from_none(calm_kafka: KafkaBackend) -> None:
    await probe(calm_kafka.server.url, within=WAIT_S_MAX)
    with pytest.raises(BusError):
        await probe(f"kafka://127.0.0.1:{free_port()}", within=0.5)


async def test_the_library_says_nothing_on_its_own(own_kafka: KafkaBackend, capfd: pytest.CaptureFixture[str]) -> None:
    """A broker that goes and comes fills screens; our own lines go to logging."""
    gateway, bus = Gateway(), own_kafka.bus("one")
    async with consuming(bus, gateway):
        await in_thread(own_kafka.server.kill)
        await becomes(lambda: not bus.is_ready())
        await in_thread(own_kafka.server.start)
        await becomes(bus.is_ready)
    assert capfd.readouterr().err == ""


async def test_how_long_a_message_takes_is_printed(calm_kafka: KafkaBackend) -> None:
    gateway, took = Gateway(), []
    bus = calm_kafka.bus("one")
    async with consuming(bus, gateway):
        for number, item in enumerate(numbered(100), 1):
            began = time.perf_counter()
            await bus.publish(calm_kafka.subject, item)
            await gateway.has(number)
            took.append(time.perf_counter() - began)
    took.sort()
    print(f"publish to hand-over: median {took[50] * 1000:.1f} ms, p99 {took[98] * 1000:.1f} ms")
    assert gateway.payloads == numbered(100)
