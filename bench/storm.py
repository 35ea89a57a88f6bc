"""Storms: the gateway is killed with all its clients and started again; half of them are cut while the others go on.

Clients come back at once: all handshakes may be under way together, and while nobody listens one client of each thread
asks every 5 ms. Back and joined means that the first message has come, which follows the join, and in the end one
message to all must reach all. The time is told from the kill (it has the start of Python in it) and from when the new
process listens. Survivors are in rooms of ten that get 200 messages a second in turn, first in calm, then from the cut
until those who were cut are back.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import rig
from bench_run import BenchRun, main
from rig import Crowd, Server

CONNECTIONS = 100_000
CONNECTIONS_QUICK = 2_000
ROOM = "chat:all"
SURVIVORS_ROOMS = 10  # members of each
PER_S = 200
SECONDS = 10  # calm, before the cut: 20,000 deliveries
SHORTEST_S = 1.0  # after the cut; a storm that is over sooner gives too few samples for a p99
RETURNERS_NICE = 19  # in the cut: on a network those who come back would be other machines than those who stay
PROBES = 1  # connections besides the crowd's: the one that finds out whether the port is listened on
SECONDS_QUICK = 2
MESSAGE_BYTES = 128
BACK_S_MAX = 60
LOOK_EVERY_S = 0.002  # for the listener; against the seconds that are measured


def storm() -> None:
    with BenchRun("storm", __doc__ or "", connections=CONNECTIONS, seconds=SECONDS) as run:
        count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        seconds = run.options.seconds or (SECONDS_QUICK if run.quick else SECONDS)
        names = [name for name in ("limit", "tidegate") if run.options.only in (None, name)]
        with run.progress(run.runs * len(names) * 2, f"{count:,} connections") as step:
            for _ in range(run.runs):
                for name in names:
                    with run.part():
                        kill(run, name, count)
                    step(f"{name}: killed and started again")
                    with run.part():
                        cut(run, name, count // 2, seconds)
                    step(f"{name}: half of them cut")
        run.notes.append(
            f"{count:,} clients, all of them back; tidegate's count with their first message, after the join"
        )


def start(run: BenchRun, name: str, count: int, port: int = 0) -> Server:
    if name == "limit":
        return run.limit(count, "--port", str(port))
    return run.tidegate(count + PROBES, port)


def kill(run: BenchRun, name: str, count: int) -> None:
    server = start(run, name, count)
    crowd = run.crowd(server, ROOM, count, in_flight=count)
    crowd.open(count)
    crowd.ask("reconnect on")
    crowd.ask("reset")
    server.child.kill()
    killed_ns = time.monotonic_ns()
    server.child.wait()
    listening = Listening(server.port)
    again = start(run, name, count, server.port)
    back = crowd.wait("opened", count, BACK_S_MAX)
    if not back["reached"]:
        raise rig.RigError(f"{name}: {back['open']:,} of {count:,} are back after {BACK_S_MAX} s; {back['failed']}")
    reach_all(run, again, crowd, count)
    case = f"{count:,}, killed and started again"
    run.figures.of(case, "all back, from the kill", "s", 2).add(name, (back["last_opened_ns"] - killed_ns) / 1e9)
    since_ns = listening.since_ns()
    run.figures.of(case, "all back, from listening", "s", 2).add(name, (back["last_opened_ns"] - since_ns) / 1e9, back)
    run.figures.of(case, "kill to listening", "s", 2).add(name, (since_ns - killed_ns) / 1e9)
    run.figures.of(case, "server CPU a client back", "us").add(name, again.cpu_s() / count * 1e6)


class Listening:
    """A thread that notes when the port takes connections: one more client, which leaves at once."""

    def __init__(self, port: int) -> None:
        self._port, self._since_ns = port, 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        deadline = time.monotonic() + rig.START_S_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                self._since_ns = time.monotonic_ns()
                return
            time.sleep(LOOK_EVERY_S)  # another process's listener can only be asked

    def since_ns(self) -> int:
        self._thread.join(rig.START_S_MAX)
        if not self._since_ns:
            raise rig.RigError(f"nobody listens on port {self._port} after {rig.START_S_MAX:.0f} s")
        return self._since_ns


def reach_all(run: BenchRun, server: Server, crowd: Crowd, count: int) -> None:
    crowd.ask("reset")
    run.publish(server, ROOM, 1, MESSAGE_BYTES)
    received = crowd.wait_received(count)["received"]
    if received != count:
        raise rig.RigError(f"{server.name}: a message to all reached {received:,} of {count:,} who came back")


def cut(run: BenchRun, name: str, half: int, seconds: int) -> None:
    server = start(run, name, 2 * half)
    stays = run.crowd(server, f"chat:s{{i/{SURVIVORS_ROOMS}}}", half)
    leaves = run.crowd(server, ROOM, half, in_flight=half, nice=RETURNERS_NICE)
    for crowd in (stays, leaves):
        crowd.open(half)
    leaves.ask("reconnect on")
    survivors = Survivors(run, server, stays, half // SURVIVORS_ROOMS)
    calm = survivors.latencies(lambda elapsed: elapsed >= seconds)
    storm = Cut(leaves, half)
    busy = survivors.latencies(lambda elapsed: storm.is_over() and elapsed >= SHORTEST_S)
    back_s = storm.seconds()
    reach_all(run, server, leaves, half)
    case = f"{half:,} of {2 * half:,} cut"
    run.figures.of(case, "all back, from the cut", "s", 2).add(name, back_s)
    for quantile in ("p50", "p99"):
        key = f"latency_{quantile}_ns"
        run.figures.of(case, f"survivors, calm, {quantile}", "us", 0).add(name, calm[key] / 1e3)
        run.figures.of(case, f"survivors, storm, {quantile}", "us", 0).add(name, busy[key] / 1e3)
        run.figures.of(case, f"survivors, storm / calm, {quantile}", "", 2).add(name, busy[key] / calm[key])


class Survivors:
    """Rooms of ten whose clients stay, and steady messages to them in turn."""

    def __init__(self, run: BenchRun, server: Server, crowd: Crowd, rooms: int) -> None:
        self._run, self._server, self._crowd, self._rooms = run, server, crowd, rooms

    def latencies(self, is_over: Callable[[float], bool]) -> rig.Answer:
        """On a fixed schedule until `is_over` (it is given the seconds); every message must have come once."""
        self._crowd.ask("reset")
        began, sent = time.monotonic(), 0
        while not is_over(time.monotonic() - began):
            self._run.publish(self._server, f"chat:s{sent % self._rooms}", 1, MESSAGE_BYTES)
            sent += 1
            time.sleep(max(0.0, began + sent / PER_S - time.monotonic()))
        due = sent * SURVIVORS_ROOMS
        answer = self._crowd.wait_received(due)
        if answer["received"] != due or answer["missing"] or answer["out_of_order"] or answer["failed"]:
            raise rig.RigError(f"{self._server.name}: {answer['received']:,} of {due:,} messages came to survivors")
        return answer


class Cut:
    """A thread that cuts a crowd and waits until all of it is back."""

    def __init__(self, crowd: Crowd, count: int) -> None:
        self._crowd, self._count, self._back = crowd, count, {"reached": False}
        self._crowd.ask("reset")
        self._began_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._cut, daemon=True)
        self._thread.start()

    def _cut(self) -> None:
        self._crowd.ask("cut 1")
        self._back = self._crowd.wait("opened", self._count, BACK_S_MAX)

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def seconds(self) -> float:
        if not self._back["reached"]:
            raise rig.RigError(
                f"{self._crowd.server.name}: not all are back {BACK_S_MAX} s after the cut; {self._back}"
            )
        return float(self._back["last_opened_ns"] - self._began_ns) / 1e9


if __name__ == "__main__":
    main(storm)
