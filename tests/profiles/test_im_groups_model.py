"""Groups under random histories: people come and go, join and leave, services fail, look-ups overlap.

Whatever happened, once it is quiet a message reaches exactly the members who are here. Rule: the seed is printed, and
what stands for Redis and the user service keeps their commands' meaning.
"""

import random
from typing import Any

import pytest
from tidegate.calls import RedisRequest, RpcRequest
from tidegate.errors import UpstreamError
from tidegate.profile import Admit, Call, Join, Leave, Publish, PublishRooms, Wait
from tidegate.profiles import _im_groups as groups

from tests.profiles.im import (
    DOWN,
    PHONE,
    Clock,
    Driven,
    carried_out,
    group_record,
    is_member,
    membership_record,
    page,
    profile,
    session,
    upgrade,
    validated,
)

USERS = [f"user_{number}" for number in range(12)]
GROUPS = ("small", "large", "empty")
PAGE_OF = 4


class Redis:
    """The commands that are used, on sets."""

    def __init__(self) -> None:
        self._sets: dict[str, set[str]] = {}

    def answer(self, request: RedisRequest, *, fails_after: int | None = None) -> Any:
        answers = []
        for number, (name, *arguments) in enumerate(request.commands):
            if number == fails_after:
                return DOWN
            try:
                answers.append(getattr(self, f"_{str(name).lower()}")(*arguments))
            except KeyError:
                return UpstreamError("ERR no such key")
        return answers

    def _sscan(self, key: str, cursor: int, *_: object) -> Any:
        found = sorted(self._sets.get(key, set()))
        end = cursor + PAGE_OF
        return [b"%d" % (end if end < len(found) else 0), [name.encode() for name in found[cursor:end]]]

    def _exists(self, key: str) -> int:
        return int(bool(self._sets.get(key)))

    def _sismember(self, key: str, user: str) -> int:
        return int(user in self._sets.get(key, set()))

    def _del(self, key: str) -> int:
        return int(self._sets.pop(key, None) is not None)

    def _sadd(self, key: str, *users: str) -> int:
        self._sets.setdefault(key, set()).update(users)
        return len(users)

    def _expire(self, key: str, _seconds: int) -> int:
        return int(key in self._sets)

    def _rename(self, key: str, to: str) -> bool:
        self._sets[to] = self._sets.pop(key)
        return True


class World:
    """A gateway, everybody's connections, and the services behind it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.gateway = profile(LARGE_GROUP_THRESHOLD="5")
        self.redis = Redis()
        self.members: dict[str, set[str]] = {"small": set(USERS[:3]), "large": set(USERS[:9]), "empty": set()}
        self.rooms: dict[str, set[int]] = {}
        self.users: dict[int, str] = {}
        self.running: dict[tuple[str, str], Driven] = {}
        self.taken: dict[tuple[str, str], int] = {}  # how many of a running one's actions were carried out
        self.queues: dict[tuple[str, str], list[Any]] = {}
        self.reached: list[int] = []
        self.fails = 0.0
        self._conn = 0

    # --- people ---

    def come(self) -> None:
        absent = [user for user in USERS if user not in self.users.values()]
        if absent:
            self._conn += 1
            user = self.rng.choice(absent)
            answers = {"auth.validate": validated(user, PHONE), "registry.register": True}
            run = carried_out(self.gateway.on_open(upgrade(self._conn)), answers)
            self.users[self._conn] = user
            for room in run.only(Admit).rooms:
                self.rooms.setdefault(room, set()).add(self._conn)

    def go(self) -> None:
        if self.users:
            conn = self.rng.choice(list(self.users))
            user = self.users.pop(conn)
            for here in self.rooms.values():
                here.discard(conn)
            carried_out(self.gateway.on_close(session(user, PHONE, conn), 1000), {"registry.unregister": None})

    def change(self) -> None:
        """The service knows first, then Kafka says so."""
        group, user = self.rng.choice(("small", "large")), self.rng.choice(USERS)
        event = "leave" if user in self.members[group] else "join"
        self.members[group] ^= {user}
        self.begin("membership", group, membership_record(user, event, group))

    def send(self) -> None:
        group = self.rng.choice(GROUPS)
        self.begin("message", group, group_record(group))

    # --- records, in order for each topic and group ---

    def begin(self, topic: str, group: str, record: Any) -> None:
        key = (topic, group)
        if key in self.running:
            self.queues.setdefault(key, []).append(record)
            return
        run = self.running[key] = Driven(self.gateway.on_record(record), self.clock)
        self.taken[key] = 0
        self._after(key, run)

    def step(self) -> None:
        key = self.rng.choice(list(self.running))
        run = self.running[key]
        if isinstance(run.waits_for, Wait) and run.waits_for.ticket and self.rng.random() < 0.9:
            return  # only being woken, or seldom the time, ends it
        self._answer(key, run, self._answer_to(run.waits_for))

    def _answer(self, key: tuple[str, str], run: Driven, answer: Any) -> None:
        if run.waits_for is not None:
            run.answer(answer)
            self._after(key, run)

    def _after(self, key: tuple[str, str], run: Driven) -> None:
        fresh, self.taken[key] = run.actions[self.taken[key] :], len(run.actions)
        woken = [action.ticket for action in fresh if type(action).__name__ == "Wake"]  # type: ignore[union-attr]
        for action in fresh:
            self._carry_out(action)
        if run.waits_for is None:
            del self.running[key]
            if self.queues.get(key):
                self.begin(*key, self.queues[key].pop(0))
        for ticket in woken:
            for other, waiting in list(self.running.items()):
                if isinstance(waiting.waits_for, Wait) and waiting.waits_for.ticket == ticket:
                    self._answer(other, waiting, True)

    def _carry_out(self, action: Any) -> None:
        """As the engine does."""
        if isinstance(action, Join) and action.conn in self.users:
            self.rooms.setdefault(action.room, set()).add(action.conn)
        elif isinstance(action, Leave) and action.conn is not None:
            self.rooms.get(action.room, set()).discard(action.conn)
        elif isinstance(action, Publish):
            self.reached += self.rooms.get(action.room, set())
        elif isinstance(action, PublishRooms):
            self.reached += [conn for room in action.rooms for conn in self.rooms.get(room, set())]

    # --- services ---

    def _answer_to(self, waits: Any) -> Any:
        if isinstance(waits, Call):
            return self._service(waits)
        if isinstance(waits, Wait):
            self.clock.now += min(waits.seconds, 1.0)
            return None
        return [self._answer_to(each) for each in waits.waits]

    def _service(self, call: Call) -> Any:
        fails = self.rng.random() < self.fails
        if isinstance(call.payload, RedisRequest):
            done = self.rng.randint(0, len(call.payload.commands)) if fails else None
            return self.redis.answer(call.payload, fails_after=done)
        request: RpcRequest = call.payload
        members = sorted(self.members[request.fields["group_id"]])
        if fails:
            return DOWN
        if call.method == "is_member":
            return is_member(request.fields["user_id"] in members)
        # by name: a cursor that counts would skip somebody whenever another leaves between two pages
        left = [user for user in members if user > request.fields["cursor"]]
        return page(*left[:PAGE_OF], following=left[PAGE_OF - 1] if len(left) > PAGE_OF else "")

    # --- the end ---

    def settle(self) -> None:
        for _ in range(100_000):
            if not self.running:
                return
            self.step()
        raise AssertionError("something waits for ever")


@pytest.mark.parametrize("kept", [1, 20_000], ids=["one group fits", "all fit"])
@pytest.mark.parametrize("fails", [0.0, 0.2])
@pytest.mark.parametrize("history", range(12))
def test_when_it_is_quiet_a_message_reaches_exactly_the_members_who_are_here(
    seed: int, history: int, fails: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", kept)
    world = World(seed + history)
    world.fails = fails
    happens = [world.come, world.come, world.go, world.change, world.send, world.send]
    for turn in range(600):
        world.rng.choice(happens)()
        for _ in range(world.rng.randint(0, 6)):
            if world.running:
                world.step()
        if turn % 150 == 149:
            world.fails = 0.0
            world.settle()
            check(world)
            world.fails = fails
            world.clock.now += world.rng.choice((1.0, 2 * groups.TTL_S))


def check(world: World) -> None:
    for group in GROUPS:
        world.reached.clear()
        world.begin("message", group, group_record(group))
        world.settle()
        expected = sorted(conn for conn, user in world.users.items() if user in world.members[group])
        assert sorted(world.reached) == expected, group
