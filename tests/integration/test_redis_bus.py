"""What Redis may do to a gateway (crash, restart, freeze, refuse, forget): the bus comes out with nothing lost,
repeated or out of order, and says truthfully whether it is ready and what a person must do.

Rule: real servers and real signals.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from urllib.parse import urlsplit

import pytest
from tidegate.buses import Bus, open_bus
from tidegate.buses.redis import RedisBus
from tidegate.doctor.probes import _probe_redis
from tidegate.errors import BusError

from tests.buses import Gateway, Redis, RedisBackend, Settings, consuming, numbered, redis_backend_on, until
from tests.cutter import Cutter
from tests.servers import RedisServer


async def in_thread(*steps: Callable[[], None]) -> None:
    for step in steps:
        await asyncio.to_thread(step)


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


def group_of(node: str) -> str:
    return f"gateway-{node}"


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_a_killed_redis_that_comes_back_with_its_data_loses_and_repeats_nothing(own_redis: RedisBackend) -> None:
    gateway, bus = Gateway(), own_redis.bus("one")
    async with consuming(bus, gateway):
        await own_redis.publish(numbered(1_000))
        await gateway.has(1_000)
        await in_thread(own_redis.server.kill)
        await until(lambda: not bus.is_ready())
        await in_thread(own_redis.server.start)
        for item in numbered(100, start=1_000):
            await own_redis.keep(item)
        await gateway.has(1_100)
        await until(bus.is_ready)
        assert bus.stats()["reconnects"] == 1
    assert gateway.payloads == numbered(1_100)
    assert [message.sequence for message in gateway.messages] == list(range(1, 1_101))


async def test_restarts_amid_several_publishers_keep_all_once_and_in_order_a_publisher(own_redis: RedisBackend) -> None:
    publishers, each = 4, 5_000
    gateway = Gateway()

    async def publish(name: bytes, backend: RedisBackend) -> None:
        for number in range(each):
            await backend.keep(b"%s %d" % (name, number))

    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(redis_backend_on(own_redis.server)) for _ in range(publishers)]
        for backend in backends:
            backend.stream = own_redis.stream
        await stack.enter_async_context(consuming(own_redis.bus("one"), gateway))
        tasks = [asyncio.create_task(publish(b"p%d" % at, backend)) for at, backend in enumerate(backends)]
        for share, end in ((0.25, own_redis.server.kill), (0.5, own_redis.server.stop), (0.75, own_redis.server.kill)):
            await gateway.has(int(publishers * each * share))
            await in_thread(end, own_redis.server.start)
        await asyncio.gather(*tasks)
        await gateway.has(publishers * each)
    by = {b"p%d" % at: [p for p in gateway.payloads if p.startswith(b"p%d " % at)] for at in range(publishers)}
    assert by == {name: [b"%s %d" % (name, number) for number in range(each)] for name in by}
    assert len(gateway.payloads) == publishers * each


async def test_a_lost_connection_never_cancels_or_repeats_a_hand_over_under_way(own_redis: RedisBackend) -> None:
    gateway, bus = Gateway(), own_redis.bus("one")
    async with consuming(bus, gateway):
        gateway.gate.clear()
        await own_redis.publish(numbered(3_000))
        await gateway.until(lambda: gateway.entered > 0)
        await in_thread(own_redis.server.kill)
        await until(lambda: not bus.is_ready())
        await in_thread(own_redis.server.start)
        await until(lambda: bus.stats()["reconnects"] > 0)
        gateway.gate.set()
        await gateway.has(3_000)
        await until(bus.is_ready)
    assert gateway.payloads == numbered(3_000)


async def test_a_node_that_was_away_while_redis_crashed_goes_on_where_it_was(own_redis: RedisBackend) -> None:
    gateway = Gateway()
    async with consuming(own_redis.bus("one"), gateway):
        await own_redis.publish(numbered(500))
        await gateway.has(500)
    await own_redis.publish(numbered(500, start=500))
    await in_thread(own_redis.server.kill, own_redis.server.start)
    async with consuming(own_redis.bus("one"), gateway):
        await gateway.has(1_000)
    assert gateway.payloads == numbered(1_000)


async def test_redis_absent_at_the_start_is_not_ready_and_waited_for(own_redis: RedisBackend) -> None:
    await in_thread(own_redis.server.kill)
    gateway, bus = Gateway(), own_redis.bus("one")
    async with trying(bus, gateway):
        assert not bus.is_ready()
        await in_thread(own_redis.server.start)
        await until(bus.is_ready)
        await own_redis.publish(numbered(10))
        await gateway.has(10)
    assert gateway.payloads == numbered(10)


async def test_a_frozen_redis_shows_as_not_ready_and_loses_nothing(own_redis: RedisBackend) -> None:
    gateway, bus = Gateway(), own_redis.bus("one")
    async with consuming(bus, gateway):
        await own_redis.publish(numbered(10))
        await gateway.has(10)
        own_redis.server.freeze()
        await until(lambda: not bus.is_ready())
        own_redis.server.thaw()
        await own_redis.publish(numbered(10, start=10))
        await gateway.has(20)
        await until(bus.is_ready)
    assert gateway.payloads == numbered(20)


@pytest.mark.parametrize("away", [True, False], ids=["away", "held up"])
async def test_a_stream_trimmed_unread_goes_on_with_the_oldest_kept_and_says_how_many_are_gone(
    calm_redis: RedisBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    monkeypatch.setattr("tidegate.buses.redis.SLOW_S", 0)  # no hand-over is so short that nobody looks
    gateway = Gateway()
    async with contextlib.AsyncExitStack() as stack:
        async with consuming(calm_redis.bus("one"), gateway):
            await calm_redis.publish(numbered(10))
            await gateway.has(10)
        if not away:
            gateway.gate.clear()
            await stack.enter_async_context(consuming(calm_redis.bus("one"), gateway))
            await calm_redis.publish([b"held"])
            await gateway.until(lambda: gateway.entered == 11)
        await calm_redis.publish(numbered(5_000, start=10))
        await calm_redis.client.execute_command("XTRIM", calm_redis.stream, "MAXLEN", 1_000)
        if away:
            await stack.enter_async_context(consuming(calm_redis.bus("one"), gateway))
        gateway.gate.set()
        before = 10 if away else 11
        await gateway.has(before + 1_000)
    assert gateway.payloads[before:] == numbered(1_000, start=4_010)
    assert [message.sequence for message in gateway.messages[before:]] == list(range(before + 4_001, before + 5_001))
    assert "4000 messages were trimmed" in caplog.text
    assert "redis.stream_length" in caplog.text


async def test_a_stream_removed_and_made_again_is_followed_from_its_first_message(calm_redis: RedisBackend) -> None:
    """With ids below ours too, as a stream has them that was made on a machine whose clock is behind."""
    gateway, bus = Gateway(), calm_redis.bus("one")
    async with consuming(bus, gateway):
        await calm_redis.publish(numbered(100))
        await gateway.has(100)
        pipe = calm_redis.client.pipeline()
        pipe.execute_command("DEL", calm_redis.stream)
        for number in range(1, 101):
            pipe.execute_command("XADD", calm_redis.stream, f"{number}-0", "data", b"%d" % (99 + number))
        await pipe.execute()
        await gateway.has(200)
    assert gateway.payloads == numbered(200)
    assert gateway.messages[100].sequence == 1


async def test_a_group_removed_under_a_running_gateway_is_made_again_where_it_was(calm_redis: RedisBackend) -> None:
    gateway, bus = Gateway(), calm_redis.bus("one")
    async with consuming(bus, gateway):
        for start in range(0, 300, 100):
            await calm_redis.publish(numbered(100, start=start))
            await gateway.has(start + 100)
            await calm_redis.client.xgroup_destroy(calm_redis.stream, group_of("one"))
        await calm_redis.publish(numbered(100, start=300))
        await gateway.has(400)
    assert gateway.payloads == numbered(400)


async def test_two_streams_are_both_followed_and_one_that_is_no_stream_stops_only_itself(
    calm_redis: RedisBackend, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = f"{calm_redis.stream}X"
    await calm_redis.client.set(wrong, "a text")
    gateway, bus = Gateway(), calm_redis.bus("one", streams=[wrong, calm_redis.stream])
    async with trying(bus, gateway):
        await until(lambda: "DEL that key" in caplog.text)
        await until(lambda: bus._streams.positions[calm_redis.stream].is_found)  # type: ignore[attr-defined]
        await calm_redis.publish(numbered(10))
        await gateway.has(10)
        assert not bus.is_ready()
        await calm_redis.client.delete(wrong)
        await until(bus.is_ready)
        await calm_redis.client.xadd(wrong, {"data": "x"})
        await gateway.has(11)
    assert {message.stream for message in gateway.messages} == {calm_redis.stream, wrong}


async def test_without_streams_no_key_is_made_and_broadcasts_flow(redis_server: RedisServer) -> None:
    async with redis_backend_on(redis_server, streams=()) as backend:
        one, two = Gateway(), Gateway()
        first = backend.bus("one")
        async with consuming(first, one), consuming(backend.bus("two"), two):
            first.broadcast(b"hello")
            await two.until(lambda: two.broadcasts == [b"hello"])
        assert await backend.client.dbsize() == 0


async def test_where_each_node_is_shows_in_redis(calm_redis: RedisBackend) -> None:
    gateway = Gateway()
    async with consuming(calm_redis.bus("one"), gateway):
        await calm_redis.publish(numbered(10))
        await gateway.has(10)
    (group,) = await calm_redis.client.xinfo_groups(calm_redis.stream)
    assert (group["name"], group["entries-read"], group["lag"]) == (b"gateway-one", 10, 0)


async def test_entries_that_are_no_messages_are_counted_and_do_not_stop_the_stream(calm_redis: RedisBackend) -> None:
    gateway, bus = Gateway(), calm_redis.bus("one")
    async with consuming(bus, gateway):
        await calm_redis.client.xadd(calm_redis.stream, {"something": "else"})
        await calm_redis.publish(numbered(1))
        await gateway.has(1)
        assert bus.stats()["decode_errors"] == 1


async def test_a_published_stream_is_kept_as_long_as_the_setting_says(calm_redis: RedisBackend) -> None:
    bus = calm_redis.bus("one", stream_length=1_000)
    for item in numbered(1_500):
        await bus.publish(f"{calm_redis.stream.lower()}.events", item)
    await bus.close()
    assert 1_000 <= await calm_redis.client.xlen(calm_redis.stream) <= 1_200


async def test_what_a_full_redis_refuses_says_the_cure(own_redis: RedisBackend) -> None:
    bus = own_redis.bus("one")
    await own_redis.client.config_set("maxmemory", 1)
    with pytest.raises(BusError, match="maxmemory"):
        await bus.publish("chat.events", b"x")
    await bus.close()


async def test_a_publisher_outlives_a_restart_of_redis(own_redis: RedisBackend) -> None:
    gateway, publisher = Gateway(), own_redis.bus("publisher")
    subject = f"{own_redis.stream.lower()}.events"
    async with consuming(own_redis.bus("one"), gateway):
        await publisher.publish(subject, b"before")
        await in_thread(own_redis.server.kill)
        with pytest.raises(BusError):
            await publisher.publish(subject, b"lost")
        await in_thread(own_redis.server.start)
        await publisher.publish(subject, b"after")
        await gateway.has(2)
        await publisher.close()
    assert gateway.payloads == [b"before", b"after"]


@pytest.mark.parametrize(
    "lie", [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"$-1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""]
)
async def test_a_server_that_answers_nonsense_is_not_ready_and_ends_nothing(lie: bytes) -> None:
    met = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        with contextlib.suppress(OSError):
            while lie and await reader.read(65536):
                writer.write(lie * 20)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    bus, gateway = open_bus(url, Settings(redis=Redis(["CHAT"])), node_id="one"), Gateway()
    async with trying(bus, gateway):
        await until(lambda: met > 6)
        assert not bus.is_ready()
    server.close()
    assert (gateway.messages, gateway.broadcasts) == ([], [])


# --- broadcasts ------------------------------------------------------------------------------------------------------


async def test_a_broadcast_while_redis_is_away_goes_out_when_it_is_back_in_order_and_once(
    own_redis: RedisBackend,
) -> None:
    one, two = Gateway(), Gateway()
    async with Cutter(own_redis.server.port) as cutter, consuming(own_redis.bus("two"), two):
        first = own_redis.bus_at(f"redis://127.0.0.1:{cutter.port}/0", "one")
        async with consuming(first, one):
            await cutter.shut()
            await until(lambda: not first.is_ready())
            for item in numbered(500):
                first.broadcast(item)
            cutter.unshut()
            await two.until(lambda: len(two.broadcasts) == 500)
            assert first.stats()["broadcasts_dropped"] == 0
    assert two.broadcasts == numbered(500)


async def test_connections_cut_at_any_byte_lose_repeat_and_reorder_nothing(own_redis: RedisBackend, seed: int) -> None:
    chance = random.Random(seed)
    gateway, count = Gateway(), 20_000
    async with Cutter(own_redis.server.port) as cutter:
        async with consuming(own_redis.bus_at(f"redis://127.0.0.1:{cutter.port}/0", "one"), gateway):
            for start in range(0, count, 1_000):
                cutter.cut_after(chance.randrange(1, 60_000))
                await own_redis.publish(numbered(1_000, start=start))
            await gateway.until(lambda: len(gateway.messages) >= count or not cutter.armed)
            cutter.cut_after(None)
            await gateway.has(count)
        assert cutter.cuts > 0
    assert gateway.payloads == numbered(count)
    assert [message.sequence for message in gateway.messages] == list(range(1, count + 1))


async def test_broadcasts_too_old_when_redis_is_back_are_dropped_counted_and_said(
    own_redis: RedisBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tidegate.buses._redis_broadcasts.WAIT_S_MAX", 0.2)
    one, two = Gateway(), Gateway()
    first, second = own_redis.bus("one"), own_redis.bus("two")
    async with consuming(first, one), consuming(second, two):
        await in_thread(own_redis.server.kill)
        await until(lambda: not first.is_ready() and not second.is_ready())
        for item in numbered(30):
            first.broadcast(item)
        await until(lambda: first.stats()["broadcasts_dropped"] == 30)
        monkeypatch.setattr("tidegate.buses._redis_broadcasts.WAIT_S_MAX", 30)
        await in_thread(own_redis.server.start)
        await until(lambda: first.is_ready() and second.is_ready())
        first.broadcast(b"young")
        await two.until(lambda: bool(two.broadcasts))
    assert two.broadcasts == [b"young"]
    assert "30 broadcasts to other nodes dropped" in caplog.text


async def test_a_frozen_redis_delays_broadcasts_and_repeats_none(own_redis: RedisBackend) -> None:
    one, two = Gateway(), Gateway()
    first, second = own_redis.bus("one"), own_redis.bus("two")
    async with consuming(first, one), consuming(second, two):
        own_redis.server.freeze()
        for item in numbered(20):
            first.broadcast(item)
        own_redis.server.thaw()
        await two.until(lambda: len(two.broadcasts) >= 20)
        first.broadcast(b"last")
        await two.until(lambda: two.broadcasts[-1] == b"last")
    assert two.broadcasts == [*numbered(20), b"last"]


async def test_on_a_shared_channel_payloads_go_and_come_as_they_are_and_ours_come_back(
    calm_redis: RedisBackend,
) -> None:
    one, two = Gateway(), Gateway()
    channel = f"shared:{calm_redis.stream}"
    first = calm_redis.bus("one", channel=channel)
    assert isinstance(first, RedisBus)
    async with consuming(first, one), consuming(calm_redis.bus("two", channel=channel), two):
        first.broadcast(b'{"node":"one"}')
        await two.until(lambda: len(two.broadcasts) == 1)
        await calm_redis.client.publish(channel, b"\x00 from elsewhere")
        await two.until(lambda: len(two.broadcasts) == 2)
        await one.until(lambda: len(one.broadcasts) == 2)
        await until(lambda: first.broadcast_stats() == {"published": 1, "received": 2})
    assert one.broadcasts == two.broadcasts == [b'{"node":"one"}', b"\x00 from elsewhere"]


async def test_what_was_queued_when_the_run_ends_still_goes_out(calm_redis: RedisBackend) -> None:
    one, two = Gateway(), Gateway()
    first = calm_redis.bus("one")
    async with consuming(calm_redis.bus("two"), two):
        async with consuming(first, one):
            first.broadcast(b"goodbye")
        await two.until(lambda: two.broadcasts == [b"goodbye"])


async def test_junk_on_our_channel_is_counted_and_ignored(calm_redis: RedisBackend) -> None:
    gateway, bus = Gateway(), calm_redis.bus("one")
    async with consuming(bus, gateway):
        await calm_redis.client.publish("tidegate:broadcast", b"junk")
        await until(lambda: bus.stats()["decode_errors"] == 1)
    assert gateway.broadcasts == []


async def test_a_receiver_that_fails_does_not_stop_those_after(
    calm_redis: RedisBackend, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[bytes] = []

    def receive(data: bytes) -> None:
        taken.append(data)
        raise OSError("no")

    first, one = calm_redis.bus("one"), Gateway()
    second = calm_redis.bus("two")
    run = asyncio.create_task(second.run(one.deliver, receive))
    async with consuming(first, one):
        await until(second.is_ready)
        first.broadcast(b"1")
        first.broadcast(b"2")
        await until(lambda: taken == [b"1", b"2"])
    run.cancel()
    await asyncio.wait([run])
    assert "could not be used" in caplog.text


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(servers_wanted: None) -> Iterator[RedisServer]:
    server = RedisServer("--requirepass", "correct-horse", "--appendonly", "no")
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize(
    ("credentials", "cure"), [(":hunter2@", "Correct the user and password"), ("", "Redis wants a password")]
)
async def test_a_wrong_password_says_the_cure_and_is_not_logged(
    guarded: RedisServer, caplog: pytest.LogCaptureFixture, credentials: str, cure: str
) -> None:
    caplog.set_level(logging.DEBUG)
    bus = open_bus(f"redis://{credentials}127.0.0.1:{guarded.port}/0", Settings(redis=Redis(["CHAT"])), node_id="one")
    async with trying(bus, Gateway()):
        await until(lambda: cure in caplog.text)
        assert not bus.is_ready()
        with pytest.raises(BusError) as refused:
            await bus.publish("chat.events", b"x")
    assert cure in str(refused.value)
    assert "hunter2" not in caplog.text + str(refused.value)


async def test_the_doctor_asks_a_real_redis(guarded: RedisServer) -> None:
    at = f"127.0.0.1:{guarded.port}/0"
    assert await _probe_redis(f"redis://:correct-horse@{at}") == ""
    refused = await _probe_redis(f"redis://:hunter2@{at}")
    assert "Correct the user and password" in refused
    assert "hunter2" not in refused


async def test_the_rights_that_the_documents_list_are_enough(guarded: RedisServer) -> None:
    rights = "+ping +client|setname +select +multi +exec +xread +xadd +xinfo +xgroup +publish +subscribe"
    root = f"redis://:correct-horse@127.0.0.1:{guarded.port}/0"
    async with redis_backend_on(guarded) as backend:
        backend.server = type("At", (), {"url": root})()  # type: ignore[assignment]
        await backend.client.execute_command(
            "ACL", "SETUSER", "gateway", "on", ">pass", "~CHAT*", "&tidegate:broadcast", *rights.split()
        )
        url = f"redis://gateway:pass@127.0.0.1:{urlsplit(root).port}/0"
        bus = open_bus(url, Settings(redis=backend.settings), node_id="one")
        gateway = Gateway()
        async with consuming(bus, gateway):
            await bus.publish(f"{backend.stream.lower()}.events", b"x")
            bus.broadcast(b"y")
            await gateway.has(1)
            await until(lambda: bus.broadcast_stats()["published"] == 1)  # type: ignore[attr-defined]
