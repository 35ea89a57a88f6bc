"""The two pumps between fakes: what each action becomes, and that nobody's fault costs anybody else anything."""

import logging

import pytest
from tidegate._core import (
    ADMIT,
    CLOSE,
    FAILED,
    JOIN,
    LEAVE,
    MESSAGE,
    PUBLISH,
    REFUSE,
    SESSION,
    UPGRADE,
)
from tidegate.engine import Event
from tidegate.gateway import sessions
from tidegate.gateway.actions import PUBLISHES_MAX
from tidegate.gateway.clients import BATCH_MAX, QUERY_FIELDS_MAX, split_target
from tidegate.profile import (
    Action,
    Admit,
    Claims,
    Close,
    Count,
    Join,
    Leave,
    Publish,
    Refuse,
    Rejected,
    Reply,
    Send,
    Session,
    SetSession,
    Steps,
    ToBus,
    Upgrade,
    Verify,
)

from tests.unit.gateway_fakes import GOOD_TOKEN, Bench, answering, sent

INTERNAL_ERROR = (REFUSE, 1, 500, b'{"error":"internal"}', None)
CLOSE_1011 = (CLOSE, 1, 1011, "internal error")


# --- clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "command"),
    [
        (Reply(b"hi"), sent(1, b"hi")),
        (Reply(b"\xff", text=False), sent(1, b"\xff", text=False)),
        (Send(9, b"hi"), sent(9, b"hi")),
        (Join("chat:1"), (JOIN, 1, "chat:1")),
        (Leave("chat:1"), (LEAVE, 1, "chat:1")),
        (SetSession(b"new"), (SESSION, 1, b"new")),
        (Publish("chat:1", b"hi", exclude=1), (PUBLISH, "chat:1", b"hi", True, 1)),
        (Close(4000, "bye"), (CLOSE, 1, 4000, "bye")),
    ],
)
def test_each_action_becomes_its_command(action: Action, command: tuple[object, ...]) -> None:
    assert Bench(on_message=answering(action)).message(b"x") == [command]


def test_a_batch_is_submitted_once_and_in_order() -> None:
    bench = Bench(on_message=lambda _s, payload, _t: answering(Reply(payload))())
    events: list[Event] = [(MESSAGE, conn, b"", b"%d" % conn, True) for conn in (3, 1, 2)]
    assert [command[2] for command in bench.serve(*events)] == [b"3", b"1", b"2"]
    assert bench.engine.batches == 1


def test_a_batch_is_bounded_and_the_rest_is_served_next_time() -> None:
    bench = Bench(on_message=answering(Reply(b"")))
    bench.engine.events = [(MESSAGE, conn, b"", b"", True) for conn in range(BATCH_MAX + 1)]
    bench.gateway.pump()
    assert len(bench.engine.taken()) == BATCH_MAX
    bench.gateway.pump()
    assert len(bench.engine.taken()) == 1


def test_an_upgrade_tells_the_profile_who_asks_and_what_for() -> None:
    seen: list[Upgrade] = []

    def on_open(upgrade: Upgrade) -> Steps:
        seen.append(upgrade)
        yield Admit(b"s", rooms=["a"], texts=[b"t"], user="7", subprotocol="v1", close=(1008, "no"))

    bench = Bench(on_open=on_open)
    commands = bench.upgrade(b"/ws?a=1&a=2&b=x%20y+z&c", (b"Bearer x", None))
    assert commands == [(ADMIT, 1, b"s", "7", ["a"], [b"t"], "v1", (1008, "no"), 0)]
    assert seen[0].path == "/ws"
    assert seen[0].query == {"a": "", "b": "x y z", "c": ""}
    assert seen[0].headers == {"authorization": "Bearer x"}
    assert (seen[0].uuid, seen[0].peer) == ("uuid-1", "192.0.2.1")


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (b"a=1&a=1", "1"),
        (b"a=1&a=2", ""),
        (b"a=1&a=2&a=2", ""),
        (b"a=1&%61=2", ""),
        (b"a=1&a", ""),
        (b"a=%31&a=1", "1"),
    ],
)
def test_a_name_with_two_values_in_a_query_has_none(query: bytes, value: str) -> None:
    assert split_target(b"/ws?" + query)[1] == {"a": value}


def test_a_query_of_nothing_but_ampersands_is_looked_at_within_bounds() -> None:
    fields = b"&".join(b"k%d=v" % number for number in range(10_000))
    assert len(split_target(b"/ws?" + fields)[1]) == QUERY_FIELDS_MAX
    assert split_target(b"/ws?" + b"&" * 16_000) == ("/ws", {})
    assert split_target(b"/\xff?%ff=%zz")[1] == {"\ufffd": "%zz"}


def test_verify_is_answered_at_once_and_counted() -> None:
    answers: list[object] = []

    def on_open(upgrade: Upgrade) -> Steps:
        answers.append((yield Verify(upgrade.query["token"])))
        yield Admit(b"") if isinstance(answers[-1], Claims) else Refuse(401, b"{}", 5)

    bench = Bench(on_open=on_open)
    assert bench.upgrade(b"/ws?token=" + GOOD_TOKEN.encode())[0][0] == ADMIT
    assert bench.upgrade(b"/ws?token=bad") == [(REFUSE, 1, 401, b"{}", 5)]
    assert answers == [Claims({"user_id": "7"}), Rejected("bad signature")]
    assert (bench.counters.auth_success, bench.counters.auth_failure) == (1, 1)


def test_a_good_token_without_a_user_counts_as_a_failure_only() -> None:
    def on_open(_upgrade: Upgrade) -> Steps:
        yield Verify(GOOD_TOKEN)
        yield Count("auth_failure")
        yield Admit(b"", close=(1008, "no user"))

    bench = Bench(on_open=on_open)
    bench.upgrade()
    assert (bench.counters.auth_success, bench.counters.auth_failure) == (0, 1)


def test_a_profile_that_gives_no_answer_to_an_upgrade_refuses_it_with_500() -> None:
    bench = Bench(on_open=answering())
    assert bench.upgrade() == [INTERNAL_ERROR]
    assert bench.counters.errors["profile"] == 1


def test_a_second_answer_to_an_upgrade_closes_1011() -> None:
    bench = Bench(on_open=answering(Admit(b""), Admit(b"")))
    assert [command[0] for command in bench.upgrade()] == [ADMIT, CLOSE]


def test_an_exception_before_the_answer_refuses_with_500() -> None:
    def on_open(upgrade: Upgrade) -> Steps:
        yield Reply(upgrade.query["missing"].encode())

    assert Bench(on_open=on_open).upgrade() == [INTERNAL_ERROR]


def test_an_exception_costs_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def on_message(session: Session, payload: bytes, _text: bool) -> Steps:
        if session.conn == 1:
            int(payload)
        yield Reply(payload)

    bench = Bench(on_message=on_message)
    with caplog.at_level(logging.ERROR):
        commands = bench.serve(
            (MESSAGE, 2, b"", b"first", True), (MESSAGE, 1, b"", b"s3cret", True), (MESSAGE, 3, b"", b"last", True)
        )
    assert commands == [sent(2, b"first"), CLOSE_1011, sent(3, b"last")]
    assert bench.counters.profile_errors == 1
    assert "on_message" in caplog.text
    assert "s3cret" not in caplog.text


def test_what_is_no_action_costs_its_connection_only() -> None:
    bench = Bench(on_message=answering("Reply"))  # type: ignore[arg-type]
    assert bench.message(b"x") == [CLOSE_1011]


def test_a_method_that_raises_before_its_first_step_costs_its_connection_only() -> None:
    def on_message(*_: object) -> Steps:
        raise LookupError

    assert Bench(on_message=on_message).message(b"x") == [CLOSE_1011]


def test_a_malformed_command_costs_its_connection_only() -> None:
    def on_message(session: Session, payload: bytes, _text: bool) -> Steps:
        yield Reply(bytearray(payload) if session.conn == 1 else payload)

    bench = Bench(on_message=on_message)
    commands = bench.serve((MESSAGE, 2, b"", b"a", True), (MESSAGE, 1, b"", b"b", True), (MESSAGE, 3, b"", b"c", True))
    assert commands == [sent(2, b"a"), CLOSE_1011, sent(3, b"c")]


def test_a_malformed_admit_is_refused() -> None:
    assert Bench(on_open=answering(Admit(bytearray(b"")))).upgrade() == [INTERNAL_ERROR]


def test_a_changed_session_counts_at_once_even_for_events_that_were_on_their_way() -> None:
    seen: list[bytes] = []

    def on_message(session: Session, payload: bytes, _text: bool) -> Steps:
        seen.append(session.data)
        if payload == b"change":
            yield SetSession(b"new")

    bench = Bench(on_message=on_message)
    bench.serve((MESSAGE, 1, b"old", b"change", True), (MESSAGE, 1, b"old", b"", True))
    bench.message(b"", session=b"old")
    assert seen == [b"old", b"new", b"new"]


def test_changed_sessions_are_forgotten_when_the_engine_has_them_for_sure() -> None:
    fresh = sessions.FreshSessions()
    fresh.age(0)
    fresh.set(1, b"new")
    fresh.age(1)
    fresh.age(1 + sessions.FRESH_S / 2)
    assert fresh.get(1, b"old") == b"new"
    fresh.age(1 + sessions.FRESH_S)
    assert fresh.get(1, b"old") == b"old"
    assert not fresh.any


def test_closing_is_told_with_code_and_session() -> None:
    told: list[tuple[bytes, int]] = []

    def on_close(session: Session, code: int) -> Steps:
        told.append((session.data, code))
        yield Publish("room", b"gone")

    bench = Bench(on_close=on_close)
    assert bench.closed(1001) == [(PUBLISH, "room", b"gone", True, None)]
    assert told == [(b"session", 1001)]


def test_a_client_that_broke_a_rule_is_closed_after_its_messages() -> None:
    bench = Bench(on_message=answering(Reply(b"answer")))
    commands = bench.serve((MESSAGE, 1, b"session", b"hi", True), (FAILED, 1, 1002, "unknown opcode"))
    assert commands == [sent(1, b"answer"), (CLOSE, 1, 1002, "unknown opcode")]


def test_counts_become_labels_of_the_error_metric() -> None:
    bench = Bench(on_message=answering(Count("bad_json"), Count("errors", "odd")))
    bench.message(b"x")
    assert (bench.counters.errors["bad_json"], bench.counters.errors["odd"]) == (1, 1)


def test_a_flood_of_faults_is_counted_in_full_and_logged_at_a_pace(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(on_message=answering(Count("bad_json", detail="told")))
    bench.serve(*[(MESSAGE, 1, b"", b"", True)] * BATCH_MAX)
    assert bench.counters.errors["bad_json"] == BATCH_MAX
    assert caplog.text.count("told") == 1


# --- to the bus -------------------------------------------------------------------------------------------------------


async def test_messages_for_backends_reach_the_bus_in_order() -> None:
    bench = Bench(on_message=answering(ToBus("a", b"1"), ToBus("b", b"2")))
    bench.message(b"x")
    await bench.gateway.close(1)
    assert bench.bus.published == [("a", b"1"), ("b", b"2")]


async def test_a_publish_that_was_not_confirmed_is_counted() -> None:
    bench = Bench(on_message=answering(ToBus("a", b"1")))
    bench.bus.fails = True
    bench.message(b"x")
    await bench.gateway.close(1)
    assert bench.counters.errors["nats_publish"] == 1


async def test_messages_that_wait_for_confirmation_are_bounded() -> None:
    bench = Bench(on_message=answering(*[ToBus("a", b"")] * (PUBLISHES_MAX + 3)))
    bench.message(b"x")
    await bench.gateway.close(1)
    assert len(bench.bus.published) == PUBLISHES_MAX
    assert bench.counters.errors["nats_publish"] == 3


def test_an_upgrade_event_with_too_few_headers_costs_its_connection_only() -> None:
    bench = Bench()
    assert bench.serve((UPGRADE, 1, "192.0.2.1", b"/ws", ())) == [INTERNAL_ERROR]


def test_a_bug_of_ours_in_the_pump_is_told_and_the_next_batch_is_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(on_message=answering(Reply(b"next")))

    def broken(_limit: int) -> list[Event]:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(bench.engine, "drain", broken)
        bench.gateway.pump()
    assert "RuntimeError" in caplog.text
    assert bench.message(b"x") == [sent(1, b"next")]


def test_a_connection_is_one_line_each_at_debug_and_none_above(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    with caplog.at_level(logging.INFO):
        bench.upgrade(b"/ws?token=s3cret")
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG):
        bench.upgrade(b"/ws?token=s3cret")
        bench.closed(1001)
    assert [record.message for record in caplog.records] == [
        "connection 1: upgrade from 192.0.2.1",
        "connection 1: admitted as None, close None",
        "connection 1: closed with 1001",
    ]
