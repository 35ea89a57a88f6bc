"""The cache of where users are, with a clock of the test's own."""

import random

from tidegate.registries._places import ENTRIES_MAX, FOUND_S, NOWHERE_S, SPREAD, Places

HERE = {"device": "one"}


def test_what_is_kept_is_found_until_its_time_is_up() -> None:
    places = Places()
    places.keep("user", HERE, now=100.0)
    assert places.find("user", 100.0 + FOUND_S * (1 - SPREAD) - 1) == HERE
    assert places.find("user", 100.0 + FOUND_S * (1 + SPREAD) + 1) is None
    assert len(places) == 0


def test_a_user_who_is_nowhere_is_known_to_be_for_a_shorter_time() -> None:
    places = Places()
    places.keep("user", {}, now=0.0)
    assert places.find("user", NOWHERE_S * (1 - SPREAD) - 1) == {}
    assert places.find("user", NOWHERE_S * (1 + SPREAD) + 1) is None
    assert places.find("another", 0.0) is None


def test_what_was_kept_at_once_does_not_end_at_once(seed: int) -> None:
    places = Places(rng=random.Random(seed))
    for number in range(1_000):
        places.keep(f"user_{number}", HERE, now=0.0)
    left = sum(places.find(f"user_{number}", FOUND_S) is not None for number in range(1_000))
    assert 350 < left < 650


def test_it_is_bounded_and_the_oldest_goes_first() -> None:
    places = Places(entries_max=3)
    for name in ("a", "b", "c"):
        places.keep(name, HERE, now=0.0)
    places.keep("a", HERE, now=1.0)
    places.keep("d", HERE, now=1.0)
    assert [name for name in "abcd" if places.find(name, 2.0)] == ["a", "c", "d"]
    assert len(places) == 3
    assert ENTRIES_MAX > 1_000


def test_what_is_dropped_is_not_known_and_the_rest_is() -> None:
    places = Places()
    places.keep("a", HERE, now=0.0)
    places.keep("b", HERE, now=0.0)
    places.drop("a")
    places.drop("never")
    assert places.find("a", 0.0) is None
    assert places.find("b", 0.0) == HERE
    places.clear()
    assert places.find("b", 0.0) is None
