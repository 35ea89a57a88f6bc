"""Latency of a room of two while another room gets bursts: whether anybody waits behind a giant.

A message goes to the small room every 10 ms, first while the giant is silent, then while it gets a burst each second.
Members of the giant room read at the lowest priority: on a network they would be other machines. What is left is shared
by the server, its bus and the kernel, so a bystander is measured at the same time: a room of two on a limit program of
its own that serves nobody else. It waits for a core as the server does: its ratio is what the machine adds by itself.
"""

import time

import rig
from bench_run import BenchRun, main
from rig import Crowd, Server
from tidegate.bench.backend import NatsBackend, add_stream

MEMBERS = 100_000
MEMBERS_QUICK = 2_000
SECONDS = 20  # 2,000 messages: p99 is the twentieth worst
SECONDS_QUICK = 2
PER_S = 100
SMALL, GIANT = "chat:two", "chat:giant"
SMALL_BYTES, GIANT_BYTES = 128, 512
BURST = 50
BURST_DELIVERIES_MAX = (
    500_000  # a second: half of what two cores can do with their clients on them; more would queue up
)
BYSTANDER = "bystander"
BYSTANDER_SUBJECT = "bystander.events"  # in a stream that tidegate does not read
GIANT_NICE = 19


def neighbours() -> None:
    with BenchRun("neighbours", __doc__ or "", members=MEMBERS, seconds=SECONDS, burst=BURST) as run:
        members = run.options.members or (MEMBERS_QUICK if run.quick else MEMBERS)
        seconds = run.options.seconds or (SECONDS_QUICK if run.quick else SECONDS)
        burst = run.options.burst or max(1, min(BURST, BURST_DELIVERIES_MAX // members))
        nats = run.start_nats()
        add_stream(nats.url, "BYSTANDER", "bystander.>")
        feed = ("--nats", f"127.0.0.1:{nats.port}", "--subject")
        bystander = Small(run, run.limit(2, *feed, BYSTANDER_SUBJECT), NatsBackend(nats.port, BYSTANDER_SUBJECT))
        names = [name for name in ("limit", "tidegate") if run.options.only in (None, name)]
        with run.progress(run.runs * len(names), f"{members:,} members") as step:
            for _ in range(run.runs):
                for name in names:
                    with run.part():
                        measure(Scene(run, name, members, bystander), seconds, burst)
                    step(name)
        run.notes.append(f"{PER_S} messages a second to the room of two, bursts of {burst} to the giant each second")
        run.notes.append("busy / calm, p99 is the figure; what the bystander shows of it is the machine's own")


class Small:
    """A room of two on one server, and what publishes to it."""

    def __init__(self, run: BenchRun, server: Server, backend: NatsBackend) -> None:
        self.server, self.backend = server, backend
        self.crowd: Crowd = run.crowd(server, SMALL, 2)
        self.crowd.open(2)

    def latencies_us(self, messages: int) -> tuple[float, float]:
        """p50 and p99 of all that came since the last reset."""
        answer = self.crowd.wait_received(2 * messages)
        if answer["received"] != 2 * messages or answer["missing"] or answer["out_of_order"]:
            raise rig.RigError(f"{self.server.name}: {answer['received']:,} of {2 * messages:,} deliveries came")
        return answer["latency_p50_ns"] / 1e3, answer["latency_p99_ns"] / 1e3


class Scene:
    """The server with its small room and its giant one, and the bystander."""

    def __init__(self, run: BenchRun, name: str, members: int, bystander: Small) -> None:
        self.run, self.name, self.members, self.bystander = run, name, members, bystander
        nats = run.start_nats()
        subject = f"{name}.events"
        if name == "limit":
            add_stream(nats.url, "LIMIT", "limit.>")
            self.server: Server = run.limit(members, "--nats", f"127.0.0.1:{nats.port}", "--subject", subject)
            self.backend = NatsBackend(nats.port, subject)
        else:
            self.server, self.backend = run.tidegate(members + 2), NatsBackend(nats.port)
        self.small = Small(run, self.server, self.backend)
        self.giant = run.crowd(self.server, GIANT, members, nice=GIANT_NICE)
        self.giant.open(members)

    def play(self, seconds: int, burst: int) -> None:
        """On a fixed schedule: a late message does not push the next ones back."""
        smalls = (self.small, self.bystander)
        for crowd in (*(small.crowd for small in smalls), self.giant):
            crowd.ask("reset")
        began = time.monotonic()
        for number in range(seconds * PER_S):
            time.sleep(max(0.0, began + number / PER_S - time.monotonic()))
            if burst and number % PER_S == PER_S // 2:
                self.backend.publish(GIANT, burst, GIANT_BYTES)
            for small in smalls:
                small.backend.publish(SMALL, 1, SMALL_BYTES)
        due = self.members * burst * seconds
        answer = self.giant.wait_received(due)
        if answer["received"] != due or answer["missing"] or answer["out_of_order"]:
            raise rig.RigError(f"{self.name}: {answer['received']:,} of {due:,} deliveries to the giant room came")


def measure(scene: Scene, seconds: int, burst: int) -> None:
    """Calm, then busy; and how many times longer the small room waits."""
    rooms = {scene.name: scene.small, f"{BYSTANDER} of {scene.name}": scene.bystander}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rooms}
    for size in (0, burst):
        scene.play(seconds, size)
        for name, small in rooms.items():
            found[name].append(small.latencies_us(seconds * PER_S))
    case = f"{scene.members:,} members, bursts of {burst}"
    of = scene.run.figures.of
    for name, (calm, busy) in found.items():
        for index, quantile in enumerate(("p50", "p99")):
            of(case, f"calm, {quantile}", "us", 0).add(name, calm[index])
            of(case, f"busy, {quantile}", "us", 0).add(name, busy[index])
            of(case, f"busy / calm, {quantile}", "", 2).add(name, busy[index] / calm[index])


if __name__ == "__main__":
    main(neighbours)
