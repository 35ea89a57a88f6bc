"""What a connection costs: user memory and CPU for each of many authenticated clients, and how fast they get in.

`tidegate.bench.connections` says what is measured and how; here is how many, and for how long they settle.
"""

from bench_run import BenchRun, main
from tidegate.bench.connections import measure

CONNECTIONS = 100_000
CONNECTIONS_QUICK = 5_000
SETTLE_S = 2.0


def connections() -> None:
    with BenchRun("connections", __doc__ or "", connections=CONNECTIONS) as run:
        measure(run, run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS), SETTLE_S)


if __name__ == "__main__":
    main(connections)
