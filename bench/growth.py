"""Cost as the work grows: CPU a delivery and memory a connection, from a thousand clients in one room to a million.

Each size gets new processes, one after the other, as a million clients of both at once would not fit: all clients
connect with a token each and are in three rooms, then the room of all of them gets messages, each when the last one has
arrived (`alone`), and as many in a row as `fanout.py` sends to that many (`burst`, which the limit program does in one
send a member). Besides the table there are two plots, in which a knee that is tidegate's shows as a line that leaves
the limit program's.
"""

import datetime
import time
from pathlib import Path

from bench_run import BenchRun, main
from plots import Plot, draw
from results import RESULTS, machine
from tidegate.bench.fanout import BURST, DELIVERIES_A_BURST, DELIVERIES_ALONE, Audience

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 600_000, 1_000_000)
SIZES_QUICK = (300, 1_000, 3_000)
MESSAGE_BYTES = 128
MESSAGES_MIN = 3  # alone, to the largest rooms
SETTLE_S = 2.0  # until what a handshake allocated is given back
MEMORY = "user memory a connection"
ALONE, BURSTS = "server CPU a delivery, alone", "server CPU a delivery, burst"


def growth() -> None:
    with BenchRun("growth", __doc__ or "", up_to=max(SIZES)) as run:
        sizes = [size for size in (SIZES_QUICK if run.quick else SIZES) if size <= (run.options.up_to or max(SIZES))]
        with run.progress(len(sizes) * run.runs * len(run.names), f"{sizes[0]:,}") as step:
            for size in sizes:
                for _ in range(run.runs):
                    for name in run.names:
                        with run.part():
                            measure(run, name, size)
                        step(f"{size:,}, {name}")
    if not run.quick or run.options.json:
        today = datetime.datetime.now(tz=datetime.UTC).date()
        beside = run.options.json or RESULTS / f"{today}-growth.json"
        for path in plots(run, beside.with_suffix("")):
            print(f"drawn: {path.name}")


def measure(run: BenchRun, name: str, size: int) -> None:
    server = run.tidegate(size) if name == "tidegate" else run.limit(size)
    time.sleep(SETTLE_S)
    empty = server.rss_bytes()
    audience = Audience(run, server, size)
    time.sleep(SETTLE_S)
    memory = (server.rss_bytes() - empty) / size
    alone, _, _ = audience.publish(MESSAGE_BYTES, 1, max(MESSAGES_MIN, DELIVERIES_ALONE // size))
    depth = max(1, min(BURST, DELIVERIES_A_BURST // size))
    burst, _, _ = audience.publish(MESSAGE_BYTES, depth, 1, batch=depth)
    for figure, unit, value, digits in (
        (MEMORY, "bytes", memory, 0),
        (ALONE, "us", alone, 2),
        (BURSTS, "us", burst, 2),
    ):
        run.figures.of(f"{size:,}", figure, unit, digits).add(name, value)


def plots(run: BenchRun, stem: Path) -> list[Path]:
    """Beside the JSON."""
    cpu, memory = (stem.with_name(f"{stem.name}-{what}.svg") for what in ("cpu", "memory"))
    lines = lines_of(run, ALONE) | {f"{name}, burst": points for name, points in lines_of(run, BURSTS).items()}
    about = machine()
    title = f"CPU of a message to each member of a room, {MESSAGE_BYTES} bytes"
    draw(cpu, Plot(title, "members of the room", "server CPU a delivery [us]"), lines, about)
    title = "User memory of an authenticated connection in three rooms"
    plot = Plot(title, "connections", "VmRSS above the empty server [bytes]", log_y=True)
    draw(memory, plot, lines_of(run, MEMORY), about)
    return [cpu, memory]


def lines_of(run: BenchRun, name: str) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for figure in run.figures:
        if figure.name == name:
            for server, values in figure.samples.items():
                found.setdefault(server, {})[int(figure.case.replace(",", ""))] = values
    return found


if __name__ == "__main__":
    main(growth)
