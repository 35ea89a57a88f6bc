"""Latency from a JetStream publish to the client, at a steady rate, beside a bare subscriber that does the same sends.

`tidegate.bench.latency` says what is measured and how. Both subjects are in a JetStream stream, so that nats-server
does the same work for both; tidegate does not read the limit program's.
"""

from bench_run import BenchRun, main
from tidegate.bench.backend import NatsBackend, add_stream
from tidegate.bench.latency import Shape, measure

ROOMS = (1, 100, 1_000)
ROOMS_QUICK = (1, 100)
RATES = (20, 100)  # messages a second
SECONDS = 10
SECONDS_QUICK = 1
BARE_SUBJECT = "bare.events"


def latency() -> None:
    with BenchRun("latency", __doc__ or "", seconds=SECONDS) as run:
        seconds = run.options.seconds or (SECONDS_QUICK if run.quick else SECONDS)
        nats = run.start_nats()
        add_stream(nats.url, "BARE", "bare.>")
        servers = run.servers(sum(ROOMS), "--nats", f"127.0.0.1:{nats.port}", "--subject", BARE_SUBJECT)
        publish = {
            "limit": NatsBackend(nats.port, BARE_SUBJECT).publish,
            "tidegate": NatsBackend(nats.port).publish,
        }
        shape = Shape(ROOMS_QUICK, RATES[1:], seconds) if run.quick else Shape(ROOMS, RATES, seconds)
        measure(run, servers, publish, shape)


if __name__ == "__main__":
    main(latency)
