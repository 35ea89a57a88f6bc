"""Who is connected where: the contract that every registry keeps, and the only place that finds one by its URL scheme.

A node writes its own places and reads everybody's. Whatever the backend does, a call ends within CALL_S: with an answer
or with UpstreamError; and what a failed call left behind is put right by the registry itself, later.
Rule: one file a registry, named like its URL scheme, with a function `open_registry`; `tests/contract/test_registry.py`
runs on each.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from tidegate.calls import Place
from tidegate.errors import ConfigError
from tidegate.schemes import Schemes

__all__ = [
    "CALL_S",
    "UNAVAILABLE",
    "Registry",
    "RegistrySettings",
    "RegistryStats",
    "Taken",
    "TtlSettings",
    "open_registry",
    "scheme_of",
]

# The message of every UpstreamError of a call: a client may read it, so it never says more
UNAVAILABLE = "registry unavailable"
# Seconds for a whole call. Its caller is a client that connects or a backend that pushes, with about 3 s of patience
CALL_S = 3.0
# Told a place of ours that another node has registered since
Taken: TypeAlias = Callable[[Place], None]


@dataclass(frozen=True, slots=True)
class RegistryStats:
    """Plain numbers, read at a scrape: what is now, then what was counted since the start."""

    places: int  # devices of this node
    leases: int
    nodes: int  # that are alive, ours included
    unsettled: int  # keys whose state in the backend is not known; looked after one by one
    cache_entries: int
    cache_hits: int
    cache_misses: int
    cache_merged: int  # misses that joined another's look-up
    lease_losses: int
    puts_again: int  # places written once more: their lease was lost, or nobody knew whether they were there
    watch_resumes: int  # without a gap
    watch_gaps: int  # events were missed: the cache was cleared and every place of ours checked
    taken: int
    round_trips: int
    failures: int  # of those


class Registry(Protocol):
    """Nothing is connected before the first call or `run`; both need a running loop."""

    async def run(self, taken: Taken) -> None:
        """Until cancelled: connects, keeps this node and its places known, follows what others do.

        Never raises for a backend that is down. `taken` is told, in a turn of the loop of its own, when a place of ours
        was registered by another node since; the place is then forgotten here.
        """

    def is_ready(self) -> bool:
        """This node is known to the others, and hears of them."""

    async def call(self, method: str, payload: Any) -> Any:
        """`register` Enter -> bool; `unregister` Place -> None; `devices` user -> Mapping[device, node]; `nodes` None
        -> frozenset of nodes that are alive.

        UpstreamError when it can't tell; a name that can't be part of a key has the outcome `invalid_argument`. A
        register that failed, or whose caller was cancelled, is as if it never was. An unregister that failed is done
        later; it removes only what is still ours: of this conn here, and of this node in the backend.
        """

    def stats(self) -> RegistryStats: ...

    async def close(self, within_s: float) -> None:
        """Takes all our places and this node out at once; call it after `run` has ended. Later calls fail, but
        for unregister, which has nothing left to do."""


class TtlSettings(Protocol):
    """What registries read; `config` says what each means."""

    @property
    def ttl(self) -> float: ...  # seconds
    @property
    def renew_interval(self) -> float: ...  # seconds


class RegistrySettings(Protocol):
    @property
    def registry(self) -> TtlSettings: ...


def open_registry(url: str, settings: RegistrySettings, *, node: str) -> Registry:
    """The registry that serves the URL's scheme. A URL or a node's name that cannot be right is a ConfigError."""
    if not NODE.fullmatch(node):
        raise ConfigError(
            f"{node!r} cannot be a node's name in a registry", "No blanks, no | and no /; at most 255 characters."
        )
    registry: Registry = SCHEMES.module(url).open_registry(url, settings.registry, node)
    return registry


def scheme_of(url: str) -> str:
    """The name of the registry's file. `host:port` alone is etcd, as lists of its endpoints are written."""
    return SCHEMES.of(url)


# etcd's own tools say http
SCHEMES = Schemes("registry", __name__, __path__, same={"http": "etcd"}, extras={"etcd": "etcd"}, bare="etcd")
# It is part of keys, and ends at a | in values
NODE = re.compile(r"[^\s|/]{1,255}")
