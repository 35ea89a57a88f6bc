"""What im-gateway asks its services, and how their answers are read: contract im-gateway, sections 6, 8 and 10.

Rule: a service that does not answer is None or an UpstreamError as said, never an exception of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from tidegate.calls import RedisCommand, RedisRequest, RpcRequest
from tidegate.profile import Call

# Members a page: the contract's
PAGE = 1000
# A set in Redis and the look-ups behind it live as long as the local one
MEMBERS_TTL_S = 300
# The contract's: receipts of somebody who is nowhere
OFFLINE_TTL_S = 7 * 86400

# By number: the contract's section 13
IM_ERRORS = (
    "UNSPECIFIED",
    "INVALID_MESSAGE",
    "CONTENT_TOO_LONG",
    "SENDER_NOT_FOUND",
    "RECIPIENT_NOT_FOUND",
    "GROUP_NOT_FOUND",
    "NOT_GROUP_MEMBER",
    "SENSITIVE_CONTENT",
    "SEQUENCE_ERROR",
    "REGISTRY_ERROR",
    "KAFKA_ERROR",
    "DELIVERY_TIMEOUT",
    "INTERNAL_ERROR",
    "DELIVERY_FAILED",
)
TEXT = 1  # MessageType
DELIVERED = (2, 3)  # DeliveryStatus: delivered, read
GROUP_NOT_FOUND = 2  # UserErrorCode
NO_MEMBER = (0, 1, 2)  # an answer, which says who is none: no error, or no such user or group
# A node has so long to say what its devices did: the contract's
FORWARD_S = 2.0
# What forwards are counted as
FORWARDS = {"PushMessage": "message", "PushReadReceipt": "read_receipt"}
# Nodes of the original know this one only
PUSH_SERVICE = "im_gateway_servicepb.UimUgatewayUserviceService"


class Validated(Protocol):
    """The answer of ValidateToken."""

    valid: bool
    user_id: str
    device_id: str


class Routed(Protocol):
    """Of RoutePrivateMessage and RouteGroupMessage."""

    sequence_number: int
    error_code: int
    error_message: str


class Pushed(Protocol):
    """Of PushMessage and PushReadReceipt."""

    success: bool
    delivered_count: int
    failed_devices: Sequence[str]
    error_message: str


def validate(token: str) -> Call:
    return Call("auth", "validate", RpcRequest("auth.v1.AuthService/ValidateToken", {"access_token": token}))


def route(
    sender: str, recipient: str, kind: str, said: Mapping[str, Any], client_time: Mapping[str, int] | None
) -> Call:
    """`said`: msg_id, content and metadata. One repeat: the service knows a message by its id."""
    name, field = ("RouteGroupMessage", "group_id") if kind == "group" else ("RoutePrivateMessage", "recipient_id")
    fields: dict[str, Any] = {"sender_id": sender, field: recipient, "message_type": TEXT, **said}
    if client_time is not None:
        fields["client_timestamp"] = client_time
    return Call("im", f"route_{kind}", RpcRequest(f"im.v1.IMService/{name}", fields, retries=1))


def im_error(code: int) -> str:
    return f"IM_ERROR_CODE_{IM_ERRORS[code] if code < len(IM_ERRORS) else code}"


def forward(method: str, node: str, fields: Mapping[str, Any], seconds: float, trace: str) -> Call:
    """To the node that has the device, which may get it twice but must not pass it on."""
    metadata = {"x-gateway-hop": "1"} | ({"traceparent": trace} if trace else {})
    request = RpcRequest(
        f"{PUSH_SERVICE}/{method}",
        fields,
        address=node,
        timeout_s=seconds,
        try_s=FORWARD_S,
        retries=2,
        insists=True,
        metadata=metadata,
    )
    return Call("nodes", FORWARDS[method], request)


# --- groups -----------------------------------------------------------------------------------------------------------


def members_page(group: str, cursor: str) -> Call:
    fields = {"group_id": group, "cursor": cursor, "limit": PAGE}
    return Call("user", "members", RpcRequest("user.v1.UserService/GetGroupMembers", fields, retries=1))


def is_member(group: str, user: str) -> Call:
    fields = {"group_id": group, "user_id": user}
    return Call("user", "is_member", RpcRequest("user.v1.UserService/ValidateGroupMembership", fields, retries=1))


def cached_page(group: str, cursor: int) -> Call:
    """Answered by [[next cursor, members]]."""
    return Call("redis", "members", RedisRequest([("SSCAN", _key(group), cursor, "COUNT", PAGE)]))


def cached_members(group: str, users: Iterable[str]) -> Call:
    """Answered by whether the set is there, then by one 0 or 1 a user."""
    asked: list[RedisCommand] = [("SISMEMBER", _key(group), user) for user in users]
    return Call("redis", "is_member", RedisRequest([("EXISTS", _key(group)), *asked]))


def cache_members(group: str, members: Sequence[str], node: str) -> Call:
    """In pieces under a name of its own, and then under the right one: nobody ever sees half of it."""
    draft = f"{_key(group)}:{node}"
    pieces: list[RedisCommand] = [("SADD", draft, *members[at : at + PAGE]) for at in range(0, len(members), PAGE)]
    ends: list[RedisCommand] = [("EXPIRE", draft, MEMBERS_TTL_S), ("RENAME", draft, _key(group))]
    return Call("redis", "cache", RedisRequest([("DEL", draft), *pieces, *ends]))


def forget_members(group: str) -> Call:
    return Call("redis", "forget", RedisRequest([("DEL", _key(group))]))


def keep_receipt(user: str, receipt: bytes) -> Call:
    key = f"offline_read_receipt:{user}"
    return Call("redis", "offline", RedisRequest([("RPUSH", key, receipt), ("EXPIRE", key, OFFLINE_TTL_S)]))


def _key(group: str) -> str:
    return f"group_members:{group}"
