"""Handshakes a second with a fresh token each, as fast as the server takes them, and server CPU for each.

`tidegate.bench.handshakes` says what is measured and how; here is how many, and by which algorithms the tokens are
signed: HS256 and, fewer of them, those that an issuer with a private key uses.
"""

from bench_run import BenchRun, main
from tidegate.bench.crowd_tokens import ALGORITHMS
from tidegate.bench.handshakes import measure, wait_until_gone

__all__ = ["handshakes", "wait_until_gone"]

HANDSHAKES = 50_000
HANDSHAKES_QUICK = 4_000
HANDSHAKES_SIGNED = 10_000  # three runs of them take seven seconds to sign with RS256


def handshakes() -> None:
    choices = {"algorithm": ALGORITHMS}
    with BenchRun("handshakes", __doc__ or "", choices=choices, handshakes=HANDSHAKES) as run:
        for algorithm in chosen(run):
            usual = HANDSHAKES_QUICK if run.quick else HANDSHAKES if algorithm == "HS256" else HANDSHAKES_SIGNED
            measure(run, run.options.handshakes or usual, algorithm)


def chosen(run: BenchRun) -> tuple[str, ...]:
    if run.options.algorithm:
        return (run.options.algorithm,)
    return ALGORITHMS[:1] if run.quick else ALGORITHMS


if __name__ == "__main__":
    main(handshakes)
