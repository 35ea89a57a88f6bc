"""Follows what all nodes do: one watch over users and nodes, from the revision where the one before it broke.

etcd keeps old revisions for a while, so a watch that comes back in time misses nothing. When they are compacted away,
or the revisions of an etcd that lost its data begin anew, there is a gap: whoever is told starts from what is there.
Rule: every start reads the nodes first, whose revision is the newest there is; a broken watch waits before the next.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from tidegate.buses._backoff import backoff_s, level_of
from tidegate.errors import UpstreamError
from tidegate.registries import _etcd_wire as wire
from tidegate.registries._etcd_link import Link, failure

# An etcd that restarts is back in a second or two
PAUSE_S_MAX = 2.0
# Held so long, it was no failure like the ones before
STEADY_S = 10.0

# A key as this program keeps it, the node that wrote it (None = deleted), and the revision
Heard = Callable[[str, str | None, int], None]

logger = logging.getLogger(__name__)


class Watch:
    """Tells `heard` each change of a place, `node_gone` when a node's key is deleted, and `gap` when it missed some."""

    def __init__(
        self, link: Link, heard: Heard, node_gone: Callable[[str, int], None], gap: Callable[[], None]
    ) -> None:
        self._link = link
        self._heard = heard
        self._node_gone = node_gone
        self._gap = gap
        self._seen = 0  # the last revision that we know everything of; 0 = start anew
        self._listed = 0  # the revision of which `nodes` was read
        self._nodes: dict[str, None] = {}
        self.nodes: frozenset[str] = frozenset()
        self.is_following = False
        self.resumes = 0
        self.gaps = 0

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._follow()
                failures = 0
                continue
            except UpstreamError as error:
                failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
                logger.log(level_of(failures), "The registry's watch is broken, trying again: %s", error)
            finally:
                self.is_following = False
            await asyncio.sleep(backoff_s(failures, PAUSE_S_MAX))

    async def _follow(self) -> None:
        """Returns when old revisions are gone."""
        revision = await self._list_nodes()
        if not self._seen or self._seen > revision:
            self._seen = revision
            self.gaps += 1
            self._gap()
        else:
            self.resumes += 1
        async with contextlib.aclosing(self._link.watch(wire.watch_from(self._seen + 1))) as answers:
            async for answer in answers:
                if answer.compact_revision:
                    self._seen = 0
                    return
                if answer.canceled:
                    raise failure("unavailable", f"etcd ended the watch: {answer.cancel_reason}")
                self._take(answer)
                if not self.is_following:
                    self.is_following = True
                    logger.info("The registry's watch follows from revision %d", self._seen)

    async def _list_nodes(self) -> int:
        answer = await self._link.range(wire.read_gateways())
        self._listed = int(answer.header.revision)
        names = (wire.gateway_of(pair.key) for pair in answer.kvs)
        self._nodes = dict.fromkeys(name for name in names if name is not None)
        self.nodes = frozenset(self._nodes)
        return self._listed

    def _take(self, answer: wire.Message) -> None:
        for event in answer.events:
            pair = event.kv
            key = wire.key_of(pair.key)
            is_deleted = event.type == event.DELETE
            if key is not None:
                # what no gateway wrote is from no node; the key is not ours any more all the same
                self._heard(key, None if is_deleted else wire.node_of(pair.value) or "", pair.mod_revision)
            else:
                self._node_changed(pair, is_deleted)
        if answer.events and not answer.fragment:
            # of a revision in pieces only the last one says that all of it is here
            self._seen = max(self._seen, answer.events[-1].kv.mod_revision)

    def _node_changed(self, pair: wire.Message, is_deleted: bool) -> None:
        node = wire.gateway_of(pair.key)
        if node is None or pair.mod_revision <= self._listed:
            return
        if is_deleted:
            self._nodes.pop(node, None)
            self._node_gone(node, pair.mod_revision)
        else:
            self._nodes[node] = None
        self.nodes = frozenset(self._nodes)
