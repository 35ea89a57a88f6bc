"""The process behind `tests/im_services.py`: one of the three gRPC services that an im-gateway works with.

It answers as the original's auth, IM or user service does at the wire, remembers what it received, and misbehaves on
demand. Rule: it talks protobuf and HTTP by the contract's definitions alone and shares no code with the gateway, so
that it does not share its mistakes. `python -m tests.im_app ROLE GRPC_PORT CONTROL_PORT TOLD_FILE`.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tidegate.protos import auth_pb2, im_pb2, user_pb2

DEFAULT: dict[str, Any] = {
    "slow": {},
    "hold": [],
    "status": {},
    "refuse": {},
    "lie": {},
    "recording": True,
    # auth
    "secret": "",
    # user
    "groups": {},
    "large": {},
    "page_max": 1000,
    "unknown_group": "error",
    # IM
    "mode": "record",
    "etcd": "",
    "push": "one_by_one",
    "brokers": "",
    "group_shape": "contract",
    "topic": "group_msg",
}
SERVICES = {
    "auth": auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    "im": im_pb2.DESCRIPTOR.services_by_name["IMService"],
    "user": user_pb2.DESCRIPTOR.services_by_name["UserService"],
}
REQUESTS_MAX = 50_000  # some 100 MB of the largest messages; who sends more looks at counts
TOO_LARGE = 5 << 20  # above the 4 MiB that a gRPC client takes unless told otherwise
LISTENS_WITHIN_S = 5.0
Answer = Callable[[Any], Awaitable[Message]]


class State:
    """How to behave, and what came."""

    def __init__(self, told_file: Path) -> None:
        self.told_file = told_file
        self.changed = asyncio.Event()
        self.inside = self.life = 0
        self.reset()

    def reset(self) -> None:
        self.life += 1  # nobody waits for what was told before
        self.behaviour = {**DEFAULT}
        self.received: deque[tuple[str, Message, dict[str, str], float | None]] = deque(maxlen=REQUESTS_MAX)
        self.counts: Counter[str] = Counter()
        self.together = self.inside

    def tell(self, said: Mapping[str, Any]) -> None:
        unknown = set(said) - set(DEFAULT)
        assert not unknown, f"nothing here behaves by the name {sorted(unknown)}"
        self.behaviour |= said
        self.behaviour["groups"] = {group: sorted(members) for group, members in self.behaviour["groups"].items()}
        self.changed.set()
        self.changed = asyncio.Event()
        self.told_file.write_text(json.dumps(self.behaviour))

    def remembers(self) -> None:
        """What it was told before it was killed."""
        if self.told_file.exists():
            self.behaviour |= json.loads(self.told_file.read_text())

    def says(self, name: str, call: str) -> Any:
        """What a behaviour is for this call; "all" is for every call."""
        value = self.behaviour[name]
        if not value:
            return None
        return value.get(call, value.get("all")) if isinstance(value, dict) else call in value or "all" in value

    def entered(self, call: str, request: Message, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.counts[call] += 1
        if self.behaviour["recording"]:
            metadata = {str(name): str(value) for name, value in context.invocation_metadata() or ()}
            self.received.append((call, request, metadata, context.time_remaining()))


class Role:
    """One of the three services."""

    def __init__(self, state: State) -> None:
        self._state = state

    def answers(self) -> dict[str, Answer]:
        raise AssertionError("each service has its own methods")

    def lists(self) -> dict[str, Callable[[], list[Any]]]:
        """What a test may ask for besides the requests."""
        return {}

    async def retold(self, *, reset: bool) -> None:
        """It behaves in another way from now on."""


# --- a call -----------------------------------------------------------------------------------------------------------


def handlers(role: str, state: State, answers: Mapping[str, Answer]) -> grpc.GenericRpcHandler:
    service = SERVICES[role]
    by_name = {method.name: handler(state, method, answers[method.name]) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, by_name)


def handler(state: State, method: Any, answer: Answer) -> "grpc.RpcMethodHandler[Any, Any]":
    call, answered = method.name, GetMessageClass(method.output_type)

    async def serve(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Message | bytes:
        state.entered(call, request, context)
        try:
            await delayed(state, call)
            if status := state.says("status", call):
                await context.abort(grpc.StatusCode[status], "as it was told")
            if refused := state.says("refuse", call):
                return answered(error_code=refused[0], error_message=refused[1])
            if lie := state.says("lie", call):
                return lies(lie, answered, await answer(request))
            return await answer(request)
        finally:
            state.inside -= 1

    return grpc.unary_unary_rpc_method_handler(
        serve,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=lambda said: said if isinstance(said, bytes) else said.SerializeToString(),
    )


async def delayed(state: State, call: str) -> None:
    until, life = time.monotonic() + (state.says("slow", call) or 0), state.life
    while life == state.life and ((held := state.says("hold", call)) or time.monotonic() < until):
        changed, left = state.changed, until - time.monotonic()
        try:
            await asyncio.wait_for(changed.wait(), None if held else max(left, 0))
        except TimeoutError:
            return


def lies(lie: str, answered: Any, truth: Any) -> Message | bytes:
    """What no service should say, and some service will."""
    if lie == "too_large":
        return bytes(answered(error_message="x" * TOO_LARGE).SerializeToString())
    if lie == "unknown_code":
        return answered(error_code=99, error_message="a code of the future")  # type: ignore[no-any-return]
    if lie == "nobody":
        truth.user_id = ""
        return truth  # type: ignore[no-any-return]
    if lie == "endless":
        truth.next_cursor, truth.has_more = "again", True
        return truth  # type: ignore[no-any-return]
    return {"garbage": b"\xff\xff\xff", "empty": b""}[lie]


# --- what tests tell it -----------------------------------------------------------------------------------------------


class Control:
    def __init__(self, state: State, role: Role) -> None:
        self._state, self._role = state, role

    def app(self) -> Starlette:
        own = [Route(f"/_{name}", listing(read)) for name, read in self._role.lists().items()]
        routes = [Route("/_seen", self.seen), Route("/_requests", self.requests), *own]
        return Starlette(routes=[Route("/_tell", self.tell, methods=["POST"]), *routes])

    async def tell(self, request: Request) -> Response:
        said = json.loads(await request.body())
        if said.pop("reset", False):
            self._state.reset()
            await self._role.retold(reset=True)
        try:
            self._state.tell(said)
        except AssertionError as unknown:
            return JSONResponse({"error": str(unknown)}, 400)
        await self._role.retold(reset=False)
        return JSONResponse({})

    async def seen(self, _request: Request) -> Response:
        state = self._state
        return JSONResponse({"counts": dict(state.counts), "inside": state.inside, "together": state.together})

    async def requests(self, request: Request) -> Response:
        wanted = request.query_params.get("method", "")
        return JSONResponse([shown(*one) for one in self._state.received if wanted in ("", one[0])])


def listing(read: Callable[[], list[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def listed(_request: Request) -> Response:
        return JSONResponse(read())

    return listed


def shown(call: str, request: Message, metadata: Mapping[str, str], deadline: float | None) -> dict[str, Any]:
    return {"method": call, "fields": plain(request), "metadata": metadata, "deadline": deadline}


def plain(message: Message) -> dict[str, Any]:
    return {field.name: plain_value(message, field) for field in message.DESCRIPTOR.fields}


def plain_value(message: Message, field: Any) -> Any:
    """A time is seconds, and None if it is not set; an enum is its name."""
    value = getattr(message, field.name)
    if isinstance(value, Timestamp):
        return value.ToMicroseconds() / 1e6 if message.HasField(field.name) else None
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name if value in field.enum_type.values_by_number else value
    return dict(value) if field.message_type is not None else value


# --- the process ------------------------------------------------------------------------------------------------------


def role_named(name: str, state: State) -> Role:
    """Imported once it is known, since routing needs libraries that the other two start without."""
    if name == "im":
        from tests.im_routes import Im

        return Im(state)
    from tests.im_accounts import Auth, User

    return Auth(state) if name == "auth" else User(state)


async def main(name: str, port: int, control_port: int, told_file: Path) -> None:
    state = State(told_file)
    state.remembers()
    role = role_named(name, state)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handlers(name, state, role.answers()),))
    await listen(server, f"127.0.0.1:{port}")
    await server.start()
    config = uvicorn.Config(Control(state, role).app(), host="127.0.0.1", port=control_port, log_level="warning")
    await uvicorn.Server(config).serve()
    await server.stop(0)


async def listen(server: grpc.aio.Server, address: str) -> None:
    """A process that was just killed may still have the port for a moment."""
    deadline = time.monotonic() + LISTENS_WITHIN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            server.add_insecure_port(address)
            return
        await asyncio.sleep(0.05)
    sys.exit(f"can't listen on {address}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
