"""The contract of im-gateway, section 7: what backends and other nodes push, and who waits for which ack."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidegate.errors import UpstreamError
from tidegate.profile import Call, Observe, Request, Send, Span, Together, Wait
from tidegate.profiles._im_requests import FULL_TRIES, MARGIN_S
from tidegate.profiles.im_gateway import ImGateway
from tidegate.protos import im_gateway_pb2

from tests.profiles.im import (
    DOWN,
    LAPTOP,
    NODE,
    NOW,
    OTHER,
    PHONE,
    TABLET,
    Answers,
    Clock,
    Driven,
    acked,
    carried_out,
    connected,
    gone,
    profile,
    push_request,
    pushed,
    receipt_request,
)


def here(*devices: str, sdk: bool = False, **environ: str) -> ImGateway:
    """A gateway to which user_7 is connected with these."""
    to = profile(**environ)
    for number, device in enumerate(devices, 1):
        connected(to, device=device, conn=number, sdk=sdk)
    return to


def asked(to: ImGateway, request: Request, answers: Answers | None = None, clock: Clock | None = None) -> Driven:
    return carried_out(to.on_request(request), {"registry.devices": {}, **(answers or {})}, clock)


def answer_of(run: Driven) -> Any:
    """As the caller reads it: each field must fit into the message."""
    return im_gateway_pb2.PushMessageResponse(**run.returned)


def waited(run: Driven) -> list[Any]:
    assert isinstance(run.waits_for, Together)
    return list(run.waits_for.waits)


# --- PushMessage on this node ----------------------------------------------------------------------------------------


def test_a_recipient_is_needed_and_without_one_the_status_is_still_ok() -> None:
    answer = answer_of(asked(here(PHONE), push_request(recipient_id="")))
    assert (answer.success, answer.delivered_count) == (False, 0)
    assert answer.error_message


def test_a_pushed_message_is_a_frame_with_the_pushers_own_time() -> None:
    run = Driven(here(PHONE).on_request(push_request(sequence_number=12345)))
    ((conn, frame),) = run.sent
    assert conn == 1
    assert frame == {
        "type": "message",
        "msg_id": "m1",
        "sender": "user_9",
        "content": "Hello",
        "timestamp": 1_767_225_600_123,
        "sequence_number": 12345,
    }


def test_the_sdk_is_told_who_sent_it_to_whom() -> None:
    ((_, frame),) = Driven(here(PHONE, sdk=True).on_request(push_request())).sent
    assert (frame["sender_id"], frame["recipient_id"], frame["recipient_type"]) == ("user_9", "user_7", "user")


def test_the_message_is_on_its_way_before_the_registry_is_asked() -> None:
    run = Driven(here(PHONE).on_request(push_request()))
    assert isinstance(run.waits_for, Call)
    assert len(run.sent) == 1


def test_one_device_acks_and_the_other_does_not() -> None:
    to = here(PHONE, LAPTOP)
    run = Driven(to.on_request(push_request())).answer({PHONE: NODE, LAPTOP: NODE})
    (wait,) = waited(run)
    assert wait.seconds == pytest.approx(5)
    assert acked(to, "m1", device=LAPTOP).woken == [], "the other one's ack is still missing"
    answer = answer_of(run.answer([None]))
    assert (answer.success, answer.delivered_count, list(answer.failed_devices)) == (True, 1, [PHONE])
    assert (run.added("ack_timeouts_total"), run.added("ack_pending_total")) == (1, 2)
    assert (run.added("messages_delivered_total"), run.added("messages_failed_total")) == (1, 1)
    assert run.added("multi_device_deliveries_total") == 1
    assert run.only(Observe).family == "im_gateway_message_delivery_latency_seconds"
    assert run.spans == ["im-gateway.ack.register", "im-gateway.ack.timeout", "im-gateway.push.message"]


def test_the_last_ack_ends_the_wait() -> None:
    to = here(PHONE, LAPTOP)
    run = Driven(to.on_request(push_request())).answer({})
    (wait,) = waited(run)
    acked(to, "m1", device=LAPTOP)
    assert acked(to, "m1", device=PHONE).woken == [wait.ticket]
    answer = answer_of(run.answer([True]))
    assert (answer.success, answer.delivered_count, list(answer.failed_devices)) == (True, 2, [])


def test_an_ack_that_comes_while_the_registry_is_asked_counts() -> None:
    to = here(PHONE)
    run = Driven(to.on_request(push_request()))
    acked(to, "m1")
    assert answer_of(run.answer({})).delivered_count == 1
    assert run.waits_for is None


@pytest.mark.parametrize(("seconds", "waits"), [(60.0, 5.0), (3.0, 3.0 - MARGIN_S), (1.0, 1.0 - MARGIN_S), (0.1, 0.0)])
def test_it_waits_for_acks_no_longer_than_the_caller_does(seconds: float, waits: float) -> None:
    run = Driven(here(PHONE).on_request(push_request(seconds=seconds))).answer({})
    assert waited(run)[0].seconds == pytest.approx(waits, abs=1e-3)


def test_the_time_that_the_registry_took_is_the_callers_too() -> None:
    clock = Clock()
    run = Driven(here(PHONE).on_request(push_request(seconds=3)), clock)
    clock.now += 2
    assert waited(run.answer({}))[0].seconds == pytest.approx(0.8)


def test_only_the_device_asked_for_gets_it_and_nobody_is_asked_where_it_is() -> None:
    run = Driven(here(PHONE, LAPTOP).on_request(push_request(device_id=LAPTOP)))
    assert [conn for conn, _ in run.sent] == [2]
    assert not run.calls


@pytest.mark.parametrize("places", [{}, {TABLET: NODE}, {PHONE: OTHER}])
def test_a_device_that_is_nowhere_or_only_seems_to_be_here_has_failed(places: dict[str, str]) -> None:
    answer = answer_of(asked(here(PHONE), push_request(device_id=TABLET), {"registry.devices": places}))
    assert (answer.success, list(answer.failed_devices)) == (False, [TABLET])


def test_a_user_who_is_nowhere_gets_nothing() -> None:
    answer = answer_of(asked(here(), push_request()))
    assert (answer.success, answer.delivered_count, list(answer.failed_devices)) == (False, 0, [])


def test_a_registry_that_is_down_is_reported_and_the_devices_here_get_it() -> None:
    to = here(PHONE)
    run = Driven(to.on_request(push_request())).answer(DOWN)
    acked(to, "m1")
    answer = answer_of(run.answer([True]))
    assert (answer.success, answer.delivered_count) == (True, 1)
    assert answer.error_message


def test_a_device_that_left_does_not_get_it() -> None:
    to = here(PHONE, LAPTOP)
    gone(to, device=PHONE, conn=1)
    assert [conn for conn, _ in Driven(to.on_request(push_request())).sent] == [2]


# --- the same message again, callers who give up ---------------------------------------------------------------------


def test_a_repeated_push_waits_for_the_same_ack_and_sends_nothing() -> None:
    to = here(PHONE)
    first = Driven(to.on_request(push_request())).answer({})
    second = Driven(to.on_request(push_request())).answer({})
    assert (len(first.sent), len(second.sent)) == (1, 0)
    assert second.added("duplicate_messages_total") == 1
    assert sorted(acked(to, "m1").woken) == sorted(waited(run)[0].ticket for run in (first, second))
    assert [answer_of(run.answer([True])).delivered_count for run in (first, second)] == [1, 1]


def test_after_its_time_a_message_is_pushed_anew() -> None:
    to = here(PHONE)
    asked(to, push_request())
    assert len(Driven(to.on_request(push_request())).sent) == 1


@pytest.mark.parametrize("answers", [(), ({},)])
def test_nobody_waits_any_more_for_a_caller_who_gave_up(answers: tuple[object, ...]) -> None:
    to = here(PHONE)
    run = Driven(to.on_request(push_request()))
    for answer in answers:
        run.answer(answer)
    run.hang_up()
    late = acked(to, "m1")
    assert (late.added("ack_late_total"), late.woken) == (1, [])


def test_the_first_caller_who_gives_up_does_not_end_the_seconds_wait() -> None:
    to = here(PHONE)
    first = Driven(to.on_request(push_request())).answer({})
    second = Driven(to.on_request(push_request())).answer({})
    first.hang_up()
    assert acked(to, "m1").woken == [waited(second)[0].ticket]


# --- PushMessage to other nodes --------------------------------------------------------------------------------------


def test_a_device_elsewhere_is_pushed_to_by_its_node_meanwhile() -> None:
    to = here(PHONE)
    run = Driven(to.on_request(push_request(seconds=3, metadata={"traceparent": "00-a-b-01"})))
    wait, call = waited(run.answer({PHONE: NODE, LAPTOP: OTHER}))
    assert isinstance(wait, Wait)
    assert (call.upstream, call.method, call.payload.address) == ("nodes", "message", OTHER)
    assert call.payload.method == "im_gateway_servicepb.UimUgatewayUserviceService/PushMessage"
    assert call.payload.fields == {
        "msg_id": "m1",
        "recipient_id": "user_7",
        "device_id": LAPTOP,
        "sender_id": "user_9",
        "content": "Hello",
        "message_type": "",
        "sequence_number": 12,
        "timestamp": 1_767_225_600_123,
    }
    assert call.payload.metadata == {"x-gateway-hop": "1", "traceparent": "00-a-b-01"}
    assert (call.payload.retries, call.payload.timeout_s) == (2, pytest.approx(2.8))
    acked(to, "m1")
    answer = answer_of(run.answer([True, pushed()]))
    assert (answer.success, answer.delivered_count, list(answer.failed_devices)) == (True, 2, [])
    assert run.labels("cross_gateway_forward_total") == ["message,success,"]
    forward = next(span for span in run.all(Span) if span.name == "im-gateway.forward.message")
    assert (forward.parent, forward.attributes["node"]) == ("00-a-b-01", OTHER)


def test_each_device_elsewhere_is_a_call_of_its_own() -> None:
    places = {PHONE: OTHER, LAPTOP: OTHER, TABLET: "n3:1"}
    run = asked(here(), push_request(), {"registry.devices": places, "nodes.message": pushed()})
    targets = [(call.payload.address, call.payload.fields["device_id"]) for call in run.requests[1:]]
    assert targets == [(OTHER, PHONE), (OTHER, LAPTOP), ("n3:1", TABLET)]
    assert answer_of(run).delivered_count == 3


def test_a_node_whose_id_is_no_address_is_looked_up() -> None:
    to = here(GATEWAY_NODES="gateway-2=10.0.0.2:9093")
    run = asked(to, push_request(), {"registry.devices": {PHONE: "gateway-2"}, "nodes.message": pushed()})
    assert run.requests[-1].payload.address == "10.0.0.2:9093"


def test_what_another_node_passed_on_is_not_passed_on_again() -> None:
    run = asked(here(), push_request(device_id=PHONE, metadata={"x-gateway-hop": "1"}))
    assert not run.calls
    assert list(answer_of(run).failed_devices) == [PHONE]


def test_a_caller_with_no_time_left_forwards_for_a_moment_and_not_for_as_long_as_the_upstream_likes() -> None:
    answers = {"registry.devices": {PHONE: OTHER}, "nodes.message": DOWN, "nodes.read_receipt": DOWN}
    for request in (push_request(seconds=0.05), receipt_request(seconds=0.05)):
        run = asked(here(), request, answers)
        assert 0 < run.requests[-1].payload.timeout_s < 0.1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (UpstreamError("x", outcome="timeout"), "timeout"),
        (UpstreamError("x", outcome="deadline_exceeded"), "timeout"),
        (UpstreamError("x", outcome="unavailable"), "unavailable"),
        (UpstreamError("x", outcome="circuit_open"), "unavailable"),
        (UpstreamError("x", outcome="internal"), "transport_error"),
        (RuntimeError(), "transport_error"),
        (pushed(0), "empty_response"),
        (pushed(0, error_message="x"), "remote_error"),
        (pushed(0, failed_devices=[LAPTOP]), "not_delivered"),
        (pushed(0, success=True), "zero_delivered"),
    ],
)
def test_a_forward_that_failed_has_a_reason_and_its_device_has_failed(answer: object, reason: str) -> None:
    run = asked(here(), push_request(), {"registry.devices": {LAPTOP: OTHER}, "nodes.message": answer})
    assert run.labels("cross_gateway_forward_total") == [f"message,failure,{reason}"]
    assert list(answer_of(run).failed_devices) == [LAPTOP]


# --- ACK_MODE=queued -------------------------------------------------------------------------------------------------


def queued(outcomes: dict[int, list[str]], *devices: str) -> Driven:
    """`outcomes` of a connection's messages, one after the other; the last stays."""
    to = here(*devices, ACK_MODE="queued")
    run = Driven(to.on_request(push_request())).answer({})
    while run.waits_for is not None:
        if isinstance(run.waits_for, Wait):
            run.answer(None)
            continue
        conns = {send.ticket: send.conn for send in run.all(Send)}
        run.answer([next_of(outcomes[conns[wait.ticket]]) for wait in waited(run)])
    return run


def next_of(left: list[str]) -> str:
    return left.pop(0) if len(left) > 1 else left[0]


def test_queued_is_delivered_without_an_ack() -> None:
    run = queued({1: ["queued"], 2: ["gone"]}, PHONE, LAPTOP)
    answer = answer_of(run)
    assert (answer.success, answer.delivered_count, list(answer.failed_devices)) == (True, 1, [LAPTOP])
    assert run.added("ack_pending_total") == 0


def test_a_full_queue_is_tried_again_for_a_second_and_only_that_one() -> None:
    run = queued({1: ["full", "full", "queued"], 2: ["queued"]}, PHONE, LAPTOP)
    assert answer_of(run).delivered_count == 2
    assert [send.conn for send in run.all(Send)] == [1, 2, 1, 1]
    run = queued({1: ["full"]}, PHONE)
    assert list(answer_of(run).failed_devices) == [PHONE]
    assert len(run.all(Send)) == FULL_TRIES
    assert sum(wait.seconds for wait in run.asked if isinstance(wait, Wait)) == pytest.approx(1)


# --- PushReadReceipt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["sender_id", "reader_id"])
def test_a_receipt_needs_both_users(missing: str) -> None:
    fields: dict[str, Any] = {missing: ""}
    run = asked(here(PHONE), receipt_request(**fields))
    assert not run.sent
    assert (answer_of(run).success, bool(answer_of(run).error_message)) == (False, True)


def test_a_receipt_goes_to_all_devices_of_the_messages_sender() -> None:
    to = here(PHONE, LAPTOP)
    run = asked(
        to,
        receipt_request(),
        {"registry.devices": {PHONE: NODE, LAPTOP: NODE, TABLET: OTHER}, "nodes.read_receipt": pushed()},
    )
    assert [conn for conn, _ in run.sent] == [1, 2]
    assert run.sent[0][1] == {
        "type": "read_receipt",
        "msg_id": "m1",
        "sender": "",
        "content": "",
        "timestamp": int(NOW),
        "sequence_number": 0,
        "reader_id": "user_9",
        "read_at": 1_767_225_604,
        "conversation_id": "c",
    }
    call = run.requests[-1]
    assert (call.payload.address, call.payload.fields["sender_id"]) == (OTHER, "user_7")
    assert call.payload.metadata == {"x-gateway-hop": "1"}
    assert (answer_of(run).success, answer_of(run).delivered_count) == (True, 3)
    assert run.labels("cross_gateway_forward_total") == ["read_receipt,success,"]


def test_a_node_with_two_devices_gets_one_receipt_and_one_that_is_down_has_failed() -> None:
    places = {PHONE: OTHER, LAPTOP: OTHER}
    run = asked(here(), receipt_request(), {"registry.devices": places, "nodes.read_receipt": DOWN})
    assert run.calls == ["registry.devices", "nodes.read_receipt"]
    assert list(answer_of(run).failed_devices) == [PHONE, LAPTOP]


def test_a_receipt_that_was_passed_on_stays_here() -> None:
    run = asked(here(PHONE), receipt_request(metadata={"x-gateway-hop": "1"}))
    assert not run.calls
    assert answer_of(run).delivered_count == 1


# --- the rest --------------------------------------------------------------------------------------------------------


def test_health_is_ok() -> None:
    run = asked(here(), Request("HealthCheck", im_gateway_pb2.HealthCheckRequest(), 3, {}, NOW))
    assert im_gateway_pb2.HealthCheckResponse(**run.returned).status == "OK"


TEXTS = st.text(max_size=12)
PLACES = st.dictionaries(st.sampled_from([PHONE, LAPTOP, TABLET, "x"]), st.sampled_from([NODE, OTHER, ""]), max_size=4)


@given(
    st.dictionaries(st.sampled_from(["msg_id", "recipient_id", "device_id", "sender_id", "content"]), TEXTS),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(0, 60),
    PLACES | st.just(DOWN),
    st.sampled_from([pushed(), pushed(0), DOWN, RuntimeError()]),
    st.sampled_from(["ack", "queued"]),
)
def test_every_request_has_an_answer_that_fits(  # noqa: PLR0917 - as many as can differ
    fields: dict[str, Any], number: int, seconds: float, places: object, forwarded: object, mode: str
) -> None:
    to = here(PHONE, LAPTOP, ACK_MODE=mode)
    request = push_request(seconds=seconds, timestamp=number, sequence_number=number, **fields)
    run = asked(to, request, {"registry.devices": places, "nodes.message": forwarded})
    answer = answer_of(run)
    assert answer.success == (answer.delivered_count > 0)
    assert len(to._pushes) == 0
    for send in run.all(Send):
        assert orjson.loads(send.payload)["timestamp"] == number
