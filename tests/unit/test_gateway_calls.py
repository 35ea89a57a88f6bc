"""Calls to upstreams and who is on a connection: order, bounds, and that nobody waits for another's answer."""

import asyncio

from tidegate._core import ADMIT, CLOSE, CLOSED, HOLD, MESSAGE, OVERDUE, PUBLISH_ROOMS, REFUSE, SEND, UPGRADE, USER
from tidegate.engine import Event
from tidegate.gateway.waiting import BYTES_MAX, HOLD_AT
from tidegate.profile import Add, Admit, Call, Close, Identify, PublishRooms, Reply, Session, Steps, ToNodes, Upgrade

from tests.unit.gateway_fakes import Bench, answering, sent, settled

CLOSE_1011 = (CLOSE, 1, 1011, "internal error")


# --- upstreams --------------------------------------------------------------------------------------------------------


def calling(_session: Session, payload: bytes, _text: bool) -> Steps:
    answer = (yield Call("backend", "echo", payload)) if payload.startswith(b"call") else payload
    yield Reply(answer)


async def test_messages_behind_a_call_wait_in_order_and_others_do_not() -> None:
    answer = asyncio.get_running_loop().create_future()

    async def backend(_method: str, _payload: object) -> bytes:
        return bytes(await answer)

    bench = Bench(on_message=calling, upstreams={"backend": backend})
    events: list[Event] = [(MESSAGE, 1, b"", payload, True) for payload in (b"call", b"second", b"third")]
    assert bench.serve(*events, (MESSAGE, 2, b"", b"other", True)) == [sent(2, b"other")]
    assert bench.message(b"fourth") == []
    answer.set_result(b"first")
    await settled()
    assert [command[2] for command in bench.engine.taken()] == [b"first", b"second", b"third", b"fourth"]
    assert bench.message(b"fifth") == [sent(1, b"fifth")]


async def test_a_call_behind_a_call_keeps_the_order_too() -> None:
    async def backend(_method: str, payload: object) -> object:
        await asyncio.sleep(0)
        return payload

    bench = Bench(on_message=calling, upstreams={"backend": backend})
    bench.serve(*[(MESSAGE, 1, b"", payload, True) for payload in (b"call 1", b"2", b"call 3", b"4")])
    await settled()
    assert [command[2] for command in bench.engine.taken()] == [b"call 1", b"2", b"call 3", b"4"]


async def test_who_sends_much_behind_a_call_is_not_read_until_most_of_it_is_served() -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def backend(_method: str, _payload: object) -> bytes:
        return await answer

    bench = Bench(on_message=calling, upstreams={"backend": backend})
    sent = [b"%d" % number for number in range(HOLD_AT + 5)]
    commands = bench.serve((MESSAGE, 1, b"", b"call", True), *[(MESSAGE, 1, b"", payload, True) for payload in sent])
    assert commands == [(HOLD, 1, True)]
    answer.set_result(b"first")
    await settled()
    *served, let_go = bench.engine.taken()
    assert [command[2] for command in served] == [b"first", *sent]
    assert let_go == (HOLD, 1, False)


async def test_what_was_read_beyond_the_bound_closes_1008_and_the_rest_is_served() -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def backend(_method: str, _payload: object) -> bytes:
        return await answer

    bench = Bench(on_message=calling, upstreams={"backend": backend})
    bench.message(b"call")
    large = b"x" * (BYTES_MAX // 4)
    commands = bench.serve(*[(MESSAGE, 1, b"", large, True)] * 5, (CLOSED, 1, b"", 1008))
    assert [command[:3] for command in commands] == [(CLOSE, 1, 1008)]
    answer.set_result(b"first")
    await settled()
    assert len([command for command in bench.engine.taken() if command[0] == SEND]) == 5


async def test_a_drain_waits_for_calls_and_takes_on_nobody_new() -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def backend(_method: str, _payload: object) -> bytes:
        return await answer

    bench = Bench(on_message=calling, upstreams={"backend": backend})
    bench.message(b"call")
    finishing = asyncio.ensure_future(bench.gateway.finish_calls(60))
    await settled()
    assert not finishing.done()
    commands = bench.serve((UPGRADE, 2, "192.0.2.1", b"/ws", (None, None)))
    assert [command[:3] for command in commands] == [(REFUSE, 2, 503)]
    answer.set_result(b"first")
    await finishing
    assert sent(1, b"first") in bench.engine.taken()


async def test_an_upstream_that_fails_is_told_to_the_steps() -> None:
    async def backend(_method: str, _payload: object) -> bytes:
        raise ConnectionError

    def on_message(_session: Session, _payload: bytes, _text: bool) -> Steps:
        try:
            yield Call("backend", "get")
        except ConnectionError:
            yield Reply(b"sorry")

    bench = Bench(on_message=on_message, upstreams={"backend": backend})
    assert bench.message(b"x") == []
    await settled()
    assert bench.engine.taken() == [sent(1, b"sorry")]


async def test_an_upstream_that_nobody_knows_closes_1011() -> None:
    bench = Bench(on_message=calling)
    bench.message(b"call")
    await settled()
    assert bench.engine.taken() == [CLOSE_1011]


async def test_an_upgrade_may_wait_for_an_upstream() -> None:
    async def backend(_method: str, payload: object) -> object:
        return payload

    def on_open(upgrade: Upgrade) -> Steps:
        yield Admit((yield Call("backend", "login", upgrade.query["name"].encode())))

    bench = Bench(on_open=on_open, upstreams={"backend": backend})
    assert bench.upgrade(b"/ws?name=me") == []
    await settled()
    assert bench.engine.taken() == [(ADMIT, 1, b"me", None, (), (), None, None, 0)]


async def test_closing_the_gateway_ends_calls_that_wait() -> None:
    async def backend(_method: str, _payload: object) -> None:
        await asyncio.Event().wait()

    bench = Bench(on_message=calling, upstreams={"backend": backend})
    bench.message(b"call")
    await bench.gateway.close(0)
    assert bench.engine.taken() == []


# --- who is on a connection -------------------------------------------------------------------------------------------


def logging_in(_session: Session, payload: bytes, _text: bool) -> Steps:
    if (yield Identify(payload.decode())):
        yield Reply(b"welcome")
    else:
        yield Reply(b"no")


def test_a_user_is_claimed_before_the_engine_is_told() -> None:
    bench = Bench(on_message=logging_in)
    bench.engine.full.add("bob")
    assert bench.message(b"ann") == [(USER, 1, "ann"), sent(1, b"welcome")]
    assert bench.message(b"bob") == [sent(1, b"no")]
    assert bench.engine.claimed == ["ann"]


def test_who_is_overdue_is_the_profiles_to_decide() -> None:
    bench = Bench(on_overdue=answering(Close(4401, "late")))
    assert bench.serve((OVERDUE, 1, b"")) == [(CLOSE, 1, 4401, "late")]


def test_a_message_for_many_rooms_is_one_command() -> None:
    bench = Bench(on_message=answering(PublishRooms(["a", "b"], b"x"), Add("sent_total", "chat", 2)))
    assert bench.message(b"") == [(PUBLISH_ROOMS, ["a", "b"], b"x", True)]
    assert bench.counters.added == {"sent_total": {"chat": 2}}


def test_a_profile_may_have_its_own_words_between_nodes() -> None:
    bench = Bench(on_message=answering(ToNodes(b"mail")))
    bench.message(b"")
    assert bench.bus.broadcasts == [b"mail"]


async def test_what_another_node_says_in_the_profiles_words_is_published() -> None:
    bench = Bench(on_node=lambda data, _now: [PublishRooms([data.decode()], b"x")])
    bench.gateway.receive(b"a")
    bench.gateway.receive(b"b")
    await settled()
    assert bench.engine.taken() == [(PUBLISH_ROOMS, ["a"], b"x", True), (PUBLISH_ROOMS, ["b"], b"x", True)]


async def test_a_profile_that_fails_on_another_nodes_message_costs_that_message() -> None:
    def on_node(data: bytes, _now: float) -> list[PublishRooms]:
        return [PublishRooms([data.decode()], b"x")]

    bench = Bench(on_node=on_node)
    bench.gateway.receive(b"\xff")
    bench.gateway.receive(b"good")
    await settled()
    assert bench.engine.taken() == [(PUBLISH_ROOMS, ["good"], b"x", True)]
    assert bench.counters.profile_errors == 1
