"""What idle connections cost: server CPU while nothing happens but pings, each answered by its client.

The limit program sends the same pings: a two-byte frame to each connection once an interval, spread over the interval.
The two servers stand one after the other, so that their memory never adds up, and in turn, run by run. Measured are two
whole intervals, after one in which all are pinged for the first time. A ping that was not sent or answered, or a
connection that ended, ends the benchmark.
"""

import time

import rig
from bench_run import BenchRun, main
from rig import Crowd, Server

CONNECTIONS = 600_000
CONNECTIONS_QUICK = 5_000
PING_MS = 30_000  # tidegate's default and the contract's
PING_MS_QUICK = 1_000
INTERVALS = 2  # measured; the first ping of a connection falls into the one before
PINGED_MIN = 0.9  # of the pings due: both programs round an interval up, and the limit's sweep visits empty places too


def idle() -> None:
    with BenchRun("idle", __doc__ or "", connections=CONNECTIONS, ping_ms=PING_MS) as run:
        count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        ping_ms = run.options.ping_ms or (PING_MS_QUICK if run.quick else PING_MS)
        names = [name for name in ("limit", "tidegate") if run.options.only in (None, name)]
        with run.progress(run.runs * len(names), f"{count:,} connections") as step:
            for _ in range(run.runs):
                for name in names:
                    measure(run, name, count, ping_ms)
                    step(name)
        run.notes.append(f"{count:,} connections, a ping each {ping_ms / 1e3:g} s, every one answered, none lost")


def start(run: BenchRun, name: str, count: int, ping_ms: int) -> Server:
    """One of the two servers, pinging."""
    if name == "limit":
        return run.limit(count, "--ping-ms", str(ping_ms))
    return run.tidegate(count, GATEWAY_WS_PING_INTERVAL=f"{ping_ms}ms")


def measure(run: BenchRun, name: str, count: int, ping_ms: int) -> None:
    with run.part():
        server = start(run, name, count, ping_ms)
        crowd = run.crowd(server, "chat:all", count)
        crowd.open(count)
        interval_s = ping_ms / 1e3
        time.sleep(interval_s)
        crowd.ask("reset")
        cpu, began = server.cpu_s(), time.monotonic()
        time.sleep(INTERVALS * interval_s)
        cpu, seconds = server.cpu_s() - cpu, time.monotonic() - began
        pings = check(server, crowd, count, INTERVALS * count)
    case = f"{count:,}, a ping each {interval_s:g} s"
    run.figures.of(case, "server CPU while idle", "% of a core", 2).add(name, cpu / seconds * 100)
    run.figures.of(case, "server CPU a connection and second", "us", 3).add(name, cpu / seconds / count * 1e6)
    run.figures.of(case, "server CPU a ping and its pong", "us", 2).add(name, cpu / pings * 1e6)


def check(server: Server, crowd: Crowd, count: int, due: int) -> int:
    """How many pings there were, all of them answered."""
    answer = crowd.ask("stats")
    if answer["open"] != count or answer["failed"]:
        raise rig.RigError(f"{server.name}: {answer['open']:,} of {count:,} are left; {answer['failed']}")
    pings = int(answer["pings"])
    if pings < PINGED_MIN * due or answer["sends_blocked"]:
        raise rig.RigError(f"{server.name}: {pings:,} pings of {due:,} came, {answer['sends_blocked']} went unanswered")
    return pings


if __name__ == "__main__":
    main(idle)
