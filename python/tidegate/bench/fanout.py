"""Fan-out: one message to every member of a room, alone and in bursts; deliveries a second and server CPU for each.

`alone`: the next message is published when all members have the last one. `burst`: as fast as the bus takes them, which
is when a gateway can send several at once. The limit program does one send a message to each member; beside it, as
`limit, coalesced`, the same burst in one send a member: nobody can be cheaper. The CPU of tidegate is all of its
process, bus client included; nats-server's is not in it. A lost, repeated or misplaced message ends the benchmark.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.bench.rig import Answer, Limit, LostError, Server
from tidegate.bench.run import Run

BURST = 250
DELIVERIES_A_BURST = 3_750_000  # the burst is cut to this in giant rooms, where one send a message takes 8 us
DELIVERIES_ALONE = 200_000  # about a second
COALESCED = "limit, coalesced"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is published to each room."""

    sizes: Sequence[int]  # bytes of an event
    alone: Sequence[bool] = (True, False)
    share: int = 1  # so many times fewer deliveries


def measure(run: Run, rooms: Sequence[int], shape: Shape) -> None:
    """`rooms`: how many members each has."""
    servers = run.servers(max(rooms))
    steps = len(rooms) * len(shape.sizes) * len(shape.alone) * run.runs
    with run.progress(steps, "opening connections") as step:
        for members in rooms:
            with run.part():
                audiences = [Audience(run, server, members) for server in servers]
                for size, alone in ((size, alone) for size in shape.sizes for alone in shape.alone):
                    for _ in range(run.runs):
                        for audience in audiences:
                            _measure_one(audience, size, alone, shape.share)
                        step(f"{members:,} members, {size} bytes, {'alone' if alone else 'burst'}")


class Audience:
    """The members of one room on one server, all connected."""

    def __init__(self, run: Run, server: Server, members: int) -> None:
        self.run, self.server, self.members = run, server, members
        self.room = f"chat:r{members}"
        self.crowd = run.crowd(server, self.room, members)
        self.crowd.open(members)

    def publish(self, size: int, depth: int, times: int, batch: int = 1) -> tuple[float, float, Answer]:
        """`depth` messages, `times` over, each time to the last delivery.

        Server CPU a delivery in us, deliveries a second, and how busy the generator was.
        """
        self.crowd.ask("reset")
        cpu, busy_ns, answer = self.server.cpu_s(), 0, {}
        for turn in range(1, times + 1):
            began_ns = time.monotonic_ns()
            self.run.publish(self.server, self.room, depth, size, batch)
            answer = self.crowd.wait_received(self.members * depth * turn)
            busy_ns += answer["last_received_ns"] - began_ns
        cpu = self.server.cpu_s() - cpu
        deliveries = self.members * depth * times
        if answer["received"] != deliveries or answer["out_of_order"] or answer["missing"] or answer["failed"]:
            seen = {key: answer[key] for key in ("received", "out_of_order", "missing", "failed")}
            raise LostError(f"{self.server.name}: {deliveries:,} deliveries were due; {seen}")
        return cpu / deliveries * 1e6, deliveries / busy_ns * 1e9, answer


def _measure_one(audience: Audience, size: int, alone: bool, share: int) -> None:
    members, run = audience.members, audience.run
    depth = 1 if alone else max(1, min(BURST // share, DELIVERIES_A_BURST // members))
    times = max(3, DELIVERIES_ALONE // share // members) if alone else 1
    case = f"{members:,} members, {size} B, " + ("alone" if alone else f"burst of {depth}")
    record(run, audience.server.name, case, audience.publish(size, depth, times))
    if isinstance(audience.server, Limit) and not alone:
        record(run, COALESCED, case, audience.publish(size, depth, times, batch=depth))


def record(run: Run, name: str, case: str, figures: tuple[float, float, Answer]) -> None:
    cpu_us, per_second, load = figures
    run.figures.of(case, "server CPU a delivery", "us", 2).add(name, cpu_us)
    run.figures.of(case, "deliveries", "1/s", 0).add(name, per_second, load)
