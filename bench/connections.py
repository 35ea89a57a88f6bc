"""What a connection costs: user memory and CPU for each of many authenticated clients, and how fast they get in.

`tidegate.bench.connections` says what is measured and how; here is how many, and for how long they settle. With
--hold SECONDS they then stand so long, pinged by both servers each --ping-ms, with 100 messages a second to one user
each and now and then one to all: none of the connections and messages may be lost.
"""

from bench_run import BenchRun, main
from holding import Hold
from idle import PING_MS
from tidegate.bench.connections import measure

CONNECTIONS = 100_000
CONNECTIONS_QUICK = 20_000  # fewer, and what the first ones cost once would hide what each costs
SETTLE_S = 2.0
SETTLE_QUICK_S = 1.0  # the engine's allocator gives back after a second
HOLD_S = 0  # by default nobody is held


def connections() -> None:
    with BenchRun("connections", __doc__ or "", connections=CONNECTIONS, hold=HOLD_S, ping_ms=PING_MS) as run:
        count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        hold = Hold(run.options.hold, run.options.ping_ms or PING_MS) if run.options.hold else None
        measure(run, count, SETTLE_QUICK_S if run.quick else SETTLE_S, hold)


if __name__ == "__main__":
    main(connections)
