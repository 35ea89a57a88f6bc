"""The process behind `tests/grpc_backend.py`: services over gRPC that do what a test tells them.

It answers the methods of tidegate's .proto files in a plain way, remembers what it received, and misbehaves on demand.
Rule: written from the .proto files alone; what it is told comes over gRPC too, as JSON.
`python -m tests.grpc_app PORT [TLS_PORT CERTIFICATE KEY]`.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc import aio
from tidegate.protos import auth_pb2, im_gateway_pb2, im_pb2, user_pb2

DEFAULT: dict[str, Any] = {"status": {}, "fail": {}, "slow": {}, "hold": [], "garbage": [], "unknown": []}
CALLS_MAX = 50_000

Context = aio.ServicerContext


class Service:
    """State of the process: how to behave, what came."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.inside = 0
        self.reset()

    def reset(self) -> None:
        self.behaviour: dict[str, Any] = json.loads(json.dumps(DEFAULT))
        self.calls: list[dict[str, Any]] = []
        self.together = self.inside
        self.cancelled = 0
        self.numbers = 0

    def says(self, name: str, method: str) -> Any:
        """What a behaviour is for this method; "all" is for every one."""
        value = self.behaviour[name]
        return value.get(method, value.get("all")) if isinstance(value, dict) else method in value or "all" in value


service = Service()


async def serve(name: str, sent: bytes, context: Context) -> bytes:
    request = REQUESTS[name].FromString(sent)
    remember(name, request, context)
    service.inside += 1
    service.together = max(service.together, service.inside)
    try:
        await delayed(name)
        await failed(name, context)
        return b"\xff\xff\xff" if service.says("garbage", name) else ANSWERS[name](request).SerializeToString()
    except asyncio.CancelledError:
        service.cancelled += 1
        raise
    finally:
        service.inside -= 1


def remember(name: str, request: Message, context: Context) -> None:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    fields = MessageToDict(request, preserving_proto_field_name=True)
    left = context.time_remaining()
    service.calls.append(
        {"method": name, "fields": fields, "metadata": metadata, "seconds": left, "peer": context.peer()}
    )
    del service.calls[:-CALLS_MAX]


async def delayed(name: str) -> None:
    await asyncio.sleep(service.says("slow", name) or 0)
    while service.says("hold", name):
        await service.changed.wait()


async def failed(name: str, context: Context) -> None:
    """With `status` each time, with `fail` so often."""
    if status := service.says("status", name):
        await context.abort(grpc.StatusCode[status], "a text that may repeat what was asked: sesame")
    status, left = service.says("fail", name) or ("", 0)
    if left:
        service.behaviour["fail"][name] = [status, left - 1]
        await context.abort(grpc.StatusCode[status], "sesame")


# --- the services -----------------------------------------------------------------------------------------------------


def validate(request: Any) -> Message:
    if request.access_token.startswith("bad"):
        return auth_pb2.ValidateTokenResponse(valid=False, error_code="AUTH_ERROR_CODE_INVALID_TOKEN")
    return auth_pb2.ValidateTokenResponse(valid=True, user_id=request.access_token, device_id="a device")


def route_private(_: Any) -> Message:
    service.numbers += 1
    return im_pb2.RoutePrivateMessageResponse(sequence_number=service.numbers)


def route_group(_: Any) -> Message:
    service.numbers += 1
    return im_pb2.RouteGroupMessageResponse(sequence_number=service.numbers)


def members(request: Any) -> Message:
    """As many as asked for, so that a test chooses how large the answer is."""
    found = [user_pb2.GroupMember(user_id=f"user_{number}") for number in range(request.limit)]
    return user_pb2.GetGroupMembersResponse(members=found, total_count=len(found))


def push(_: Any) -> Message:
    return im_gateway_pb2.PushMessageResponse(success=True, delivered_count=1)


REQUESTS: dict[str, Any] = {
    "ValidateToken": auth_pb2.ValidateTokenRequest,
    "RoutePrivateMessage": im_pb2.RoutePrivateMessageRequest,
    "RouteGroupMessage": im_pb2.RouteGroupMessageRequest,
    "GetGroupMembers": user_pb2.GetGroupMembersRequest,
    "PushMessage": im_gateway_pb2.PushMessageRequest,
}
ANSWERS: dict[str, Callable[[Any], Message]] = {
    "ValidateToken": validate,
    "RoutePrivateMessage": route_private,
    "RouteGroupMessage": route_group,
    "GetGroupMembers": members,
    "PushMessage": push,
}


# --- what tests tell it -----------------------------------------------------------------------------------------------


async def told(sent: bytes, _: Context) -> bytes:
    said = json.loads(sent)
    if said.pop("reset", False):
        service.reset()
    service.behaviour |= said
    service.changed.set()
    service.changed = asyncio.Event()
    return b"{}"


async def seen(_: bytes, __: Context) -> bytes:
    counts = {"inside": service.inside, "together": service.together, "cancelled": service.cancelled}
    return json.dumps({"calls": service.calls, **counts}).encode()


class Everything(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any | None:
        package, _, name = details.method.lstrip("/").partition("/")
        if package == "tests.Control":
            return grpc.unary_unary_rpc_method_handler({"Tell": told, "Seen": seen}[name])
        if name not in ANSWERS or service.says("unknown", name):
            return None

        async def answer(sent: bytes, context: Context) -> bytes:
            return await serve(name, sent, context)

        return grpc.unary_unary_rpc_method_handler(answer)


def shown(certificate: str, key: str) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])


async def main(port: str, tls_port: str = "", certificate: str = "", key: str = "") -> None:
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Everything(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    if tls_port:
        server.add_secure_port(f"127.0.0.1:{tls_port}", shown(certificate, key))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await server.start()
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
