"""The frames of im-gateway's protocol, read strictly and built exactly: contract im-gateway, sections 4 and 5.

There are two dialects: that of the original's server, and that of its browser SDK, which has more fields and times in
milliseconds. Rule: a field has the type that the original's decoder took, or the frame is invalid; absent and null are
the type's zero there, so they are here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

# What Go's int64 holds
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
# The end of the year 9999, where protobuf's timestamps end
SECONDS_MAX = 253_402_300_799
# Of `extra`: what goes with a message to the IM service as metadata
EXTRA_MAX = 64


@dataclass(slots=True)
class ClientFrame:
    """What a client sent, both dialects' fields."""

    type: str = ""
    msg_id: str = ""
    recipient: str = ""
    recipient_id: str = ""
    recipient_type: str = ""
    content: str = ""
    timestamp: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)


TEXTS = ("type", "msg_id", "recipient", "recipient_id", "recipient_type", "content")


def parse(payload: bytes) -> ClientFrame | None:
    try:
        said = orjson.loads(payload)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    texts = {name: value for name in TEXTS if (value := said.get(name)) is not None}
    timestamp = said.get("timestamp")
    timestamp = 0 if timestamp is None else timestamp
    if not all(isinstance(value, str) for value in texts.values()):
        return None
    if type(timestamp) is not int or not INT_MIN <= timestamp <= INT_MAX:
        return None
    return ClientFrame(**texts, timestamp=timestamp, extra=_texts_of(said.get("extra")))


def _texts_of(extra: object) -> dict[str, str]:
    """Anything but an object with texts is passed over: the original kept it unread."""
    if not isinstance(extra, dict):
        return {}
    texts = [(name, value) for name, value in extra.items() if isinstance(value, str)]
    return dict(texts[:EXTRA_MAX])


def client_time(timestamp: int) -> dict[str, int] | None:
    """A protobuf timestamp of what a client sent: seconds, or milliseconds beyond 10^11; None if it is none."""
    seconds, millis = divmod(timestamp, 1000) if timestamp > 10**11 else (timestamp, 0)
    if not 0 < seconds <= SECONDS_MAX:
        return None
    return {"seconds": seconds, "nanos": millis * 1_000_000}


# --- server -> client -------------------------------------------------------------------------------------------------


def message_frame(said: Mapping[str, Any], *, sdk: bool, recipient: str, kind: str = "user", group: str = "") -> bytes:
    """`said`: msg_id, sender, content, timestamp and sequence_number, all as the pusher gave them."""
    more: dict[str, Any] = {"group_id": group} if group else {}
    if sdk:
        more |= {"sender_id": said["sender"], "recipient_id": recipient, "recipient_type": kind}
    return orjson.dumps({"type": "message", **said, **more})


def ack_frame(msg_id: str, sequence: int, now: float, *, sdk: bool, delivered: bool) -> bytes:
    more = {"status": "delivered" if delivered else "pending"} if sdk else {}
    return _frame("ack", now, sdk, msg_id=msg_id, sequence_number=sequence, **more)


def error_frame(code: str, text: str, now: float, *, sdk: bool, msg_id: str = "") -> bytes:
    more = {"code": code, "message": text} if sdk else {}
    return _frame("error", now, sdk, msg_id=msg_id, error_code=code, error_message=text, **more)


def close_frame(code: str, text: str, now: float, *, sdk: bool) -> bytes:
    return _frame("close", now, sdk, error_code=code, error_message=text)


def receipt_frame(said: Mapping[str, Any], now: float, *, sdk: bool) -> bytes:
    """`said`: msg_id, reader_id, read_at and conversation_id."""
    return _frame("read_receipt", now, sdk, **said)


def membership_frame(user: str, event: str, group: str, timestamp: int) -> bytes:
    """The same in both dialects; the time is the event's."""
    said = {"msg_id": "", "sender": user, "content": event, "timestamp": timestamp, "sequence_number": 0}
    return orjson.dumps({"type": "membership_change", **said, "group_id": group})


def heartbeat_frame(now: float, *, sdk: bool) -> bytes:
    return orjson.dumps({"type": "heartbeat_response" if sdk else "heartbeat", "timestamp": _time(now, sdk)})


def auth_frame(user: str, device: str, now: float) -> bytes:
    """The first frame of the SDK's dialect."""
    said = {"success": True, "user_id": user, "device_id": device, "timestamp": _time(now, True)}
    return orjson.dumps({"type": "auth_response", **said})


def template(frame: bytes, *, sdk: bool) -> bytes:
    """Of a frame that was made at 0: the engine puts in the time when it says it."""
    return frame.replace(b'"timestamp":0', b'"timestamp":$UNIX_MILLIS' if sdk else b'"timestamp":$UNIX_SECONDS')


def _frame(kind: str, now: float, sdk: bool, **said: Any) -> bytes:
    """What the original always has is there, zero where it means nothing."""
    always = {"msg_id": "", "sender": "", "content": "", "timestamp": _time(now, sdk), "sequence_number": 0}
    return orjson.dumps({"type": kind, **always, **said})


def _time(now: float, sdk: bool) -> int:
    return int(now * 1000) if sdk else int(now)
