"""Messages from backends: the contract that every bus keeps, and the only place that finds one by its URL scheme.

A bus hands over batches and acknowledges a batch only after `deliver` returned: a crash before that repeats it, never loses it.
Rule: one file a bus, named like its URL scheme; `tests/contract/test_bus.py` runs on each.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from tidegate.profile import BusMessage

# Hand-over to the engine. It may wait (backpressure); the batch is acknowledged when it returns.
Deliver: TypeAlias = Callable[[Sequence[BusMessage]], Awaitable[None]]
# A message that another node of the same gateway broadcast: opaque bytes, at most once, never our own.
Receive: TypeAlias = Callable[[bytes], None]


class Bus(Protocol):
    """Connected or trying for as long as `run` lasts."""

    def is_ready(self) -> bool:
        """Whether messages flow right now: `/ready` and `tidegate doctor` ask."""

    async def run(self, deliver: Deliver, receive: Receive) -> None:
        """Connects, consumes and reconnects until cancelled. Never raises for a backend that is down or lies.

        On cancellation, a batch that `deliver` has accepted is acknowledged first.
        """

    async def publish(self, subject: str, data: bytes) -> None:
        """Persists a message for whoever consumes `subject`. Raises BusError when that was not confirmed."""

    def broadcast(self, data: bytes) -> None:
        """To the other nodes of this gateway, at most once; dropped (and counted) while disconnected."""

    def stats(self) -> dict[str, int]:
        """`messages`, `bytes`, `reconnects`, `lag` (messages the backend holds that we have not seen), `broadcasts_dropped`, `decode_errors`."""

    async def close(self) -> None: ...
