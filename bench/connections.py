"""What a connection costs: user memory and CPU for each of many authenticated clients, and how fast they get in.

Every client has a token of its own and is in three rooms: its user's, its brand's (a hundredth of all) and a chat room
of all. User memory a connection is (VmRSS with all of them - VmRSS of the empty server) / how many, of the whole
process: engine, Python, token cache. One message to a room of each kind must reach exactly its members; else there is
no figure.
"""

import time

import rig
from bench_run import BenchRun, main
from rig import BRANDS, Crowd, Server

CONNECTIONS = 100_000
CONNECTIONS_QUICK = 5_000
ROOM = "chat:all"
SETTLE_S = 2.0  # until what a handshake allocated is given back


def connections() -> None:
    with BenchRun("connections", __doc__ or "", connections=CONNECTIONS) as run:
        count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        names = [name for name in ("limit", "tidegate") if run.options.only in (None, name)]
        with run.progress(run.runs * len(names), f"{count:,} connections") as step:
            for _ in range(run.runs):
                for name in names:
                    measure(run, name, count)
                    step(name)
        run.notes.append(f"{count:,} connections in one process, each in three rooms; every room's message arrived")


def measure(run: BenchRun, name: str, count: int) -> None:
    """A new process for each run: a used one keeps memory that it would only have to ask for once."""
    with run.part():
        server = run.limit(count) if name == "limit" else run.tidegate(count)
        crowd = run.crowd(server, ROOM, count)
        time.sleep(SETTLE_S)
        empty, cpu = server.rss_bytes(), server.cpu_s()
        crowd.ask("reset")
        opened = crowd.open(count)
        cpu = server.cpu_s() - cpu
        time.sleep(SETTLE_S)
        memory = server.rss_bytes() - empty
        check_rooms(run, server, crowd, count)
        case = f"{count:,}"
        run.figures.of(case, "user memory a connection", "bytes", 0).add(name, memory / count)
        run.figures.of(case, "VmRSS of the empty server", "MiB").add(name, empty / 2**20)
        run.figures.of(case, "opened", "1/s", 0).add(name, count / opened["seconds"], opened)
        run.figures.of(case, "server CPU a connection opened", "us").add(name, cpu / count * 1e6)


def check_rooms(run: BenchRun, server: Server, crowd: Crowd, count: int) -> None:
    expected = {"user:u7": 1, "brand:b3": len(range(3, count, BRANDS)), ROOM: count}
    for room, members in expected.items():
        crowd.ask("reset")
        run.publish(server, room, 1, 128)
        received = crowd.wait_received(members)["received"]
        if received != members:
            raise rig.RigError(f"{server.name}: a message to {room} reached {received} of {members} members")


if __name__ == "__main__":
    main(connections)
