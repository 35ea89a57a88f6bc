"""What an innocent client waits for while others attack, and by how much each attack makes the gateway grow.

Every attack of `tests/wire/attacks.py`, repeated for two seconds, meets an echo gateway of its own under the default
limits. The innocent client is a process of its own, so that the attacker's Python does not hold its clock: it sends a
message every 5 ms, over three connections in turn because one may not send so many, and counts from when it was due, so
one long wait shows in all that were due meanwhile. There is no limit program beside it: that one refuses nothing.
"""

import argparse
import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import rig
from bench_run import OTHER_WORK_MAX, RUNS, Usage, main
from results import Figures, save, show

sys.path.insert(0, str(rig.REPOSITORY))

from tests.wire.attacks import ATTACKS, Attack
from tests.wire.client import Raw, frame

PING_EVERY_S = 0.005  # a wait of 100 ms then shows in twenty samples
CALM_S = 0.5  # measured before each attack: what the machine itself makes the client wait
ATTACK_S = 2.0  # 400 samples, so that p99 is no other word for the longest
INNOCENT_S_MAX = 60  # a client that waits so long ends the benchmark
AFTER_S = 0.2  # what an attack leaves behind is waited for too
WAIT_MS_MAX = 100.0  # the goal for a client that did nothing
GROWTH_MIB_MAX = {"slow_readers": 40.0}  # they are owed what they asked for, up to their outboxes
GROWTH_MIB_MAX_OTHERS = 16.0
INNOCENT_CONNECTIONS = 3  # 67 messages a second each, where 100 are allowed
# The profile echo has wide limits, for conformance suites; these are what every other profile starts with
SETTINGS = {
    "GATEWAY_WS_MAX_MESSAGE_SIZE": "64KiB",
    "GATEWAY_WS_MAX_FRAGMENTS": "1024",
    "GATEWAY_WS_OUTBOX_BYTES": "1MiB",
    "GATEWAY_WS_MESSAGE_RATE": "100",
}


class Echo(rig.Process):
    """`tidegate serve --profile echo`, whose profile has no limits of its own: the settings give the default's."""

    def __init__(self) -> None:
        self.port = rig.free_port()
        environment = {
            "GATEWAY_SERVER_HOST": "127.0.0.1",
            "GATEWAY_SERVER_PORT": str(self.port),
            "GATEWAY_METRICS_ENABLED": "false",
            "LOG_LEVEL": "error",
            **SETTINGS,
        }
        super().__init__([str(Path(sys.executable).parent / "tidegate"), "serve", "--profile", "echo"], environment)
        deadline = time.monotonic() + rig.START_S_MAX
        while not self._listens():
            self.check()
            if time.monotonic() > deadline:
                raise rig.RigError(f"the gateway did not start:\n{self.said()}")
            time.sleep(0.02)  # another process's readiness can only be asked

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


class Innocent(rig.Process):
    """This script with `--innocent PORT`: `mark` on stdin, the waits since the last mark on stdout."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, __file__, "--innocent", str(port)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.mark()

    def mark(self) -> list[float]:
        assert self.child.stdin is not None, "started with a pipe"
        self.child.stdin.write("mark\n")
        self.child.stdin.flush()
        waits: list[float] = self.read_json()["waits_ms"]
        return waits


def be_innocent(port: int) -> None:
    """Until stdin ends."""
    waits: list[float] = []
    clients = [Raw(port) for _ in range(INNOCENT_CONNECTIONS)]
    for client in clients:
        client.socket.settimeout(INNOCENT_S_MAX)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.open()
    due = time.monotonic()
    for client in itertools.cycle(clients):
        time.sleep(max(0.0, due - time.monotonic()))
        client.send(frame(b"is anybody there?"))
        client.read()
        waits.append((time.monotonic() - due) * 1e3)
        due += PING_EVERY_S
        asked = os.read(sys.stdin.fileno(), 4096) if _has_input() else b"nothing yet"
        if not asked:
            return
        if asked.startswith(b"mark"):
            print(json.dumps({"waits_ms": waits}), flush=True)
            waits.clear()


def _has_input() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def attacks(argv: Sequence[str] | None = None) -> None:
    options = _options().parse_args(argv)
    if options.innocent:
        be_innocent(options.innocent)
    else:
        attack_all(options)


def attack_all(options: argparse.Namespace) -> None:
    chosen = [attack for attack in ATTACKS if options.attack in (None, attack.__name__)]
    figures, began = Figures(), Usage.now()
    for attack in chosen:
        for _ in range(1 if options.quick else options.runs):
            measure(figures, attack)
    rate = f"{1 / PING_EVERY_S:.0f} messages a second"
    notes = [f"{rate} from the innocent client; attacker, client and gateway share the cores"]
    notes += over_the_goal(figures)
    share = Usage.now().other_share(began)
    if share > OTHER_WORK_MAX:
        notes.append(f"other work took {share:.0%} of the machine meanwhile: measure again on a quiet one")
    show((__doc__ or "").partition("\n\n")[0], list(figures), notes)
    if options.quick or options.attack:
        print("Not all of it, so it is not written to bench/results/.")
    else:
        settings = {"runs": options.runs, "other_work_share": round(share, 3), **SETTINGS}
        print(f"written to {save('attacks', list(figures), settings, notes).relative_to(rig.REPOSITORY)}")


def measure(figures: Figures, attack: Attack) -> None:
    with Echo() as gateway, Innocent(gateway.port) as innocent:
        time.sleep(CALM_S)
        calm = innocent.mark()
        gateway.forget_peak()
        before = gateway.rss_bytes()
        ends_at = time.monotonic() + ATTACK_S
        with contextlib.redirect_stdout(sys.stderr):  # random attacks print their seed
            while time.monotonic() < ends_at:
                for _ in attack(gateway.port):
                    gateway.check()
        time.sleep(AFTER_S)
        waits = innocent.mark()
        growth = (gateway.peak_bytes() - before) / (1 << 20)
        gateway.check()
    name = attack.__name__
    for figure, value in (("wait, longest", max(waits)), ("wait, p99", p99(waits)), ("calm, longest", max(calm))):
        figures.of(name, figure, "ms").add("tidegate", value)
    figures.of(name, "memory growth", "MiB").add("tidegate", growth)


def p99(waits: list[float]) -> float:
    return sorted(waits)[int(len(waits) * 0.99)]


def over_the_goal(figures: Figures) -> list[str]:
    found = []
    for figure in figures:
        goals = {"wait, longest": WAIT_MS_MAX, "memory growth": GROWTH_MIB_MAX.get(figure.case, GROWTH_MIB_MAX_OTHERS)}
        goal, value = goals.get(figure.name), figure.value("tidegate")
        if goal is not None and value is not None and value > goal:
            found.append(f"over the goal of {goal:g} {figure.unit}: {figure.case}, {figure.name}")
    return found


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench/attacks.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each attack once; writes nothing")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"median of so many (default {RUNS})")
    parser.add_argument("--attack", choices=[attack.__name__ for attack in ATTACKS], help="one of them only")
    parser.add_argument("--innocent", type=int, default=0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(attacks)
