"""The pump from the bus and the broadcasts between nodes, between fakes: batches, pressure, faults."""

import asyncio
import time
from typing import Any

import pytest
from tidegate._core import PUBLISH, Intake, Messages, Rule
from tidegate.buses import Arrived
from tidegate.gateway import broadcast
from tidegate.profile import (
    Action,
    BusMessage,
    BusRule,
    Publish,
    Reply,
    Send,
)

from tests.unit.gateway_fakes import Bench, FakeEngine, answering, bus_message, sent, settled

# --- from the bus -----------------------------------------------------------------------------------------------------


async def test_a_batch_from_the_bus_is_one_submission_and_observed() -> None:
    def on_bus(message: BusMessage) -> list[Action]:
        return [Publish("room", message.data, exclude="uuid-1"), Send(4, b"x")]

    bench = Bench(on_bus=on_bus)
    now = time.perf_counter()
    await bench.gateway.deliver([bus_message(b"1", now), bus_message(b"2", now - 3600)])
    assert bench.engine.taken() == [
        (PUBLISH, "room", b"1", True, "uuid-1"),
        sent(4, b"x"),
        (PUBLISH, "room", b"2", True, "uuid-1"),
        sent(4, b"x"),
    ]
    assert bench.engine.batches == 1
    assert bench.counters.messages_from_bus == 2
    assert sum(bench.counters.latency_counts) == 2
    assert bench.counters.latency_counts[-1] == 1


@pytest.mark.parametrize("fault", [ValueError("s3cret"), Reply(b""), "nonsense"])
async def test_a_bus_message_that_the_profile_fails_on_is_skipped(
    fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    def on_bus(message: BusMessage) -> list[Any]:
        if message.data != b"bad":
            return [Publish("room", message.data)]
        if isinstance(fault, Exception):
            raise fault
        return [fault]

    bench = Bench(on_bus=on_bus)
    await bench.gateway.deliver([bus_message(b"1"), bus_message(b"bad"), bus_message(b"2")])
    assert [command[2] for command in bench.engine.taken()] == [b"1", b"2"]
    assert bench.counters.profile_errors == 1
    assert "s3cret" not in caplog.text


async def test_the_bus_waits_while_the_engine_is_pressed() -> None:
    bench = Bench(on_bus=lambda message: [Publish("room", message.data)])
    bench.engine.is_pressed = True
    delivery = asyncio.create_task(bench.gateway.deliver([bus_message()]))
    await settled()
    bench.gateway.pump()
    await settled()
    assert len(bench.engine.commands) == 1
    assert not delivery.done()
    bench.engine.is_pressed = False
    bench.gateway.pump()
    await delivery


async def test_the_bus_goes_on_even_if_the_wake_up_was_lost() -> None:
    bench = Bench(on_bus=lambda message: [Publish("room", message.data)])
    bench.engine.is_pressed = True
    delivery = asyncio.create_task(bench.gateway.deliver([bus_message()]))
    await settled()
    bench.engine.is_pressed = False
    await delivery


# --- between nodes ----------------------------------------------------------------------------------------------------


async def test_what_one_node_broadcasts_another_publishes() -> None:
    here = Bench(on_message=answering(Publish("chat:\u00e9", b'{"a":1}', exclude=1, all_nodes=True)))
    there = Bench()
    here.message(b"x")
    for data in here.bus.broadcasts:
        there.gateway.receive(data)
    await settled()
    assert there.engine.taken() == [(PUBLISH, "chat:\u00e9", b'{"a":1}', True, "uuid-1")]
    assert there.bus.broadcasts == []


async def test_broadcasts_of_one_turn_are_submitted_together() -> None:
    bench = Bench()
    for number in range(5):
        bench.gateway.receive(broadcast.encode("room", b"%d" % number, None))
    await settled()
    assert len(bench.engine.taken()) == 5
    assert bench.engine.batches == 1


async def test_broadcasts_give_way_while_the_engine_is_pressed() -> None:
    bench = Bench()
    bench.engine.is_pressed = True
    bench.gateway.receive(broadcast.encode("room", b"x", None))
    await settled()
    assert bench.engine.taken() == []
    assert bench.counters.errors["broadcast_dropped"] == 1


WELL_FORMED = broadcast.encode("room", b"payload", "uuid")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02" + WELL_FORMED[1:],
        b"\x01\x00\x00\x00payload",
        b"\x01\xff\xff\xffroom",
        b"\x01\x00\x00\x02\xff\xfe{}",
        b"\x01\x01\x00\x01\xffr{}",
        b"\x01\x00\x00\x01r\xff",
        *[WELL_FORMED[:length] for length in range(12)],
    ],
)
async def test_junk_between_nodes_is_counted_and_nothing_else(data: bytes) -> None:
    bench = Bench()
    bench.gateway.receive(data)
    await settled()
    assert bench.engine.taken() == []
    assert bench.counters.errors["broadcast_decode"] == 1


# --- batches that stay native -----------------------------------------------------------------------------------------


def arrived(*events: bytes) -> Arrived:
    intake = Intake()
    intake.watch(1, 1, 0)
    for number, data in enumerate(events, 1):
        reply = f"$JS.ACK.CHAT.gateway.1.{number}.{number}.1700000000000000000.0"
        intake.take(f"MSG chat.events 1 {reply} {len(data)}\r\n".encode() + data + b"\r\n")
    seen = intake.arrived(1)
    assert seen is not None
    return Arrived("CHAT", seen[0][0], time.perf_counter())


class RuledEngine(FakeEngine):
    """Takes events that begin with `{` for plain, and notes them among the commands."""

    def publish(self, messages: Messages, first: int, rule: Rule) -> tuple[int, int, int, bool]:
        events = [found[1] for at in range(len(messages)) if (found := messages.get(at))]
        odd = next((at for at in range(first, len(events)) if events[at][:1] != b"{"), len(events))
        end = next((at for at in range(odd, len(events)) if events[at][:1] == b"{"), len(events))
        self.commands += [(PUBLISH, "by rule", data, True, None) for data in events[first:odd]]
        return odd - first, odd, end, self.is_pressed


def ruled() -> Bench:
    return Bench(
        engine=RuledEngine(),
        on_bus=lambda message: [Publish("by profile", message.data)] if message.data != b"nobody" else [],
        bus_rule=lambda: BusRule("room", "user_id", "exclude", ("user:",)),
    )


async def test_plain_messages_go_by_the_rule_and_the_others_by_the_profile_in_one_order() -> None:
    bench = ruled()
    await bench.gateway.deliver(arrived(b"{1}", b"{2}", b"3", b"nobody", b"{5}", b"6"))
    assert [(command[1], command[2]) for command in bench.engine.taken()] == [
        ("by rule", b"{1}"),
        ("by rule", b"{2}"),
        ("by profile", b"3"),
        ("by rule", b"{5}"),
        ("by profile", b"6"),
    ]
    assert bench.counters.messages_from_bus == 6
    assert bench.counters.broadcasts == 5
    assert sum(bench.counters.latency_counts) == 6


async def test_without_a_rule_the_profile_is_asked_about_each() -> None:
    bench = Bench(on_bus=lambda message: [Publish("by profile", message.data)])
    await bench.gateway.deliver(arrived(b"{1}", b"2"))
    assert [command[1] for command in bench.engine.taken()] == ["by profile", "by profile"]


async def test_an_offer_is_taken_unless_the_engine_is_pressed() -> None:
    bench = ruled()
    assert bench.gateway.offer(arrived(b"{1}"))
    assert len(bench.engine.taken()) == 1
    bench.engine.is_pressed = True
    assert not bench.gateway.offer(arrived(b"{2}"))
    assert bench.engine.taken() == []
    assert bench.counters.messages_from_bus == 1


async def test_a_native_batch_waits_too_while_the_engine_is_pressed() -> None:
    bench = ruled()
    bench.engine.is_pressed = True
    delivery = asyncio.create_task(bench.gateway.deliver(arrived(b"{1}")))
    await settled()
    assert not delivery.done()
    bench.engine.is_pressed = False
    bench.gateway.pump()
    await delivery
