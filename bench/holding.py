"""Holds a crowd with traffic and pings, and checks that nothing and nobody was lost.

Rule: every message is counted at its receivers. What comes twice shows in the generator's sequences, what does not come
in the sum, so "received exactly once" is a comparison of two numbers, and a difference ends the benchmark.
"""

import time
from collections.abc import Callable

from idle import start
from tidegate.bench.connections import ROOM, Stay
from tidegate.bench.rig import Answer, Crowd, LostError, Server
from tidegate.bench.run import Run

PERSONAL_PER_S = 100  # messages to one user's room each, round all users
STRIDE = 7_919  # a prime: neighbours in time are strangers in the server's tables
EVERYBODY_EVERY_S = 60  # a message to all; at a million members it takes both cores for some ten seconds
MESSAGE_BYTES = 128
PINGED_MIN = 0.75  # of the pings due: on a full machine the limit program does not make up for a late step
LAST_DELIVERY_S_MAX = 120  # after the hold, for the last message to everybody


class Hold(Stay):
    """A crowd that stands for `seconds` with traffic and pings."""

    def __init__(self, seconds: int, ping_ms: int) -> None:
        self.seconds, self.ping_ms, self.steps = seconds, ping_ms, seconds

    def start(self, run: Run, name: str, count: int) -> Server:
        return start(run, name, count, self.ping_ms)

    def play(self, run: Run, server: Server, crowd: Crowd, empty_bytes: int, step: Callable[[str], None]) -> None:
        count = int(crowd.ask("reset")["open"])
        cpu, began = server.cpu_s(), time.monotonic()
        due = self._publish(run, server, count, step)
        cpu, lasted, rss = server.cpu_s() - cpu, time.monotonic() - began, server.rss_bytes()
        answer = crowd.wait_received(due, LAST_DELIVERY_S_MAX)
        self._check(server, answer, (count, due, lasted))
        case, name = f"{count:,}, held {self.seconds} s", server.name
        run.figures.of(case, "connections lost", "", 0).add(name, 0)  # else there were no figures
        run.figures.of(case, "messages delivered", "", 0).add(name, due)
        run.figures.of(case, "pings answered", "", 0).add(name, answer["pings"])
        run.figures.of(case, "server CPU a second", "ms").add(name, cpu / lasted * 1e3)
        run.figures.of(case, "VmRSS", "MiB").add(name, rss / 2**20)
        run.figures.of(case, "user memory a connection", "bytes", 0).add(name, (rss - empty_bytes) / count)

    def _publish(self, run: Run, server: Server, count: int, step: Callable[[str], None]) -> int:
        """On a fixed schedule: a late message does not push the next ones back. Returns how many deliveries are due."""
        began, everybody_s = time.monotonic(), min(EVERYBODY_EVERY_S, max(1, self.seconds // 2))
        due = 0
        for number in range(self.seconds * PERSONAL_PER_S):
            time.sleep(max(0.0, began + number / PERSONAL_PER_S - time.monotonic()))
            second, within = divmod(number, PERSONAL_PER_S)
            if not within:
                step(f"{server.name}, held {second} of {self.seconds} s")
                if second % everybody_s == everybody_s // 2:
                    run.publish(server, ROOM, 1, MESSAGE_BYTES)
                    due += count
            run.publish(server, f"user:u{number * STRIDE % count}", 1, MESSAGE_BYTES)
            due += 1
        time.sleep(max(0.0, began + self.seconds - time.monotonic()))
        return due

    def _check(self, server: Server, answer: Answer, wanted: tuple[int, int, float]) -> None:
        count, due, seconds = wanted
        wrong = {key: answer[key] for key in ("failed", "missing", "out_of_order", "sends_blocked") if answer[key]}
        if answer["open"] != count or answer["received"] != due or wrong:
            left = f"{answer['open']:,} of {count:,} connections are left"
            raise LostError(f"{server.name}: {left}, {answer['received']:,} of {due:,} messages came; {wrong}")
        if answer["pings"] < PINGED_MIN * count * (seconds * 1e3 // self.ping_ms):
            raise LostError(f"{server.name}: {answer['pings']:,} pings in {seconds:.0f} s, one each {self.ping_ms} ms")
