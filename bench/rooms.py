"""Many small rooms: messages spread over rooms of two, from JetStream to the clients, as fast as it stores them.

Each run publishes the same number of messages to every room, in an order that puts no two of a room side by side, and
ends when each member has all of its own, in order. The limit program reads the same messages from core NATS, finds the
room in the payload and does one send a member. nats-server, publisher and clients share the cores with the server, so
the CPU figures are the ones to quote.
"""

import random
import time

import rig
from bench_run import BenchRun, main
from flood import Chunk, Flood, events
from rig import Crowd, Server
from tidegate.bench.backend import Numbers, add_stream

CONNECTIONS = 10_000
CONNECTIONS_QUICK = 1_000
MEMBERS = 2  # of a room
MESSAGES = 200_000
MESSAGES_QUICK = 20_000
MESSAGE_BYTES = 128
BARE_SUBJECT = "bare.events"  # in a stream that tidegate does not read
SEED = 4  # of the rooms' order: the same in every run


def rooms() -> None:
    with BenchRun("rooms", __doc__ or "", connections=CONNECTIONS, messages=MESSAGES) as run:
        if run.options.bus != "nats":
            raise rig.RigError("rooms.py publishes to JetStream; leave --bus out")
        connections = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        messages = run.options.messages or (MESSAGES_QUICK if run.quick else MESSAGES)
        nats = run.start_nats()
        add_stream(nats.url, "BARE", "bare.>")
        servers = run.servers(connections, "--nats", f"127.0.0.1:{nats.port}", "--subject", BARE_SUBJECT)
        subjects = {"limit": BARE_SUBJECT, "tidegate": "chat.events"}
        with run.progress(len(servers) * (run.runs + 1), "opening connections") as step:
            small = [
                SmallRooms(run, server, Flood(nats.port, subjects[server.name]), connections) for server in servers
            ]
            for _ in range(run.runs):
                for one in small:
                    measure(run, one, messages)
                    step(f"{messages:,} messages, {one.server.name}")
        run.notes.append(
            f"{connections:,} connections in rooms of {MEMBERS}; each message reached its members in order"
        )


class SmallRooms:
    """Clients of one server in rooms of two, and the backend that publishes to them."""

    def __init__(self, run: BenchRun, server: Server, flood: Flood, connections: int) -> None:
        self.server, self.flood, self.connections = server, flood, connections
        self.numbers = Numbers()
        self.crowd: Crowd = run.crowd(server, f"chat:r{{i/{MEMBERS}}}", connections)
        self.crowd.open(connections)

    def encode(self, messages: int) -> list[Chunk]:
        names = [f"chat:r{number}" for number in range(self.connections // MEMBERS)]
        random.Random(SEED).shuffle(names)
        times = max(1, messages // len(names))
        return self.flood.encode(events(self.numbers, names, times, MESSAGE_BYTES))


def measure(run: BenchRun, small: SmallRooms, messages: int) -> None:
    server, crowd = small.server, small.crowd
    chunks = small.encode(messages)
    published = sum(chunk.messages for chunk in chunks)
    crowd.ask("reset")
    cpu, began_ns = server.cpu_s(), time.monotonic_ns()
    stored_s = small.flood.pour(chunks)
    answer = crowd.wait_received(published * MEMBERS)
    cpu = server.cpu_s() - cpu
    seconds = (answer["last_received_ns"] - began_ns) / 1e9
    check(server, answer, published * MEMBERS)
    case = f"{small.connections:,} connections, {MESSAGE_BYTES} B"
    run.figures.of(case, "server CPU a delivery", "us", 2).add(server.name, cpu / published / MEMBERS * 1e6)
    run.figures.of(case, "server CPU a message", "us", 2).add(server.name, cpu / published * 1e6)
    run.figures.of(case, "messages", "1/s", 0).add(server.name, published / seconds, answer)
    run.figures.of(case, "deliveries", "1/s", 0).add(server.name, published * MEMBERS / seconds, answer)
    run.figures.of(case, "stored by JetStream", "1/s", 0).add(server.name, published / stored_s)


def check(server: Server, answer: rig.Answer, deliveries: int) -> None:
    if answer["received"] != deliveries or answer["out_of_order"] or answer["missing"] or answer["failed"]:
        seen = {key: answer[key] for key in ("received", "out_of_order", "missing", "failed")}
        raise rig.LostError(f"{server.name}: {deliveries:,} deliveries were due; {seen}")


if __name__ == "__main__":
    main(rooms)
