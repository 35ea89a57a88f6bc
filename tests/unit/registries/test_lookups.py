"""Look-ups that are overtaken by changes: whoever waits is answered, and nothing old is kept."""

import asyncio
from typing import Any, cast

import pytest
from aetcd import rpc
from tidegate.errors import UpstreamError
from tidegate.registries._etcd_link import Link, failure
from tidegate.registries._etcd_lookups import Lookups


class Answers:
    """Stands where the link is: answers when the test says so, with the nodes of that moment."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[str | UpstreamError]] = []

    async def txn(self, operations: list[Any]) -> Any:
        gate: asyncio.Future[str | UpstreamError] = asyncio.get_running_loop().create_future()
        self.asked.append(gate)
        node = await gate
        if isinstance(node, UpstreamError):
            raise node
        return rpc.TxnResponse(responses=[response(operation, node) for operation in operations])

    async def has(self, count: int) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(self.asked) == count


def response(operation: Any, node: str) -> Any:
    pair = rpc.KeyValue(key=operation.request_range.key + b"phone", value=f"{node}|1767225600".encode())
    return rpc.ResponseOp(response_range=rpc.RangeResponse(kvs=[pair]))


def made() -> tuple[Lookups, Answers]:
    answers = Answers()
    return Lookups(cast(Link, answers)), answers


async def test_a_look_up_that_a_change_overtook_answers_who_waits_and_is_not_kept() -> None:
    lookups, answers = made()
    early = asyncio.create_task(lookups.devices("user"))
    await answers.has(1)
    lookups.drop("user")
    late = asyncio.create_task(lookups.devices("user"))
    await answers.has(2)
    answers.asked[1].set_result("new")
    assert await late == {"phone": "new"}
    answers.asked[0].set_result("old")
    assert await early == {"phone": "old"}
    assert await lookups.devices("user") == {"phone": "new"}
    assert (lookups.misses, lookups.merged, lookups.hits) == (2, 0, 1)


async def test_a_change_of_another_user_leaves_a_look_up_alone() -> None:
    lookups, answers = made()
    call = asyncio.create_task(lookups.devices("user"))
    await answers.has(1)
    lookups.drop("another")
    answers.asked[0].set_result("one")
    assert await call == await lookups.devices("user") == {"phone": "one"}
    assert lookups.hits == 1


async def test_a_gap_in_the_events_overtakes_every_look_up() -> None:
    lookups, answers = made()
    call = asyncio.create_task(lookups.devices("user"))
    await answers.has(1)
    lookups.clear()
    answers.asked[0].set_result("old")
    assert await call == {"phone": "old"}
    assert len(lookups.places) == 0


async def test_a_failure_reaches_everybody_who_waits_and_is_not_kept() -> None:
    lookups, answers = made()
    calls = [asyncio.create_task(lookups.devices("user")) for _ in range(5)]
    await answers.has(1)
    answers.asked[0].set_result(failure("timeout", "no answer"))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, UpstreamError) and error.outcome == "timeout" for error in errors)
    assert len({id(error) for error in errors}) == 5, "one each"
    again = asyncio.create_task(lookups.devices("user"))
    await answers.has(2)
    answers.asked[1].set_result("one")
    assert await again == {"phone": "one"}


async def test_a_caller_that_is_cancelled_takes_the_look_up_from_no_other() -> None:
    lookups, answers = made()
    gone, stays = (asyncio.create_task(lookups.devices("user")) for _ in range(2))
    await answers.has(1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    answers.asked[0].set_result("one")
    assert await stays == {"phone": "one"}
