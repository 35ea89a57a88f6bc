"""Where the bytes of a connection are: the server's memory by part, empty, full and after everybody has left.

The kernel says what is resident of each mapping (/proc/PID/smaps); parts are told apart by how they were mapped: the
engine's allocator reserves whole GiB, a stack lies behind its guard, what else has no name is Python's. Each client has
a token of its own and is in three rooms, as in `connections.py`, whose total this explains.
Rule: only differences to the empty server are a connection's; what is kept once everybody has left is shown beside.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_run import BenchRun, main
from rig import Process, RigError, Tidegate

CONNECTIONS = 100_000
CONNECTIONS_QUICK = 5_000
ROOM = "chat:all"
SETTLE_S = 4.0  # until allocators have given back what a storm of handshakes took: the engine's waits a second
LEAVE_S_MAX = 120.0  # a million ends, each told to Python, on a busy machine

# "7f..-7f.. rw-p offset device inode   name": what a mapping is, before its sizes
MAPPING = re.compile(r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S+) \S+ \S+ \d+\s*(?P<name>.*)")
# mimalloc reserves a GiB at a time and asks for no swap to be set aside (`nr`); nothing else here does either
ARENA_BYTES_MIN = 64 << 20
GUARDED = "---p"


def memory() -> None:
    with BenchRun("memory", __doc__ or "", connections=CONNECTIONS) as run:
        count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        with run.progress(run.runs, f"{count:,} connections") as step:
            for _ in range(run.runs):
                measure(run, count)
                step("memory")
        run.notes.append(f"{count:,} connections in one process, each with its own token and in three rooms")


def measure(run: BenchRun, count: int) -> None:
    with run.part():
        server = run.tidegate(count)
        crowd = run.crowd(server, ROOM, count)
        time.sleep(SETTLE_S)
        empty, kernel = parts(server), slab_bytes()
        crowd.open(count)
        time.sleep(SETTLE_S)
        full, kernel = parts(server), slab_bytes() - kernel
        crowd.ask("close")
        wait_empty(server)
        left = parts(server)
    for part in sorted(full, key=lambda part: empty[part] - full[part]):
        run.figures.of(part, "a connection", "bytes").add("tidegate", (full[part] - empty[part]) / count)
        run.figures.of(part, "empty server", "MiB").add("tidegate", empty[part] / 2**20)
        run.figures.of(part, "kept when all have left", "MiB").add("tidegate", (left[part] - empty[part]) / 2**20)
    # both ends of every connection are on this machine
    run.figures.of("kernel", "a socket", "bytes", 0).add("tidegate", kernel / count / 2)


def parts(server: Process) -> Counter[str]:
    """Resident bytes by part; `total` is VmRSS."""
    found: Counter[str] = Counter()
    for mapping in mappings(server.pid):
        found[part_of(mapping)] += mapping.resident
        found["total"] += mapping.resident
        found["huge pages among it"] += mapping.huge
    return found


@dataclass(slots=True)
class Mapping:
    name: str
    guarded: bool  # nothing may touch what lies before it
    size: int = 0
    resident: int = 0
    huge: int = 0
    flags: str = ""


def mappings(pid: int) -> Iterator[Mapping]:
    mapping: Mapping | None = None
    guard_end = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if begins := MAPPING.fullmatch(line):
            mapping = Mapping(begins["name"], guarded=begins["start"] == guard_end)
            guard_end = begins["end"] if begins["rights"] == GUARDED else ""
            continue
        field, _, value = line.partition(":")
        assert mapping is not None, "a mapping begins with its addresses"
        if field == "Size":
            mapping.size = int(value.split()[0]) * 1024
        elif field == "Rss":
            mapping.resident = int(value.split()[0]) * 1024
        elif field == "AnonHugePages":
            mapping.huge = int(value.split()[0]) * 1024
        elif field == "VmFlags":
            mapping.flags = value
            yield mapping


def part_of(mapping: Mapping) -> str:
    if mapping.size >= ARENA_BYTES_MIN and " nr" in mapping.flags:
        return "engine"
    if mapping.name == "[heap]":
        return "Python, glibc's heap"
    if mapping.name == "[stack]" or (mapping.guarded and not mapping.name):
        return "stacks"
    return "files" if mapping.name else "Python, mapped"


def slab_bytes() -> int:
    """What the kernel keeps for sockets, epoll and files. It is the machine's, so only a quiet one gives a figure."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Slab:"))


def wait_empty(server: Tidegate) -> None:
    deadline = time.monotonic() + LEAVE_S_MAX
    while server.stats()["current_connections"] > 0:
        if time.monotonic() > deadline:
            raise RigError(f"connections still stand {LEAVE_S_MAX:.0f} s after all clients have left")
        time.sleep(0.1)  # another process's state can only be asked
    time.sleep(SETTLE_S)


if __name__ == "__main__":
    main(memory)
