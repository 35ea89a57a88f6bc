"""What a scrape sees: the engine's, the gateway's and the bus's counters under the names of the profile's contract.

Nothing is counted here: a scrape reads plain numbers that others keep, so metrics cost the data path nothing. The names
of the profile are exported exactly as its contract has them, whatever the library thinks of a gauge whose name ends in
`_total`; what an operator needs beside them begins with `tidegate_`. Rule: labels have few values that are known
beforehand, never a room or a user.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tidegate.metrics._contract import backend_metrics, contract_metrics, errors, family_metric
from tidegate.metrics._operator import ENGINE_STATS, engine_metrics, operator_metrics, resident_bytes
from tidegate.metrics._sources import Sources
from tidegate.profile import ProfileSpec

__all__ = ["ENGINE_STATS", "Exposition", "Sources", "resident_bytes"]


class Exposition:
    """`render` answers one scrape, in the text format that its Accept header asks for."""

    def __init__(self, sources: Sources, spec: ProfileSpec) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(GatewayCollector(sources, spec))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Body and Content-Type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class GatewayCollector(Collector):
    def __init__(self, sources: Sources, spec: ProfileSpec) -> None:
        self._sources = sources
        self._spec = spec

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would else scrape the engine to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        sources, spec = self._sources, self._spec
        stats = sources.engine()
        if spec.metrics is not None:
            yield from contract_metrics(spec.metrics, stats, sources.counters)
        else:
            yield errors("tidegate_errors_total", stats, sources.counters)
        for family in spec.families:
            yield family_metric(family, stats, sources)
        if spec.backend_metrics is not None:
            yield from backend_metrics(spec.backend_metrics, sources)
        yield from engine_metrics(stats)
        yield from operator_metrics(sources)
        build = GaugeMetricFamily("tidegate_build_info", "What runs here; always 1.", labels=BUILD_LABELS)
        build.add_metric([sources.version, spec.name, sources.node_id], 1)
        yield build


BUILD_LABELS = ("version", "profile", "node")
