"""Streams and consumers as the contract wants them, as others made them, and as several nodes share them."""

import asyncio
import secrets
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from tidegate.buses._tap import tap_on

from tests.buses import Gateway, NatsBackend, backend_on, consuming, numbered, until
from tests.servers import NatsServer


async def test_a_stream_that_others_made_is_taken_whole_whatever_its_subjects(calm_nats: NatsBackend) -> None:
    await (await calm_nats.client()).jsm().add_stream(name=calm_nats.stream, subjects=[f"{calm_nats.stream.lower()}.>"])
    gateway = Gateway()
    async with consuming(calm_nats.bus("one"), gateway):
        await calm_nats.publish(numbered(5))
        await gateway.has(5)
    assert gateway.messages[0].subject == calm_nats.subject


async def test_a_missing_stream_gets_both_spellings_and_file_storage(calm_nats: NatsBackend) -> None:
    async with consuming(calm_nats.bus("one"), Gateway()):
        config = (await (await calm_nats.client()).jsm().stream_info(calm_nats.stream)).config
    assert set(config.subjects or ()) == {f"{calm_nats.stream}.>", f"{calm_nats.stream.lower()}.>"}
    assert (config.storage, config.retention) == ("file", "limits")


async def test_streams_that_operators_own_are_waited_for_and_read_from_their_first_message(
    calm_nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend_on(calm_nats_server, ensure_streams=False) as backend:
        gateway, bus = Gateway(), backend.bus("one")
        run = asyncio.create_task(bus.run(gateway.deliver, gateway.receive))
        await until(lambda: "nats.ensure_streams" in caplog.text)
        assert not bus.is_ready()
        await (await backend.client()).jsm().add_stream(name=backend.stream, subjects=[f"{backend.stream.lower()}.>"])
        await backend.publish(numbered(10))
        await gateway.has(10)
        run.cancel()
        await asyncio.wait([run])
    assert gateway.payloads == numbered(10)


async def test_the_consumer_is_what_the_contract_says(calm_nats: NatsBackend) -> None:
    manager = (await calm_nats.client()).jsm()
    await manager.add_stream(name=calm_nats.stream, subjects=[f"{calm_nats.stream}.>"])
    async with consuming(calm_nats.bus("web.1 a"), Gateway()):
        info = await manager.consumer_info(calm_nats.stream, f"gateway-{calm_nats.settings.client_id}-web_1_a")
    assert info.config.ack_policy == AckPolicy.EXPLICIT
    assert info.config.deliver_policy == DeliverPolicy.NEW
    assert info.config.inactive_threshold == 300
    assert not info.config.filter_subject


@pytest.mark.parametrize(
    "left",
    [
        {"ack_policy": AckPolicy.NONE},
        {"filter_subject": "nothing.published"},
        {"deliver_subject": "somewhere", "ack_policy": AckPolicy.EXPLICIT},
        {"max_ack_pending": 7, "inactive_threshold": 20.0},
    ],
    ids=lambda left: next(iter(left)),
)
async def test_a_consumer_left_by_another_version_is_replaced_from_its_floor(
    calm_nats: NatsBackend, left: dict[str, Any]
) -> None:
    manager = (await calm_nats.client()).jsm()
    subjects = (
        [f"{calm_nats.stream.lower()}.>", "nothing.published"]
        if "filter_subject" in left
        else [f"{calm_nats.stream.lower()}.>"]
    )
    await manager.add_stream(name=calm_nats.stream, subjects=subjects)
    name = f"gateway-{calm_nats.settings.client_id}-one"
    await manager.add_consumer(calm_nats.stream, ConsumerConfig(durable_name=name, **left))
    await calm_nats.publish(numbered(10))
    gateway = Gateway()
    async with consuming(calm_nats.bus("one"), gateway):
        await gateway.has(10)
    await manager.delete_stream(calm_nats.stream)
    assert gateway.payloads == numbered(10)


async def test_a_message_as_large_as_the_server_allows_is_delivered(servers_wanted: None) -> None:
    server = NatsServer(config="max_payload: 8MB\n")
    server.start()
    gateway, large = Gateway(), secrets.token_bytes(7 * 1024 * 1024)
    try:
        async with backend_on(server) as backend, consuming(backend.bus("one"), gateway):
            await backend.publish([b"before", large, large, large, b"after"])
            await gateway.has(5)
    finally:
        server.remove()
    assert gateway.payloads == [b"before", large, large, large, b"after"]


async def test_lag_tells_what_waits_behind_a_slow_hand_over(calm_nats: NatsBackend) -> None:
    gateway, bus = Gateway(), calm_nats.bus("one")
    gateway.gate.clear()
    async with consuming(bus, gateway):
        await calm_nats.publish(numbered(10_000))
        await until(lambda: bus.stats()["lag"] >= 8_000)
        await calm_nats.publish(numbered(10_000, start=10_000))
        await until(lambda: bus.stats()["lag"] >= 18_000)
        gateway.gate.set()
        await gateway.has(20_000)
        await until(lambda: bus.stats()["lag"] == 0)


async def test_nodes_that_share_a_consumer_get_each_message_once_between_them(calm_nats_server: NatsServer) -> None:
    one, two = Gateway(), Gateway()
    async with (
        backend_on(calm_nats_server, consumer_mode="shared") as backend,
        consuming(backend.bus("one"), one),
        consuming(backend.bus("two"), two),
    ):
        await backend.publish(numbered(20_000))
        await until(lambda: len(one.messages) + len(two.messages) >= 20_000)
    assert sorted(one.payloads + two.payloads) == sorted(numbered(20_000))
    assert one.messages and two.messages


async def test_what_a_sharing_node_leaves_behind_the_others_get_at_once(calm_nats_server: NatsServer) -> None:
    """Within the test's patience, which is about the ack wait: it is handed back, not waited for."""
    one, two = Gateway(), Gateway()
    one.gate.clear()
    async with backend_on(calm_nats_server, consumer_mode="shared") as backend:
        async with consuming(backend.bus("one"), one):
            await backend.publish(numbered(5_000))
            await one.until(lambda: one.entered > 0)
        async with consuming(backend.bus("two"), two):
            async with asyncio.timeout(20):
                await two.has(5_000)
    assert sorted(two.payloads) == sorted(numbered(5_000))


async def test_a_shared_consumer_of_the_wrong_kind_is_left_alone_and_its_cure_logged(
    calm_nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend_on(calm_nats_server, consumer_mode="shared") as backend:
        manager = (await backend.client()).jsm()
        await manager.add_stream(name=backend.stream, subjects=[f"{backend.stream.lower()}.>"])
        name = f"gateway-{backend.settings.client_id}"
        await manager.add_consumer(backend.stream, ConsumerConfig(durable_name=name, ack_policy=AckPolicy.NONE))
        bus = backend.bus("one")
        run = asyncio.create_task(bus.run(Gateway().deliver, Gateway().receive))
        await until(lambda: f"nats consumer rm {backend.stream} {name}" in caplog.text)
        assert not bus.is_ready()
        run.cancel()
        await asyncio.wait([run])
        assert (await manager.consumer_info(backend.stream, name)).config.ack_policy == AckPolicy.NONE


async def test_the_installed_client_library_can_be_tapped_and_goes_on_working(calm_nats_server: NatsServer) -> None:
    client = Client()
    await client.connect([calm_nats_server.url], allow_reconnect=False)
    try:
        tap = await tap_on(client)
        assert tap is not None, "the library changed: every message takes the slow way"
        assert await tap_on(client) is tap
        subscription = await client.subscribe("tapped.subject")
        await client.publish("tapped.subject", b"still read")
        assert (await subscription.next_msg(timeout=5)).data == b"still read"
    finally:
        await client.close()
