"""Everything outside that a gateway is connected to: bus, upstreams, registry, whoever traces. Made and ended together.

Rule: a URL that can't be right fails here, before anything listens; nothing is connected before it is used.
"""

from collections.abc import Mapping
from typing import Any

from tidegate.buses import Bus, open_bus, scheme_of
from tidegate.config import Settings
from tidegate.config.checks import value_of
from tidegate.gateway.asking import Upstream as Asked
from tidegate.profile import ProfileSpec
from tidegate.registries import Registry, open_registry
from tidegate.registries import scheme_of as registry_scheme_of
from tidegate.tracing import Tracer, open_tracer
from tidegate.upstreams import Upstream, open_upstream


class Outside:
    """Upstreams need a running loop for their calls only, so all of this can be made before there is one."""

    def __init__(self, settings: Settings, spec: ProfileSpec) -> None:
        self.bus: Bus | None = None
        self.registry: Registry | None = None
        self.upstreams: dict[str, Upstream] = {}
        self.tracer: Tracer | None = None
        self._bus_url = url_of(settings, spec.bus)
        self._registry_url = url_of(settings, spec.registry)
        node = node_of(settings, spec)
        if self._bus_url:
            self.bus = open_bus(self._bus_url, settings, node_id=node)
        if self._registry_url:
            self.registry = open_registry(self._registry_url, settings, node=node)
        for name, key in spec.upstreams.items():
            if url := url_of(settings, key):
                self.upstreams[name] = open_upstream(url, settings, name)
        self.tracer = open_tracer(settings.otel.endpoint, settings.otel.service_name, node)

    def asked(self) -> Mapping[str, Asked]:
        """Whom a `Call` reaches, by name."""
        registry: dict[str, Asked] = {"registry": self.registry.call} if self.registry is not None else {}
        return registry | {name: upstream.call for name, upstream in self.upstreams.items()}

    def why_not_ready(self) -> str | None:
        """The kind of the one that does not work; without upstreams clients are still served."""
        if self.bus is not None and not self.bus.is_ready():
            return scheme_of(self._bus_url)
        if self.registry is not None and not self.registry.is_ready():
            return registry_scheme_of(self._registry_url)
        return None

    async def close(self, within_s: float) -> None:
        """After everything that uses them has ended; each gets so long."""
        ends: list[Any] = [self.registry, *self.upstreams.values(), self.tracer]
        if self.bus is not None:
            await self.bus.close()
        for end in ends:
            if end is not None:
                await end.close(within_s)


def url_of(settings: Settings, key: str | None) -> str:
    """Of a setting, or the URL itself, which has a colon where a key has none."""
    if not key:
        return ""
    return key if ":" in key else str(value_of(settings, key))


def node_of(settings: Settings, spec: ProfileSpec) -> str:
    """This node, as others know it."""
    return (settings.registry.node if spec.registry else "") or settings.node_id
