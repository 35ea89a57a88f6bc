"""The contract of im-gateway, section 10: who is in a group, whom that is asked, and how long it is known."""

import random
from typing import Any

import pytest
from tidegate.errors import UpstreamError
from tidegate.profile import Call, Leave, Wait
from tidegate.profiles import _im_groups as groups
from tidegate.profiles import _im_members as members
from tidegate.profiles._im_groups import Groups, Large, Small

from tests.profiles.im import (
    CROWD,
    DOWN,
    NODE,
    NOW,
    Clock,
    Driven,
    group_of,
    group_record,
    membership_record,
    one_by_one,
    page,
    scanned,
    served,
    told,
    with_users,
)

# --- looking up ------------------------------------------------------------------------------------------------------


def test_a_group_is_looked_up_once_and_then_known() -> None:
    to = with_users("user_1")
    first = served(to, group_record(), group_of(["user_1"]))
    assert first.calls == ["redis.members", "user.members", "redis.cache"]
    second = served(to, group_record(), {})
    assert told(second) == {"u:user_1"}
    assert (first.added("cache_misses_total"), second.added("cache_hits_total")) == (1, 1)


def test_the_user_service_is_asked_page_by_page_until_no_cursor_follows() -> None:
    to = with_users("user_1", "user_2", "user_3")
    pages = one_by_one(page("user_1", following="a"), page("user_2", following="b"), page("user_3"))
    run = served(to, group_record(), group_of([]) | {"user.members": pages})
    asked = [call.payload for call in run.requests if call.method == "members" and call.upstream == "user"]
    assert [request.fields["cursor"] for request in asked] == ["", "a", "b"]
    assert {request.fields["limit"] for request in asked} == {1000}
    assert told(run) == {"u:user_1", "u:user_2", "u:user_3"}


def test_a_cursor_that_leads_nowhere_ends_the_list() -> None:
    run = served(with_users("user_1"), group_record(), group_of([]) | {"user.members": page("user_1", following="a")})
    assert run.calls.count("user.members") == 2
    assert told(run) == {"u:user_1"}


def test_what_redis_knows_is_not_asked_of_the_user_service() -> None:
    answers = {"redis.members": one_by_one(scanned("user_1", following=7), scanned("user_2"))}
    run = served(with_users("user_1", "user_2"), group_record(), answers)
    assert [call.payload.commands[0] for call in run.requests] == [
        ("SSCAN", "group_members:group_456", 0, "COUNT", 1000),
        ("SSCAN", "group_members:group_456", 7, "COUNT", 1000),
    ]
    assert told(run) == {"u:user_1", "u:user_2"}


def test_redis_gets_the_whole_set_at_once_for_five_minutes() -> None:
    crowd = [f"user_{number:04}" for number in range(2500)]
    run = served(with_users(), group_record(), group_of(crowd))
    (cache,) = (call.payload.commands for call in run.requests if call.method == "cache")
    names = [command[0] for command in cache]
    assert names == ["DEL", "SADD", "SADD", "SADD", "EXPIRE", "RENAME"]
    draft = f"group_members:group_456:{NODE}"
    assert all(command[1] == draft for command in cache)
    assert [member for command in cache if command[0] == "SADD" for member in command[2:]] == crowd
    assert cache[-2:] == [("EXPIRE", draft, 300), ("RENAME", draft, "group_members:group_456")]


def test_an_empty_group_is_known_here_and_redis_is_told_nothing() -> None:
    to = with_users("user_1")
    run = served(to, group_record(), group_of([]))
    assert run.calls == ["redis.members", "user.members"]
    assert (run.published, run.counted) == ([], [])
    assert served(to, group_record(), {}).published == []


@pytest.mark.parametrize("failing", ["redis.members", "redis.cache"])
def test_without_redis_the_user_service_is_enough(failing: str) -> None:
    run = served(with_users("user_1"), group_record(), group_of(["user_1"]) | {failing: DOWN})
    assert told(run) == {"u:user_1"}


def test_a_group_that_the_service_does_not_know_is_counted_and_its_message_skipped() -> None:
    run = served(with_users("user_1"), group_record(), group_of([]) | {"user.members": page(error=2)})
    assert (run.counted, run.published) == (["group_unknown"], [])


@pytest.mark.parametrize("answer", [DOWN, page(error=4), page(error=6)])
def test_a_service_that_is_away_is_waited_for(answer: object) -> None:
    answers = group_of(["user_1"]) | {"user.members": one_by_one(answer, answer, page("user_1"))}
    run = served(with_users("user_1"), group_record(), answers)
    assert told(run) == {"u:user_1"}
    assert [wait.seconds for wait in run.asked if isinstance(wait, Wait)] == [members.PAUSE_S] * 2


def test_after_a_minute_the_message_is_skipped_and_counted() -> None:
    clock = Clock()
    run = served(with_users("user_1"), group_record(), group_of([]) | {"user.members": DOWN}, clock)
    assert (run.counted, run.published) == (["group_lookup"], [])
    assert clock.now - NOW == pytest.approx(members.LOOKUP_S)


def test_an_outage_is_waited_for_once_and_not_for_each_message_anew() -> None:
    to, clock, away = with_users("user_1"), Clock(), group_of([]) | {"user.members": DOWN}
    served(to, group_record(), away, clock)
    ended = clock.now
    assert served(to, group_record("group_other"), away, clock).counted == ["group_lookup"]
    assert clock.now == ended
    assert told(served(to, group_record(), group_of(["user_1"]), clock)) == {"u:user_1"}
    served(to, group_record("group_other"), away, clock)
    assert clock.now - ended == pytest.approx(members.LOOKUP_S), "somebody answered: that is another outage"


# --- how long it is known --------------------------------------------------------------------------------------------


def test_a_group_is_known_for_five_minutes_more_or_less() -> None:
    to, clock = with_users("user_1"), Clock()
    served(to, group_record(), group_of(["user_1"]), clock)
    clock.now = NOW + 0.8 * groups.TTL_S - 1
    assert not served(to, group_record(), {}, clock).calls
    clock.now = NOW + 1.2 * groups.TTL_S + 1
    assert served(to, group_record(), group_of(["user_1"]), clock).calls


def test_the_ends_are_spread() -> None:
    kept = Groups(10, random.Random(1))
    ends = [kept.keep(str(number), {"a"}, {}, 0.0, 0).kept.until for number in range(200)]
    assert 0.8 * groups.TTL_S <= min(ends) < 0.9 * groups.TTL_S
    assert 1.1 * groups.TTL_S < max(ends) <= 1.2 * groups.TTL_S


def test_what_was_known_serves_while_the_services_are_away() -> None:
    to, clock = with_users("user_1"), Clock()
    served(to, group_record(), group_of(["user_1"]), clock)
    clock.now += 2 * groups.TTL_S
    away = dict.fromkeys(group_of([]), DOWN)
    assert told(served(to, group_record(), away, clock)) == {"u:user_1"}
    clock.now += groups.STALE_S
    assert served(to, group_record(), away, clock).published == []


def test_what_was_known_before_somebody_left_does_not() -> None:
    to = with_users("user_1", "user_2")
    served(to, group_record(), group_of(["user_1", "user_2"]))
    away = dict.fromkeys(group_of([]), DOWN)
    served(to, membership_record("user_2", "leave"), away)
    assert served(to, group_record(), away).published == []


# --- several look-ups of one group -----------------------------------------------------------------------------------


def to_call(run: Driven, method: str, answers: dict[str, Any]) -> Driven:
    """On to that call, which is left unanswered."""
    while not (isinstance(run.waits_for, Call) and f"{run.waits_for.upstream}.{run.waits_for.method}" == method):
        assert isinstance(run.waits_for, Call)
        answer = answers[f"{run.waits_for.upstream}.{run.waits_for.method}"]
        run.answer(answer(run.waits_for.payload) if callable(answer) else answer)
    return run


def finish(run: Driven, answers: dict[str, Any]) -> Driven:
    while isinstance(run.waits_for, Call):
        answer = answers[f"{run.waits_for.upstream}.{run.waits_for.method}"]
        run.answer(answer(run.waits_for.payload) if callable(answer) else answer)
    return run


def test_look_ups_of_one_group_at_a_time_are_one() -> None:
    to = with_users("user_1")
    answers = group_of(["user_1"])
    first, second = Driven(to.on_record(group_record())), Driven(to.on_record(group_record()))
    waits: Any = second.waits_for
    assert isinstance(waits, Wait)
    finish(first, answers)
    assert first.woken == [waits.ticket]
    assert told(second.answer(True)) == {"u:user_1"}
    assert not second.calls


def test_a_look_up_that_fails_lets_another_try() -> None:
    to = with_users("user_1")
    first, second = Driven(to.on_record(group_record())), Driven(to.on_record(group_record()))
    to_call(first, "user.members", {"redis.members": scanned()}).answer(DOWN)
    waits: Any = second.waits_for
    assert first.woken == [waits.ticket]
    finish(second.answer(True), group_of(["user_1"]))
    assert told(second) == {"u:user_1"}
    assert told(first.answer(None)) == {"u:user_1"}, "it finds what the other one found"


def test_a_look_up_that_was_cut_off_blocks_nobody() -> None:
    to = with_users("user_1")
    Driven(to.on_record(group_record())).hang_up()
    assert told(served(to, group_record(), group_of(["user_1"]))) == {"u:user_1"}


def test_a_list_that_changes_while_it_is_read_is_read_again() -> None:
    to = with_users("user_1", "user_2")
    reading = to_call(Driven(to.on_record(group_record())), "user.members", {"redis.members": scanned()})
    news = Driven(to.on_record(membership_record("user_2", "join"))).answer([1])
    assert isinstance(news.waits_for, Wait)
    reading.answer(page("user_1"))
    finish(reading, group_of(["user_1", "user_2"]))
    assert reading.calls.count("user.members") == 2
    assert told(reading) == {"u:user_1", "u:user_2"}
    assert told(news.answer(True)) == {"u:user_1"}


def test_news_while_redis_is_told_make_redis_forget_again() -> None:
    to = with_users("user_1", "user_2")
    reading = to_call(Driven(to.on_record(group_record())), "redis.cache", group_of(["user_1"]))
    Driven(to.on_record(membership_record("user_2", "join"))).answer([1])
    finish(reading, group_of(["user_1"]))
    assert reading.calls[-2:] == ["redis.cache", "redis.forget"]
    assert told(reading) == {"u:user_1"}
    assert served(to, group_record(), group_of(["user_1", "user_2"])).calls, "what was read is for one message only"


def test_a_list_that_never_stands_still_counts_for_one_message() -> None:
    to = with_users("user_1")
    reading = Driven(to.on_record(group_record()))
    for _ in range(members.READS_MAX):
        to_call(reading, "user.members", {"redis.members": scanned()})
        Driven(to.on_record(membership_record("user_2", "join"))).answer([1])
        reading.answer(page("user_1"))
    finish(reading, group_of(["user_1"]))
    assert reading.calls.count("user.members") == members.READS_MAX
    assert "redis.cache" not in reading.calls
    assert told(reading) == {"u:user_1"}


def test_a_redis_that_did_not_forget_is_not_asked_until_it_does() -> None:
    to = with_users("user_1", "user_2")
    served(to, membership_record("user_2", "join"), group_of(["user_1"]) | {"redis.forget": DOWN})
    answers = group_of(["user_1", "user_2"]) | {"redis.members": scanned("user_1")}
    still = served(to, membership_record("user_2", "join"), answers | {"redis.forget": DOWN})
    assert "redis.members" not in still.calls
    again = served(to, membership_record("user_2", "join"), answers)
    assert again.calls[:2] == ["redis.forget", "redis.members"]


def test_the_groups_that_redis_did_not_forget_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "DISTRUSTED_MAX", 3)
    to = with_users()
    for number in range(9):
        served(to, membership_record("user_2", "join", f"g{number}"), group_of([]) | {"redis.forget": DOWN})
    assert list(to._records._groups.distrusted) == ["g6", "g7", "g8"]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_group_goes_and_its_room_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", 2)
    to = with_users("user_1")
    served(to, group_record("a"), group_of(CROWD))
    served(to, group_record("b"), group_of(["user_1"]))
    served(to, group_record("a"), {})
    assert served(to, group_record("c"), group_of(["user_1"])).moves == [], "b went"
    assert served(to, group_record("d"), group_of(["user_1"])).moves == [Leave("g:a", 1)]
    assert len(to._records._groups) == 2


@pytest.mark.parametrize("large", [10, 100_000])
def test_groups_weigh_what_their_members_do(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(groups, "MEMBERS_MAX", 100)
    kept = Groups(large)
    for number in range(20):
        kept.keep(str(number), {f"u{one}" for one in range(30)}, dict.fromkeys(["u1", "u2"]), 0.0, 0)
    assert len(kept) == (3 if large > 30 else 20), "of a large one only a filter is kept"
    kept.keep("huge", {str(one) for one in range(5000)}, {}, 0.0, 0)
    assert kept.get("huge", 0.0) is not None, "the newest stays, whatever its size"


def test_weights_add_up_after_any_history(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", 6)
    monkeypatch.setattr(groups, "MEMBERS_MAX", 60)
    rng = random.Random(seed)
    kept = Groups(20, rng)
    everybody = [f"u{number}" for number in range(40)]
    rooms: dict[str, set[str]] = {}
    for now in range(2000):
        group = rng.choice("abcdefghij")
        if rng.random() < 0.7:
            users = dict.fromkeys(rng.sample(everybody, 10))
            change = kept.keep(group, set(rng.sample(everybody, rng.randint(0, 40))), users, float(now), 0)
            for room, gone_users in change.gone.items():
                rooms[room] = rooms.get(room, set()) - gone_users
            if isinstance(change.kept, Large):
                rooms[change.kept.room] = rooms.get(change.kept.room, set()) | change.kept.here
        else:
            kept.changed(group)
        assert kept._weight == sum(one.weight for one in kept._groups.values())
        assert len(kept) <= 6
        in_rooms = {one.room: one.here for one in kept._groups.values() if isinstance(one, Large)}
        assert {room: users for room, users in rooms.items() if users} == {
            room: users for room, users in in_rooms.items() if users
        }, "nobody stays in the room of a group that is not kept"


def test_a_small_group_that_changed_is_unknown_and_a_large_one_is_put_right() -> None:
    kept = Groups(3)
    small = kept.keep("s", {"a"}, {}, 0.0, 0).kept
    large = kept.keep("l", {"a", "b", "c", "d"}, {}, 0.0, 0).kept
    assert isinstance(small, Small)
    assert kept.changed("s") is None
    assert kept.get("s", 0.0) is None
    assert kept.changed("l") is large


def test_an_error_of_the_service_is_told_from_a_group_that_is_not_there() -> None:
    to = with_users("user_1")
    run = to_call(Driven(to.on_record(group_record())), "user.members", {"redis.members": scanned()})
    assert isinstance(run.answer(UpstreamError("x", outcome="internal")).waits_for, Wait)
