"""What the store inside the process and a real Redis reply alike: the commands that profiles send, right and wrong.

What every upstream promises is tested in `test_upstream.py`, and what only one of these can do elsewhere.
"""

import random
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tidegate.calls import RedisCommand, RedisRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import Upstream

from tests.servers import RedisServer
from tests.upstreams import opened

KEYS = ("a", "b", "c")
MEMBERS = ("An", "Binh", b"\xff\x00", 7)


@pytest.fixture(params=["memory", "redis"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[Upstream]:
    url = f"memory:{secrets.token_hex(4)}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url
    async with opened(url) as made:
        yield made


@pytest.fixture
def key() -> str:
    """Nobody else's: a Redis is shared by tests."""
    return f"key:{secrets.token_hex(6)}"


async def asked(upstream: Upstream, *commands: RedisCommand, is_atomic: bool = False) -> list[Any]:
    replies: list[Any] = await upstream.call("asked", RedisRequest(commands, is_atomic))
    return replies


async def refused(upstream: Upstream, *commands: RedisCommand, is_atomic: bool = False) -> str:
    with pytest.raises(UpstreamError) as error:
        await asked(upstream, *commands, is_atomic=is_atomic)
    assert error.value.outcome == "refused"
    return error.value.cure


async def test_it_is_there(upstream: Upstream) -> None:
    assert await asked(upstream, ("PING",), ("ping", "hello")) == [b"PONG", b"hello"]


async def test_a_set_counts_what_is_new_in_it(upstream: Upstream, key: str) -> None:
    assert await asked(upstream, ("SADD", key, "An", "Binh", "An"), ("SADD", key, "Binh", 7)) == [2, 1]
    assert await asked(upstream, ("SISMEMBER", key, "7"), ("SISMEMBER", key, "Chi"), ("EXISTS", key)) == [1, 0, 1]
    assert await asked(upstream, ("DEL", key, key), ("EXISTS", key), ("SISMEMBER", key, "An")) == [1, 0, 0]


async def test_a_scan_gives_all_members_and_ends_with_cursor_0(upstream: Upstream, key: str) -> None:
    sent = [f"user_{number}" for number in range(2_500)]
    await asked(upstream, ("SADD", key, *sent))
    found, cursor = set(), b"0"
    for _ in range(len(sent)):
        ((cursor, page),) = await asked(upstream, ("SSCAN", key, cursor, "COUNT", 1_000))
        found.update(page)
        if cursor == b"0":
            break
    assert cursor == b"0"
    assert found == {name.encode() for name in sent}
    assert await asked(upstream, ("SSCAN", f"{key}:none", 0)) == [[b"0", []]]
    for wrong in (("COUNT",), ("MANY", 3), ("COUNT", 0), ("COUNT", "x")):
        assert "refused SSCAN: ERR" in await refused(upstream, ("SSCAN", key, 0, *wrong))


async def test_a_renamed_key_replaces_the_other_and_keeps_its_time(upstream: Upstream, key: str) -> None:
    draft = f"{key}:draft"
    await asked(upstream, ("SADD", key, "old"))
    assert await asked(upstream, ("SADD", draft, "new"), ("EXPIRE", draft, 300), ("RENAME", draft, key)) == [
        1,
        1,
        b"OK",
    ]
    replies = await asked(upstream, ("SISMEMBER", key, "old"), ("SISMEMBER", key, "new"), ("EXISTS", draft))
    assert replies == [0, 1, 0]
    assert await asked(upstream, ("RENAME", key, key)) == [b"OK"]


async def test_an_expired_key_is_gone(upstream: Upstream, key: str) -> None:
    assert await asked(upstream, ("EXPIRE", key, 60), ("SADD", key, "An"), ("EXPIRE", key, 0)) == [0, 1, 1]
    assert await asked(upstream, ("EXISTS", key), ("SADD", key, "An"), ("EXPIRE", key, -1), ("EXISTS", key)) == [
        0,
        1,
        1,
        0,
    ]


async def test_a_list_says_how_long_it_is(upstream: Upstream, key: str) -> None:
    assert await asked(upstream, ("RPUSH", key, "one"), ("RPUSH", key, b"\xff", 3)) == [1, 3]


async def test_what_is_not_for_a_kind_is_refused_and_the_other_commands_are_done(upstream: Upstream, key: str) -> None:
    for is_atomic in (False, True):
        here = f"{key}:{is_atomic}"
        cure = await refused(
            upstream, ("SADD", here, "An"), ("RPUSH", here, "x"), ("SADD", here, "Binh"), is_atomic=is_atomic
        )
        assert "refused RPUSH: WRONGTYPE" in cure
        assert await asked(upstream, ("SISMEMBER", here, "Binh")) == [1]


async def test_of_atomic_commands_none_is_done_if_one_makes_no_sense(upstream: Upstream, key: str) -> None:
    for wrong in (("SISMEMBER", key), ("RENAME", key), ("SADD", key), ("NOSUCH", key)):
        assert f"refused {wrong[0]}: ERR" in await refused(upstream, ("SADD", key, "An"), wrong, is_atomic=True)
        assert await asked(upstream, ("EXISTS", key)) == [0]


@pytest.mark.parametrize(
    "wrong",
    [
        ("RENAME", "key:there-is-none", "other"),
        ("EXPIRE", "key:x", "soon"),
        ("SSCAN", "key:x", "first"),
        ("PING", "a", "b"),
        ("EXISTS",),
    ],
)
async def test_what_cannot_be_done_is_refused_without_its_arguments(upstream: Upstream, wrong: RedisCommand) -> None:
    cure = await refused(upstream, wrong)
    assert f"refused {wrong[0]}: ERR" in cure
    assert "key:" not in cure


async def test_any_sequence_of_commands_has_the_replies_of_a_real_one(redis_server: RedisServer, seed: int) -> None:
    chance, prefix = random.Random(seed), secrets.token_hex(4)
    async with opened(f"memory:{prefix}") as inside, opened(redis_server.url) as real:
        for _ in range(2_000):
            command = any_command(chance, prefix)
            assert await reply(inside, command) == await reply(real, command), command


def any_command(chance: random.Random, prefix: str) -> RedisCommand:
    key, other = (f"{prefix}:{chance.choice(KEYS)}" for _ in range(2))
    members: Sequence[str | bytes | int] = chance.choices(MEMBERS, k=chance.randint(1, 3))
    commands: list[RedisCommand] = [
        ("SADD", key, *members),
        ("SISMEMBER", key, members[0]),
        ("SSCAN", key, 0, "COUNT", 10),
        ("RPUSH", key, *members),
        ("EXISTS", key, other),
        ("EXPIRE", key, chance.choice([0, 1_000, -5])),
        ("RENAME", key, other),
        ("DEL", key, other),
    ]
    return chance.choice(commands)


async def reply(upstream: Upstream, command: RedisCommand) -> Any:
    """A set has no order, and of a refusal only the code is the same text."""
    try:
        (said,) = await asked(upstream, command)
    except UpstreamError as error:
        return re.findall(r"refused \w+: (\w+)", error.cure)
    return (said[0], sorted(said[1])) if isinstance(said, list) else said
