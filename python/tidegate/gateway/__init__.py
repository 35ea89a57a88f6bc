"""Two pumps between the engine, the profile and the bus. The profile decides; this package carries it out.

`clients.py` takes events to the profile, `backends.py` takes bus messages to it; `actions.py` turns what it yields into
commands, `handover.py` gives them to the engine, `faults.py` counts what goes wrong. Rule: everything here runs on the
event loop's thread.
"""

from collections.abc import Mapping, Sequence

from tidegate.buses import Bus
from tidegate.counters import GatewayCounters
from tidegate.gateway.actions import Actions, Verifier
from tidegate.gateway.backends import Backends
from tidegate.gateway.clients import Clients, Upstream
from tidegate.gateway.faults import Faults
from tidegate.gateway.handover import EngineLike, HandOver
from tidegate.profile import BusMessage, Profile, ProfileSpec

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
    ) -> None:
        faults = self._faults = Faults(counters)
        handover = HandOver(engine, faults)
        self._actions = Actions(engine.uuid, engine.claim_user, auth, bus, counters=counters, faults=faults)
        self._backends = Backends(
            engine, profile, self._actions.count, handover=handover, faults=faults, counters=counters
        )
        self._clients = Clients(
            engine,
            spec,
            profile,
            actions=self._actions,
            handover=handover,
            faults=faults,
            upstreams=upstreams or {},
        )

    def pump(self) -> None:
        """Serves one batch of events; the loop calls it for as long as the engine's eventfd is readable."""
        try:
            self._clients.pump()
            self._backends.check_relief()
        except Exception as error:
            # a bug of ours: the loop would call again at once and for ever, and tell each time
            self._faults.profile(error)

    async def deliver(self, batch: Sequence[BusMessage]) -> None:
        """Hands a batch to the engine; returns when it may be acknowledged and the engine can take more."""
        await self._backends.deliver(batch)

    def offer(self, batch: Sequence[BusMessage]) -> bool:
        """The same at once; False if the engine can't take it now."""
        return self._backends.offer(batch)

    def receive(self, data: bytes) -> None:
        """Publishes here what another node broadcast."""
        self._backends.receive(data)

    async def finish_calls(self, within_s: float) -> None:
        """Refuses upgrades from now on and waits until the calls under way are answered and served."""
        await self._clients.finish(within_s)

    async def close(self, within_s: float) -> None:
        """Waits for backends to confirm what clients sent them, then gives up on that and on calls."""
        await self._actions.settle(within_s)
        await self._clients.close()
