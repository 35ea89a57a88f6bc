"""The store inside the process: time passes as its caller says, it is bounded, and it goes with its last upstream."""

import gc
from typing import Any

import pytest
from tidegate.calls import RedisCommand, RedisRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams._store import STORES, VALUE_BYTES, Store, store_named


def ask(store: Store, *commands: RedisCommand, now: float = 0.0) -> list[Any]:
    return store.answer(RedisRequest(commands), now)


def test_a_key_lives_until_its_time_is_over_and_then_makes_room_for_any_kind() -> None:
    store = Store()
    ask(store, ("SADD", "k", "An"), ("EXPIRE", "k", 300))
    assert ask(store, ("EXISTS", "k"), now=299.9) == [1]
    assert ask(store, ("EXISTS", "k"), ("RPUSH", "k", "x"), ("EXISTS", "k"), now=300.0) == [0, 1, 1]
    assert ask(store, ("EXISTS", "k"), now=1e9) == [1], "the time was the old key's"


def test_what_is_added_keeps_the_keys_time() -> None:
    store = Store()
    ask(store, ("SADD", "k", "An"), ("EXPIRE", "k", 300))
    ask(store, ("SADD", "k", "Binh"), now=200.0)
    assert ask(store, ("EXISTS", "k"), now=300.0) == [0]


def test_a_full_store_refuses_writes_until_something_is_gone() -> None:
    store = Store(bytes_max=10 * VALUE_BYTES)
    ask(store, ("RPUSH", "old", *range(10)), ("EXPIRE", "old", 60))
    for command in (("SADD", "k", "An"), ("RPUSH", "old", "x")):
        with pytest.raises(UpstreamError) as refused:
            ask(store, command)
        assert (refused.value.outcome, "OOM" in refused.value.cure) == ("refused", True)
    assert ask(store, ("EXISTS", "old"), now=1.0) == [1]
    assert ask(store, ("SADD", "k", "An"), now=60.0) == [1], "what expired without being looked at is swept"


def test_all_that_was_deleted_is_given_back() -> None:
    store = Store(bytes_max=10 * VALUE_BYTES)
    for number in range(1_000):
        ask(store, ("SADD", f"draft {number}", *range(5)), ("RENAME", f"draft {number}", "k"), ("DEL", "k"))
        ask(store, ("RPUSH", "k", *range(5)), ("SADD", "other", "An"), ("RENAME", "other", "k"), ("DEL", "k"))
    assert store._bytes == 0


def test_what_is_no_text_bytes_or_number_is_a_mistake_of_the_profile() -> None:
    with pytest.raises(TypeError):
        ask(Store(), ("SADD", "k", 1.5))  # type: ignore[arg-type]  # that is the point


def test_all_that_open_one_name_share_a_store_that_goes_with_the_last() -> None:
    name = "test-store-shared"
    one, two = store_named(name), store_named(name)
    ask(one, ("SADD", "k", "An"))
    assert ask(two, ("EXISTS", "k")) == [1]
    assert ask(store_named("test-store-other"), ("EXISTS", "k")) == [0]
    del one, two
    gc.collect()
    assert name not in STORES
