"""Fan-out: one message to every member of a room, alone and in bursts; deliveries a second and server CPU for each.

`alone`: the next message is published when all members have the last one. `burst`: as fast as the bus takes them, which
is when a gateway can send several at once. The limit program does one send a message to each member; beside it, as
`limit, coalesced`, the same burst in one send a member: nobody can be cheaper. The CPU of tidegate is all of its
process, bus client included; nats-server's is not in it. A lost, repeated or misplaced message ends the benchmark.
"""

import time

import rig
from bench_run import BenchRun, main
from rig import Limit, Server

ROOMS = (1_000, 15_000, 100_000)
ROOMS_QUICK = (200, 2_000)
SIZES = (128, 512)  # bytes of an event: a short chat line, a long one
BURST = 250
DELIVERIES_A_BURST = 3_750_000  # the burst is cut to this in giant rooms, where one send a message takes 8 us
DELIVERIES_ALONE = 200_000  # about a second
QUICK = 10  # times fewer deliveries
COALESCED = "limit, coalesced"


def fanout() -> None:
    with BenchRun("fanout", __doc__ or "", members=max(ROOMS)) as run:
        rooms = (run.options.members,) if run.options.members else ROOMS_QUICK if run.quick else ROOMS
        sizes = SIZES[:1] if run.quick else SIZES
        servers = run.servers(max(rooms))
        with run.progress(len(rooms) * len(sizes) * 2 * run.runs, "opening connections") as step:
            for members in rooms:
                with run.part():
                    audiences = [Audience(run, server, members) for server in servers]
                    for size, alone in ((size, alone) for size in sizes for alone in (True, False)):
                        for _ in range(run.runs):
                            for audience in audiences:
                                measure(audience, size, alone)
                            step(f"{members:,} members, {size} bytes, {'alone' if alone else 'burst'}")


class Audience:
    """The members of one room on one server, all connected."""

    def __init__(self, run: BenchRun, server: Server, members: int) -> None:
        self.run, self.server, self.members = run, server, members
        self.room = f"chat:r{members}"
        self.crowd = run.crowd(server, self.room, members)
        self.crowd.open(members)

    def publish(self, size: int, depth: int, times: int, batch: int = 1) -> tuple[float, float, rig.Answer]:
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
            raise rig.RigError(f"{self.server.name}: {deliveries:,} deliveries were due; {seen}")
        return cpu / deliveries * 1e6, deliveries / busy_ns * 1e9, answer


def measure(audience: Audience, size: int, alone: bool) -> None:
    members, run = audience.members, audience.run
    share = QUICK if run.quick else 1
    depth = 1 if alone else max(1, min(BURST // share, DELIVERIES_A_BURST // members))
    times = max(3, DELIVERIES_ALONE // share // members) if alone else 1
    case = f"{members:,} members, {size} B, " + ("alone" if alone else f"burst of {depth}")
    record(run, audience.server.name, case, audience.publish(size, depth, times))
    if isinstance(audience.server, Limit) and not alone:
        record(run, COALESCED, case, audience.publish(size, depth, times, batch=depth))


def record(run: BenchRun, name: str, case: str, figures: tuple[float, float, rig.Answer]) -> None:
    cpu_us, per_second, load = figures
    run.figures.of(case, "server CPU a delivery", "us", 2).add(name, cpu_us)
    run.figures.of(case, "deliveries", "1/s", 0).add(name, per_second, load)


if __name__ == "__main__":
    main(fanout)
