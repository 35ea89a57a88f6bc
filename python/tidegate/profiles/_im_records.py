"""What im-gateway takes from Kafka: messages to groups, read receipts, and who joined or left (contract, section 9).

Every node gets every record and serves those who are connected to it. Rule: a record that makes no sense is skipped and
counted, whatever is in it.
"""

from collections.abc import Generator, Mapping
from typing import Any

import orjson

from tidegate.errors import UpstreamError
from tidegate.profile import (
    Action,
    Add,
    BusMessage,
    Call,
    Count,
    Now,
    Publish,
    PublishRooms,
    RecordSteps,
    Send,
    Steps,
)
from tidegate.profiles._im_devices import Devices
from tidegate.profiles._im_frames import INT_MAX, INT_MIN, membership_frame, message_frame, receipt_frame
from tidegate.profiles._im_groups import Groups, Large, Small
from tidegate.profiles._im_members import Members, dialect_room
from tidegate.profiles._im_receipts import Receipts


class BadRecordError(Exception):
    """It is not what the contract says."""


class Records:
    def __init__(
        self, settings: Any, node: str, devices: Devices, *, groups: Groups, members: Members, receipts: Receipts
    ) -> None:
        self._node = node
        self._devices = devices
        self._groups = groups
        self._members = members
        self._receipts = receipts
        self._is_first = False
        kinds = {
            self._on_group: settings.im.group_topics,
            self._on_receipt: settings.im.receipt_topics,
            self._on_membership: settings.im.membership_topics,
        }
        self._kinds = {topic: kind for kind, topics in kinds.items() for topic in topics}

    def serve(self, record: BusMessage) -> RecordSteps:
        try:
            said, kind = orjson.loads(record.data), self._kinds.get(record.stream)
            if kind is None or not isinstance(said, dict):
                raise BadRecordError
            return (yield from kind(said, record.data))
        except (orjson.JSONDecodeError, BadRecordError):
            yield Add("im_gateway_kafka_consumer_errors_total", record.stream)
            yield Count("bad_record", detail=f"a record of topic {record.stream} was skipped: it is not as agreed")
            return None

    # --- messages to groups ------------------------------------------------------------------------------------------

    def _on_group(self, said: dict[str, Any], _raw: bytes) -> Steps:
        group, shown = _group_of(said), _shown(said)
        found = yield from self._members.of(group, (yield Now()))
        if found is not None:
            seed, sdk = (message_frame(shown, sdk=sdk, recipient=group, kind="group", group=group) for sdk in DIALECTS)
            yield from self._publish(found, seed, sdk)

    def _publish(self, found: Small | Large, seed: bytes, sdk: bytes, but: str = "") -> Steps:
        """To the members who are here."""
        if isinstance(found, Large):
            users = len(found.here)
            yield Publish(dialect_room(found.room, False), seed)
            yield Publish(dialect_room(found.room, True), sdk)
        else:
            here = [user for user in found.members if user != but and user in self._devices.users]
            users = len(here)
            yield from self._publish_small(here, seed, sdk)
        yield Add("im_gateway_group_members_fanout_total", amount=users)
        yield Add("im_gateway_group_messages_delivered_total", amount=users)

    def _publish_small(self, users: list[str], seed: bytes, sdk: bytes) -> Steps:
        if users:
            yield PublishRooms([user_room(user, sdk=False) for user in users], seed)
        if users and self._devices.sdk_connections:
            yield PublishRooms([user_room(user, sdk=True) for user in users], sdk)

    # --- who joined or left ------------------------------------------------------------------------------------------

    def _on_membership(self, said: dict[str, Any], _raw: bytes) -> Steps:
        group, user, event = _text(said, "group_id"), _text(said, "user_id"), said.get("event_type")
        if not group or not user or event not in ("join", "leave"):
            raise BadRecordError
        frame = membership_frame(user, event, group, _number(said, "timestamp"))
        large = self._groups.changed(group)
        if large is not None:
            # before anything waits: the next message may not
            yield from self._move(large, user, event)
        yield from self._members.forget(group)
        found = yield from self._members.of(group, (yield Now()))
        if found is not None:
            yield from self._notify(found, frame, user, event)

    def _move(self, large: Large, user: str, event: str) -> Steps:
        """Out of the room in any case: who joins is not told of it."""
        yield from self._members.leave(large.room, [user])
        large.here.discard(user)
        # who looked at it between the news and this has seen what it was before
        large.changes += 1
        if event == "join":
            large.bloom.add(user)

    def _notify(self, found: Small | Large, frame: bytes, user: str, event: str) -> Steps:
        if isinstance(found, Large):
            yield from self._members.leave(found.room, [user])
        yield from self._publish(found, frame, frame, but=user)
        if isinstance(found, Large) and event == "join" and user in self._devices.users:
            found.here.add(user)
            yield from self._members.join(found.room, [user])

    # --- read receipts -----------------------------------------------------------------------------------------------

    def _on_receipt(self, said: dict[str, Any], raw: bytes) -> RecordSteps:
        """To the devices that are here; one node sees to those of somebody who is nowhere."""
        user, now = _text(said, "sender_id"), (yield Now())
        if not user:
            raise BadRecordError
        shown: dict[str, str | int] = {name: _text(said, name) for name in ("msg_id", "reader_id", "conversation_id")}
        shown["read_at"] = _number(said, "read_at")
        devices = self._devices.of(user)
        for device in devices:
            yield Send(device.conn, receipt_frame(shown, now, sdk=device.sdk))
        if devices or not (yield from self._is_ours(user)):
            return None
        return self._receipts.keep(user, raw)

    def _is_ours(self, user: str) -> Generator[Action, Any, bool]:
        """The node with the lowest name among those that live does it; while nobody can tell, the one that did last."""
        try:
            nodes = yield Call("registry", "nodes")
            self._is_first = self._node == min(nodes, default=self._node)
            return self._is_first and not (yield Call("registry", "devices", user))
        except UpstreamError:
            if self._is_first:
                yield Count("offline_receipt", detail="the registry did not say whether a reader is anywhere: kept")
            return self._is_first


DIALECTS = (False, True)


def user_room(user: str, *, sdk: bool) -> str:
    return dialect_room(f"u:{user}", sdk)


def _group_of(said: Mapping[str, Any]) -> str:
    """`group_id`, or a conversation that is one: the shape of the original's own IM service."""
    group = _text(said, "group_id")
    if not group and said.get("conversation_type") == "group":
        group = _text(said, "conversation_id")
    if not group:
        raise BadRecordError
    return group


def _shown(said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "msg_id": _text(said, "msg_id"),
        "sender": _text(said, "sender_id"),
        "content": _text(said, "content"),
        "timestamp": _number(said, "timestamp"),
        "sequence_number": _number(said, "sequence_number"),
    }


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not (value is None or isinstance(value, str)):
        raise BadRecordError
    return value or ""


def _number(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    if value is None:
        return 0
    if type(value) is not int or not INT_MIN <= value <= INT_MAX:
        raise BadRecordError
    return value
