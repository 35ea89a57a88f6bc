"""The contract of im-gateway, section 9: what Kafka brings, to whom it goes, and what is skipped."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidegate.profile import BusMessage, PublishRooms
from tidegate.profiles.im_gateway import PROFILE, ImGateway

from tests.profiles.im import (
    DOWN,
    LAPTOP,
    NODE,
    NOW,
    OTHER,
    PHONE,
    Driven,
    carried_out,
    connected,
    gone,
    group_of,
    group_record,
    membership_record,
    profile,
    record,
    served,
    with_users,
)

RECEIPT = {
    "msg_id": "m1",
    "sender_id": "user_7",
    "reader_id": "user_9",
    "conversation_id": "c",
    "read_at": 1_767_225_604,
    "device_id": PHONE,
}


def skipped(run: Driven, topic: str) -> bool:
    return run.labels("kafka_consumer_errors_total") == [topic] and run.counted == ["bad_record"]


# --- messages to groups ----------------------------------------------------------------------------------------------


def test_a_message_to_a_group_goes_to_the_members_who_are_here_once() -> None:
    to = with_users("user_1", "user_2", "user_3")
    run = served(to, group_record(), group_of(["user_1", "user_2", "user_9"]))
    ((rooms, frame),) = run.published
    assert sorted(rooms) == ["u:user_1", "u:user_2"]
    assert frame == {
        "type": "message",
        "msg_id": "m1",
        "sender": "user_7",
        "content": "hi",
        "timestamp": 1_767_225_600_123,
        "sequence_number": 12,
        "group_id": "group_456",
    }
    assert (run.added("group_members_fanout_total"), run.added("group_messages_delivered_total")) == (2, 2)


def test_the_sender_gets_it_too_if_a_member() -> None:
    run = served(with_users("user_7"), group_record(), group_of(["user_7"]))
    assert run.published[0][0] == ["u:user_7"]


def test_the_sdks_connections_get_it_in_their_words_and_only_if_there_are_any() -> None:
    to = with_users("user_1")
    connected(to, "user_1", LAPTOP, conn=9, sdk=True)
    (seed_rooms, _), (sdk_rooms, frame) = served(to, group_record(), group_of(["user_1"])).published
    assert (seed_rooms, sdk_rooms) == (["u:user_1"], ["sdk:u:user_1"])
    assert (frame["sender_id"], frame["recipient_id"], frame["recipient_type"]) == ("user_7", "group_456", "group")
    gone(to, "user_1", LAPTOP, conn=9)
    assert len(served(to, group_record(), group_of(["user_1"])).published) == 1


def test_where_no_member_is_here_nothing_is_sent() -> None:
    run = served(with_users("user_1"), group_record(), group_of(["user_2"]))
    assert run.published == []
    assert run.counted == []


def test_a_conversation_that_is_a_group_names_it() -> None:
    shape: dict[str, Any] = {"group_id": None, "conversation_type": "group", "conversation_id": "group_9"}
    run = served(with_users("user_1"), group_record(**shape), group_of(["user_1"]))
    assert run.published[0][1]["group_id"] == "group_9"
    private = group_record(group_id="", conversation_type="private", conversation_id="user_1_user_2")
    assert skipped(served(with_users(), private), "group_msg")


def test_fields_that_are_missing_are_zero() -> None:
    run = served(with_users("user_1"), record("group_msg", {"group_id": "g"}), group_of(["user_1"]))
    frame = run.published[0][1]
    assert (frame["msg_id"], frame["sender"], frame["content"]) == ("", "", "")
    assert (frame["timestamp"], frame["sequence_number"]) == (0, 0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff",
        {},
        {"group_id": ""},
        {"group_id": 7},
        {"group_id": "g", "msg_id": 7},
        {"group_id": "g", "content": ["x"]},
        {"group_id": "g", "timestamp": "now"},
        {"group_id": "g", "timestamp": True},
        {"group_id": "g", "sequence_number": 2**63},
    ],
)
def test_a_record_that_is_not_as_agreed_is_skipped_and_counted(value: object) -> None:
    run = served(profile(), record("group_msg", value))
    assert skipped(run, "group_msg")
    assert not run.calls


def test_a_record_of_a_topic_that_means_nothing_is_skipped() -> None:
    assert skipped(served(profile(), record("other", {})), "other")


def test_topics_have_the_names_that_are_configured_and_the_bus_reads_the_same() -> None:
    to = with_users("user_1", KAFKA_TOPIC="rooms", READ_RECEIPT_TOPICS="seen", MEMBERSHIP_TOPICS="members")
    assert served(to, record("rooms", {"group_id": "g"}), group_of(["user_1"])).published
    assert skipped(served(to, group_record()), "group_msg")
    by_default = PROFILE.defaults["kafka.topics"]
    assert set(profile()._records._kinds) == set(by_default)


# --- who joined or left ----------------------------------------------------------------------------------------------


def test_the_members_who_are_here_are_told_who_joined_but_not_that_one() -> None:
    to = with_users("user_1", "user_9")
    run = served(to, membership_record("user_9", "join"), group_of(["user_1", "user_9"]))
    ((rooms, frame),) = run.published
    assert rooms == ["u:user_1"]
    assert frame == {
        "type": "membership_change",
        "msg_id": "",
        "sender": "user_9",
        "content": "join",
        "timestamp": 1_767_225_600,
        "sequence_number": 0,
        "group_id": "group_456",
    }


def test_who_leaves_is_told_to_those_who_stay() -> None:
    to = with_users("user_1", "user_9")
    run = served(to, membership_record("user_9", "leave"), group_of(["user_1"]))
    assert run.published[0][0] == ["u:user_1"]
    assert run.published[0][1]["content"] == "leave"


def test_both_caches_forget_the_group_and_a_new_member_gets_the_next_message() -> None:
    to = with_users("user_1", "user_9")
    served(to, group_record(), group_of(["user_1"]))
    news = served(to, membership_record("user_9", "join"), group_of(["user_1", "user_9"]))
    assert news.calls[0] == "redis.forget"
    run = served(to, group_record(), {})
    assert sorted(run.published[0][0]) == ["u:user_1", "u:user_9"]


def test_the_other_topic_means_the_same() -> None:
    to = with_users("user_1")
    message = BusMessage("membership_change", "", membership_record("user_9", "join").data, 1, 0.0)
    assert served(to, message, group_of(["user_1"])).published


@pytest.mark.parametrize(
    "changed",
    [
        {"group_id": ""},
        {"user_id": ""},
        {"user_id": 9},
        {"event_type": "dance"},
        {"event_type": None},
        {"event_type": []},
        {"timestamp": "now"},
    ],
)
def test_news_that_make_no_sense_change_nothing(changed: dict[str, Any]) -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(["user_1"]))
    run = served(to, membership_record("user_9", "join", **changed))
    assert skipped(run, "group_membership_change")
    assert served(to, group_record(), {}).published, "the group is still known"


# --- read receipts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["read_receipt", "read_receipt_events"])
def test_a_receipt_goes_to_every_device_of_the_messages_sender(topic: str) -> None:
    to = with_users("user_7")
    connected(to, "user_7", LAPTOP, conn=2, sdk=True)
    run = served(to, record(topic, RECEIPT))
    assert [conn for conn, _ in run.sent] == [1, 2]
    assert run.sent[0][1] == {
        "type": "read_receipt",
        "msg_id": "m1",
        "sender": "",
        "content": "",
        "timestamp": int(NOW),
        "sequence_number": 0,
        "reader_id": "user_9",
        "conversation_id": "c",
        "read_at": 1_767_225_604,
    }
    assert not run.calls


NOBODY_ANYWHERE = {"registry.nodes": frozenset({NODE, OTHER}), "registry.devices": {}, "redis.offline": [1, 1]}


def is_kept_here(to: ImGateway, answers: dict[str, Any]) -> bool:
    """What Redis is told goes on by itself."""
    return served(to, record("read_receipt", RECEIPT), NOBODY_ANYWHERE | answers).returned is not None


def test_a_receipt_for_somebody_who_is_nowhere_is_kept_for_a_week_and_nothing_waits_behind_it() -> None:
    run = served(profile(), record("read_receipt", RECEIPT), NOBODY_ANYWHERE)
    assert run.calls == ["registry.nodes", "registry.devices"]
    rest = carried_out(run.returned, NOBODY_ANYWHERE)
    assert rest.calls == ["redis.offline"]
    push, expire = rest.requests[-1].payload.commands
    assert (push[0], push[1], orjson.loads(push[2])) == ("RPUSH", "offline_read_receipt:user_7", RECEIPT)
    assert tuple(expire) == ("EXPIRE", "offline_read_receipt:user_7", 7 * 86400)
    assert rest.added("offline_queue_size") == 1


@pytest.mark.parametrize(
    "answers",
    [{"registry.nodes": frozenset({NODE, "10.0.0.1:9093"})}, {"registry.devices": {PHONE: OTHER}}],
    ids=["another node sees to it", "a device is elsewhere"],
)
def test_otherwise_it_is_not_kept_here(answers: dict[str, Any]) -> None:
    assert not is_kept_here(profile(), answers)


def test_a_node_that_the_registry_does_not_know_yet_keeps_it_if_it_is_alone() -> None:
    assert is_kept_here(profile(), {"registry.nodes": frozenset()})


def test_while_the_registry_is_down_the_node_that_saw_to_it_last_keeps_it() -> None:
    to, others, down = profile(), {"registry.nodes": frozenset({NODE, "10.0.0.1:9093"})}, {"registry.nodes": DOWN}
    assert not is_kept_here(to, down), "nobody said it was its turn"
    assert is_kept_here(to, {})
    run = served(to, record("read_receipt", RECEIPT), NOBODY_ANYWHERE | down)
    assert run.counted == ["offline_receipt"]
    assert run.returned is not None
    assert not is_kept_here(to, others)
    assert not is_kept_here(to, down)


@pytest.mark.parametrize("changed", [{"sender_id": ""}, {"sender_id": 7}, {"read_at": "x"}, {"reader_id": []}])
def test_a_receipt_that_makes_no_sense_is_skipped(changed: dict[str, Any]) -> None:
    assert skipped(served(profile(), record("read_receipt", RECEIPT | changed)), "read_receipt")


# --- anything at all -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "group_id",
    "user_id",
    "sender_id",
    "event_type",
    "timestamp",
    "msg_id",
    "content",
    "conversation_type",
    "read_at",
)
TOPICS = st.sampled_from(["group_msg", "read_receipt", "membership_change"])


@given(
    TOPICS,
    st.dictionaries(st.sampled_from(NAMES), JSON | st.sampled_from(["join", "leave", "group", "user_1"])) | JSON,
    st.sampled_from([group_of(["user_1"]), group_of([]), dict.fromkeys(group_of([]), DOWN)]),
)
def test_no_record_raises(topic: str, value: object, answers: dict[str, Any]) -> None:
    try:
        message = record(topic, value)
    except orjson.JSONEncodeError:
        return
    run = served(with_users("user_1"), message, NOBODY_ANYWHERE | answers)
    assert all(room.startswith(("u:", "g:", "sdk:")) for rooms, _ in run.published for room in rooms)


@given(TOPICS, st.binary(max_size=60))
def test_no_bytes_raise(topic: str, data: bytes) -> None:
    assert not served(profile(), record(topic, data)).all(PublishRooms)
