"""Latency from a JetStream publish to the client, at a steady rate, beside a bare subscriber that does the same sends.

The clock runs from before the publish to after the client's read, on one machine and one clock. The limit program is
the bare subscriber: a Rust thread that reads the subject from core NATS and sends each payload to the room. Both
subjects are in a JetStream stream, so that nats-server does the same work for both.
"""

import time

import rig
from backend import NatsBackend, add_stream
from bench_run import BenchRun, main
from rig import Crowd, Server

ROOMS = (1, 100, 1_000)
RATES = (20, 100)  # messages a second
SECONDS = 10
SECONDS_QUICK = 1
MESSAGE_BYTES = 128
BARE_SUBJECT = "bare.events"  # in a stream that tidegate does not read


def latency() -> None:
    with BenchRun("latency", __doc__ or "", seconds=SECONDS) as run:
        seconds = run.options.seconds or (SECONDS_QUICK if run.quick else SECONDS)
        rates = RATES[1:] if run.quick else RATES
        nats = run.start_nats()
        add_stream(nats.url, "BARE", "bare.>")
        servers = run.servers(sum(ROOMS), "--nats", f"127.0.0.1:{nats.port}", "--subject", BARE_SUBJECT)
        backends = {"limit": NatsBackend(nats.port, BARE_SUBJECT), "tidegate": NatsBackend(nats.port)}
        with run.progress(len(ROOMS) * len(rates) * run.runs, "latency") as step:
            for members in ROOMS:
                with run.part():
                    crowds = {server.name: run.crowd(server, f"chat:r{members}", members) for server in servers}
                    for crowd in crowds.values():
                        crowd.open(members)
                    for rate in rates:
                        for _ in range(run.runs):
                            for server in servers:
                                measure(
                                    run, server, crowds[server.name], backends[server.name], (members, rate, seconds)
                                )
                            step(f"{members:,} members, {rate} messages a second")


def measure(run: BenchRun, server: Server, crowd: Crowd, backend: NatsBackend, shape: tuple[int, int, int]) -> None:
    members, rate, seconds = shape
    crowd.ask("reset")
    publish_steadily(backend, f"chat:r{members}", rate, seconds)
    answer = crowd.wait_received(members * rate * seconds, wait_s=5)
    if answer["received"] != members * rate * seconds or answer["out_of_order"] or answer["missing"]:
        raise rig.RigError(
            f"{server.name}: {members * rate * seconds:,} deliveries were due, {answer['received']:,} came"
        )
    case = f"{members:,} members, {rate} messages/s"
    for name, key in (("p50", "latency_p50_ns"), ("p99", "latency_p99_ns"), ("max", "latency_max_ns")):
        run.figures.of(case, name, "us", 0).add(server.name, answer[key] / 1e3)


def publish_steadily(backend: NatsBackend, room: str, rate: int, seconds: int) -> None:
    """On a fixed schedule: a late message does not push the next ones back."""
    began = time.monotonic()
    for number in range(rate * seconds):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        backend.publish(room, 1, MESSAGE_BYTES)


if __name__ == "__main__":
    main(latency)
