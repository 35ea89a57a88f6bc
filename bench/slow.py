"""Readers that stop reading: what the others in their room wait for meanwhile, and what the process grows by.

A room of 10,000 gets messages at a steady rate: first all members read (`calm`), then 200 of them have stopped, are
owed more than the kernel holds for them, and get every message of the room too (`beside slow ones`). The limit program
does the same: it owes without a bound. Then, on tidegate only, each of the 200 is sent messages of its own, which
nobody shares, beyond what may be owed: once with the bound for a connection in force, once with that for all of them.
The growth is the highest VmRSS of the process during that over the VmRSS before it, and what the slow ones add is the
growth beyond that of the same messages read at once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rig
from bench_run import BenchRun, main
from tidegate.bench.backend import NatsBackend, add_stream
from tidegate.bench.latency import publish_steadily
from tidegate.bench.rig import BRANDS, Crowd, LostError, Server

MEMBERS = 10_000
MEMBERS_QUICK = 1_000
SLOW_BRANDS = 2  # of a hundred: these brands' users stop reading
RATE = 5  # messages a second: a third of what the limit program can send to 10,000 on one core
SECONDS = 10
SECONDS_QUICK = 2
ROOM = "chat:all"
BARE_SUBJECT = "bare.events"  # in a stream that tidegate does not read
BIG_BYTES = 32_768
FILL = 16  # big messages, 512 KiB: the kernel holds half of that for a client of tidegate
OVERFLOW = 32  # big messages for each slow one alone: 1 MiB, above every bound below
SPREAD = 8  # where all read, so many times more are sent as much in all: 128 KiB each, which the kernel holds
AHEAD_MESSAGES = 1_024  # 32 MiB that JetStream has not stored: a quarter of what it queues before it drops silently
SAME_S = 0.3  # a crowd that read nothing new for so long has read all
READ_S_MAX = 30.0
# only the bounds close anybody
FOR_EVER = {"GATEWAY_WS_WRITE_TIMEOUT": "300s", "GATEWAY_WS_PONG_TIMEOUT": "300s"}


@dataclass(frozen=True, slots=True)
class Bound:
    case: str
    settings: Mapping[str, str]
    mib: Callable[[int], float]  # what so many slow ones may be owed


BOUNDS = (
    Bound("256 KiB each", {"GATEWAY_WS_OUTBOX_BYTES": "256KiB"}, lambda slow: slow / 4),
    Bound("32 MiB in all", {"GATEWAY_WS_OUTBOX_TOTAL": "32MiB"}, lambda _: 32.0),
)


def slow() -> None:
    with BenchRun("slow", __doc__ or "", members=MEMBERS, seconds=SECONDS) as run:
        if run.options.bus != "nats":
            raise rig.RigError("slow.py publishes to JetStream; leave --bus out")
        members = run.options.members or (MEMBERS_QUICK if run.quick else MEMBERS)
        seconds = run.options.seconds or (SECONDS_QUICK if run.quick else SECONDS)
        add_stream(run.start_nats().url, "BARE", "bare.>")
        bounds = BOUNDS if "tidegate" in run.names else ()
        with run.progress(run.runs * (len(run.names) + len(bounds)), "opening connections") as step:
            for _ in range(run.runs):
                for name in run.names:
                    with run.part():
                        measure_wait(Room(run, name, members, FOR_EVER), seconds)
                    step(f"{members:,} members, {name}")
                for bound in bounds:
                    with run.part():
                        measure_growth(Room(run, "tidegate", members, {**FOR_EVER, **bound.settings}), bound)
                    step(f"at most {bound.case}")


class Room:
    """A room of one server with all its members, and who publishes to it."""

    def __init__(self, run: BenchRun, name: str, members: int, settings: Mapping[str, str]) -> None:
        port = run.start_nats().port
        limit_feed = ("--nats", f"127.0.0.1:{port}", "--subject", BARE_SUBJECT)
        self.run, self.members = run, members
        self.server: Server = (
            run.tidegate(members, **settings) if name == "tidegate" else run.limit(members, *limit_feed)
        )
        self.backend = NatsBackend(port) if name == "tidegate" else NatsBackend(port, BARE_SUBJECT)
        self.crowd: Crowd = run.crowd(self.server, ROOM, members)
        self.crowd.open(members)
        self.slow = [number for number in range(members) if number % BRANDS < SLOW_BRANDS]

    def stop_reading(self) -> None:
        self.crowd.ask(f"pause {SLOW_BRANDS} {BRANDS}")

    def wait_steadily(self, seconds: int, readers: int) -> rig.Answer:
        """What they wait for while the room gets its messages."""
        self.crowd.ask("reset")
        publish_steadily(self.backend.publish, ROOM, RATE, seconds)
        return self.all_received(readers * RATE * seconds)

    def all_received(self, due: int) -> rig.Answer:
        answer = self.crowd.wait_received(due)
        if answer["received"] != due or answer["out_of_order"] or answer["missing"] or answer["failed"]:
            seen = {key: answer[key] for key in ("received", "out_of_order", "missing", "failed")}
            raise LostError(f"{self.server.name}: {due:,} deliveries were due; {seen}")
        return answer

    def figure(self, case: str, name: str, unit: str, value: float) -> None:
        self.run.figures.of(case, name, unit, 2 if unit == "x" else 1).add(self.server.name, value)


def measure_wait(room: Room, seconds: int) -> None:
    calm = room.wait_steadily(seconds, room.members)
    room.stop_reading()
    for brand in range(SLOW_BRANDS):
        room.backend.publish(f"brand:b{brand}", FILL, BIG_BYTES)
    beside = room.wait_steadily(seconds, room.members - len(room.slow))
    case = f"{len(room.slow)} of {room.members:,} stop"
    for name, answer in (("calm", calm), ("beside slow ones", beside)):
        for quantile in ("p50", "p99"):
            room.figure(case, f"{name}, {quantile}", "ms", answer[f"latency_{quantile}_ns"] / 1e6)
    room.figure(case, "p99, beside / calm", "x", beside["latency_p99_ns"] / calm["latency_p99_ns"])


def measure_growth(room: Room, bound: Bound) -> None:
    before = room.server.rss_bytes()
    few, many = OVERFLOW // SPREAD, len(room.slow) * SPREAD
    read = peak_while_sent(room, range(many), few, room.members + many * few) - before
    room.stop_reading()
    owed = peak_while_sent(room, room.slow, OVERFLOW, room.members - len(room.slow)) - before
    case = f"{len(room.slow)} are owed at most {bound.case}"
    room.figure(case, "memory growth while all read", "MiB", read / 2**20)
    room.figure(case, "memory growth while they do not", "MiB", owed / 2**20)
    room.figure(case, "what they add, of the bound", "x", (owed - read) / 2**20 / bound.mib(len(room.slow)))
    room.figure(case, "closed", "connections", count_closed(room))


def peak_while_sent(room: Room, users: Sequence[int], each: int, received: int) -> int:
    """Highest VmRSS while each of `users` is sent messages of its own; `received`: how many of all are read."""
    room.crowd.ask("reset")
    forget_peak(room.server)
    for sent, number in enumerate(users, 1):
        room.backend.publish(f"user:u{number}", each, BIG_BYTES)
        if sent * each % AHEAD_MESSAGES < each:
            room.backend.await_stored()
    # behind all of that in the stream: when those who read have this one, the rest was handed out
    room.backend.publish(ROOM, 1, BIG_BYTES)
    room.all_received(received)
    return peak_bytes(room.server)


def count_closed(room: Room) -> int:
    """Who has a gap in what they are sent must have been closed; they learn it when they read again."""
    answer, seen = room.crowd.ask("resume"), -1
    deadline = time.monotonic() + READ_S_MAX
    while answer["bytes"] != seen and time.monotonic() < deadline:
        seen = answer["bytes"]
        time.sleep(SAME_S)
        answer = room.crowd.ask("stats")
    gone = sum(answer["failed"].values())
    if answer["missing"] or answer["out_of_order"] or gone > len(room.slow):
        raise LostError(f"{gone} connections ended, {answer['missing']} messages are missing where none may")
    return gone


def forget_peak(server: Server) -> None:
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def peak_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(slow)
