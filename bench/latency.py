"""Latency from a JetStream publish to the client, at a steady rate, beside a bare subscriber that does the same sends.

`tidegate.bench.latency` says what is measured and how. The bare subscriber stands twice: `limit` reads its subject from
core NATS, which passes a message on before it is stored; `limit on JetStream` gets what JetStream has stored, as
tidegate does, pushed and without acknowledgements, so it does less than tidegate must. All three subjects are in
streams of their own, so that nats-server does the same work for each publish.
"""

from bench_run import BenchRun, main
from rig import Limit
from tidegate.bench.backend import NatsBackend, add_push_consumer, add_stream
from tidegate.bench.latency import Publish, Shape, measure

ROOMS = (1, 100, 1_000)
ROOMS_QUICK = (1, 100)
RATES = (20, 100)  # messages a second
SECONDS = 10
SECONDS_QUICK = 1
BARE_SUBJECT = "bare.events"
STORED_SUBJECT = "stored.events"
DELIVERED_SUBJECT = "delivered"  # in no stream
ON_JETSTREAM = "limit on JetStream"


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
        if len(servers) > 1 and not run.quick:
            servers.insert(1, on_jetstream(run, publish))
        shape = Shape(ROOMS_QUICK, RATES[1:], seconds) if run.quick else Shape(ROOMS, RATES, seconds)
        measure(run, servers, publish, shape)
        compare(run)


def on_jetstream(run: BenchRun, publish: dict[str, Publish]) -> Limit:
    nats = run.start_nats()
    add_stream(nats.url, "STORED", "stored.>")
    add_push_consumer(nats.url, "STORED", DELIVERED_SUBJECT)
    server = run.limit(sum(ROOMS), "--nats", f"127.0.0.1:{nats.port}", "--subject", DELIVERED_SUBJECT)
    server.name = ON_JETSTREAM
    publish[ON_JETSTREAM] = NatsBackend(nats.port, STORED_SUBJECT).publish
    return server


def compare(run: BenchRun) -> None:
    """The table's own ratio is to `limit`."""
    for figure in run.figures:
        ratio = figure.ratio(ON_JETSTREAM)
        if ratio is not None and figure.name in ("p50", "p99"):
            run.notes.append(f"{figure.case}: {figure.name} {ratio:.2f} x the bare subscriber on JetStream")


if __name__ == "__main__":
    main(latency)
