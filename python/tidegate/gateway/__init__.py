"""Two pumps between the engine, the profile and the bus. The profile decides; this package carries it out.

`clients.py` takes events to the profile, `backends.py` bus messages, `steps.py` whatever else begins. `actions.py`
makes commands of what it yields, `asking.py` waits, `handover.py` has the engine, `faults.py` counts what goes wrong.
Rule: everything here runs on the event loop's thread.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tidegate.buses import Bus, IsServed
from tidegate.calls import Place
from tidegate.counters import GatewayCounters
from tidegate.gateway.actions import Actions, Recorder, Verifier
from tidegate.gateway.asking import Asking, Upstream
from tidegate.gateway.backends import Backends
from tidegate.gateway.clients import Clients
from tidegate.gateway.faults import Faults, ProfileError
from tidegate.gateway.handover import EngineLike, HandOver
from tidegate.gateway.steps import StepRunner
from tidegate.profile import BusMessage, HasRegistry, HasRequests, Profile, ProfileSpec, Request

__all__ = ["EngineLike", "Gateway", "Upstream", "Verifier"]


class Gateway:
    def __init__(
        self,
        engine: EngineLike,
        spec: ProfileSpec,
        profile: Profile,
        *,
        auth: Verifier,
        bus: Bus | None,
        counters: GatewayCounters,
        upstreams: Mapping[str, Upstream] | None = None,
        tracer: Recorder | None = None,
    ) -> None:
        self._profile = profile
        # asked once: what a Protocol asks of a class costs as much as a call's own steps
        self._on_request = profile.on_request if isinstance(profile, HasRequests) else None
        faults = self._faults = Faults(counters)
        asking = Asking(upstreams or {})
        self._actions = Actions(
            engine.uuid,
            engine.claim_user,
            auth,
            bus,
            counters=counters,
            faults=faults,
            wake=asking.wake,
            tracer=tracer,
        )
        handover = self._handover = HandOver(engine, faults, self._actions.take)
        self._steps = StepRunner(self._actions, asking, handover)
        self._backends = Backends(
            engine,
            profile,
            actions=self._actions,
            steps=self._steps,
            handover=handover,
            faults=faults,
            counters=counters,
        )
        self._clients = Clients(
            engine,
            spec,
            profile,
            actions=self._actions,
            handover=handover,
            faults=faults,
            asking=asking,
        )

    def pump(self) -> None:
        """Serves one batch of events; the loop calls it for as long as the engine's eventfd is readable."""
        try:
            self._clients.pump()
            self._backends.check_relief()
        except Exception as error:
            # a bug of ours: the loop would call again at once and for ever, and tell each time
            self._faults.profile(error)

    async def deliver(self, batch: Sequence[BusMessage]) -> IsServed | None:
        """Hands a batch to the engine; returns when the engine can take more and, unless `IsServed` is to say so, when
        the batch may be acknowledged."""
        return await self._backends.deliver(batch)

    def offer(self, batch: Sequence[BusMessage]) -> bool:
        """The same at once; False if the engine can't take it now."""
        return self._backends.offer(batch)

    def receive(self, data: bytes) -> None:
        """Publishes here what another node broadcast."""
        self._backends.receive(data)

    async def answer(self, request: Request) -> Mapping[str, Any]:
        """Serves a backend's request. What the profile fails on is counted, and raised without its text."""
        if self._on_request is None:
            raise ProfileError("backends call this profile, and it has no on_request")
        try:
            fields: Mapping[str, Any] = await self._steps.run(self._on_request(request))
            return fields
        except Exception as error:
            self._faults.profile(error)
            raise ProfileError("the profile failed on a backend's request") from None

    def taken(self, place: Place) -> None:
        """The device is on another node now."""
        if isinstance(self._profile, HasRegistry):
            try:
                self._actions.carry_out(self._profile.on_taken(place, time.time()))
            except Exception as error:
                self._faults.profile(error)
            self._handover.flush()

    async def finish_calls(self, within_s: float) -> None:
        """Refuses upgrades from now on and waits until the calls under way are answered and served."""
        await self._clients.finish(within_s)

    async def close(self, within_s: float) -> None:
        """Waits for backends to confirm what clients sent them, then gives up on that, on look-ups and on calls."""
        await self._actions.settle(within_s)
        await self._backends.close(within_s)
        await self._clients.close()
