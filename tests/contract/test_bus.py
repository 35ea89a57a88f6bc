"""What every bus promises (`tidegate.buses.Bus`), tested on each: in order, once, acknowledged after the hand-over.

Rule: no test here knows which bus it runs on. What only one bus can do or suffer is in that bus's own tests.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tidegate.buses import open_bus, scheme_of
from tidegate.errors import ConfigError

from tests.buses import (
    Backend,
    ExpectedError,
    Gateway,
    MemoryBackend,
    NatsBackend,
    RedisBackend,
    consuming,
    numbered,
    until,
)
from tests.kafka_backend import KafkaBackend

BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Backend]] = {
    "memory": lambda request: MemoryBackend(),
    "nats": lambda request: NatsBackend(request.getfixturevalue("calm_nats_server")),
    "redis": lambda request: RedisBackend(request.getfixturevalue("calm_redis_server")),
    "kafka": lambda request: KafkaBackend(request.getfixturevalue("calm_kafka_server")),
}


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    made: Backend = BACKENDS[request.param](request)
    yield made
    await made.close()


async def test_a_burst_arrives_complete_in_order_and_once(backend: Backend) -> None:
    gateway = Gateway()
    sent = numbered(50_000)
    async with consuming(backend.bus("one"), gateway):
        await backend.publish(sent)
        await gateway.has(len(sent))
    assert gateway.payloads == sent
    sequences = [message.sequence for message in gateway.messages]
    assert sequences == list(range(sequences[0], sequences[0] + len(sent)))
    assert max(gateway.batches) > 1, "a burst must be handed over in batches"
    assert {message.stream for message in gateway.messages} == {backend.stream}


async def test_one_quiet_message_does_not_wait_for_company(backend: Backend) -> None:
    """Each is published only when the one before was handed over: a bus that waits for more would never finish."""
    gateway = Gateway()
    async with consuming(backend.bus("one"), gateway):
        for number, item in enumerate(numbered(50), 1):
            await backend.publish([item])
            await gateway.has(number)
    assert gateway.payloads == numbered(50)


async def test_a_hand_over_that_fails_ends_the_run_and_is_repeated_to_the_next(backend: Backend) -> None:
    gateway = Gateway(failure=ExpectedError())
    async with consuming(backend.bus("one"), gateway) as task:
        await backend.publish(numbered(10))
        await asyncio.wait([task])
        assert isinstance(task.exception(), ExpectedError)
    assert gateway.entered > 0
    await backend.publish(numbered(5, start=10))
    after = Gateway()
    async with consuming(backend.bus("one"), after):
        await after.has(15)
    assert after.payloads == numbered(15)


async def test_a_run_cancelled_in_a_hand_over_is_repeated_to_the_next(backend: Backend) -> None:
    gateway = Gateway()
    gateway.gate.clear()
    async with consuming(backend.bus("one"), gateway):
        await backend.publish(numbered(2_000))
        await gateway.until(lambda: gateway.entered > 0)
    assert gateway.messages == []
    after = Gateway()
    async with consuming(backend.bus("one"), after):
        await after.has(2_000)
    assert after.payloads == numbered(2_000)


async def test_what_a_cancelled_run_handed_over_is_not_repeated(backend: Backend) -> None:
    gateway = Gateway()
    async with consuming(backend.bus("one"), gateway):
        await backend.publish(numbered(1_000))
        await gateway.has(1_000)
    await backend.publish(numbered(1_000, start=1_000))
    after = Gateway()
    async with consuming(backend.bus("one"), after):
        await after.has(1_000)
    assert after.payloads == numbered(1_000, start=1_000)


async def test_the_same_bus_can_run_again_and_goes_on_where_it_was(backend: Backend) -> None:
    gateway = Gateway()
    bus = backend.bus("one")
    async with consuming(bus, gateway):
        await backend.publish(numbered(100))
        await gateway.has(100)
    await backend.publish(numbered(100, start=100))
    async with consuming(bus, gateway):
        await gateway.has(200)
    assert gateway.payloads == numbered(200)


async def test_two_nodes_both_get_everything(backend: Backend) -> None:
    one, two = Gateway(), Gateway()
    async with consuming(backend.bus("one"), one), consuming(backend.bus("two"), two):
        await backend.publish(numbered(3_000))
        await one.has(3_000)
        await two.has(3_000)
    assert one.payloads == two.payloads == numbered(3_000)


async def test_a_new_node_starts_with_new_messages(backend: Backend) -> None:
    one, two = Gateway(), Gateway()
    async with consuming(backend.bus("one"), one):
        await backend.publish(numbered(10))
        await one.has(10)
        async with consuming(backend.bus("two"), two):
            await backend.publish(numbered(10, start=10))
            await two.has(10)
    assert two.payloads == numbered(10, start=10)


async def test_a_hand_over_that_waits_stops_the_intake_and_loses_nothing(backend: Backend) -> None:
    gateway = Gateway()
    gateway.gate.clear()
    bus = backend.bus("one")
    async with consuming(bus, gateway):
        await backend.publish(numbered(20_000))
        await gateway.until(lambda: gateway.entered > 0)
        taken = gateway.entered
        await backend.publish(numbered(1, start=20_000))
        assert gateway.entered == taken <= 500, "only one batch may be under way"
        assert bus.stats()["messages"] == 0
        gateway.gate.set()
        await gateway.has(20_001)
    assert gateway.payloads == numbered(20_001)
    assert gateway.together == 1


async def test_a_broadcast_reaches_the_other_nodes_and_never_its_sender(backend: Backend) -> None:
    one, two, three = Gateway(), Gateway(), Gateway()
    first, second = backend.bus("one"), backend.bus("two")
    async with consuming(first, one), consuming(second, two), consuming(backend.bus("three"), three):
        for item in numbered(100):
            first.broadcast(item)
        await two.until(lambda: len(two.broadcasts) == 100)
        await three.until(lambda: len(three.broadcasts) == 100)
        # One that comes back after ours would have: then none of ours can still be on its way.
        second.broadcast(b"last")
        await one.until(lambda: bool(one.broadcasts))
        await three.until(lambda: len(three.broadcasts) == 101)
    assert two.broadcasts == numbered(100)
    assert three.broadcasts == [*numbered(100), b"last"]
    assert one.broadcasts == [b"last"]


async def test_a_broadcast_of_a_bus_that_does_not_run_is_dropped_and_counted(backend: Backend) -> None:
    bus = backend.bus("one")
    bus.broadcast(b"nobody hears this")
    assert bus.stats()["broadcasts_dropped"] == 1
    await bus.close()


async def test_whatever_bytes_a_publisher_sends_arrive_untouched(backend: Backend) -> None:
    junk = [
        b"",
        b"\x00",
        b"\xff\xfe\r\n",
        b"not json",
        b"+OK\r\n-ERR 'x'\r\n",
        b"[" * 10_000,
        bytes(range(256)) * 4_000,
    ]
    gateway = Gateway()
    async with consuming(backend.bus("one"), gateway):
        await backend.publish(junk)
        await gateway.has(len(junk))
    assert gateway.payloads == junk


async def test_what_a_bus_publishes_every_node_gets(backend: Backend) -> None:
    one, two = Gateway(), Gateway()
    first = backend.bus("one")
    async with consuming(first, one), consuming(backend.bus("two"), two):
        for item in numbered(20):
            await first.publish(f"{backend.stream.lower()}.events", item)
        await one.has(20)
        await two.has(20)
    assert one.payloads == two.payloads == numbered(20)
    assert {message.subject for message in one.messages} == {f"{backend.stream.lower()}.events"}


async def test_a_bus_publishes_without_running(backend: Backend) -> None:
    gateway = Gateway()
    publisher = backend.bus("command-line")
    async with consuming(backend.bus("one"), gateway):
        await publisher.publish(f"{backend.stream.lower()}.events", b"hello")
        await gateway.has(1)
        await publisher.close()
    assert gateway.payloads == [b"hello"]


async def test_its_figures_count_what_was_handed_over(backend: Backend) -> None:
    gateway = Gateway()
    bus = backend.bus("one")
    async with consuming(bus, gateway):
        assert bus.is_ready()
        await backend.publish(numbered(100))
        await gateway.has(100)
        await until(lambda: bus.stats()["messages"] == 100)
        stats = bus.stats()
    assert stats == {
        "messages": 100,
        "bytes": sum(map(len, numbered(100))),
        "reconnects": 0,
        "lag": 0,
        "broadcasts_dropped": 0,
        "decode_errors": 0,
    }
    assert not bus.is_ready()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nat://localhost", "Did you mean nats"),
        ("redsi://x", "Did you mean redis:"),
        ("", "Valid: "),
        ("://", "Valid: "),
    ],
)
def test_an_unknown_scheme_names_the_nearest_valid_one(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        scheme_of(url)
    assert words in str(refused.value)


def test_no_password_shows_when_a_url_is_refused() -> None:
    for url in (
        "natz://user:hunter2@host",
        "user:hunter2@host:4222",
        "nats://user:hunter2@ho st",
        "nats://u:hun,ter2@h:x",
        "redis://user:hunter2@ho st",
        "rediss://:hun/ter2@h:6379",
        "redis://h:6379/hunter2@h:x",
    ):
        with pytest.raises(ConfigError) as refused:
            open_bus(url, Backendless, node_id="one")
        assert "hun" not in str(refused.value) + repr(refused.value), url


class Backendless:
    """Settings that nothing reads before the URL is understood."""
