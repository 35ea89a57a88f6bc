"""Who is on this node: one connection a device, a bounded memory of who came, and nothing kept of who left."""

import random

import pytest
from tidegate.profiles._im_devices import Device, Devices

from tests.profiles.im import LAPTOP, PHONE, TABLET


def device(name: str = PHONE, conn: int = 1, *, sdk: bool = False) -> Device:
    return Device(name, conn, sdk)


def test_a_user_has_devices_and_each_is_on_the_newest_connection() -> None:
    devices = Devices()
    assert devices.add("ann", device(PHONE, 1)) is None
    assert devices.add("ann", device(LAPTOP, 2, sdk=True)) is None
    assert devices.add("ann", device(PHONE, 3)) == device(PHONE, 1)
    assert {(each.name, each.conn, each.sdk) for each in devices.of("ann")} == {(PHONE, 3, False), (LAPTOP, 2, True)}
    assert devices.find("ann", LAPTOP) == device(LAPTOP, 2, sdk=True)
    assert (devices.connections, devices.sdk_connections) == (2, 1)


def test_a_replaced_connection_that_ends_takes_nothing_along() -> None:
    devices = Devices()
    devices.add("ann", device(PHONE, 1))
    devices.add("ann", device(PHONE, 2))
    assert not devices.remove("ann", PHONE, 1)
    assert devices.find("ann", PHONE) == device(PHONE, 2)
    assert devices.remove("ann", PHONE, 2)
    assert not devices.remove("ann", PHONE, 2)


def test_nothing_is_kept_of_a_user_who_left() -> None:
    devices = Devices()
    devices.add("ann", device(PHONE, 1))
    devices.remove("ann", PHONE, 1)
    assert (len(devices.users), devices.of("ann"), devices.connections) == (0, [], 0)


def test_strangers_are_not_here() -> None:
    devices = Devices()
    assert devices.of("ann") == []
    assert devices.find("ann", PHONE) is None
    assert not devices.remove("ann", PHONE, 1)


def test_a_devices_case_and_the_engines_largest_number_stay_as_they_are() -> None:
    devices = Devices()
    devices.add("ann", device(TABLET, 2**64 - 1))
    assert devices.of("ann") == [device(TABLET, 2**64 - 1)]


def test_who_came_since_a_position_is_known_until_too_many_came() -> None:
    devices = Devices(arrivals_max=3)
    assert list(devices.arrived_since(0) or ()) == []
    for conn, user in enumerate(("ann", "bob", "cid"), 1):
        devices.add(user, device(conn=conn))
    since = devices.position
    assert set(devices.arrived_since(0) or ()) == {"ann", "bob", "cid"}
    assert set(devices.arrived_since(1) or ()) == {"bob", "cid"}
    assert list(devices.arrived_since(since) or ()) == []
    devices.add("dan", device(conn=4))
    assert devices.arrived_since(0) is None
    assert list(devices.arrived_since(since) or ()) == ["dan"]


@pytest.mark.parametrize("steps", [2000])
def test_counts_agree_with_what_is_there_after_any_comings_and_goings(seed: int, steps: int) -> None:
    rng, devices = random.Random(seed), Devices()
    model: dict[tuple[str, str], tuple[int, bool]] = {}
    for conn in range(steps):
        user, name = rng.choice("abc"), rng.choice((PHONE, LAPTOP))
        if rng.random() < 0.6:
            one = device(name, conn, sdk=rng.random() < 0.5)
            before = devices.add(user, one)
            assert (before and (before.conn, before.sdk)) == model.get((user, name))
            model[user, name] = one.conn, one.sdk
        else:
            known = model.get((user, name), (0, False))[0]
            ends = known if rng.random() < 0.7 else conn
            assert devices.remove(user, name, ends) == ((user, name) in model and known == ends)
            if known == ends:
                model.pop((user, name), None)
        assert devices.connections == len(model)
        assert devices.sdk_connections == sum(sdk for _, sdk in model.values())
        assert set(devices.users) == {user for user, _ in model}
