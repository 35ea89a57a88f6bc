"""Handshakes a second with a fresh HS256 token each, as fast as the server takes them, and server CPU for each.

`tidegate.bench.handshakes` says what is measured and how; here is how many.
"""

from bench_run import BenchRun, main
from tidegate.bench.handshakes import measure, wait_until_gone

__all__ = ["handshakes", "wait_until_gone"]

HANDSHAKES = 50_000
HANDSHAKES_QUICK = 4_000


def handshakes() -> None:
    with BenchRun("handshakes", __doc__ or "", handshakes=HANDSHAKES) as run:
        measure(run, run.options.handshakes or (HANDSHAKES_QUICK if run.quick else HANDSHAKES))


if __name__ == "__main__":
    main(handshakes)
