"""The gRPC upstream beside a real service that dies, freezes, is slow, refuses, or is asked too much at once.

What the server saw is asked of it. Figures of time are settings of the test, and the circuit goes by the real clock
where the point is how soon a service is found again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tidegate.calls import RpcRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import Upstream
from tidegate.upstreams import grpc as grpc_upstream
from tidegate.upstreams._grpc_target import FAILURES_MAX, IN_FLIGHT_MAX, MESSAGE_BYTES_MAX, OPEN_S
from tidegate.upstreams.grpc import CHANNELS, GrpcUpstream

from tests.certificates import Certificate
from tests.cutter import Cutter
from tests.grpc_backend import GrpcBackend
from tests.servers import free_port
from tests.upstreams import WAIT_S_MAX, ended, opened, until, validate

PUSH = "im_gateway_servicepb.GatewayService/PushMessage"


@pytest.fixture
async def upstream(grpc_backend: GrpcBackend) -> AsyncIterator[Upstream]:
    async with opened(grpc_backend.url) as made:
        yield made


@pytest.fixture
async def many() -> AsyncIterator[Upstream]:
    async with opened("grpc:") as made:
        yield made


@pytest.fixture
def other(servers_wanted: None) -> Iterator[GrpcBackend]:
    with GrpcBackend().running() as backend:
        yield backend


def push(address: str, **options: Any) -> RpcRequest:
    return RpcRequest(PUSH, {"msg_id": "m", "recipient_id": "user_1"}, address, **options)


async def answers_again(upstream: Upstream, request: RpcRequest) -> float:
    """After how many seconds."""
    began = time.monotonic()
    async with asyncio.timeout(WAIT_S_MAX):
        while await ended(upstream, request) != "answer":  # noqa: ASYNC110 - nothing tells but asking
            await asyncio.sleep(0.01)
    return time.monotonic() - began


# --- what goes over the wire ------------------------------------------------------------------------------------------


async def test_fields_reach_the_service_and_its_answer_comes_back(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    answer = await upstream.call("auth", validate("user_7", metadata={"x-gateway-hop": "1"}))
    assert (answer.valid, answer.user_id, answer.device_id) == (True, "user_7", "a device")
    assert not (await upstream.call("auth", validate("bad"))).valid
    fields = {"msg_id": "m", "message_type": "MESSAGE_TYPE_TEXT", "metadata": {"a": "b"}, "content": "Grüße \0"}
    nested = {"client_timestamp": {"seconds": 1767225600, "nanos": 5000}}
    answer = await upstream.call("route", RpcRequest("im.v1.IMService/RoutePrivateMessage", fields | nested))
    assert answer.sequence_number == 1
    first, _, routed = grpc_backend.calls()
    assert first.metadata["x-gateway-hop"] == "1"
    assert first.metadata["user-agent"].startswith("tidegate/")
    assert routed.fields == fields | {"client_timestamp": "2026-01-01T00:00:00.000005Z"}


async def test_a_large_answer_comes_whole_and_one_beyond_the_bound_is_none(upstream: Upstream) -> None:
    def members(limit: int) -> RpcRequest:
        return RpcRequest("user.v1.UserService/GetGroupMembers", {"group_id": "group_1", "limit": limit})

    assert len((await upstream.call("members", members(50_000))).members) == 50_000
    with pytest.raises(UpstreamError, match=f"more than {MESSAGE_BYTES_MAX} bytes") as raised:
        await upstream.call("members", members(400_000))
    assert raised.value.outcome == "resource_exhausted"
    assert not upstream.stats().circuit_open


async def test_a_mistake_of_the_profile_is_raised_plainly(upstream: Upstream) -> None:
    for request in (
        RpcRequest("auth.v1.AuthService/Nothing"),
        RpcRequest("auth.v1.NoService/ValidateToken"),
        RpcRequest("auth.v1.AuthService/ValidateToken", {"no_field": 1}),
        RpcRequest("auth.v1.AuthService/ValidateToken", {"access_token": 1}),
        validate("x", address="127.0.0.1:1"),
    ):
        with pytest.raises((LookupError, TypeError, ValueError)):
            await upstream.call("auth", request)
    assert upstream.stats().in_flight == 0
    assert await ended(upstream, validate("x")) == "answer"


async def test_calls_are_spread_over_a_few_connections(grpc_backend: GrpcBackend, upstream: Upstream) -> None:
    for _ in range(10 * CHANNELS):
        await upstream.call("auth", validate("x"))
    assert Counter(Counter(call.peer for call in grpc_backend.calls()).values()) == {10: CHANNELS}


async def test_tls_trusts_what_the_machine_trusts_and_nobody_else(
    servers_wanted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(tmp_path, "service")
    with GrpcBackend(certificate).running() as backend:
        url = f"grpcs://127.0.0.1:{backend.tls_port}"
        async with opened(url) as upstream:
            assert await ended(upstream, validate("x")) == "unavailable"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))
        async with opened(url) as upstream:
            assert await ended(upstream, validate("x")) == "answer"


# --- a service that goes away -----------------------------------------------------------------------------------------


async def test_a_service_that_was_killed_is_used_again_soon_after_it_is_back(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    """Time and again: neither the circuit nor the channels wait longer from one outage to the next."""
    for _ in range(3):
        assert await answers_again(upstream, validate("x")) < WAIT_S_MAX
        grpc_backend.kill()
        for _ in range(FAILURES_MAX):
            assert await ended(upstream, validate("x")) == "unavailable"
        assert await ended(upstream, validate("x")) == "circuit_open"
        await asyncio.to_thread(grpc_backend.start)
        assert await answers_again(upstream, validate("x")) < OPEN_S + 8, "the pause, and a channel's own"


async def test_a_service_that_was_away_for_long_is_used_again_soon(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    """Pauses between a channel's attempts grow, but not beyond about a second."""
    await upstream.call("auth", validate("x"))
    grpc_backend.kill()
    async with asyncio.timeout(WAIT_S_MAX):
        while upstream.stats().requests.get(("asked", "unavailable"), 0) < FAILURES_MAX + 3:  # 3 probes: over 6 s
            await ended(upstream, validate("x"))
            await asyncio.sleep(0.05)
    await asyncio.to_thread(grpc_backend.start)
    assert await answers_again(upstream, validate("x")) < OPEN_S + 8


async def test_a_frozen_service_times_out_opens_the_circuit_and_is_used_again_when_it_thaws(
    grpc_backend: GrpcBackend,
) -> None:
    async with opened(grpc_backend.url, timeout=0.3) as upstream:
        await upstream.call("auth", validate("x"))
        grpc_backend.freeze()
        assert [await ended(upstream, validate("x")) for _ in range(4)] == [
            *["deadline_exceeded"] * FAILURES_MAX,
            "circuit_open",
        ]
        grpc_backend.thaw()
        await answers_again(upstream, validate("x"))


async def test_a_service_that_was_frozen_when_it_was_first_called_is_reached_when_it_thaws(
    grpc_backend: GrpcBackend,
) -> None:
    """The kernel takes the connection, and then nothing comes."""
    grpc_backend.freeze()
    async with opened(grpc_backend.url, timeout=0.3) as upstream:
        assert await ended(upstream, validate("x")) == "deadline_exceeded"
        grpc_backend.thaw()
        await answers_again(upstream, validate("x"))


# --- a slow service ---------------------------------------------------------------------------------------------------


async def test_a_slow_answer_is_waited_for_and_a_too_slow_one_is_not(grpc_backend: GrpcBackend) -> None:
    grpc_backend.tell(slow={"ValidateToken": 0.2, "PushMessage": 3600})
    async with opened(grpc_backend.url, timeout=2.0) as upstream:
        assert await ended(upstream, validate("x")) == "answer"
        with pytest.raises(UpstreamError, match="see why it is slow") as raised:
            await upstream.call("push", push(""))
        assert raised.value.outcome == "deadline_exceeded"
        assert upstream.stats().requests == {("asked", "ok"): 1, ("push", "deadline_exceeded"): 1}


async def test_the_service_is_told_how_much_time_is_left(grpc_backend: GrpcBackend) -> None:
    async with opened(grpc_backend.url, timeout=50.0) as upstream:
        await upstream.call("auth", validate("x"))
        await upstream.call("auth", validate("x", timeout_s=20.0))
    of_the_settings, of_the_request = (call.seconds for call in grpc_backend.calls())
    assert of_the_settings is not None and 20 < of_the_settings <= 50.1
    assert of_the_request is not None and 1 < of_the_request <= 20.1


async def test_whoever_goes_away_ends_the_call_in_the_service_too(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    grpc_backend.tell(hold=["ValidateToken"])
    calls = [asyncio.create_task(upstream.call("auth", validate("x"))) for _ in range(10)]
    await until(lambda: grpc_backend.inside() == 10)
    for call in calls[:4]:
        call.cancel()
    await until(lambda: grpc_backend.cancelled() == 4)
    grpc_backend.tell(hold=[])
    assert all(await asyncio.gather(*calls[4:]))
    assert upstream.stats().requests == {("auth", "cancelled"): 4, ("auth", "ok"): 6}


async def test_two_thousand_calls_at_once_are_answered_and_no_more_than_the_bound_are_sent(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    grpc_backend.tell(hold=["ValidateToken"])
    calls = [asyncio.create_task(upstream.call("auth", validate(f"user_{n}"))) for n in range(2000)]
    await until(lambda: grpc_backend.inside() == IN_FLIGHT_MAX)
    assert (upstream.stats().in_flight, upstream.stats().waiting) == (IN_FLIGHT_MAX, 2000 - IN_FLIGHT_MAX)
    grpc_backend.tell(hold=[])
    answers = await asyncio.gather(*calls)
    assert [answer.user_id for answer in answers] == [f"user_{n}" for n in range(2000)]
    assert grpc_backend.together() == IN_FLIGHT_MAX
    assert upstream.stats().requests == {("auth", "ok"): 2000}


async def test_closing_gives_calls_on_their_way_time_to_be_answered(grpc_backend: GrpcBackend) -> None:
    grpc_backend.tell(hold=["ValidateToken"])
    async with opened(grpc_backend.url) as upstream:
        calls = [asyncio.create_task(upstream.call("auth", validate("x"))) for _ in range(20)]
        await until(lambda: grpc_backend.inside() == 20)
        closing = asyncio.create_task(upstream.close(WAIT_S_MAX))
        await asyncio.sleep(0)
        assert await ended(upstream, validate("x")) == "unavailable", "nobody new"
        grpc_backend.tell(hold=[])
        assert all(answer.valid for answer in await asyncio.gather(*calls))
        await closing


# --- statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", ["NOT_FOUND", "INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED", "INTERNAL", "CANCELLED"]
)
async def test_a_status_is_no_answer_but_a_sign_of_life(
    grpc_backend: GrpcBackend, upstream: Upstream, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    grpc_backend.tell(status={"ValidateToken": status})
    for _ in range(FAILURES_MAX + 2):
        with pytest.raises(UpstreamError, match=f"ValidateToken with {status}") as raised:
            await upstream.call("auth", validate("x", retries=2, insists=True))
        assert raised.value.outcome == status.lower()
        assert "sesame" not in str(raised.value), "its text may repeat what was asked"
    assert "sesame" not in caplog.text
    assert upstream.stats().requests == {("auth", status.lower()): FAILURES_MAX + 2}
    assert not upstream.stats().circuit_open
    assert len(grpc_backend.calls()) == FAILURES_MAX + 2, "none of them is repeated"


async def test_the_wrong_service_is_told_as_such(grpc_backend: GrpcBackend, upstream: Upstream) -> None:
    grpc_backend.tell(unknown=["ValidateToken"])
    with pytest.raises(UpstreamError, match="is it the right service's address") as raised:
        await upstream.call("auth", validate("x"))
    assert raised.value.outcome == "unimplemented"


async def test_an_answer_that_is_no_message_is_none(
    grpc_backend: GrpcBackend, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    grpc_backend.tell(garbage=["ValidateToken"])
    assert await ended(upstream, validate("x")) == "internal"
    assert not upstream.stats().circuit_open
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG], "the library would tell each"


async def test_a_port_that_speaks_no_grpc_is_none(rest_backend: Any) -> None:
    async with opened(f"grpc://127.0.0.1:{rest_backend.port}", timeout=10.0) as upstream:
        assert await ended(upstream, validate("x")) in ("unavailable", "deadline_exceeded")


# --- repeating --------------------------------------------------------------------------------------------------------


async def test_one_retry_is_one_more_call_and_on_unavailable_only(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    grpc_backend.tell(fail={"ValidateToken": ["UNAVAILABLE", 1]})
    assert await ended(upstream, validate("x", retries=1)) == "answer"
    assert len(grpc_backend.calls()) == 2
    grpc_backend.tell(fail={"ValidateToken": ["UNAVAILABLE", 1]})
    assert await ended(upstream, validate("x")) == "unavailable", "none was wanted"
    grpc_backend.tell(fail={"ValidateToken": ["RESOURCE_EXHAUSTED", 1]})
    assert await ended(upstream, validate("x", retries=1)) == "resource_exhausted"
    assert len(grpc_backend.calls()) == 4
    assert upstream.stats().requests == {
        ("asked", "ok"): 1,
        ("asked", "unavailable"): 1,
        ("asked", "resource_exhausted"): 1,
    }, "a call with its tries counts once"


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"])
async def test_who_insists_is_served_after_two_failures(
    grpc_backend: GrpcBackend, upstream: Upstream, status: str
) -> None:
    grpc_backend.tell(fail={"ValidateToken": [status, 2]})
    assert await ended(upstream, validate("x", retries=2, insists=True)) == "answer"
    assert len(grpc_backend.calls()) == 3


async def test_retries_end_with_what_was_the_matter(grpc_backend: GrpcBackend, upstream: Upstream) -> None:
    """Also where they opened the circuit themselves."""
    grpc_backend.tell(status={"ValidateToken": "UNAVAILABLE"})
    assert await ended(upstream, validate("x", retries=5)) == "unavailable"
    assert len(grpc_backend.calls()) == FAILURES_MAX, "an open circuit ends them"
    assert await ended(upstream, validate("x", retries=5)) == "circuit_open"


async def test_a_try_that_hangs_leaves_time_for_the_others(grpc_backend: GrpcBackend, upstream: Upstream) -> None:
    """Each has its share of the whole, and the service knows it."""
    grpc_backend.tell(slow={"ValidateToken": 3600})
    began = time.monotonic()
    assert await ended(upstream, validate("x", timeout_s=3.0, retries=2, insists=True)) == "deadline_exceeded"
    assert 2.5 < time.monotonic() - began < WAIT_S_MAX
    shares = [call.seconds for call in grpc_backend.calls()]
    assert len(shares) == 3
    assert all(share is not None and 0.1 < share < 1.5 for share in shares)


async def test_without_insisting_a_try_has_all_the_time_and_retries_no_more_than_that(
    grpc_backend: GrpcBackend, upstream: Upstream
) -> None:
    grpc_backend.tell(slow={"ValidateToken": 3600})
    assert await ended(upstream, validate("x", timeout_s=1.0, retries=3)) == "deadline_exceeded"
    assert len(grpc_backend.calls()) == 1


async def test_a_retry_takes_another_connection_than_the_one_that_broke(grpc_backend: GrpcBackend) -> None:
    """Cut where an answer begins; a ping of the library's on another connection may be cut instead, so: until it is."""
    async with Cutter(grpc_backend.port) as cutter, opened(f"grpc://127.0.0.1:{cutter.port}") as upstream:
        for attempt in range(50):
            for _ in range(CHANNELS):
                await upstream.call("auth", validate("x", retries=5, insists=True))
            cutter.cut_after(0)
            assert await ended(upstream, validate(f"y{attempt}", retries=1)) == "answer"
            cutter.cut_after(None)
            peers = [call.peer for call in grpc_backend.calls() if call.fields["access_token"] == f"y{attempt}"]
            if len(peers) == 2:
                assert peers[0] != peers[1]
                return
        pytest.fail("no call was cut")


# --- many services ----------------------------------------------------------------------------------------------------


async def test_each_address_has_a_circuit_of_its_own(
    grpc_backend: GrpcBackend, other: GrpcBackend, many: Upstream
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    for address in (grpc_backend.address, other.address):
        assert (await many.call("push", push(address))).success
    for _ in range(FAILURES_MAX + 1):
        await ended(many, push(nobody))
    assert many.stats().circuits == {grpc_backend.address: False, other.address: False, nobody: True}
    assert await ended(many, push(nobody)) == "circuit_open"
    assert many.is_ready(), "the others are there"
    grpc_backend.freeze()
    slow = asyncio.create_task(ended(many, push(grpc_backend.address, timeout_s=0.5)))
    assert await ended(many, push(other.address)) == "answer"
    assert await slow == "deadline_exceeded"
    assert len(other.calls()) == 2


@pytest.mark.parametrize(
    "address", ["", "gateway-7", "unix:/tmp/x", "host:port", "dns:///a:1", "a:1,b:2", "[::1]", "host:1/x", "h\n:1"]
)
async def test_a_nodes_id_that_is_no_address_is_no_answer(many: Upstream, address: str) -> None:
    assert await ended(many, push(address)) == "unavailable"
    assert many.stats().circuits == {}


async def test_addresses_are_bounded_and_who_was_not_called_for_longest_goes(
    grpc_backend: GrpcBackend, many: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_upstream, "TARGETS_MAX", 2)
    grpc_backend.tell(hold=["PushMessage"])
    held = asyncio.create_task(many.call("push", push(grpc_backend.address)))
    await until(lambda: grpc_backend.inside() == 1)
    for number in range(1, 6):
        await ended(many, push(f"127.0.0.{number}:1"))
        assert set(many.stats().circuits) == {grpc_backend.address, f"127.0.0.{number}:1"}, "not the one in use"
    also = asyncio.create_task(many.call("push", push(f"localhost:{grpc_backend.port}")))
    await until(lambda: grpc_backend.inside() == 2)
    with pytest.raises(UpstreamError, match="2 addresses are being called already"):
        await many.call("push", push("127.0.0.9:1"))
    grpc_backend.tell(hold=[])
    assert [answer.success for answer in await asyncio.gather(held, also)] == [True, True]


async def test_who_was_not_called_for_long_is_let_go(grpc_backend: GrpcBackend) -> None:
    now = [0.0]
    many = GrpcUpstream("", 3.0, clock=lambda: now[0])
    await many.call("push", push(grpc_backend.address))
    now[0] += grpc_upstream.IDLE_S + 1
    await ended(many, push("127.0.0.1:1"))
    assert set(many.stats().circuits) == {"127.0.0.1:1"}
    await many.close(0)
