"""What tests of registries share: settings, places, a node that runs, and waiting for what others will see.

Rule: a test waits for a condition, never for a time; `until` asks again and again, as another node's view comes late.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tidegate.calls import Enter, Place
from tidegate.registries import Registry, open_registry

# For conditions that hold in well under a second on a quiet machine; only a failing test waits so long.
WAIT_S_MAX = 40
PAUSE_S = 0.02
OTHERS_MAX = 5
WAVE = 1_000
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Ttl:
    ttl: float = 90.0
    renew_interval: float = 30.0


@dataclass(frozen=True)
class Settings:
    registry: Ttl = field(default_factory=Ttl)


class Node:
    """One node's registry, and what it was told."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry = registry
        self.name = name
        self.taken: list[int] = []  # connections
        self.lost_places: list[Place] = []

    def lost(self, place: Place) -> None:
        self.taken.append(place.conn)
        self.lost_places.append(place)

    async def register(self, place: Place, others_max: int = OTHERS_MAX) -> bool:
        answer: bool = await self.registry.call("register", Enter(place, others_max))
        return answer

    async def unregister(self, place: Place) -> None:
        await self.registry.call("unregister", place)

    async def devices(self, user: str) -> dict[str, str]:
        return dict(await self.registry.call("devices", user))

    async def nodes(self) -> frozenset[str]:
        names: frozenset[str] = await self.registry.call("nodes", None)
        return names

    async def sees(self, user: str, devices: dict[str, str]) -> None:
        """Waits until it does."""

        async def is_seen() -> bool:
            return await self.devices(user) == devices

        await until(is_seen)

    async def sees_nodes(self, *names: str) -> None:
        async def are_seen() -> bool:
            return await self.nodes() == set(names)

        await until(are_seen)

    async def is_ready(self, ready: bool = True) -> None:
        await until(lambda: self.registry.is_ready() is ready)


@contextlib.asynccontextmanager
async def running(url: str, name: str = "one", *, ready: bool = True, **ttl: float) -> AsyncIterator[Node]:
    """A node for the length of a block, that says goodbye at its end."""
    node = Node(open_registry(url, Settings(Ttl(**ttl)), node=name), name)
    task = asyncio.create_task(node.registry.run(node.lost))
    try:
        if ready:
            await node.is_ready()
        yield node
    finally:
        await ended(task)
        await node.registry.close(5)


async def ended(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def device() -> str:
    return str(uuid.uuid4())


def place(user: str = "user_7", conn: int = 1, name: str = "", since: int = 0) -> Place:
    return Place(user, name or device(), conn, since or int(time.time()))


async def in_waves(call: Callable[[Place], Awaitable[Answer]], places: Sequence[Place]) -> list[Answer]:
    """As many at a time as handshakes are under way on a busy node."""
    answers: list[Answer] = []
    for start in range(0, len(places), WAVE):
        answers += await asyncio.gather(*(call(one) for one in places[start : start + WAVE]))
    return answers


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(PAUSE_S)
