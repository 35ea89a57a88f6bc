"""A batch whose messages stay in native memory: the engine reads them there, and one becomes an object only on demand.

Rule: to whoever does not know, it is a sequence of `BusMessage` like any other batch.
"""

from collections.abc import Sequence
from typing import overload

from tidegate._core import Messages
from tidegate.profile import BusMessage


class Arrived(Sequence[BusMessage]):
    __slots__ = ("messages", "received_at", "stream")

    def __init__(self, stream: str, messages: Messages, received_at: float) -> None:
        self.stream = stream
        self.messages = messages
        self.received_at = received_at  # time.perf_counter()

    def __len__(self) -> int:
        return len(self.messages)

    @overload
    def __getitem__(self, index: int) -> BusMessage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BusMessage]: ...
    def __getitem__(self, index: int | slice) -> BusMessage | Sequence[BusMessage]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        found = self.messages.get(index if index >= 0 else index + len(self)) if index >= -len(self) else None
        if found is None:
            raise IndexError(index)
        subject, data, sequence = found
        return BusMessage(self.stream, subject, data, sequence, self.received_at)
