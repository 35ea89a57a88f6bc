"""Handshakes a second with a fresh token each, as fast as the server takes them, and server CPU for each.

tidegate's clients count as in when their first message (`connected`) has come, the limit program's at the 101: the
harder measure is ours. The limit program reads no token.
"""

import contextlib
import time

from tidegate.bench.crowd_tokens import PROGRESS_EVERY
from tidegate.bench.rig import Crowd, Limit, RigError, Server, Tidegate
from tidegate.bench.run import Run

GONE_S_MAX = 30.0


def measure(run: Run, count: int, algorithm: str = "HS256") -> None:
    with run.part():
        tokens = count * run.runs
        with run.progress(-(-tokens // PROGRESS_EVERY), f"signing {tokens:,} tokens") as step:
            run.token_file(algorithm, tokens, lambda _done: step(f"signing {tokens:,} tokens with {algorithm}"))
        servers = run.servers(count, **run.signer(algorithm).settings)
        crowds = {
            server.name: run.crowd(server, "chat:all", count, tokens=tokens, algorithm=algorithm) for server in servers
        }
        with run.progress(run.runs * len(servers), f"{count:,} handshakes") as step:
            for _ in range(run.runs):
                for server in servers:
                    _measure_one(run, server, crowds[server.name], count, algorithm)
                    step(f"{algorithm}, {server.name}")
    run.notes.append(f"{algorithm}: {count:,} handshakes a run, no token used twice, client on the same cores")


def _measure_one(run: Run, server: Server, crowd: Crowd, count: int, case: str) -> None:
    crowd.ask("reset")
    cpu = server.cpu_s()
    opened = crowd.open(count)
    cpu = server.cpu_s() - cpu
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
    raise RigError(f"{server.name} still has {present(server)} connections {GONE_S_MAX:.0f} s after their close")


def present(server: Server) -> int:
    if isinstance(server, Tidegate):
        return int(server.stats()["current_connections"])
    if isinstance(server, Limit):
        return int(server.ask("stats")["open"])
    raise RigError(f"{server.name} does not say how many are connected")
