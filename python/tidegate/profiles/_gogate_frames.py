"""The frames of gogate's protocol: one JSON object `{"event": ..., "data": ...}` each, read strictly, built exactly.

Rule: a field has the type that the original's decoder took, or the event is answered with an error; absent and null are
the type's zero there, so they are here.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from tidegate.calls import HttpAnswer

# What the original says about `data` of the wrong type
INVALID_DATA = {
    "send_message": "Invalid message data",
    "typing": "Invalid typing data",
    "add_reaction": "Invalid reaction data",
    "mark_read": "Invalid read data",
}
# The original's ids were Go's int
ID_MIN, ID_MAX = -(2**63), 2**63 - 1
# A list of ids: the published backend takes 100; more are its business up to where they cost more than a message may
IDS_MAX = 10_000


class BadDataError(Exception):
    """A field of `data` has a type that it can't have."""


def parse(payload: bytes) -> tuple[str, object] | None:
    """Event and data, `{}` where there is none; None for what is no frame."""
    try:
        frame = orjson.loads(payload)
    except ValueError:
        return None
    if not isinstance(frame, dict):
        return None
    event, data = frame.get("event"), frame.get("data")
    if not (event is None or isinstance(event, str)):
        return None
    return event or "", {} if data is None else data


def read_id(data: Mapping[str, Any], name: str) -> int:
    value = read_optional_id(data, name)
    return 0 if value is None else value


def read_optional_id(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if type(value) is not int or not ID_MIN <= value <= ID_MAX:
        raise BadDataError
    return value


def read_ids(data: Mapping[str, Any], name: str) -> list[int] | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > IDS_MAX:
        raise BadDataError
    if not all(type(item) is int and ID_MIN <= item <= ID_MAX for item in value):
        raise BadDataError
    return value


def read_text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not (value is None or isinstance(value, str)):
        raise BadDataError
    return value or ""


def read_flag(data: Mapping[str, Any], name: str) -> bool:
    value = data.get(name)
    if not (value is None or isinstance(value, bool)):
        raise BadDataError
    return bool(value)


def event_frame(event: str, data: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"event": event, "data": data})


def error_frame(message: str, code: str) -> bytes:
    return event_frame("error", {"message": message, "code": code})


def message_frame(answer: HttpAnswer | None) -> bytes | None:
    """The backend's body as it is; None if it is no JSON object.

    Only line breaks between its fields go: clients of the original split frames there.
    """
    body = answer.body if answer is not None else b""
    try:
        message = orjson.loads(body)
        if not isinstance(message, dict):
            return None
        if b"\n" in body:
            body = orjson.dumps(message)
    except (ValueError, orjson.JSONEncodeError):
        return None
    return b'{"event":"new_message","data":%b}' % body
