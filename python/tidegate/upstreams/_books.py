"""What the services inside the process remember together: who came, and how each conversation's messages are numbered.

Rule: plain data without a clock or I/O, and bounded: what was said longest ago is forgotten first, and a full group
takes nobody else, so that the list of its members only grows.
"""

from dataclasses import dataclass
from weakref import WeakValueDictionary

GROUP = "group_1"
# Each who comes is told to all who are there, so more would cost a gateway millions of frames before the first message
MEMBERS_MAX = 1_000
# A demo's for some minutes; somebody who sends again does so within seconds
SAID_MAX = 100_000
# Pairs of a thousand people who talk to a hundred others; the number of a forgotten one begins at 1 again
CONVERSATIONS_MAX = 100_000


@dataclass(slots=True)
class Said:
    """A message: its number in its conversation, and how far it came, if to one person."""

    number: int
    status: str = "DELIVERY_STATUS_PENDING"


class Books:
    def __init__(self) -> None:
        self.members: dict[str, int] = {}  # with when they came, seconds since the epoch
        self._numbers: dict[str, int] = {}
        self._said: dict[tuple[str, str], Said] = {}

    def admit(self, user: str, now: float) -> bool:
        """Whether that is new; a full group takes nobody."""
        if user in self.members or len(self.members) >= MEMBERS_MAX:
            return False
        self.members[user] = int(now)
        return True

    def enter(self, conversation: str, sender: str, msg_id: str) -> tuple[Said, bool]:
        """The message, and whether it is new: one that comes again keeps its number."""
        key = sender, msg_id
        if (known := self._said.get(key)) is not None:
            return known, False
        said = self._said[key] = Said(self._next(conversation))
        if len(self._said) > SAID_MAX:
            del self._said[next(iter(self._said))]
        return said, True

    def strike(self, sender: str, msg_id: str) -> None:
        """It did not get out: as if it was never said, but for its number."""
        self._said.pop((sender, msg_id), None)

    def _next(self, conversation: str) -> int:
        """Who talked last is last."""
        number = self._numbers.pop(conversation, 0) + 1
        self._numbers[conversation] = number
        if len(self._numbers) > CONVERSATIONS_MAX:
            del self._numbers[next(iter(self._numbers))]
        return number


BOOKS: WeakValueDictionary[str, Books] = WeakValueDictionary()
