"""What a connection costs: user memory and CPU for each of many authenticated clients, and how fast they get in.

Every client has a token of its own and is in three rooms: its user's, its brand's (a hundredth of all) and a chat room
of all. User memory a connection is (VmRSS with all of them - VmRSS of the empty server) / how many, of the whole
process: engine, Python, token cache. One message to a room of each kind must reach exactly its members; else there is
no figure.
"""

import time
from collections.abc import Callable
from pathlib import Path

from tidegate.bench.rig import BRANDS, Crowd, LostError, Server
from tidegate.bench.run import Run

ROOM = "chat:all"


class Stay:
    """What happens to a crowd that stands: nothing. A subclass may hold it for a while."""

    steps = 1  # of the progress bar

    def start(self, run: Run, name: str, count: int) -> Server:
        return run.limit(count) if name == "limit" else run.tidegate(count)

    def play(self, run: Run, server: Server, crowd: Crowd, empty_bytes: int, step: Callable[[str], None]) -> None:
        """`empty_bytes`: VmRSS of the empty server. `step` has to be called `steps` times."""
        step(server.name)


def measure(run: Run, count: int, settle_s: float, stay: Stay | None = None) -> None:
    """`settle_s`: until what a handshake allocated is given back."""
    stay = stay or Stay()
    with run.progress(run.runs * len(run.names) * stay.steps, f"{count:,} connections") as step:
        for _ in range(run.runs):
            for name in run.names:
                with run.part():
                    server = stay.start(run, name, count)
                    crowd, empty = _measure_one(run, server, count, settle_s)
                    stay.play(run, server, crowd, empty, step)
    run.notes.append(f"{count:,} connections in one process, each in three rooms; every room's message arrived")


def _measure_one(run: Run, server: Server, count: int, settle_s: float) -> tuple[Crowd, int]:
    """On a new process: a used one keeps memory that it would only have to ask for once."""
    name = server.name
    crowd = run.crowd(server, ROOM, count)
    time.sleep(settle_s)
    empty, cpu, slab = server.rss_bytes(), server.cpu_s(), _slab_bytes()
    crowd.ask("reset")
    opened = crowd.open(count)
    cpu = server.cpu_s() - cpu
    time.sleep(settle_s)
    memory, slab = server.rss_bytes() - empty, _slab_bytes() - slab
    _check_rooms(run, server, crowd, count)
    case = f"{count:,}"
    run.figures.of(case, "user memory a connection", "bytes", 0).add(name, memory / count)
    run.figures.of(case, "kernel slab a connection, both ends", "bytes", 0).add(name, slab / count)
    run.figures.of(case, "VmRSS of the empty server", "MiB").add(name, empty / 2**20)
    run.figures.of(case, "opened", "1/s", 0).add(name, count / opened["seconds"], opened)
    run.figures.of(case, "server CPU a connection opened", "us").add(name, cpu / count * 1e6)
    return crowd, empty


def _check_rooms(run: Run, server: Server, crowd: Crowd, count: int) -> None:
    expected = {"user:u7": 1, "brand:b3": len(range(3, count, BRANDS)), ROOM: count}
    for room, members in expected.items():
        crowd.ask("reset")
        run.publish(server, room, 1, 128)
        received = crowd.wait_received(members)["received"]
        if received != members:
            raise LostError(f"{server.name}: a message to {room} reached {received} of {members} members")


def _slab_bytes() -> int:
    """Of the whole machine: sockets, epoll entries and buffers of both ends, as clients and server are here."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Slab:"))
