"""Bus messages that need a look-up: in order for each key, acknowledged when all is served, and each on its own."""

import asyncio

import pytest
from tidegate._core import PUBLISH
from tidegate.errors import UpstreamError
from tidegate.gateway import records
from tidegate.profile import Action, BusMessage, Call, Close, Publish, RecordSteps, Reply, Steps, Wait, Wake

from tests.unit.gateway_fakes import Backend, Bench, bus_message, settled

# Far beyond what a test waits: only being woken ends such a wait in time
LONG_S = 25.0


def looking_up(message: BusMessage) -> Steps:
    """Waits for whatever begins with `call`."""
    answer = (yield Call("backend", "get", message.data)) if message.data.startswith(b"call") else message.data
    yield Publish("room", answer)


def published(bench: Bench) -> list[bytes]:
    return [command[2] for command in bench.engine.taken() if command[0] == PUBLISH]


async def test_a_message_that_waits_holds_up_those_of_its_key_only() -> None:
    backend = Backend()
    bench = Bench(on_record=looking_up, upstreams={"backend": backend})
    batch = [bus_message(data, subject=subject) for data, subject in ((b"call", "a"), (b"2", "a"), (b"3", "b"))]
    delivering = asyncio.ensure_future(bench.gateway.deliver(batch))
    await settled()
    assert published(bench) == [b"3"]
    assert not delivering.done(), "it may not be acknowledged yet"
    backend.calls[b"call"].set_result(b"1")
    await delivering
    assert published(bench) == [b"1", b"2"]
    assert bench.counters.messages_from_bus == 3


async def test_a_key_that_waits_again_and_again_stays_in_order() -> None:
    backend = Backend()
    bench = Bench(on_record=looking_up, upstreams={"backend": backend})
    names = [b"call 1", b"2", b"call 3", b"call 4", b"5"]
    delivering = asyncio.ensure_future(bench.gateway.deliver([bus_message(name) for name in names]))
    for name in (b"call 1", b"call 3", b"call 4"):
        await settled()
        assert [call for call, answer in backend.calls.items() if not answer.done()] == [name]
        backend.calls[name].set_result(name)
    await delivering
    assert published(bench) == names


async def test_messages_that_do_not_wait_are_one_submission() -> None:
    bench = Bench(on_record=looking_up)
    await bench.gateway.deliver([bus_message(b"1"), bus_message(b"2")])
    assert bench.engine.batches == 1
    assert published(bench) == [b"1", b"2"]


@pytest.mark.parametrize("bad", [b"bad", b"call bad"])
async def test_a_message_that_the_profile_fails_on_is_skipped_and_counted(bad: bytes) -> None:
    def on_record(message: BusMessage) -> Steps:
        for action in looking_up(message):
            answer = (yield action) if isinstance(action, Call) else None
            if message.data.endswith(b"bad"):
                raise ValueError("of the profile")
            yield Publish("room", answer or message.data)
            return

    async def backend(_method: str, payload: object) -> object:
        return payload

    bench = Bench(on_record=on_record, upstreams={"backend": backend})
    await bench.gateway.deliver([bus_message(b"1"), bus_message(bad), bus_message(b"3")])
    assert published(bench) == [b"1", b"3"]
    assert bench.counters.profile_errors == 1


@pytest.mark.parametrize("action", [Reply(b"x"), Close(1000)])
async def test_what_a_bus_message_may_not_lead_to_costs_that_message(action: Action) -> None:
    def on_record(message: BusMessage) -> Steps:
        yield action if message.data == b"bad" else Publish("room", message.data)

    bench = Bench(on_record=on_record)
    await bench.gateway.deliver([bus_message(b"bad"), bus_message(b"2")])
    assert published(bench) == [b"2"]
    assert bench.counters.profile_errors == 1


async def test_a_wake_in_the_same_turn_is_not_missed() -> None:
    async def backend(_method: str, _payload: object) -> object:
        raise UpstreamError("its circuit is open")  # at once, as from a circuit that is open

    def on_record(message: BusMessage) -> Steps:
        if message.data == b"look up":
            try:
                yield Call("backend", "get")
            except UpstreamError:
                yield Wake(7, b"woken")
        else:
            yield Publish("room", (yield Wait(7, 0.5)) or b"forgotten")

    bench = Bench(on_record=on_record, upstreams={"backend": backend})
    await bench.gateway.deliver([bus_message(b"look up", subject="a"), bus_message(b"wait", subject="b")])
    assert published(bench) == [b"woken"]


async def test_a_profile_that_fails_before_its_first_step_costs_that_message() -> None:
    def on_record(message: BusMessage) -> Steps:
        if message.data == b"bad":
            raise ValueError("of the profile")
        return looking_up(message)

    bench = Bench(on_record=on_record)
    await bench.gateway.deliver([bus_message(b"1"), bus_message(b"bad"), bus_message(b"3")])
    assert published(bench) == [b"1", b"3"]


async def test_what_a_profile_decided_before_it_failed_is_submitted() -> None:
    async def backend(_method: str, payload: object) -> object:
        return payload

    def on_record(_message: BusMessage) -> Steps:
        yield Call("backend", "get")
        yield Publish("room", b"decided")
        raise ValueError("of the profile")

    bench = Bench(on_record=on_record, upstreams={"backend": backend})
    await bench.gateway.deliver([bus_message()])
    assert published(bench) == [b"decided"]


async def test_a_delivery_that_is_cut_off_ends_all_that_wait() -> None:
    ended = []

    def on_record(message: BusMessage) -> Steps:
        try:
            yield Wait(0, LONG_S)
        finally:
            ended.append(message.data)

    bench = Bench(on_record=on_record)
    batch = [bus_message(b"1", subject="a"), bus_message(b"2", subject="b"), bus_message(b"3", subject="b")]
    delivering = asyncio.ensure_future(bench.gateway.deliver(batch))
    await settled()
    delivering.cancel()
    await settled()
    assert delivering.cancelled()
    assert sorted(ended) == [b"1", b"2"], "the third had not begun"


async def test_a_look_up_that_takes_long_holds_up_its_key_and_no_later_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "HELD_S", 0.01)
    backend = Backend()
    bench = Bench(on_record=looking_up, upstreams={"backend": backend})
    await bench.gateway.deliver([bus_message(b"call", subject="a")])
    await bench.gateway.deliver([bus_message(b"2", subject="a"), bus_message(b"3", subject="b")])
    assert published(bench) == [b"3"]
    backend.calls[b"call"].set_result(b"1")
    await settled()
    assert published(bench) == [b"1", b"2"]
    await bench.gateway.deliver([bus_message(b"4", subject="a")])
    assert published(bench) == [b"4"], "nothing of it waits any more"


async def test_a_batch_of_which_something_waits_for_long_says_when_it_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "HELD_S", 0.01)
    backend = Backend()
    bench = Bench(on_record=looking_up, upstreams={"backend": backend})
    first = await bench.gateway.deliver([bus_message(b"call", subject="a"), bus_message(b"2", subject="b")])
    second = await bench.gateway.deliver([bus_message(b"3", subject="a")])
    assert await bench.gateway.deliver([bus_message(b"4", subject="b")]) is None, "served when it returned"
    assert first and second
    assert not first()
    assert not second(), "it comes after the one that waits"
    backend.calls[b"call"].set_result(b"1")
    await settled()
    assert first()
    assert second()


async def test_steps_that_steps_return_hold_up_nothing_and_are_part_of_what_is_to_be_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "HELD_S", LONG_S)
    backend = Backend()

    def on_record(message: BusMessage) -> RecordSteps:
        yield Publish("room", message.data)
        return looking_up(message) if message.data.startswith(b"call") else None

    bench = Bench(on_record=on_record, upstreams={"backend": backend})
    delivering = asyncio.ensure_future(bench.gateway.deliver([bus_message(b"call"), bus_message(b"2")]))
    await settled()
    assert published(bench) == [b"call", b"2"]
    assert delivering.done(), "the bus may go on"
    is_served = delivering.result()
    assert await bench.gateway.deliver([bus_message(b"3")]) is None
    assert is_served
    assert not is_served()
    backend.calls[b"call"].set_result(b"1")
    await settled()
    assert published(bench) == [b"3", b"1"]
    assert is_served()


async def test_what_was_given_up_does_not_count_as_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "HELD_S", 0.01)
    bench = Bench(on_record=looking_up, upstreams={"backend": Backend()})
    is_served = await bench.gateway.deliver([bus_message(b"call")])
    await bench.gateway.close(0.01)
    assert is_served
    assert not is_served()


async def test_with_many_that_wait_the_bus_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "HELD_S", 0.01)
    monkeypatch.setattr(records, "WAITING_MAX", 1)
    backend = Backend()
    bench = Bench(on_record=looking_up, upstreams={"backend": backend})
    await bench.gateway.deliver([bus_message(b"call 1", subject="a")])
    delivering = asyncio.ensure_future(bench.gateway.deliver([bus_message(b"call 2", subject="b")]))
    await asyncio.wait([delivering], timeout=0.1)
    assert not delivering.done()
    backend.calls[b"call 1"].set_result(b"1")
    await delivering
    backend.calls[b"call 2"].set_result(b"2")
    await settled()
    assert published(bench) == [b"1", b"2"]


async def test_closing_gives_up_what_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "HELD_S", 0.01)
    bench = Bench(on_record=looking_up, upstreams={"backend": Backend()})
    await bench.gateway.deliver([bus_message(b"call", subject="a"), bus_message(b"2", subject="a")])
    await bench.gateway.close(0.01)
    assert published(bench) == []


async def test_messages_that_need_a_look_up_are_not_taken_at_once() -> None:
    bench = Bench(on_record=looking_up)
    assert not bench.gateway.offer([bus_message(b"1")])
    assert bench.engine.taken() == []


async def test_a_pressed_engine_holds_the_bus_back() -> None:
    bench = Bench(on_record=looking_up)
    bench.engine.is_pressed = True
    delivering = asyncio.ensure_future(bench.gateway.deliver([bus_message(b"1")]))
    await settled()
    assert not delivering.done()
    bench.engine.is_pressed = False
    bench.serve()
    await delivering
