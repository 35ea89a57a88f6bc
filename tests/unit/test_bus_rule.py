"""The engine's reading of a plain event against the profile's own: where it answers, both say the same."""

import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate._core import Engine, Intake, Messages, Rule
from tidegate.profile import BusMessage, Publish
from tidegate.profiles.attchat_gateway import AttchatGateway, Rules

from tests.unit.test_engine import options

PROFILES = [AttchatGateway(Rules()), AttchatGateway(Rules(join_policy="open"))]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(options())
    yield engine
    engine.stop()


def frame(data: bytes, number: int) -> bytes:
    reply = f"$JS.ACK.CHAT.gateway.1.{number}.{number}.1700000000000000000.0"
    return f"MSG chat.events 1 {reply} {len(data)}\r\n".encode() + data + b"\r\n"


def messages_of(events: list[bytes]) -> Messages:
    intake = Intake()
    intake.watch(1, 1, 0)
    rest, touched = intake.take(b"".join(frame(data, number) for number, data in enumerate(events, 1)))
    assert (rest, touched) == (b"", [1])
    arrived = intake.arrived(1)
    assert arrived is not None
    [messages] = arrived[0]
    return messages


def rule_of(profile: AttchatGateway) -> Rule:
    rule = profile.bus_rule()
    return Rule(rule.room, rule.user, rule.exclude, rule.user_rooms)


def check(engine: Engine, profile: AttchatGateway, data: bytes) -> bool:
    """Whether the event is plain. A plain one must be only publishes of its own bytes, as many as the engine made."""
    published, odd, end, pressed = engine.publish(messages_of([data]), 0, rule_of(profile))
    assert not pressed
    if (odd, end) == (0, 1):
        assert published == 0
        return False
    assert (odd, end) == (1, 1)
    actions = list(profile.on_bus(BusMessage("CHAT", "chat.events", data, 1, 0.0)))
    assert all(isinstance(action, Publish) and action.payload is data for action in actions)
    assert len(actions) == published > 0
    return True


def read_as(data: bytes) -> dict[str, Any] | None:
    try:
        event = orjson.loads(data)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


texts = st.text(max_size=8) | st.sampled_from(["", "chat:1", "room", "\\", '"', "\u0000", "é", "\U0001f600"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
keys = st.sampled_from(["room", "user_id", "exclude_conn_id", "payload", "type"]) | texts
events = st.dictionaries(keys, texts | st.integers(0, 99) | values, max_size=6)


@settings(max_examples=1_000, deadline=None)
@given(event=events, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]), which=st.sampled_from(PROFILES))
def test_an_event_is_plain_only_if_the_profile_publishes_it_unchanged(
    engine: Engine, event: dict[str, Any], ascii_only: bool, indent: int | None, which: AttchatGateway
) -> None:
    data = json.dumps(event, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    check(engine, which, data)


@settings(max_examples=2_000, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b'"room":"a"', b'"user_id":', b'"x":', b" ", b"\n"),
                *(
                    b"7",
                    b"0",
                    b"-",
                    b".5",
                    b"1e9",
                    b"1" * 30,
                    b"null",
                    b"true",
                    b"\\u00e9",
                    b"\\ud800",
                    b"\xff",
                    b"\xc3\xa9",
                ),
            ]
        ),
        max_size=14,
    )
)
def test_whatever_is_taken_for_plain_the_profiles_parser_takes_too(engine: Engine, pieces: list[bytes]) -> None:
    inside = b"".join(pieces)
    for data in (inside, b'{"room":"r","x":' + inside + b"}", b'{"x":"' + inside + b'","user_id":"7"}'):
        if check(engine, PROFILES[0], data):
            assert read_as(data) is not None


@pytest.mark.parametrize(
    ("data", "rooms"),
    [
        (b'{"type":"m","room":"chat:1","payload":{"room":"no"},"exclude_conn_id":null}', 1),
        (b'{"room":"","user_id":"7","payload":[1.5e3,-0,"\\n"]}', 2),
        (b'{"user_id":12345}', 2),
    ],
)
def test_the_usual_events_are_plain(engine: Engine, data: bytes, rooms: int) -> None:
    assert check(engine, PROFILES[0], data)
    assert engine.publish(messages_of([data]), 0, rule_of(PROFILES[0]))[0] == rooms


def test_the_profile_is_asked_about_what_lies_between_plain_events(engine: Engine) -> None:
    plain, odd = b'{"room":"a"}', b'{"brand_id":"b"}'
    messages = messages_of([plain, plain, odd, odd, plain, odd])
    rule = rule_of(PROFILES[0])
    assert engine.publish(messages, 0, rule) == (2, 2, 4, False)
    assert engine.publish(messages, 4, rule) == (1, 5, 6, False)
    assert engine.publish(messages, 6, rule) == (0, 6, 6, False)
    assert engine.publish(messages, 99, rule)[0] == 0
