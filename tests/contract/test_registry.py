"""What every registry promises (`tidegate.registries.Registry`), tested on each: who is where, for all nodes.

Rule: no test here knows which registry it runs on. What only one can do or suffer is in that one's own tests.
"""

import asyncio
import random
import secrets
from collections.abc import Callable

import pytest
from tidegate.errors import ConfigError, UpstreamError
from tidegate.registries import open_registry, scheme_of

from tests.registries import Settings, device, place, running, until

URLS: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "memory": lambda request: f"memory:{secrets.token_hex(8)}",
    "etcd": lambda request: str(request.getfixturevalue("calm_etcd").url),
}


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    return URLS[request.param](request)


@pytest.fixture
def user() -> str:
    """Nobody else's: the server is shared by tests."""
    return f"user_{secrets.token_hex(8)}"


async def test_a_device_is_found_on_its_node_until_it_leaves(url: str, user: str) -> None:
    async with running(url) as node:
        assert await node.devices(user) == {}
        mine = place(user)
        assert await node.register(mine)
        assert await node.devices(user) == {mine.device: "one"}
        await node.unregister(mine)
        assert await node.devices(user) == {}


async def test_devices_of_a_user_are_found_on_all_their_nodes(url: str, user: str) -> None:
    async with running(url, "one") as one, running(url, "two") as two:
        assert await two.devices(user) == {}
        here, there = place(user, conn=1), place(user, conn=2)
        assert await one.register(here)
        assert await two.register(there)
        for node in (one, two):
            await node.sees(user, {here.device: "one", there.device: "two"})
        await one.unregister(here)
        await two.sees(user, {there.device: "two"})


async def test_one_users_devices_are_never_anothers(url: str, user: str) -> None:
    names = [user, user + "0", user + "-", user[:-1], user + " x", user + "é", user + "%2F"]
    async with running(url) as node:
        places = [place(name, conn=number) for number, name in enumerate(names)]
        assert all([await node.register(one) for one in places])
        for one in places:
            assert await node.devices(one.user) == {one.device: "one"}


async def test_the_sixth_device_is_refused_and_changes_nothing(url: str, user: str) -> None:
    async with running(url, "one") as one, running(url, "two") as two:
        places = [place(user, conn=number) for number in range(5)]
        for number, mine in enumerate(places):
            assert await (one if number % 2 else two).register(mine)
        assert not await one.register(place(user, conn=9))
        expected = {mine.device: "one" if number % 2 else "two" for number, mine in enumerate(places)}
        await one.sees(user, expected)
        assert await one.register(places[1]), "a device that is registered is no other device"
        await two.unregister(places[0])
        assert await one.register(place(user, conn=9)), "there is room again"


async def test_devices_that_come_all_at_once_are_no_more_than_allowed(url: str, user: str) -> None:
    """On two nodes, which count at the same time what the other is just adding to."""
    users = [f"{user}-{number}" for number in range(50)]
    async with running(url, "one") as one, running(url, "two") as two:
        answers = await asyncio.gather(
            *(
                (one if number % 2 else two).register(place(name, conn=number))
                for number in range(16)
                for name in users
            ),
            return_exceptions=True,
        )
        assert all(isinstance(answer, bool | UpstreamError) for answer in answers)
        await until(lambda: one.registry.stats().unsettled == two.registry.stats().unsettled == 0)
        for name in users:
            assert len(await one.devices(name)) <= 5
        assert one.registry.stats().places + two.registry.stats().places == answers.count(True)
        assert answers.count(True) > 4 * len(users)


async def test_a_device_that_comes_back_stays_though_its_old_connection_ends_later(url: str, user: str) -> None:
    async with running(url) as node:
        old = place(user, conn=1)
        new = place(user, conn=2, name=old.device, since=old.connected_at)
        assert await node.register(old)
        assert await node.register(new)
        await node.unregister(old)
        assert await node.devices(user) == {old.device: "one"}
        assert node.taken == [], "that was on the same node"
        await node.unregister(new)
        assert await node.devices(user) == {}


async def test_the_node_that_a_device_left_is_told_and_takes_nothing_away(url: str, user: str) -> None:
    async with running(url, "one") as one, running(url, "two") as two:
        old, other = place(user, conn=7), place(user, conn=8)
        new = place(user, conn=9, name=old.device)
        assert await one.register(old)
        assert await one.register(other)
        assert await two.register(new)
        await until(lambda: one.lost_places == [old])
        assert two.taken == []
        await one.unregister(old)
        await one.sees(user, {old.device: "two", other.device: "one"})
        assert one.registry.stats().places == 1
        assert one.registry.stats().taken == 1


async def test_a_device_that_leaves_and_comes_back_at_once_is_in(url: str, user: str) -> None:
    """Calls of one connection after the other, none waited for."""
    async with running(url) as node:
        name = device()
        for number in range(30):
            mine = place(user, conn=2 * number, name=name)
            back = place(user, conn=2 * number + 1, name=name)
            assert await node.register(mine)
            _, answer = await asyncio.gather(node.unregister(mine), node.register(back))
            assert answer
            assert await node.devices(user) == {name: "one"}
        await node.unregister(back)
        assert await node.devices(user) == {}


async def test_whatever_comes_and_goes_the_registry_ends_up_right(url: str, user: str, seed: int) -> None:
    """Random connects and disconnects of few devices on two nodes, many under way at the same time."""
    rng = random.Random(seed)
    users = [f"{user}-{number}" for number in range(5)]
    names = [device() for _ in range(4)]
    async with running(url, "one") as one, running(url, "two") as two:

        async def live(conn: int) -> None:
            node = rng.choice((one, two))
            mine = place(rng.choice(users), conn=conn, name=rng.choice(names))
            assert await node.register(mine)
            await asyncio.sleep(rng.random() / 20)
            await node.unregister(mine)

        await asyncio.gather(*(live(conn) for conn in range(300)))
        for name in users:
            await one.sees(name, {})
            await two.sees(name, {})
        assert one.registry.stats().places == two.registry.stats().places == 0
        assert one.registry.stats().unsettled == two.registry.stats().unsettled == 0


async def test_nodes_that_run_are_known_and_those_that_end_are_not(url: str) -> None:
    first, second = f"a-{secrets.token_hex(4)}:9093", f"b-{secrets.token_hex(4)}:9093"
    async with running(url, first) as one:
        async with running(url, second) as two:
            await one.sees_nodes(first, second)
            await two.sees_nodes(first, second)
        await one.sees_nodes(first)


async def test_a_node_that_ends_takes_its_devices_with_it(url: str, user: str) -> None:
    async with running(url, "one") as one:
        async with running(url, "two") as two:
            assert await one.register(place(user, conn=1, name="stays"))
            assert await two.register(place(user, conn=1, name="goes"))
            await one.sees(user, {"stays": "one", "goes": "two"})
        await one.sees(user, {"stays": "one"})


async def test_after_its_end_a_call_fails_and_leaving_is_nothing_to_do(url: str, user: str) -> None:
    async with running(url) as node:
        mine = place(user)
        assert await node.register(mine)
        assert node.registry.stats().places == 1
    assert not node.registry.is_ready()
    await node.unregister(mine)
    with pytest.raises(UpstreamError):
        await node.register(mine)
    with pytest.raises(UpstreamError):
        await node.devices(user)


@pytest.mark.parametrize("name", ["", "a/b", "/", "a\x00b", "a\nb", "\x7f", "\ud800", "x" * 257])
async def test_a_name_that_would_break_a_key_is_refused_and_has_no_devices(url: str, name: str) -> None:
    async with running(url) as node:
        for mine in (place(name), place("user_7", name=name) if name else place("")):
            with pytest.raises(UpstreamError) as refused:
                await node.register(mine)
            assert refused.value.outcome == "invalid_argument"
        assert await node.devices(name) == {}
        assert node.registry.stats().places == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [("etdc://localhost", "Did you mean etcd"), ("zookeeper://x", "Valid: etcd:, http:, memory:"), ("", "Valid: ")],
)
def test_an_unknown_scheme_names_the_nearest_valid_one(given: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        scheme_of(given)
    assert words in str(refused.value)


@pytest.mark.parametrize("node", ["", "a|b", "a/b", "a b", "x" * 256])
def test_a_node_whose_name_breaks_keys_or_values_is_a_fault_of_the_configuration(node: str) -> None:
    with pytest.raises(ConfigError):
        open_registry("memory:", Settings(), node=node)


def test_no_password_shows_when_a_url_is_refused() -> None:
    for url in (
        "etdc://user:hunter2@host",
        "etcd://user:hunter2@ho st",
        "etcd://u:hunter2@h:x",
        "etcd://u:hunter2@h/x",
    ):
        with pytest.raises(ConfigError) as refused:
            open_registry(url, Settings(), node="one")
        assert "hunter2" not in str(refused.value) + repr(refused.value), url
