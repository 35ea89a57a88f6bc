"""Steps that wait, for each other and for time, and steps that a backend's request or the registry begins."""

import asyncio
import logging
import time
from collections.abc import Generator
from typing import Any

import pytest
from tidegate._core import CLOSE, JOIN, MESSAGE, TOLD
from tidegate.errors import UpstreamError
from tidegate.gateway.faults import ProfileError
from tidegate.profile import (
    Action,
    Add,
    Call,
    Close,
    Join,
    Log,
    Now,
    Observe,
    Reply,
    Request,
    Send,
    Session,
    Span,
    Steps,
    Together,
    Wait,
    Wake,
)

from tests.unit.gateway_fakes import Backend, Bench, answering, bus_message, sent, settled

CLOSE_1011 = (CLOSE, 1, 1011, "internal error")
REQUEST = Request("Push", None, 3.0, {}, 0.0)
Asked = Generator[Action, Any, dict[str, Any]]
# Far beyond what a test waits: only being woken ends such a wait in time
LONG_S = 25.0


def waking(_session: Session, payload: bytes, _text: bool) -> Steps:
    yield Wake(7, payload)


# --- a backend's request ---------------------------------------------------------------------------------------------


async def test_a_request_is_answered_by_what_its_steps_return() -> None:
    def on_request(request: Request) -> Asked:
        yield Send(4, b"hi")
        return {"method": request.method}

    bench = Bench(on_request=on_request)
    assert await bench.gateway.answer(REQUEST) == {"method": "Push"}
    assert bench.engine.taken() == [sent(4, b"hi")]


async def test_what_came_before_a_wait_is_submitted_before_it() -> None:
    backend = Backend()

    def on_request(_request: Request) -> Asked:
        yield Send(4, b"before")
        answer = yield Call("backend", "get", "x")
        yield Send(4, answer)
        return {}

    bench = Bench(on_request=on_request, upstreams={"backend": backend})
    answering_it = asyncio.ensure_future(bench.gateway.answer(REQUEST))
    await settled()
    assert bench.engine.taken() == [sent(4, b"before")]
    backend.calls["x"].set_result(b"after")
    await answering_it
    assert bench.engine.taken() == [sent(4, b"after")]


async def test_what_steps_do_in_one_turn_of_the_loop_is_submitted_together() -> None:
    def on_request(request: Request) -> Asked:
        yield Send(int(request.method), b"hi")
        return {"woken": (yield Wait(7, LONG_S))}

    bench = Bench(on_request=on_request, on_message=waking)
    requests = [Request(str(conn), None, 3.0, {}, 0.0) for conn in range(20)]
    asked = [asyncio.ensure_future(bench.gateway.answer(request)) for request in requests]
    await settled()
    assert bench.engine.taken() == [sent(conn, b"hi") for conn in range(20)]
    assert bench.engine.batches == 1
    bench.message(b"all")
    assert await asyncio.gather(*asked) == [{"woken": b"all"}] * 20


async def test_requests_do_not_wait_for_each_other() -> None:
    backend = Backend()

    def on_request(request: Request) -> Asked:
        return {"got": (yield Call("backend", "get", request.method))}

    bench = Bench(on_request=on_request, upstreams={"backend": backend})
    first, second = (
        asyncio.ensure_future(bench.gateway.answer(Request(name, None, 3.0, {}, 0.0))) for name in ("first", "second")
    )
    await settled()
    backend.calls["second"].set_result(2)
    assert await second == {"got": 2}
    backend.calls["first"].set_result(1)
    assert await first == {"got": 1}


async def test_a_profile_that_fails_on_a_request_is_counted_and_its_words_stay_here() -> None:
    def on_request(_request: Request) -> Asked:
        yield from ()
        raise ValueError("a secret")

    bench = Bench(on_request=on_request)
    with pytest.raises(ProfileError) as error:
        await bench.gateway.answer(REQUEST)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None
    assert bench.counters.profile_errors == 1


async def test_a_profile_that_backends_do_not_call_says_so() -> None:
    with pytest.raises(ProfileError, match="on_request"):
        await Bench().gateway.answer(REQUEST)


@pytest.mark.parametrize("action", [Reply(b"x"), Close(1000), Join("room")])
async def test_steps_that_no_client_began_name_their_connection(action: Action) -> None:
    bench = Bench(on_request=answering(action))
    with pytest.raises(ProfileError):
        await bench.gateway.answer(REQUEST)
    assert bench.engine.taken() == []


async def test_steps_of_a_caller_who_gave_up_end_where_they_wait() -> None:
    ended = []

    def on_request(_request: Request) -> Asked:
        try:
            yield Wait(7, LONG_S)
        finally:
            ended.append(True)
        return {}

    bench = Bench(on_request=on_request)
    asked = asyncio.ensure_future(bench.gateway.answer(REQUEST))
    await settled()
    asked.cancel()
    await settled()
    assert ended == [True]
    assert not bench.gateway._actions.take()
    assert bench.counters.profile_errors == 0


# --- waiting ---------------------------------------------------------------------------------------------------------


def waiting(_request: Request) -> Asked:
    return {"woken": (yield Wait(7, LONG_S))}


def waiting_for_its_method(request: Request) -> Asked:
    return {"woken": (yield Wait(int(request.method), LONG_S))}


async def test_a_clients_message_wakes_a_request() -> None:
    bench = Bench(on_request=waiting, on_message=waking)
    asked = asyncio.ensure_future(bench.gateway.answer(REQUEST))
    await settled()
    bench.message(b"acked")
    assert await asked == {"woken": b"acked"}


async def test_everybody_who_waits_for_a_ticket_is_woken_and_nobody_else() -> None:
    bench = Bench(on_request=waiting_for_its_method, on_message=waking)
    asked = [
        asyncio.ensure_future(bench.gateway.answer(Request(ticket, None, 3.0, {}, 0.0))) for ticket in ("7", "7", "8")
    ]
    await settled()
    bench.message(b"x")
    await settled()
    assert [each.done() for each in asked] == [True, True, False]
    asked[2].cancel()
    await settled()


async def test_a_wake_that_nobody_waits_for_is_not_kept() -> None:
    bench = Bench(on_request=waiting, on_message=waking)
    bench.message(b"too soon")
    asked = asyncio.ensure_future(bench.gateway.answer(REQUEST))
    await settled()
    assert not asked.done()
    bench.message(b"now")
    assert await asked == {"woken": b"now"}


async def test_a_wait_whose_time_is_up_is_answered_by_nothing_and_forgotten() -> None:
    def on_request(_request: Request) -> Asked:
        return {"woken": [(yield Wait(7, 0.0)), (yield Wait(0, 0.001))]}

    bench = Bench(on_request=on_request)
    assert await bench.gateway.answer(REQUEST) == {"woken": [None, None]}
    assert not bench.gateway._clients._asking._tickets


async def test_what_became_of_a_message_is_told_to_who_waits_with_its_ticket() -> None:
    def on_request(_request: Request) -> Asked:
        for ticket in (1, 2, 3):
            yield Send(4, b"x", ticket)
        return {"fates": (yield Together([Wait(ticket, LONG_S) for ticket in (1, 2, 3)]))}

    bench = Bench(on_request=on_request)
    asked = asyncio.ensure_future(bench.gateway.answer(REQUEST))
    await settled()
    assert bench.engine.taken() == [sent(4, b"x", ticket=ticket) for ticket in (1, 2, 3)]
    assert bench.serve((TOLD, 4, 1, 0), (TOLD, 4, 3, 2), (TOLD, 4, 2, 1)) == []
    assert await asked == {"fates": ["queued", "full", "gone"]}


async def test_several_at_once_are_answered_when_the_last_has_ended() -> None:
    async def backend(_method: str, payload: object) -> object:
        if payload == "bad":
            raise UpstreamError("no answer")
        return payload

    def on_request(_request: Request) -> Asked:
        waits: list[Call | Wait] = [
            Call("backend", "get", "good"),
            Call("backend", "get", "bad"),
            Wait(7, LONG_S),
            Wait(0, 0.0),
        ]
        return {"answers": (yield Together(waits))}

    bench = Bench(on_request=on_request, on_message=waking, upstreams={"backend": backend})
    asked = asyncio.ensure_future(bench.gateway.answer(REQUEST))
    await settled()
    assert not asked.done()
    bench.message(b"acked")
    good, bad, woken, nothing = (await asked)["answers"]
    assert (good, woken, nothing) == ("good", b"acked", None)
    assert isinstance(bad, UpstreamError)


@pytest.mark.parametrize("payload", ["good", "bad"])
async def test_one_alone_is_answered_like_several(payload: str) -> None:
    async def backend(_method: str, payload: object) -> object:
        if payload == "bad":
            raise UpstreamError("no answer")
        return payload

    def on_request(_request: Request) -> Asked:
        return {"answers": (yield Together([Call("backend", "get", payload)]))}

    bench = Bench(on_request=on_request, upstreams={"backend": backend})
    (answer,) = (await bench.gateway.answer(REQUEST))["answers"]
    assert answer == "good" if payload == "good" else isinstance(answer, UpstreamError)


async def test_nothing_at_once_is_answered_too() -> None:
    def on_request(_request: Request) -> Asked:
        return {"answers": (yield Together([]))}

    assert await Bench(on_request=on_request).gateway.answer(REQUEST) == {"answers": []}


async def test_the_time_is_told_at_once() -> None:
    def on_request(_request: Request) -> Asked:
        return {"now": (yield Now())}

    before = time.time()
    now = (await Bench(on_request=on_request).gateway.answer(REQUEST))["now"]
    assert before <= now <= time.time()


async def test_a_client_may_wait_and_its_next_message_waits_too() -> None:
    def on_message(_session: Session, payload: bytes, _text: bool) -> Steps:
        if payload == b"wait":
            yield Reply((yield Wait(7, LONG_S)))
        elif payload.startswith(b"wake"):
            yield Wake(7, payload)
        else:
            yield Reply(payload)

    bench = Bench(on_message=on_message)
    assert bench.message(b"wait") == []
    await settled()
    assert bench.message(b"next") == []
    bench.message(b"wake", conn=2)
    await settled()
    assert bench.engine.taken() == [sent(1, b"wake"), sent(1, b"next")]


# --- urgent messages -------------------------------------------------------------------------------------------------


def with_acks(_session: Session, payload: bytes, _text: bool) -> Steps:
    yield Reply((yield Call("backend", "get", payload)) if payload.startswith(b"call") else payload)


def is_ack(payload: bytes) -> bool:
    return b"ack" in payload


async def test_an_urgent_message_overtakes_what_waits_and_only_that() -> None:
    backend = Backend()
    bench = Bench(on_message=with_acks, is_urgent=is_ack, upstreams={"backend": backend})
    assert bench.message(b"call") == []
    await settled()
    events = [(MESSAGE, 1, b"", payload, True) for payload in (b"second", b"ack", b"third")]
    assert bench.serve(*events) == [sent(1, b"ack")]  # type: ignore[arg-type]
    backend.calls[b"call"].set_result(b"first")
    await settled()
    assert bench.engine.taken() == [sent(1, b"first"), sent(1, b"second"), sent(1, b"third")]


async def test_where_nothing_waits_an_urgent_message_is_like_any_other() -> None:
    bench = Bench(on_message=with_acks, is_urgent=is_ack)
    assert bench.message(b"ack") == [sent(1, b"ack")]


async def test_an_urgent_message_that_waits_itself_closes_1011() -> None:
    backend = Backend()
    bench = Bench(on_message=with_acks, is_urgent=is_ack, upstreams={"backend": backend})
    bench.message(b"call")
    await settled()
    assert bench.message(b"call ack") == [CLOSE_1011]
    assert bench.counters.profile_errors == 1
    backend.calls[b"call"].set_result(b"first")
    await settled()


# --- the registry's news, and what is told to others -----------------------------------------------------------------


def test_a_device_that_is_elsewhere_now_is_the_profiles_to_say_goodbye_to() -> None:
    bench = Bench(on_taken=lambda conn, _now: [Send(conn, b"bye"), Close(4409, "replaced", conn)])
    bench.gateway.taken(5)
    assert bench.engine.taken() == [sent(5, b"bye"), (CLOSE, 5, 4409, "replaced")]


def test_what_may_not_wait_is_told_if_it_does_and_the_rest_is_served() -> None:
    bench = Bench(on_taken=lambda conn, _now: [Send(conn, b"bye"), Wait(7, 1.0)])
    bench.gateway.taken(5)
    assert bench.engine.taken() == [sent(5, b"bye")]
    assert bench.counters.profile_errors == 1


def test_a_profile_without_a_registry_is_not_asked() -> None:
    bench = Bench()
    bench.gateway.taken(5)
    assert (bench.engine.taken(), bench.counters.profile_errors) == ([], 0)


async def test_spans_durations_and_ids_go_to_who_keeps_them(caplog: pytest.LogCaptureFixture) -> None:
    span = Span("push", 0.5, {"msg_id": "m1"})
    told: list[Action] = [
        span,
        Observe("seconds", 0.5),
        Add("pushed_total"),
        Log("pushed", {"user": "ann"}),
        Join("room", 4),
    ]
    bench = Bench(on_record=answering(*told))
    with caplog.at_level(logging.DEBUG, "tidegate.gateway"):
        await bench.gateway.deliver([bus_message()])
    assert bench.tracer.spans == [span]
    assert bench.counters.added == {"pushed_total": {"": 1}}
    assert bench.counters.observed["seconds"][""].sum == 0.5
    assert bench.engine.taken() == [(JOIN, 4, "room")]
    (line,) = [record for record in caplog.records if record.message == "pushed"]
    assert line.fields == {"user": "ann"}  # type: ignore[attr-defined]
