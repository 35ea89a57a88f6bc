"""The pump from the bus to rooms: a batch of messages in, one submission out. `deliver` returns = acknowledge.

While the engine is pressed `deliver` does not return, so the bus slows down and nobody's memory fills. Rule: a message
that the profile fails on is skipped and counted; it never stalls the bus.
"""

import asyncio
import time
from collections.abc import Sequence

from tidegate._core import PUBLISH, PUBLISH_ROOMS, SEND, Messages, Rule
from tidegate.buses import Arrived, IsServed
from tidegate.counters import GatewayCounters
from tidegate.engine import Command
from tidegate.gateway import broadcast
from tidegate.gateway.actions import Actions
from tidegate.gateway.faults import Faults, ProfileError
from tidegate.gateway.handover import EngineLike, HandOver
from tidegate.gateway.records import Records
from tidegate.gateway.steps import StepRunner
from tidegate.profile import (
    Action,
    Add,
    BusMessage,
    Count,
    HasBusRule,
    HasNodes,
    HasRecords,
    Profile,
    Publish,
    PublishRooms,
    Send,
)

# The eventfd says when the engine has caught up; looking again by ourselves costs little and survives a lost wake-up
RELIEF_CHECK_S = 0.1
# Other nodes' broadcasts that wait for one turn of the loop: 64 MiB of the longest ones
RECEIVED_MAX = 1024


class Backends:
    def __init__(
        self,
        engine: EngineLike,
        profile: Profile,
        *,
        actions: Actions,
        steps: StepRunner,
        handover: HandOver,
        faults: Faults,
        counters: GatewayCounters,
    ) -> None:
        self._engine = engine
        self._profile = profile
        self._on_node = profile.on_node if isinstance(profile, HasNodes) else None
        self._actions = actions
        self._records = Records(profile, steps, handover, faults) if isinstance(profile, HasRecords) else None
        self._handover = handover
        self._faults = faults
        self._counters = counters
        rule = profile.bus_rule() if isinstance(profile, HasBusRule) else None
        self._rule = Rule(rule.room, rule.user, rule.exclude, rule.user_rooms) if rule else None
        self._received: list[Command] = []
        self._relieved = asyncio.Event()

    async def deliver(self, batch: Sequence[BusMessage]) -> IsServed | None:
        if self._records is not None:
            return await self._serve(self._records, batch)
        if self._hand_over(batch):
            await self._relief()
        return None

    async def close(self, within_s: float) -> None:
        """Gives what waits for a look-up so long."""
        if self._records is not None:
            await self._records.close(within_s)

    async def _serve(self, records: Records, batch: Sequence[BusMessage]) -> IsServed | None:
        is_served = await records.serve(batch)
        self._count_all(batch)
        await self._relief()
        return is_served

    def offer(self, batch: Sequence[BusMessage]) -> bool:
        if self._records is not None or self._engine.pressed():
            return False
        self._hand_over(batch)
        return True

    def _hand_over(self, batch: Sequence[BusMessage]) -> bool:
        """Says whether the engine is pressed."""
        if self._rule is None or not isinstance(batch, Arrived):
            pressed = self._decide_all(batch)
            self._count_all(batch)
            return pressed
        pressed = self._publish(batch, batch.messages, self._rule)
        self._counters.messages_from_bus += len(batch)
        self._counters.observe_latency(time.perf_counter() - batch.received_at, len(batch))
        return pressed

    def _count_all(self, batch: Sequence[BusMessage]) -> None:
        self._counters.messages_from_bus += len(batch)
        now = time.perf_counter()
        for message in batch:
            self._counters.observe_latency(now - message.received_at)

    def _publish(self, batch: Arrived, messages: Messages, rule: Rule) -> bool:
        """Plain messages by the rule; those between, in their turn, by the profile."""
        at, pressed = 0, False
        while at < len(messages):
            published, odd, at, pressed = self._engine.publish(messages, at, rule)
            self._counters.broadcasts += published
            if odd < at:
                pressed = self._decide_all(batch[odd:at])
        return pressed

    def _decide_all(self, batch: Sequence[BusMessage]) -> bool:
        commands: list[Command] = []
        for message in batch:
            self._decide(commands, message)
        self._counters.broadcasts += len(commands)
        return self._handover.submit(commands) if commands else self._engine.pressed()

    def _decide(self, commands: list[Command], message: BusMessage) -> None:
        try:
            for action in self._profile.on_bus(message):
                self._translate(commands, action)
        except Exception as error:
            self._faults.profile(error)

    def _translate(self, commands: list[Command], action: Action) -> None:
        if type(action) is Publish:
            commands.append((PUBLISH, action.room, action.payload, True, action.exclude))
        elif type(action) is PublishRooms:
            commands.append((PUBLISH_ROOMS, action.rooms, action.payload, True))
        elif type(action) is Send:
            commands.append((SEND, action.conn, action.payload, True, action.ticket))
        elif type(action) is Count:
            self._actions.count(action)
        elif type(action) is Add:
            self._counters.add(action.family, action.label, action.amount)
        else:
            raise ProfileError(f"what comes from the bus may not lead to {type(action).__name__}")

    async def _relief(self) -> None:
        while self._engine.pressed():
            self._relieved.clear()
            try:
                async with asyncio.timeout(RELIEF_CHECK_S):
                    await self._relieved.wait()
            except TimeoutError:
                continue

    def check_relief(self) -> None:
        """The eventfd woke us: the engine may have caught up."""
        if not self._relieved.is_set() and not self._engine.pressed():
            self._relieved.set()

    def receive(self, data: bytes) -> None:
        """A message of another node. All that come in one turn of the loop are submitted together."""
        if len(self._received) >= RECEIVED_MAX:
            self._faults.count("broadcast_dropped")
            return
        was_empty = not self._received
        self._decode(data)
        if was_empty and self._received:
            asyncio.get_running_loop().call_soon(self._publish_received)

    def _decode(self, data: bytes) -> None:
        if self._on_node is not None:
            try:
                for action in self._on_node(data, time.time()):
                    self._translate(self._received, action)
            except Exception as error:
                self._faults.profile(error)
        elif (message := broadcast.decode(data)) is None:
            self._faults.count("broadcast_decode")
        else:
            self._received.append((PUBLISH, message.room, message.payload, True, message.exclude))

    def _publish_received(self) -> None:
        """Nodes promise each other no more than "at most once": while the engine is pressed, backends go first."""
        commands, self._received = self._received, []
        if self._engine.pressed():
            for _ in commands:
                self._faults.count("broadcast_dropped")
        else:
            self._handover.submit(commands)
            self._counters.broadcasts += len(commands)
