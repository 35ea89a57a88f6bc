"""Pushed messages that wait for their devices' acks: who is asked, who has answered, when it is over.

Two pushes of one message to one device, as after a repeated call, wait for the same ack. Rule: pure; whoever wants to
wait gets a ticket, and whoever brings the last ack of a push gets that ticket back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

# user, device, msg_id
Key: TypeAlias = tuple[str, str, str]

# Acks that came too late are told from those nobody asked for as long as this many time-outs ago
LATE_MAX = 65_536


@dataclass(slots=True)
class Push:
    """One message on its way to a user's devices on this node."""

    ticket: int
    waiting: set[Key] = field(default_factory=set)
    acked: int = 0


class Pushes:
    def __init__(self, late_max: int = LATE_MAX) -> None:
        self._tickets = 0
        self._pending: dict[Key, list[Push]] = {}
        self._late: dict[Key, None] = {}
        self._late_max = late_max

    def __len__(self) -> int:
        """Devices from which an ack is awaited."""
        return len(self._pending)

    def ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def begin(self, keys: Iterable[Key]) -> tuple[Push, set[Key]]:
        """Also those of the keys that another push of the same message waits for: they have it already."""
        push = Push(self.ticket(), set(keys))
        known = {key for key in push.waiting if key in self._pending}
        for key in push.waiting:
            self._pending.setdefault(key, []).append(push)
        return push, known

    def acked(self, key: Key) -> list[int] | Literal["late", "unknown"]:
        """The tickets of pushes that have all their acks now."""
        pushes = self._pending.pop(key, None)
        if pushes is None:
            return "late" if self._late.pop(key, key) is None else "unknown"
        done = []
        for push in pushes:
            push.waiting.discard(key)
            push.acked += 1
            if not push.waiting:
                done.append(push.ticket)
        return done

    def end(self, push: Push) -> tuple[list[str], int]:
        """The time is up, or all are in: devices that did not ack, and how many of them nobody waits for any more.

        A second time there are none.
        """
        silent = sorted(device for _, device, _ in push.waiting)
        given_up = sum(self._forget(key, push) for key in push.waiting)
        push.waiting.clear()
        return silent, given_up

    def _forget(self, key: Key, push: Push) -> bool:
        """False if another push waits for the same ack."""
        left = [other for other in self._pending.get(key, ()) if other is not push]
        if left:
            self._pending[key] = left
            return False
        self._pending.pop(key, None)
        self._late[key] = None
        if len(self._late) > self._late_max:
            del self._late[next(iter(self._late))]
        return True
