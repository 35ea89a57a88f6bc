"""The services that an im-gateway asks, inside the process: whose a token is, where messages go, who is in a group.

For first runs and demos: a token is `user/device`, whoever has one is a member of the only group, and all that bear one
name know each other: the services `memory:x` publish on the bus `memory:x`, and push to who is in the registry
`memory:x`. Rules: answers are those of the contract's .proto files; everything is bounded, and nothing is kept for
whoever is away. contracts/im-gateway.md, sections 6, 7, 9 and 13.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import orjson
from google.protobuf.message import Message

from tidegate.buses.memory import LOGS, MemoryBus
from tidegate.calls import RpcRequest
from tidegate.errors import BusError, UpstreamError
from tidegate.protos import im_pb2
from tidegate.protos.methods import method_named
from tidegate.registries.memory import BOARDS, MemoryRegistry
from tidegate.upstreams._books import BOOKS, GROUP, Books
from tidegate.upstreams._lane import no_answer
from tidegate.upstreams.grpc import GrpcUpstream

Fields: TypeAlias = Mapping[str, Any]

TOKEN = re.compile(r"([!-.0-~]{1,64})/([!-.0-~]{1,64})")
# As long as the token of a service usually lives; nobody asks again here
TOKEN_LIFETIME_S = 3600
# The contract's topics
MESSAGES, MEMBERSHIP = "group_msg", "group_membership_change"
# The original's limit
CONTENT_BYTES_MAX = 10_000
# A page's, the contract's
PAGE = 1000
# Below the 3 s that an answer of the IM service may take: time for the devices to ack
PUSH_S = 2.5
PUSH = "im_gateway_servicepb.UimUgatewayUserviceService/PushMessage"


class Services:
    """One upstream's end of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Weak: books live as long as an upstream that uses them.
        self._books = BOOKS.get(name) or BOOKS.setdefault(name, Books())
        self._nodes = GrpcUpstream("", PUSH_S, "nodes that the IM service in this process pushes to")

    async def answer(self, request: RpcRequest, now: float) -> Message:
        """`now` is in seconds since the epoch."""
        rpc = method_named(request.method)
        serve = ANSWERS.get(request.method)
        if serve is None:
            raise no_answer("unimplemented", f"memory: has no {request.method}.")
        return rpc.response(**await serve(self, rpc.message(request.fields), now))

    async def close(self, within_s: float) -> None:
        await self._nodes.close(within_s)

    # --- auth --------------------------------------------------------------------------------------------------------

    async def _validate(self, asked: Any, now: float) -> Fields:
        """Who calls himself something bad shows what a refused client looks like."""
        said = TOKEN.fullmatch(asked.access_token)
        if said is None or said[1].startswith("bad"):
            code = "AUTH_ERROR_CODE_INVALID_TOKEN" if said else "AUTH_ERROR_CODE_MALFORMED_TOKEN"
            return {"valid": False, "error_code": code, "error_message": "a token here is user/device"}
        await self._admit(said[1], now)
        expires = {"seconds": int(now) + TOKEN_LIFETIME_S}
        return {"valid": True, "user_id": said[1], "device_id": said[2], "expires_at": expires}

    async def _admit(self, user: str, now: float) -> None:
        if self._books.admit(user, now):
            event = {"group_id": GROUP, "user_id": user, "event_type": "join", "timestamp": int(now)}
            # who is not told learns it within five minutes: the gateway asks again by itself
            await self._publish(MEMBERSHIP, event)

    # --- im ----------------------------------------------------------------------------------------------------------

    async def _route_private(self, asked: Any, now: float) -> Fields:
        if fault := _fault(asked, asked.recipient_id, "RECIPIENT_NOT_FOUND"):
            return fault
        conversation = "_".join(sorted((asked.sender_id, asked.recipient_id)))
        said, is_new = self._books.enter(conversation, asked.sender_id, asked.msg_id)
        if is_new:
            try:
                said.status = await self._push(asked, said.number)
            except BaseException:
                self._books.strike(asked.sender_id, asked.msg_id)
                raise
        return {"sequence_number": said.number, "server_timestamp": _stamp(now), "delivery_status": said.status}

    async def _push(self, asked: Any, number: int) -> str:
        board = BOARDS.get(self._name)
        places = await MemoryRegistry(board, "im").call("devices", asked.recipient_id) if board else {}
        pushes = [self._push_to(node, device, asked, number) for device, node in places.items()]
        is_delivered = any(await asyncio.gather(*pushes))
        return "DELIVERY_STATUS_DELIVERED" if is_delivered else "DELIVERY_STATUS_OFFLINE"

    async def _push_to(self, node: str, device: str, asked: Any, number: int) -> bool:
        fields = {name: getattr(asked, name) for name in ("msg_id", "recipient_id", "sender_id", "content")}
        fields |= {"device_id": device, "message_type": im_pb2.MessageType.Name(asked.message_type)}
        fields |= {"sequence_number": number, "timestamp": asked.client_timestamp.ToMilliseconds()}
        try:
            answer = await self._nodes.call("push", RpcRequest(PUSH, fields, address=node))
        except UpstreamError:
            return False
        return bool(answer.success and answer.delivered_count)

    async def _route_group(self, asked: Any, now: float) -> Fields:
        if fault := _fault(asked, asked.group_id, "GROUP_NOT_FOUND"):
            return fault
        if asked.group_id != GROUP:
            return _refusal("GROUP_NOT_FOUND", f"{GROUP} is the only group here")
        # where the gateway checks tokens by itself, this is where somebody is first heard of
        await self._admit(asked.sender_id, now)
        if asked.sender_id not in self._books.members:
            return _refusal("NOT_GROUP_MEMBER", f"{GROUP} is full")
        said, is_new = self._books.enter(asked.group_id, asked.sender_id, asked.msg_id)
        if is_new and (fault := await self._publish_message(asked, said.number, now)):
            return fault
        return {"sequence_number": said.number, "server_timestamp": _stamp(now)}

    async def _publish_message(self, asked: Any, number: int, now: float) -> Fields:
        """Only what was published is done: what was not may be sent again."""
        record = {name: getattr(asked, name) for name in ("msg_id", "group_id", "sender_id", "content")}
        record |= {"message_type": "text", "sequence_number": number, "timestamp": int(now * 1000)}
        fault = "it was cancelled"
        try:
            fault = await self._publish(MESSAGES, record)
        finally:
            if fault:
                self._books.strike(asked.sender_id, asked.msg_id)
        return _refusal("DELIVERY_FAILED", f"failed to publish: {fault}") if fault else {}

    async def _publish(self, topic: str, record: Fields) -> str:
        """Why it could not, or nothing."""
        log = LOGS.get(self._name)
        if log is None:
            return f"nobody reads the bus memory:{self._name}"
        try:
            await MemoryBus(log, "services").publish(topic, orjson.dumps(record))
        except BusError as error:
            return error.message
        return ""

    # --- user --------------------------------------------------------------------------------------------------------

    async def _list_members(self, asked: Any, _now: float) -> Fields:
        """A cursor is how many came before; nobody leaves, so no page misses one."""
        if asked.group_id != GROUP:
            return _unknown_group()
        if asked.cursor and not (asked.cursor.isascii() and asked.cursor.isdecimal()):
            return {"error_code": "USER_ERROR_CODE_INVALID_REQUEST", "error_message": "no such cursor"}
        start, limit = int(asked.cursor[:18] or 0), min(max(asked.limit, 0) or PAGE, PAGE)
        members = list(self._books.members.items())
        page, is_more = members[start : start + limit], start + limit < len(members)
        return {
            "members": [_member(user, joined) for user, joined in page],
            "next_cursor": str(start + limit) if is_more else "",
            "total_count": len(members),
            "has_more": is_more,
        }

    async def _validate_membership(self, asked: Any, _now: float) -> Fields:
        if asked.group_id != GROUP:
            return _unknown_group()
        joined = self._books.members.get(asked.user_id)
        return {"is_member": False} if joined is None else {"is_member": True, "member": _member(asked.user_id, joined)}


def _fault(asked: Any, target: str, no_target: str) -> Fields:
    """What the original checks, in its order."""
    if not asked.msg_id:
        return _refusal("INVALID_MESSAGE", "msg_id is required")
    if not asked.sender_id:
        return _refusal("SENDER_NOT_FOUND", "sender_id is required")
    if not target:
        return _refusal(no_target, "a recipient is required")
    if len(asked.content.encode()) > CONTENT_BYTES_MAX:
        return _refusal("CONTENT_TOO_LONG", f"content exceeds {CONTENT_BYTES_MAX} bytes")
    return {}


def _refusal(code: str, text: str) -> Fields:
    return {"error_code": f"IM_ERROR_CODE_{code}", "error_message": text}


def _unknown_group() -> Fields:
    return {"error_code": "USER_ERROR_CODE_GROUP_NOT_FOUND", "error_message": f"{GROUP} is the only group here"}


def _member(user: str, joined: int) -> Fields:
    return {"user_id": user, "group_id": GROUP, "role": "GROUP_ROLE_MEMBER", "joined_at": {"seconds": joined}}


def _stamp(now: float) -> Mapping[str, int]:
    seconds, nanos = divmod(int(now * 1_000_000_000), 1_000_000_000)
    return {"seconds": seconds, "nanos": nanos}


Serve: TypeAlias = Callable[[Services, Any, float], Awaitable[Fields]]
ANSWERS: Mapping[str, Serve] = {
    "auth.v1.AuthService/ValidateToken": Services._validate,
    "im.v1.IMService/RoutePrivateMessage": Services._route_private,
    "im.v1.IMService/RouteGroupMessage": Services._route_group,
    "user.v1.UserService/GetGroupMembers": Services._list_members,
    "user.v1.UserService/ValidateGroupMembership": Services._validate_membership,
}
