"""Latency from a publish to the client, at a steady rate, beside the limit program that does the same sends.

The clock runs from before the publish to after the client's read, on one machine and one clock. On NATS the limit
program is a bare subscriber: a Rust thread that reads a subject of its own and sends each payload to the room.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tidegate.bench.rig import Crowd, LostError, Server
from tidegate.bench.run import Run

MESSAGE_BYTES = 128

# Publishes so many messages of so many bytes to a room
Publish = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Shape:
    rooms: Sequence[int]  # members
    rates: Sequence[int]  # messages a second
    seconds: int


def measure(run: Run, servers: Sequence[Server], publish: Mapping[str, Publish], shape: Shape) -> None:
    """`publish`: one for each server, by its name."""
    with run.progress(len(shape.rooms) * len(shape.rates) * run.runs, "latency") as step:
        for members in shape.rooms:
            with run.part():
                crowds = [run.crowd(server, f"chat:r{members}", members) for server in servers]
                for crowd in crowds:
                    crowd.open(members)
                for rate in shape.rates:
                    for _ in range(run.runs):
                        for crowd in crowds:
                            _measure_one(run, crowd, publish[crowd.server.name], (members, rate, shape.seconds))
                        step(f"{members:,} members, {rate} messages a second")


def _measure_one(run: Run, crowd: Crowd, publish: Publish, shape: tuple[int, int, int]) -> None:
    members, rate, seconds = shape
    server, due = crowd.server, members * rate * seconds
    crowd.ask("reset")
    cpu = server.cpu_s()
    publish_steadily(publish, f"chat:r{members}", rate, seconds)
    answer = crowd.wait_received(due, wait_s=5)
    cpu = server.cpu_s() - cpu
    if answer["received"] != due or answer["out_of_order"] or answer["missing"]:
        raise LostError(f"{server.name}: {due:,} deliveries were due, {answer['received']:,} came")
    case = f"{members:,} members, {rate} messages/s"
    for name, key in (("p50", "latency_p50_ns"), ("p99", "latency_p99_ns"), ("max", "latency_max_ns")):
        run.figures.of(case, name, "us", 0).add(server.name, answer[key] / 1e3)
    run.figures.of(case, "server CPU a message", "us", 0).add(server.name, cpu / (rate * seconds) * 1e6)


def publish_steadily(publish: Publish, room: str, rate: int, seconds: int) -> None:
    """On a fixed schedule: a late message does not push the next ones back."""
    began = time.monotonic()
    for number in range(rate * seconds):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        publish(room, 1, MESSAGE_BYTES)
