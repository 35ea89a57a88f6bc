"""The gRPC API as backends meet it: a real client on a real port, and raw bytes where a client would be too polite."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tidegate.api import _rpc_calls, _rpc_health
from tidegate.api import grpc as api
from tidegate.api.grpc import GrpcServer
from tidegate.errors import StartError
from tidegate.profile import Request
from tidegate.protos import im_gateway_pb2 as pb

ON_BOTH_LOOPS = True
WAIT_S = 20.0
# channels to a port that was used before must not share a connection of an earlier test
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
ORIGINAL = "im_gateway_servicepb.UimUgatewayUserviceService"
ALIAS = "im_gateway_servicepb.GatewayService"
SERVICES = (ORIGINAL, ALIAS)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # with empty SETTINGS
PING = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"


class Gateway:
    """What answers: fields that a test chose, once it lets go."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.fields: Mapping[str, Any] = {"success": True, "delivered_count": 1}
        self.error: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()
        self.under_way = self.most = 0
        self.cancelled = 0
        self.reason: str | None = None

    async def answer(self, request: Request) -> Mapping[str, Any]:
        self.requests.append(request)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return self.fields

    def why_not_ready(self) -> str | None:
        return self.reason


class Served:
    def __init__(self, gateway: Gateway, server: GrpcServer, port: int, channel: aio.Channel) -> None:
        self.gateway, self.server, self.port, self.channel = gateway, server, port, channel

    async def push(self, service: str = ALIAS, method: str = "PushMessage", **options: Any) -> Any:
        message = options.pop("message", pb.PushMessageRequest(msg_id="m1", recipient_id="user_7"))
        data = message if isinstance(message, bytes) else message.SerializeToString()
        call = self.channel.unary_unary(f"/{service}/{method}", response_deserializer=pb.PushMessageResponse.FromString)
        return await call(data, **{"timeout": WAIT_S} | options)

    async def status(self, **options: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(aio.AioRpcError) as caught:
            await self.push(**options)
        return caught.value.code(), caught.value.details() or ""

    async def health(self, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        return int(answer.status)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    gateway = Gateway()
    server = GrpcServer(SERVICES, gateway.answer, gateway.why_not_ready, host="127.0.0.1", port=0)
    port = await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
            yield Served(gateway, server, port, channel)
    finally:
        gateway.free.set()
        await server.stop(1)


@pytest.fixture
async def served(servers_wanted: None) -> AsyncIterator[Served]:
    async with serving() as found:
        yield found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - a peer's progress can only be looked at
            await asyncio.sleep(0.01)


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
async def test_a_method_answers_under_each_name_of_the_service(served: Served, service: str) -> None:
    served.gateway.fields = {"success": True, "delivered_count": 2, "failed_devices": ["d1", "d2"]}
    answer = await served.push(service)
    assert answer == pb.PushMessageResponse(success=True, delivered_count=2, failed_devices=["d1", "d2"])
    [request] = served.gateway.requests
    assert (request.method, request.message.msg_id, request.message.recipient_id) == ("PushMessage", "m1", "user_7")
    assert request.now == pytest.approx(time.time(), abs=60)


async def test_each_method_has_its_own_messages(served: Served) -> None:
    receipt = pb.PushReadReceiptRequest(sender_id="user_7", reader_id="user_9")
    assert (await served.push(method="PushReadReceipt", message=receipt)).success
    assert served.gateway.requests[0].message == receipt


async def test_the_callers_deadline_is_passed_on(served: Served) -> None:
    await served.push(timeout=3)
    await served.push(timeout=None)
    await served.push(timeout=86_400)
    short, none, long = (request.seconds for request in served.gateway.requests)
    assert 0 < short < 4, "the library rounds a deadline up"
    assert none == long == _rpc_calls.SECONDS_MAX


async def test_metadata_is_text_with_lower_case_names(served: Served) -> None:
    await served.push(metadata=[("x-gateway-hop", "1"), ("traceparent", "00-a-b-01"), ("x-raw-bin", b"\x00")])
    metadata = served.gateway.requests[0].metadata
    assert (metadata["x-gateway-hop"], metadata["traceparent"]) == ("1", "00-a-b-01")
    assert "x-raw-bin" not in metadata


async def test_a_caller_whose_time_is_over_gives_its_place_back(served: Served) -> None:
    served.gateway.free.clear()
    code, _ = await served.status(timeout=0.2)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: served.server.under_way == 0)
    assert served.gateway.cancelled == 1


async def test_a_caller_that_hangs_up_gives_its_place_back(served: Served) -> None:
    served.gateway.free.clear()
    call = asyncio.ensure_future(served.push())
    await until(lambda: served.server.under_way == 1)
    call.cancel()
    await until(lambda: served.server.under_way == 0)
    assert served.gateway.cancelled == 1


async def test_five_hundred_slow_calls_are_under_way_at_once(served: Served) -> None:
    served.gateway.free.clear()
    calls = [asyncio.ensure_future(served.push()) for _ in range(500)]
    await until(lambda: served.gateway.under_way == 500)
    assert served.server.under_way == 500
    served.gateway.free.set()
    answers = await asyncio.gather(*calls)
    assert all(answer.success for answer in answers)
    assert served.server.counts() == {("PushMessage", "ok"): 500}


async def test_a_burst_loses_no_call(served: Served) -> None:
    answers = await asyncio.gather(*[served.push(timeout=2 * WAIT_S) for _ in range(2500)])
    assert all(answer.success for answer in answers)
    assert served.server.counts() == {("PushMessage", "ok"): 2500}


async def test_more_calls_than_there_are_places_for_are_refused_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rpc_calls, "CALLS_MAX", 3)
    served.gateway.free.clear()
    calls = [asyncio.ensure_future(served.push()) for _ in range(3)]
    await until(lambda: served.gateway.under_way == 3)
    code, _ = await served.status()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.health() == health_pb2.HealthCheckResponse.SERVING
    served.gateway.free.set()
    assert all(answer.success for answer in await asyncio.gather(*calls))
    assert (await served.push()).success


# --- mistakes ---------------------------------------------------------------------------------------------------------


async def test_a_failure_tells_the_caller_nothing_and_the_log_its_type(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.gateway.error = ValueError("content of a message")
    assert await served.status() == (grpc.StatusCode.INTERNAL, "internal error")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "PushMessage failed: ValueError" in text
    assert "test_grpc_api.py" in text
    assert "content of a message" not in text


async def test_failures_are_logged_at_a_bounded_pace(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.gateway.error = ValueError("x")
    for _ in range(50):
        await served.status()
    ours = [record for record in caplog.records if record.name == "tidegate.api.grpc"]
    assert 1 <= len(ours) < 50
    assert served.server.counts() == {("PushMessage", "internal"): 50}


@pytest.mark.parametrize("fields", [{"no_such_field": 1}, {"delivered_count": "two"}, {"delivered_count": 2**40}])
async def test_fields_that_the_answer_has_not_are_a_failure(served: Served, fields: Mapping[str, Any]) -> None:
    served.gateway.fields = fields
    assert (await served.status())[0] is grpc.StatusCode.INTERNAL


async def test_a_message_that_cannot_be_read_is_the_callers_mistake(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for broken in (b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x02\xff\xfe"):
        assert (await served.status(message=broken))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert served.gateway.requests == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_too_large_a_message_is_refused_and_the_next_is_served(served: Served) -> None:
    large = pb.PushMessageRequest(content="x" * (api.MESSAGE_BYTES_MAX + 1))
    assert (await served.status(message=large))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served.gateway.requests == []
    fits = pb.PushMessageRequest(content="x" * (api.MESSAGE_BYTES_MAX - 100))
    assert (await served.push(message=fits)).success


@pytest.mark.parametrize(("service", "method"), [(ALIAS, "Nope"), ("im.v1.IMService", "RoutePrivateMessage")])
async def test_an_unknown_method_is_unimplemented(served: Served, service: str, method: str) -> None:
    assert (await served.status(service=service, method=method))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_client_that_pings_without_end_is_cut_off(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(PREFACE + PING * 20)
    async with asyncio.timeout(WAIT_S):
        said = await reader.read(-1)
    assert b"too_many_pings" in said
    writer.close()
    assert (await served.push()).success


async def test_bytes_that_are_no_http2_harm_nobody(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
    writer.close()
    assert (await served.push()).success


# --- health and reflection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health_is_what_readiness_says(served: Served, service: str) -> None:
    assert await served.health(service) == health_pb2.HealthCheckResponse.SERVING
    served.gateway.reason = "draining"
    assert await served.health(service) == health_pb2.HealthCheckResponse.NOT_SERVING
    served.gateway.reason = None
    assert await served.health(service) == health_pb2.HealthCheckResponse.SERVING


async def test_the_health_of_a_service_that_is_not_here_is_unknown(served: Served) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await served.health("im.v1.IMService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_health_of_all_services_can_be_listed(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    answer = await stub.List(health_pb2.HealthListRequest(), timeout=WAIT_S)
    assert set(answer.statuses) == {"", *SERVICES}
    assert {status.status for status in answer.statuses.values()} == {health_pb2.HealthCheckResponse.SERVING}


async def test_who_watches_the_health_is_told_each_change_and_the_stop(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=ALIAS), timeout=WAIT_S)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    served.gateway.reason = "nats"
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    served.gateway.reason = None
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.ensure_future(served.server.stop(WAIT_S))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await watch.read() is aio.EOF
    await stopping


async def test_no_more_may_watch_than_there_are_places_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rpc_health, "WATCHES_MAX", 2)
    stub = health_pb2_grpc.HealthStub(served.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S) for _ in range(2)]
    for watch in watches:
        await watch.read()
    surplus = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    with pytest.raises(aio.AioRpcError) as caught:
        await surplus.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()

    async def is_free() -> bool:
        another = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        try:
            return bool(await another.read() is not aio.EOF)
        except aio.AioRpcError:
            return False
        finally:
            another.cancel()

    async with asyncio.timeout(WAIT_S):
        while not await is_free():  # noqa: ASYNC110 - nothing tells but asking
            await asyncio.sleep(0.05)


async def test_reflection_lists_the_services_and_knows_their_methods(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=ALIAS),
    ]
    names, file = [answer async for answer in stub.ServerReflectionInfo(iter(asked), timeout=WAIT_S)]
    listed = {service.name for service in names.list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health"} <= listed
    assert b"PushReadReceipt" in file.file_descriptor_response.file_descriptor_proto[0]


# --- start and stop ---------------------------------------------------------------------------------------------------


async def test_stopping_lets_calls_under_way_end_and_refuses_new_ones(served: Served) -> None:
    served.gateway.free.clear()
    calls = [asyncio.ensure_future(served.push()) for _ in range(20)]
    await until(lambda: served.gateway.under_way == 20)
    stopping = asyncio.ensure_future(served.server.stop(WAIT_S))
    await until(lambda: not is_open(served.port))
    async with aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        late = Served(served.gateway, served.server, served.port, channel)
        assert (await late.status())[0] is grpc.StatusCode.UNAVAILABLE
    served.gateway.free.set()
    assert all(answer.success for answer in await asyncio.gather(*calls))
    await stopping


async def test_calls_that_outlast_the_grace_are_cut_off(served: Served) -> None:
    served.gateway.free.clear()
    call = asyncio.ensure_future(served.status())
    await until(lambda: served.gateway.under_way == 1)
    async with asyncio.timeout(WAIT_S):
        await served.server.stop(0.1)
    assert (await call)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    await until(lambda: served.gateway.cancelled == 1)


async def test_stopping_twice_or_before_the_start_does_nothing(served: Served) -> None:
    await served.server.stop(1)
    await served.server.stop(1)
    await GrpcServer(SERVICES, served.gateway.answer, served.gateway.why_not_ready, host="", port=0).stop(1)


async def test_a_port_that_is_taken_is_a_start_error_with_a_cure(served: Served) -> None:
    second = GrpcServer(
        SERVICES, served.gateway.answer, served.gateway.why_not_ready, host="127.0.0.1", port=served.port
    )
    with pytest.raises(StartError, match=f"port {served.port} is in use") as caught:
        await second.start()
    assert "grpc.port" in caught.value.cure
    assert (await served.push()).success


async def test_an_address_that_is_not_ours_is_a_start_error(served: Served) -> None:
    elsewhere = GrpcServer(SERVICES, served.gateway.answer, served.gateway.why_not_ready, host="192.0.2.1", port=0)
    with pytest.raises(StartError, match="can't listen on"):
        await elsewhere.start()


async def test_a_port_is_free_again_after_the_stop(served: Served) -> None:
    await served.push()
    await served.server.stop(1)
    again = GrpcServer(
        SERVICES, served.gateway.answer, served.gateway.why_not_ready, host="127.0.0.1", port=served.port
    )
    assert await again.start() == served.port
    await again.stop(1)


async def test_a_service_that_no_proto_file_has_is_a_plain_mistake(served: Served) -> None:
    wrong = GrpcServer(("no.Such",), served.gateway.answer, served.gateway.why_not_ready, host="127.0.0.1", port=0)
    with pytest.raises(LookupError, match=r"no\.Such"):
        await wrong.start()


def test_without_the_extra_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['grpc'] = None; import tidegate.api.grpc"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (
        "ConfigError: the port of gRPC needs the package grpc. Install it with: pip install 'tidegate[grpc]'"
        in tried.stderr
    )


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
