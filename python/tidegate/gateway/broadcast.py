"""What one gateway tells the others: "publish this to that room", in a few bytes more than the message itself.

Layout, big-endian: version (1 byte), length of the excluded connection's UUID (1), length of the room's name (2), UUID,
room, payload to the end. Rule: what comes in may be from anybody on the bus, so `decode` trusts no length.
"""

import struct
from typing import NamedTuple

# The first byte, so that a later layout is refused by older nodes instead of misread
VERSION = 1
_HEAD = struct.Struct(">BBH")


class Broadcast(NamedTuple):
    room: str
    payload: bytes
    exclude: str | None


def encode(room: str, payload: bytes, exclude: str | None) -> bytes:
    """Raises struct.error for a room name over 64 KiB: no bus would take it as one message either."""
    name = room.encode()
    uuid = exclude.encode() if exclude else b""
    return _HEAD.pack(VERSION, len(uuid), len(name)) + uuid + name + payload


def decode(data: bytes) -> Broadcast | None:
    """None for anything that `encode` can't have made."""
    if len(data) < _HEAD.size:
        return None
    version, uuid_length, name_length = _HEAD.unpack_from(data)
    room_at = _HEAD.size + uuid_length
    payload_at = room_at + name_length
    if version != VERSION or not name_length or payload_at > len(data):
        return None
    try:
        uuid, room, payload = data[_HEAD.size : room_at].decode(), data[room_at:payload_at].decode(), data[payload_at:]
        payload.decode()  # it goes out in text frames, and a client must close on one that is not UTF-8
    except UnicodeDecodeError:
        return None
    return Broadcast(room, payload, uuid or None)
