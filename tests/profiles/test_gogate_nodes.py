"""Several nodes of gogate behind one Redis: section 9 of the contract, and what nodes learn from each other."""

import orjson
import pytest
from tidegate.profile import Count, PublishRooms, ToNodes
from tidegate.profiles._gogate_chats import NEWS_MAX, Chats, NodeMail

from tests.profiles.gogate import MESSAGE, NOW, Run, answer, members, profile, said

FRAME = b'{"event":"new_message","data":' + MESSAGE + b"}"


def mail_of(run: Run) -> bytes:
    (mail,) = (action.data for action in run.actions if isinstance(action, ToNodes))
    return mail


def sent_on(node: str) -> bytes:
    backend = {"send": answer(201, MESSAGE), "members": members(1, 2, 3)}
    return mail_of(said("send_message", {"chat_id": 1}, backend=backend, to=profile(redis="redis://x", node=node)))


def test_a_broadcast_goes_to_the_other_nodes_in_the_contracts_envelope() -> None:
    envelope = orjson.loads(sent_on("n1"))
    assert len(envelope.pop("event_id")) == 36
    assert envelope == {
        "v": 1,
        "node": "n1",
        "chat_id": 1,
        "users": [1, 2, 3],
        "exclude_user_id": None,
        "frame": FRAME.decode(),
    }


def test_typing_names_the_user_who_is_excluded() -> None:
    backend = {"members": members(1, 2)}
    run = said("typing", {"chat_id": 1, "is_typing": True}, backend=backend, to=profile(redis="redis://x"))
    assert orjson.loads(mail_of(run))["exclude_user_id"] == 2


def test_a_single_node_tells_nobody() -> None:
    backend = {"send": answer(201, MESSAGE), "members": members(1)}
    run = said("send_message", {"chat_id": 1}, backend=backend)
    assert not any(isinstance(action, ToNodes) for action in run.actions)


def test_another_nodes_broadcast_reaches_its_users_here() -> None:
    other = profile(redis="redis://x", node="n2")
    assert list(other.on_node(sent_on("n1"), NOW)) == [PublishRooms(["user:1", "user:2", "user:3"], FRAME)]


def test_an_excluded_user_is_left_out_on_every_node() -> None:
    mail = NodeMail("n1").pack(b"{}", 1, [1, 2, 3], 2, NOW)
    assert list(profile(redis="redis://x", node="n2").on_node(mail, NOW)) == [PublishRooms(["user:1", "user:3"], b"{}")]


def test_what_comes_back_or_comes_twice_is_delivered_once() -> None:
    gogate = profile(redis="redis://x", node="n2")
    mail = sent_on("n1")
    assert len(list(gogate.on_node(mail, NOW))) == 1
    assert list(gogate.on_node(mail, NOW)) == []
    assert list(profile(redis="redis://x", node="n1").on_node(mail, NOW)) == []


def test_two_messages_at_the_same_time_have_different_ids_also_after_a_restart() -> None:
    ids = {orjson.loads(NodeMail("n1").pack(b"{}", 1, [1], None, now))["event_id"] for now in (NOW, NOW + 1e-6)}
    mail = NodeMail("n1")
    ids |= {orjson.loads(mail.pack(b"{}", 1, [1], None, NOW + 5))["event_id"] for _ in range(3)}
    assert len(ids) == 5


def test_a_node_learns_the_chats_of_messages_that_others_sent() -> None:
    gogate = profile(redis="redis://x", node="n2")
    list(gogate.on_node(sent_on("n1"), NOW))
    backend = {"react": answer(200, {}), "members": members(1, 2)}
    run = said("add_reaction", {"message_id": 124, "emoji": "+1"}, backend=backend, to=gogate)
    assert run.published[0][0] == ["user:1", "user:2"]


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"node": None},
        {"event_id": 5},
        {"chat_id": "1"},
        {"users": "1,2"},
        {"users": [1, "2"]},
        {"exclude_user_id": "2"},
        {"frame": {"event": "x"}},
    ],
)
def test_a_message_that_no_node_of_ours_wrote_is_counted_and_dropped(change: dict[str, object]) -> None:
    mail = orjson.dumps(orjson.loads(sent_on("n1")) | change)
    (action,) = profile(redis="redis://x", node="n2").on_node(mail, NOW)
    assert isinstance(action, Count)


@pytest.mark.parametrize("junk", [b"", b"\xff", b"[]", b"{}", b"null"])
def test_junk_on_the_channel_is_counted_and_dropped(junk: bytes) -> None:
    (action,) = profile(redis="redis://x").on_node(junk, NOW)
    assert isinstance(action, Count)


def test_what_is_remembered_is_bounded_and_the_newest_stays() -> None:
    chats = Chats(messages_max=3)
    for number in range(5):
        chats.learn_message(b'{"id":%d}' % number, 10 + number)
    assert [chats.of(number) for number in range(5)] == [None, None, 12, 13, 14]
    mail = NodeMail("n2")
    first = NodeMail("n1").pack(b"{}", 1, [1], None, NOW)
    for number in range(NEWS_MAX + 1):
        mail._is_news(str(number))
    unpacked = mail.unpack(first, NOW)
    assert unpacked is not None
    assert unpacked.is_news
