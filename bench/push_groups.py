"""Messages to groups, from Kafka to the members who are connected here.

`list`: the group is below LARGE_GROUP_THRESHOLD, and a look at each of its members says who is here; `bitmap`: it is
above, and they are a room of the engine. A burst is written at once, its deliveries end with the last member's read;
the limit program sends as many messages of the same size to as many clients, one in a send, and as `limit, coalesced`
all of them in one send a client: nobody can be cheaper. Latency runs from before the record is
produced, at a steady rate; `limit` is a bare consumer that reads the same records, with no client behind it.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from confluent_kafka import Producer
from push_rig import TOPIC, Kafka, Node, Outside, PushRun, Reader, crowd_of, node
from tidegate.bench.fanout import COALESCED
from tidegate.bench.rig import Answer, Crowd, Limit, LostError

MEMBERS = (1_000, 10_000)
MEMBERS_QUICK = (100, 500)
CONTENT_BYTES = 128
DELIVERIES = 250_000  # of a burst; the messages are below the 256 that a client may be owed
DELIVERIES_QUICK = 10_000
BURST_MAX = 250
STEADY = 20  # records a second
STEADY_S = 10
STEADY_S_QUICK = 2
FEW = 50  # members who are here, of so many or of
MANY = 100_000
RECORDS_FEW = 2_000
RECORDS_FEW_QUICK = 200
AHEAD = 200  # records on their way at once: below what a client may be owed
LOAD_S_MAX = 60.0
FLUSH_S_MAX = 30.0
# LARGE_GROUP_THRESHOLD with which all groups below are on one side of it
KINDS = {"list": "1000000", "bitmap": "50"}


@dataclass(slots=True)
class Audience:
    """A crowd on a node, of whom the first are a group's members."""

    run: PushRun
    crowd: Crowd
    node: Node
    records: "Records"
    reader: Reader

    def play(self, group: str, here: int, count: int, ahead: int) -> tuple[Answer, Answer]:
        """`count` records, so many on their way at a time. What the clients saw, and the bare consumer."""
        self.crowd.ask("reset")
        ends, answer = self.reader.take(count), {}
        for first in range(0, count, ahead):
            sent = min(first + ahead, count)
            self.records.write(group, sent - first)
            answer = self.crowd.wait_received(here * sent)
        return checked(group, answer, here * count), ends()


class Records:
    """Who writes to Kafka, with one rising number over all records."""

    def __init__(self, kafka: Kafka) -> None:
        self._producer = Producer({"bootstrap.servers": kafka.address, "linger.ms": 0})
        self._number = 0

    def write(self, group: str, count: int) -> None:
        """Returns when the broker has them."""
        for _ in range(count):
            self.put(group)
        if self._producer.flush(FLUSH_S_MAX):
            raise LostError(f"Kafka did not take {count} records within {FLUSH_S_MAX:.0f} s")

    def put(self, group: str) -> None:
        self._number += 1
        head = f'{{"n":{self._number},"t":{time.monotonic_ns()},"x":"'
        content = head + "x" * (CONTENT_BYTES - len(head) - 2) + '"}'
        said: dict[str, object] = {
            "msg_id": f"m{self._number}",
            "group_id": group,
            "sender_id": "u0",
            "content": content,
        }
        said |= {"message_type": "text", "sequence_number": self._number, "timestamp": time.time_ns() // 1_000_000}
        self._producer.produce(TOPIC, orjson.dumps(said), group)
        self._producer.poll(0)


def groups(run: PushRun, outside: Outside, stack: contextlib.ExitStack) -> None:
    sizes = MEMBERS_QUICK if run.quick else MEMBERS
    reader, records = stack.enter_context(Reader(outside.kafka)), Records(outside.kafka)
    limit = run.limit(max(sizes))
    rooms = f"chat:g{{i/{sizes[0]}}},chat:all"  # g0 is the smaller group
    bare = crowd_of(run, limit, rooms, max(sizes))
    for kind, threshold in KINDS.items():
        with run.part(), contextlib.ExitStack() as nodes:
            here = node(run, outside, nodes, max(sizes), LARGE_GROUP_THRESHOLD=threshold)
            crowd = crowd_of(run, here, "", max(sizes))
            audience = Audience(run, crowd, here, records, reader)
            for size in sizes:
                measure_burst(audience, kind, size, bare)
            measure_steady(audience, kind, sizes[0])
    with run.part(), contextlib.ExitStack() as nodes:
        here = node(run, outside, nodes, FEW)
        crowd = crowd_of(run, here, "", FEW)
        measure_few(Audience(run, crowd, here, records, reader))


def load(audience: Audience, group: str, here: int) -> float:
    """The first message to a group: who is in it is not known yet. Seconds."""
    began = time.monotonic()
    audience.play(group, here, 1, 1)
    return time.monotonic() - began


def checked(group: str, answer: Answer, due: int) -> Answer:
    seen = {key: answer[key] for key in ("received", "missing", "out_of_order", "failed")}
    if seen != {"received": due, "missing": 0, "out_of_order": 0, "failed": {}}:
        raise LostError(f"{group}: {due:,} deliveries were due; {seen}")
    return answer


def measure_burst(audience: Audience, kind: str, members: int, bare: Crowd) -> None:
    run, here = audience.run, audience.node
    depth = min(BURST_MAX, (DELIVERIES_QUICK if run.quick else DELIVERIES) // members)
    group, case = f"group_{members}_{members}", f"{kind}, {members:,} members, burst of {depth}"
    load(audience, group, members)
    cpu = here.cpu_s()
    answer, _ = audience.play(group, members, depth, depth)
    cpu = here.cpu_s() - cpu
    note(run, case, here.name, (cpu, members * depth), answer)
    size = answer["bytes"] // answer["received"]
    for name, batch in (("limit", 1), (COALESCED, depth)):
        cpu = bare.server.cpu_s()
        answer = send_bare(bare, members, f"{depth} {size} {batch}")
        note(run, case, name, (bare.server.cpu_s() - cpu, members * depth), checked(name, answer, members * depth))


def send_bare(bare: Crowd, members: int, shape: str) -> Answer:
    """`shape`: how many messages, of how many bytes, so many in one send."""
    assert isinstance(bare.server, Limit)
    bare.ask("reset")
    bare.server.ask(f"publish {room_of(members)} {shape}")
    return bare.wait_received(members * int(shape.split(maxsplit=1)[0]))


def room_of(members: int) -> str:
    """The limit program's, of as many as a group has."""
    return "chat:g0" if members in (MEMBERS[0], MEMBERS_QUICK[0]) else "chat:all"


def note(run: PushRun, case: str, name: str, used: tuple[float, int], answer: Answer) -> None:
    cpu, deliveries = used
    seconds = (answer["last_received_ns"] - answer["first_sent_ns"]) / 1e9
    run.figures.of(case, "deliveries", "1/s", 0).add(name, deliveries / seconds, answer)
    run.figures.of(case, "server CPU a delivery", "us", 2).add(name, cpu / deliveries * 1e6)


def measure_steady(audience: Audience, kind: str, members: int) -> None:
    run = audience.run
    group, count = f"group_{members}_{members}", STEADY * (STEADY_S_QUICK if run.quick else STEADY_S)
    audience.crowd.ask("reset")
    ends, cpu, began = audience.reader.take(count), audience.node.cpu_s(), time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / STEADY - time.monotonic()))
        audience.records.put(group)
    answer = checked(group, audience.crowd.wait_received(members * count), members * count)
    cpu = audience.node.cpu_s() - cpu
    case = f"{kind}, {members:,} members, {STEADY} records/s"
    steady(run, case, "tidegate", [answer["latency_p50_ns"] / 1e3, answer["latency_p99_ns"] / 1e3])
    read = ends()
    steady(run, case, "limit", [read["p50_us"], read["p99_us"]])
    run.figures.of(case, "server CPU a record", "us", 0).add("tidegate", cpu / count * 1e6)


def steady(run: PushRun, case: str, name: str, values: Sequence[float]) -> None:
    for figure, value in zip(("p50", "p99"), values, strict=True):
        run.figures.of(case, figure, "us", 0).add(name, value)


def measure_few(audience: Audience) -> None:
    """A large group of whom few are here should cost what a group of those few does."""
    run, here, reader = audience.run, audience.node, audience.reader
    count = RECORDS_FEW_QUICK if run.quick else RECORDS_FEW
    for kind, total in (("list", FEW), ("bitmap", MANY)):
        group, case = f"group_{FEW}_{total}", f"{kind}, {total:,} members, {FEW} here"
        run.figures.of(case, "first record", "ms", 0).add(here.name, load(audience, group, FEW) * 1e3)
        cpu, bare = here.cpu_s(), reader.cpu_s()
        audience.play(group, FEW, count, AHEAD)
        run.figures.of(case, "server CPU a record", "us", 0).add(here.name, (here.cpu_s() - cpu) / count * 1e6)
        run.figures.of(case, "server CPU a record", "us", 0).add("limit", (reader.cpu_s() - bare) / count * 1e6)
