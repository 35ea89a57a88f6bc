"""Tidegate beside its rivals and the limit program: memory, handshakes, fan-out, latency, rooms of two.

--rows and --peers choose some of them: --rows 2,4 --peers socketify,go. Rows: 2 memory a connection, 4 handshakes with
fresh tokens, 5 fan-out of single messages, 6 of bursts, 7 latency from JetStream, 8 rooms of two from JetStream. For
each run of each row a server is a fresh process and alone; they take turns. Threads differ, so server CPU is what
compares. In rows 5 and 6 tidegate is published to over JetStream, all others make the messages themselves. A rival that
can't be installed, or loses a message, has no figure, and the reason stands under the table.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import peer_rows
import rig
from bench_run import BenchRun, main
from peer_rows import CONNECTIONS, MESSAGES, ROWS, SUBJECT, SUBJECTS
from peer_servers import Go, Peer, Picows, Socketify, Websockets
from peer_sockudo import Sockudo
from tidegate.bench.backend import NatsBackend, add_stream

PEERS: tuple[type[Peer], ...] = (Socketify, Picows, Websockets, Sockudo, Go)
NAMES = tuple(peer.name for peer in PEERS)
CENTRIFUGO = (
    "Centrifugo is not measured: its Go modules are not to be had here. Published by its authors: 1,000,000 idle"
    " connections, 11.6 kB of memory and 2.3 us of CPU a second a connection"
)


class PeersRun(BenchRun):
    """A run that starts rivals too, and goes on without one that fails."""

    def __init__(self, peers: Sequence[type[Peer]], rows: Sequence[int], argv: Sequence[str]) -> None:
        super().__init__("peers", __doc__ or "", argv, connections=CONNECTIONS, messages=MESSAGES)
        self._peers, self.rows = list(peers), rows
        self._why: dict[tuple[str, str], str] = {}  # rival, row or case of a row -> why it has no figure

    def __enter__(self) -> Self:
        super().__enter__()
        about = {"tidegate": {"threads": os.cpu_count()}, "limit": {"threads": os.cpu_count()}}
        for peer in tuple(self._peers):
            try:
                about[peer.name] = {"version": peer.version(), "settings": peer.settings, "threads": peer.threads}
            except rig.RigError as error:
                self._peers.remove(peer)
                self._why |= {(peer.name, peer_rows.title(row)): str(error) for row in self.rows}
            self._why |= {
                (peer.name, peer_rows.title(row)): why for row, why in peer.cannot.items() if row in self.rows
            }
        # with the options, what tells one result file from another
        self.options.rows, self.options.servers = list(self.rows), about
        add_stream(self.start_nats().url, "CHAT", SUBJECTS)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._say_who_is_absent()
        self.notes += [
            f"{name} {its['version']}: {its['settings']}; threads: {its['threads']}"
            for name, its in self.options.servers.items()
            if "version" in its
        ]
        self.notes.append(CENTRIFUGO)
        super().__exit__(kind, *rest)

    def publish(self, server: rig.Server, room: str, count: int, size: int, batch: int = 1) -> None:
        if isinstance(server, Peer):
            server.publish(room, count, size, batch)
        else:
            super().publish(server, room, count, size, batch)

    @contextlib.contextmanager
    def turn(self, name: str, row: int, connections: int) -> Iterator[rig.Server | None]:
        """A server of its own for one measurement; None for a rival that failed in it before."""
        case = peer_rows.title(row, connections)
        if (name, case) in self._why:
            yield None
            return
        with self.part():
            try:
                yield self._start(name, connections, jetstream=row in peer_rows.FROM_JETSTREAM)
            except rig.RigError as error:
                if name not in NAMES:
                    raise
                self._why[name, case] = str(error)

    def servers_of(self, row: int) -> Iterator[str]:
        """All in the order of the columns, as often as is measured."""
        names = ["tidegate", *(peer.name for peer in self._peers), "limit"]
        for _ in range(self.runs):
            yield from (name for name in names if (name, peer_rows.title(row)) not in self._why)

    def nats_backend(self) -> NatsBackend:
        return self._stack.enter_context(contextlib.closing(NatsBackend(self.start_nats().port, SUBJECT)))

    def _start(self, name: str, connections: int, *, jetstream: bool) -> rig.Server:
        nats = self.start_nats()
        if name == "tidegate":
            return self.tidegate(connections)
        if name == "limit":
            feed = ("--nats", f"127.0.0.1:{nats.port}", "--subject", SUBJECT) if jetstream else ()
            return self.limit(connections, *feed)
        peer = next(peer for peer in self._peers if peer.name == name)
        return self._stack.enter_context(peer(self.secret, nats.url if jetstream else ""))

    def _say_who_is_absent(self) -> None:
        for (name, case), why in self._why.items():
            for figure in self.figures:
                if figure.case.startswith(case):
                    figure.samples.pop(name, None)
                    figure.absent[name] = why
        for name, why in dict.fromkeys((name, why) for (name, _), why in self._why.items()):
            cases = "; ".join(case.strip(": ") for (who, case), its in self._why.items() if (who, its) == (name, why))
            self.notes.append(f"{name} not measured in row {cases}: {why}")


def peers() -> None:
    chosen, rest = _choice()
    with PeersRun([peer for peer in PEERS if peer.name in chosen.peers], chosen.rows, rest) as run:
        if run.options.bus != "nats" or run.options.only:
            raise rig.RigError("peers.py measures both servers and publishes to JetStream; leave --bus and --only out")
        peer_rows.measure(run)


def _choice() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser("bench/peers.py", add_help=False)
    parser.add_argument("--rows", type=_several(int, tuple(ROWS)), default=list(ROWS))
    parser.add_argument("--peers", type=_several(str, NAMES), default=list(NAMES))
    return parser.parse_known_args(sys.argv[1:])


def _several(kind: Callable[[str], Any], known: Sequence[Any]) -> Callable[[str], list[Any]]:
    def parsed(text: str) -> list[Any]:
        found = [kind(word) for word in text.split(",") if word]
        if any(each not in known for each in found):
            raise argparse.ArgumentTypeError(f"{text}: use some of {','.join(str(each) for each in known)}")
        return found

    return parsed


if __name__ == "__main__":
    main(peers)
