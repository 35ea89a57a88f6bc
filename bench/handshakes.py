"""Handshakes a second with a fresh HS256 token each, as fast as the server takes them, and server CPU for each.

tidegate's clients count as in when their first message (`connected`) has come, the limit program's at the 101: the
harder measure is ours. The limit program reads no token.
"""

import contextlib
import time

import rig
from bench_run import BenchRun, main
from rig import Crowd, Limit, Server, Tidegate

HANDSHAKES = 50_000
HANDSHAKES_QUICK = 4_000
GONE_S_MAX = 30.0


def handshakes() -> None:
    with BenchRun("handshakes", __doc__ or "", handshakes=HANDSHAKES) as run:
        count = run.options.handshakes or (HANDSHAKES_QUICK if run.quick else HANDSHAKES)
        servers = run.servers(count)
        crowds = {server.name: run.crowd(server, "chat:all", count, tokens=count * run.runs) for server in servers}
        with run.progress(run.runs * len(servers), f"{count:,} handshakes") as step:
            for _ in range(run.runs):
                for server in servers:
                    measure(run, server, crowds[server.name], count)
                    step(server.name)
        run.notes.append(f"{count:,} handshakes a run, no token used twice, client on the same cores")


def measure(run: BenchRun, server: Server, crowd: Crowd, count: int) -> None:
    crowd.ask("reset")
    cpu = server.cpu_s()
    opened = crowd.open(count)
    cpu = server.cpu_s() - cpu
    case = "HS256"
    run.figures.of(case, "handshakes", "1/s", 0).add(server.name, count / opened["seconds"], opened)
    run.figures.of(case, "server CPU a handshake", "us").add(server.name, cpu / count * 1e6)
    run.figures.of(case, "time to get in, p50", "ms").add(server.name, opened["handshake_p50_ns"] / 1e6)
    run.figures.of(case, "time to get in, p99", "ms").add(server.name, opened["handshake_p99_ns"] / 1e6)
    crowd.ask("close")
    wait_until_gone(server)


def wait_until_gone(server: Server) -> None:
    deadline = time.monotonic() + GONE_S_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if present(server) == 0:
                return
        time.sleep(0.05)  # another process's state can only be asked
    raise rig.RigError(f"{server.name} still has {present(server)} connections {GONE_S_MAX:.0f} s after their close")


def present(server: Server) -> int:
    if isinstance(server, Tidegate):
        return int(server.stats()["current_connections"])
    assert isinstance(server, Limit), "there are two kinds of servers"
    return int(server.ask("stats")["open"])


if __name__ == "__main__":
    main(handshakes)
