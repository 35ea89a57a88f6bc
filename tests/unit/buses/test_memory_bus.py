"""The memory bus's own bounds: what the contract suite cannot ask of every bus."""

import asyncio
import gc

import pytest
from tidegate.buses import memory
from tidegate.buses.memory import LOGS, MemoryBus, open_bus
from tidegate.errors import BusError

from tests.buses import Gateway, Nats, Settings, consuming, numbered


def bus_of(name: str, node_id: str = "one") -> MemoryBus:
    return open_bus(f"memory:{name}", Settings(Nats(["CHAT"])), node_id)


async def test_a_gateway_that_lags_holds_the_publisher_back_and_then_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOG_MESSAGES_MAX", 100)
    monkeypatch.setattr(memory, "PUBLISH_TIMEOUT_S", 0.05)
    bus, gateway = bus_of("lag"), Gateway()
    gateway.gate.clear()
    async with consuming(bus, gateway):
        for item in numbered(100):
            await bus.publish("chat.events", item)
        with pytest.raises(BusError, match="full"):
            await bus.publish("chat.events", b"too much")
        monkeypatch.setattr(memory, "PUBLISH_TIMEOUT_S", 20)
        waiting = asyncio.create_task(bus.publish("chat.events", b"100"))
        gateway.gate.set()
        await waiting
        await gateway.has(101)
    assert gateway.payloads == numbered(101)


async def test_a_node_that_went_away_does_not_hold_publishers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOG_MESSAGES_MAX", 100)
    gone, here = bus_of("away", "gone"), bus_of("away", "here")
    async with consuming(gone, Gateway()):
        pass
    gateway = Gateway()
    async with consuming(here, gateway):
        for item in numbered(500):
            await here.publish("chat.events", item)
            await asyncio.sleep(0)
        await gateway.has(500)
    assert gateway.payloads == numbered(500)
    back = Gateway()
    async with consuming(gone, back):
        await back.has(100)
    assert back.payloads == numbered(100, start=400), "it gets what the log still holds"


async def test_bytes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOG_BYTES_MAX", 1_000)
    bus, gateway = bus_of("bytes"), Gateway()
    async with consuming(bus, gateway):
        pass
    for _ in range(50):
        await bus.publish("chat.events", bytes(300))
    async with consuming(bus, gateway):
        await gateway.has(3)
    assert len(gateway.messages) == 3
    with pytest.raises(BusError):
        await bus.publish("chat.events", bytes(1_001))


async def test_streams_are_numbered_each_for_itself() -> None:
    bus, gateway = bus_of("streams"), Gateway()
    async with consuming(bus, gateway):
        for subject in ("chat.a", "notify.a", "chat.b", "CHAT.c"):
            await bus.publish(subject, b"")
        await gateway.has(4)
    assert [(m.stream, m.sequence) for m in gateway.messages] == [("CHAT", 1), ("NOTIFY", 1), ("CHAT", 2), ("CHAT", 3)]


async def test_a_subject_of_one_word_is_a_topic_with_its_name_as_it_is() -> None:
    bus, gateway = bus_of("topics"), Gateway()
    async with consuming(bus, gateway):
        await bus.publish("group_msg", b"")
        await gateway.has(1)
    assert (gateway.messages[0].stream, gateway.messages[0].subject) == ("group_msg", "group_msg")


async def test_names_are_apart_and_a_log_goes_with_its_last_bus() -> None:
    here, there = bus_of("here"), bus_of("there")
    gateway = Gateway()
    async with consuming(there, gateway):
        await here.publish("chat.a", b"not for there")
        await there.publish("chat.a", b"for there")
        await gateway.has(1)
    assert gateway.payloads == [b"for there"]
    assert "here" in LOGS
    del here, there
    gc.collect()
    assert "here" not in LOGS
