"""The contract of im-gateway, section 10: large groups, of which only those who are here are kept, in a room."""

from typing import Any

import pytest
from tidegate.calls import RedisRequest
from tidegate.profile import Join, Leave, Wait
from tidegate.profiles import _im_groups as groups
from tidegate.profiles import _im_members as members
from tidegate.profiles._im_devices import ARRIVALS_MAX
from tidegate.profiles._im_groups import Large
from tidegate.profiles.im_gateway import ImGateway

from tests.profiles.im import (
    CROWD,
    DOWN,
    LAPTOP,
    NOW,
    Clock,
    Driven,
    connected,
    gone,
    group_of,
    group_record,
    is_member,
    membership_record,
    one_by_one,
    served,
    told,
    with_users,
)

# --- large groups ----------------------------------------------------------------------------------------------------


def test_the_members_of_a_large_group_who_are_here_are_in_a_room() -> None:
    to = with_users("user_1", "user_2", "stranger")
    connected(to, "user_2", LAPTOP, conn=9, sdk=True)
    run = served(to, group_record(), group_of(CROWD))
    assert {(move.room, move.conn) for move in run.moves} == {
        ("g:group_456", 1),
        ("g:group_456", 2),
        ("sdk:g:group_456", 9),
    }
    assert all(isinstance(move, Join) for move in run.moves)
    assert told(run) == {"g:group_456", "sdk:g:group_456"}
    assert run.added("group_members_fanout_total") == 2
    assert max(run.actions.index(move) for move in run.moves) < run.actions.index(publish_in(run))
    again = served(to, group_record(), {})
    assert (again.moves, told(again)) == ([], {"g:group_456", "sdk:g:group_456"})


def publish_in(run: Driven) -> Any:
    return next(action for action in run.actions if type(action).__name__ == "Publish")


def test_the_threshold_itself_is_still_small() -> None:
    assert told(served(with_users("user_1"), group_record(), group_of(CROWD[:5]))) == {"u:user_1"}
    assert told(served(with_users("user_1"), group_record(), group_of(CROWD[:6]))) == {"g:group_456", "sdk:g:group_456"}


def test_a_group_with_a_strange_name_shares_no_room_with_another() -> None:
    to = with_users("user_1")
    rooms = [told(served(to, group_record(group), group_of(CROWD))) for group in ("a", "sdk:a", "sdk:g:a", "a/sdk")]
    assert len(set.union(*rooms)) == 8


def test_a_member_who_connects_later_joins_once_redis_confirms_it() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    connected(to, "user_2", conn=2)
    run = served(to, group_record(), {"redis.is_member": [1, 1]})
    (call,) = run.requests
    assert list(call.payload.commands) == [
        ("EXISTS", "group_members:group_456"),
        ("SISMEMBER", "group_members:group_456", "user_2"),
    ]
    assert run.moves == [Join("g:group_456", 2)]
    assert served(to, group_record(), {}).moves == []


def test_where_redis_does_not_know_the_service_confirms() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    connected(to, "user_2", conn=2)
    run = served(to, group_record(), group_of(CROWD))
    assert run.calls == ["redis.is_member", "user.is_member"]
    assert run.requests[1].payload.fields == {"group_id": "group_456", "user_id": "user_2"}
    assert run.moves == [Join("g:group_456", 2)]


def bloom_says_yes(to: ImGateway, user: str) -> None:
    """As one in a hundred strangers is taken for a member."""
    large = to._records._groups.get("group_456", NOW)
    assert isinstance(large, Large)
    large.bloom.add(user)


def test_who_only_looks_like_a_member_does_not_join() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    bloom_says_yes(to, "stranger")
    connected(to, "stranger", conn=2)
    assert served(to, group_record(), {"redis.is_member": [1, 0]}).moves == []
    assert not served(to, group_record(), {}).calls, "nobody is asked about the same arrival twice"


def test_the_filter_spares_most_strangers_a_confirmation() -> None:
    to = with_users()
    served(to, group_record(), group_of([f"user_{number}" for number in range(2000)]))
    for conn in range(1, 1001):
        connected(to, f"stranger_{conn}", conn=conn)
    asked: list[Any] = []

    def none_of_them(request: RedisRequest) -> list[int]:
        asked.extend(request.commands[1:])
        return [1] + [0] * (len(request.commands) - 1)

    assert served(to, group_record(), {"redis.is_member": none_of_them}).moves == []
    assert len(asked) < 50, "ten are expected"


def test_a_member_who_comes_back_joins_without_a_question() -> None:
    to = with_users("user_1", "user_2")
    served(to, group_record(), group_of(CROWD))
    gone(to, "user_2", conn=2)
    connected(to, "user_2", conn=7)
    run = served(to, group_record(), {})
    assert run.moves == [Join("g:group_456", 7)]


@pytest.mark.parametrize("answer", [DOWN, is_member(False, error=4)])
def test_a_confirmation_is_waited_for(answer: object) -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    connected(to, "user_2", conn=2)
    answers = {"redis.is_member": DOWN, "user.is_member": one_by_one(answer, is_member(True))}
    run = served(to, group_record(), answers)
    assert run.moves == [Join("g:group_456", 2)]
    assert [wait.seconds for wait in run.asked if isinstance(wait, Wait)] == [members.PAUSE_S]


def test_without_a_confirmation_the_others_get_the_message_and_the_arrival_the_next_one() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    connected(to, "user_2", conn=2)
    run = served(to, group_record(), {"redis.is_member": DOWN, "user.is_member": DOWN})
    assert run.counted == ["group_lookup"]
    assert "g:group_456" in told(run)
    assert served(to, group_record(), {"redis.is_member": [1, 1]}).moves == [Join("g:group_456", 2)]


def test_a_service_that_knows_no_such_user_confirms_nothing() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    bloom_says_yes(to, "stranger")
    connected(to, "stranger", conn=2)
    answers = {"redis.is_member": [0, 0], "user.is_member": is_member(False, error=1)}
    assert served(to, group_record(), answers).moves == []


def test_a_group_that_slept_through_too_many_arrivals_is_loaded_again() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    for _ in range(ARRIVALS_MAX + 1):
        to._devices._arrivals.append("stranger")
        to._devices._came += 1
    run = served(to, group_record(), group_of(CROWD))
    assert "user.members" in run.calls
    for _ in range(ARRIVALS_MAX + 1):
        to._devices._arrivals.append("stranger")
        to._devices._came += 1
    away = dict.fromkeys(group_of([]), DOWN)
    assert "g:group_456" in told(served(to, group_record(), away)), "or what was known serves"


# --- large groups whose members change -------------------------------------------------------------------------------


def test_who_leaves_a_large_group_leaves_its_room_before_the_others_are_told() -> None:
    to = with_users("user_1", "user_2")
    served(to, group_record(), group_of(CROWD))
    run = served(to, membership_record("user_2", "leave"), {"redis.forget": [1]})
    assert Leave("g:group_456", 2) in run.moves
    assert run.actions.index(Leave("g:group_456", 2)) < run.actions.index(publish_in(run))
    assert not run.all(Join)
    assert run.published[0][1]["content"] == "leave"


def test_who_joins_a_large_group_gets_its_next_message_but_not_the_news() -> None:
    to = with_users("user_1", "new")
    served(to, group_record(), group_of(CROWD))
    run = served(to, membership_record("new", "join"), {"redis.forget": [1]})
    assert run.actions.index(publish_in(run)) < run.actions.index(Join("g:group_456", 2))
    assert served(to, group_record(), {}).added("group_members_fanout_total") == 2


def test_who_joined_while_away_is_found_on_coming() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    served(to, membership_record("new", "join"), {"redis.forget": [1]})
    connected(to, "new", conn=5)
    assert served(to, group_record(), {"redis.is_member": [1, 1]}).moves == [Join("g:group_456", 5)]


def test_who_leaves_while_an_old_answer_is_on_its_way_does_not_get_back_in() -> None:
    to = with_users("user_1")
    served(to, group_record(), group_of(CROWD))
    connected(to, "user_2", conn=2)
    message = Driven(to.on_record(group_record()))
    assert message.calls == ["redis.is_member"]
    news = Driven(to.on_record(membership_record("user_2", "leave"))).answer([1])
    message.answer([1, 1])
    assert message.calls == ["redis.is_member"] * 2, "what it said may be outdated"
    message.answer([1, 0])
    news.answer([1, 0])
    assert not message.all(Join)
    assert not news.all(Join)


def test_a_large_group_that_is_loaded_again_moves_only_who_must() -> None:
    to, clock = with_users("user_1", "user_2", "user_3"), Clock()
    served(to, group_record(), group_of(CROWD), clock)
    clock.now += 2 * groups.TTL_S
    run = served(to, group_record(), group_of([user for user in CROWD if user != "user_2"]), clock)
    assert [move for move in run.moves if isinstance(move, Leave)] == [Leave("g:group_456", 2)]


def test_a_group_that_has_become_small_has_no_room_any_more() -> None:
    to, clock = with_users("user_1", "user_2"), Clock()
    served(to, group_record(), group_of(CROWD), clock)
    clock.now += 2 * groups.TTL_S
    run = served(to, group_record(), group_of(["user_1"]), clock)
    assert sorted(run.moves, key=lambda move: move.conn or 0) == [Leave("g:group_456", 1), Leave("g:group_456", 2)]
    assert told(run) == {"u:user_1"}
