"""What the chat in the process and a real backend over HTTP answer alike: the five requests of the gogate contract.

What every upstream promises is tested in `test_upstream.py`, and what only one backend can do elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tidegate.calls import HttpRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import LATENCY_BOUNDS, Upstream

from tests.rest_backend import RestBackend
from tests.upstreams import as_, auth, members, opened, post, react, read, said, send


@pytest.fixture(params=["memory", "http"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[Upstream]:
    url = "memory:"
    if request.param == "http":
        backend: RestBackend = request.getfixturevalue("rest_backend")
        backend.tell(shape="published", chat_id_in=["send", "react", "read"])
        url = backend.url
    async with opened(url) as made:
        yield made


async def test_a_token_is_exchanged_for_its_user(upstream: Upstream) -> None:
    answer = await upstream.call("auth", auth("user-2"))
    assert answer.status == 200
    assert said(answer)["valid"] is True
    user = said(answer)["user"]
    assert type(user["id"]) is int
    assert user["full_name"]
    again = await upstream.call("auth", auth("user-2"))
    assert said(again)["user"] == user
    assert said(await upstream.call("auth", auth("user-3")))["user"]["id"] != user["id"]


async def test_a_refusal_is_an_answer_with_its_reason(upstream: Upstream) -> None:
    answer = await upstream.call("auth", auth("bad token"))
    assert (answer.status, said(answer)) == (401, {"error": "Invalid token"})
    answer = await upstream.call("auth", auth("user-2", key={"X-Internal-API-Key": "wrong"}))
    assert (answer.status, said(answer)) == (401, {"error": "Invalid API key"})


async def test_a_chats_members_are_those_who_came(upstream: Upstream) -> None:
    ids = [said(await upstream.call("auth", auth(token)))["user"]["id"] for token in ("user-2", "user-3")]
    answer = await upstream.call("members", members())
    assert answer.status == 200
    assert said(answer)["chat_id"] == 1
    assert [member["id"] for member in said(answer)["members"]] == ids
    assert (await upstream.call("members", members(99))).status == 404


async def test_a_message_comes_back_as_clients_will_see_it(upstream: Upstream) -> None:
    body = {"chat_id": 1, "content": 'Grüße, 世界 \u0000 \\ "', "reply_to_id": None, "attachment_ids": []}
    answer = await upstream.call("send", post("/api/v1/messages", body, as_("user-2")))
    assert answer.status in (200, 201)
    message = said(answer)
    assert message["text"] == body["content"]
    assert (type(message["id"]), message["chat_id"], message["reply_to"]) == (int, 1, None)
    names = ["id", "chat_id", "user", "type", "text", "reply_to", "attachments", "reactions", "read_count", "mentions"]
    assert list(message) == [*names, "created_at", "edited_at", "is_edited"]


async def test_reactions_and_receipts_are_taken(upstream: Upstream) -> None:
    body = {"chat_id": 1, "content": "hi"}
    number = said(await upstream.call("send", post("/api/v1/messages", body, as_("user-2"))))["id"]
    reacted = await upstream.call("react", react(number))
    assert reacted.status in (200, 201)
    assert said(reacted)["chat_id"] == 1
    body = {"message_ids": [number]}
    marked = await upstream.call("read", post("/api/v1/messages/read", body, as_("user-3")))
    assert (marked.status, said(marked)["chat_id"]) == (200, 1)


async def test_limits_of_the_backend_are_answers_too(upstream: Upstream) -> None:
    body = {"chat_id": 1, "content": "x" * 10_001}
    refused = await upstream.call("send", post("/api/v1/messages", body, as_("user-2")))
    assert (refused.status, bool(said(refused)["message"])) == (422, True)
    assert (await upstream.call("react", react(1, "x" * 21))).status == 422
    assert (await upstream.call("read", read([]))).status == 422
    assert (await upstream.call("send", send("hi", token=""))).status == 401
    assert (await upstream.call("send", HttpRequest("GET", "/nowhere"))).status == 404


async def test_header_names_are_found_in_any_case(upstream: Upstream) -> None:
    assert (await upstream.call("auth", auth("user-2", {"x-internal-api-KEY": RestBackend.KEY}))).status == 200


async def test_what_is_shared_is_asked_once_and_kept(upstream: Upstream) -> None:
    shared = members(shared_s=60)
    answers = await asyncio.gather(*[upstream.call("members", shared) for _ in range(100)])
    assert len({answer.body for answer in answers}) == 1
    await upstream.call("auth", auth("user-2"))
    assert (await upstream.call("members", shared)).body == answers[0].body, "kept, although somebody came"
    fresh = await upstream.call("members", members())
    assert len(said(fresh)["members"]) == 1
    stats = upstream.stats()
    assert stats.requests["members", "200"] == 2
    assert stats.lookups["miss"] == 1
    assert stats.lookups["hit"] + stats.lookups["merged"] == 100


async def test_calls_are_counted_by_method_and_status_and_timed(upstream: Upstream) -> None:
    for token in ("user-2", "user-3", "bad"):
        await upstream.call("auth", auth(token))
    await upstream.call("send", HttpRequest("GET", "/nowhere"))
    stats = upstream.stats()
    assert stats.requests == {("auth", "200"): 2, ("auth", "401"): 1, ("send", "404"): 1}
    assert stats.latency_bounds == LATENCY_BOUNDS
    assert {method: sum(counts) for method, counts in stats.latency_counts.items()} == {"auth": 3, "send": 1}
    assert all(len(counts) == len(LATENCY_BOUNDS) + 1 for counts in stats.latency_counts.values())
    assert stats.latency_sums["auth"] > 0
    assert (stats.in_flight, stats.waiting, stats.circuit_open) == (0, 0, False)
    assert stats.lookups == {"hit": 0, "miss": 0, "merged": 0}


async def test_a_cancelled_caller_takes_the_answer_from_nobody(upstream: Upstream) -> None:
    calls = [asyncio.ensure_future(upstream.call("members", members(shared_s=1))) for _ in range(10)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls[1::2])
    assert [answer.status for answer in answers] == [200] * 5


async def test_a_closed_upstream_refuses_and_is_not_ready(upstream: Upstream) -> None:
    await upstream.call("members", members(shared_s=60))
    assert upstream.is_ready()
    await upstream.close(1)
    assert not upstream.is_ready()
    for request in (auth("user-2"), members(shared_s=60)):
        with pytest.raises(UpstreamError, match="backend unavailable"):
            await upstream.call("auth", request)
    assert upstream.stats().requests["auth", "unavailable"] == 2
    await upstream.close(1)
