"""What `peers.py` measures of each server, row by row.

Rule: the same clients, rooms, messages and checks for all of them; a lost, repeated or misplaced message is no figure.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import rig
from flood import Flood
from rooms import MEMBERS, MESSAGE_BYTES, SmallRooms, check
from tidegate.bench import latency
from tidegate.bench.fanout import BURST, COALESCED, DELIVERIES_ALONE, Audience, record
from tidegate.bench.rig import BRANDS, LostError, Server

if TYPE_CHECKING:
    from peers import PeersRun

CONNECTIONS, CONNECTIONS_QUICK = 10_000, 1_000
CONNECTIONS_HELD = 18_000  # a peer has one table of 20,000 descriptors
AUDIENCES, AUDIENCES_QUICK = (1_000, 15_000), (200,)
SPARED = 10  # times fewer deliveries in a quick run
DELIVERIES_A_TURN = 250_000  # handed over before a peer's loop has its turn: 50 MB that wait in the dearest of them
LATENCY_ROOMS = (1, 100)
RATE, SECONDS, SECONDS_QUICK = 100, 10, 1
MESSAGES, MESSAGES_QUICK = 50_000, 5_000
SETTLE_S, SETTLE_S_QUICK = 2.0, 0.3  # until what a start or a handshake allocated is given back
SUBJECT, SUBJECTS = "chat.events", "chat.>"
ROOM = "chat:all"

Measure = Callable[["PeersRun", str, int], None]


def memory(run: "PeersRun", name: str, row: int) -> None:
    """Row 2: of clients in three rooms each. Of few, a good part is what a server needs once: hence the second half."""
    count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS_HELD)
    settle_s = SETTLE_S_QUICK if run.quick else SETTLE_S
    with run.turn(name, row, count) as server:
        if server is None:
            return
        crowd = run.crowd(server, ROOM, count)
        held = [settled_rss(server, settle_s)]
        for part in (count // 2, count - count // 2):
            crowd.open(part)
            held.append(settled_rss(server, settle_s))
        check_rooms(run, server, crowd, count)
        case = f"{title(row, count)}connections"
        run.figures.of(case, "user memory a connection", "bytes", 0).add(name, (held[2] - held[0]) / count)
        second_half = (held[2] - held[1]) / (count - count // 2)
        run.figures.of(case, "of the second half", "bytes", 0).add(name, second_half)
        run.figures.of(case, "VmRSS of the empty server", "MiB").add(name, held[0] / 2**20)


def settled_rss(server: Server, settle_s: float) -> int:
    time.sleep(settle_s)
    return server.rss_bytes()


def handshakes(run: "PeersRun", name: str, row: int) -> None:
    """Row 4: each with a token of its own, as fast as the server takes them."""
    count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
    with run.turn(name, row, count) as server:
        if server is None:
            return
        crowd = run.crowd(server, ROOM, count)
        crowd.ask("reset")
        cpu = server.cpu_s()
        opened = crowd.open(count)
        cpu = server.cpu_s() - cpu
        check_rooms(run, server, crowd, count)
        case = f"{title(row, count)}connections"
        run.figures.of(case, "handshakes", "1/s", 0).add(name, count / opened["seconds"], opened)
        run.figures.of(case, "server CPU a handshake", "us").add(name, cpu / count * 1e6)


def check_rooms(run: "PeersRun", server: Server, crowd: rig.Crowd, count: int) -> None:
    """A message to a room of each kind reaches its members, and nobody else."""
    for room, members in {"user:u7": 1, "brand:b3": len(range(3, count, BRANDS)), ROOM: count}.items():
        crowd.ask("reset")
        run.publish(server, room, 1, MESSAGE_BYTES)
        received = crowd.wait_received(members)["received"]
        if received != members:
            raise LostError(f"{server.name}: a message to {room} reached {received} of {members} members")


def fan_out(run: "PeersRun", name: str, row: int) -> None:
    """Rows 5 and 6: one message at a time, or many as fast as they are taken, to all members of a room."""
    for members in AUDIENCES_QUICK if run.quick else AUDIENCES:
        with run.turn(name, row, members) as server:
            if server is None:
                continue
            audience = Audience(run, server, members)
            if row == ALONE:
                times = max(3, DELIVERIES_ALONE // (SPARED if run.quick else 1) // members)
                case = f"{title(row, members)}members, {MESSAGE_BYTES} B, alone"
                record(run, name, case, audience.publish(MESSAGE_BYTES, 1, times))
                continue
            depth = BURST // (SPARED if run.quick else 1)
            case = f"{title(row, members)}members, {MESSAGE_BYTES} B, burst of {depth}"
            batch = 1 if name == "limit" else max(1, min(depth, DELIVERIES_A_TURN // members))
            record(run, name, case, audience.publish(MESSAGE_BYTES, depth, 1, batch))
            if name == "limit":
                record(run, COALESCED, case, audience.publish(MESSAGE_BYTES, depth, 1, depth))


def steady(run: "PeersRun", name: str, row: int) -> None:
    """Row 7: from before the publish to JetStream to after the client's read, at a steady rate."""
    seconds = SECONDS_QUICK if run.quick else SECONDS
    for members in LATENCY_ROOMS:
        with run.turn(name, row, members) as server:
            if server is None:
                continue
            room, due = f"chat:r{members}", members * RATE * seconds
            crowd = run.crowd(server, room, members)
            crowd.open(members)
            cpu = server.cpu_s()
            latency.publish_steadily(run.nats_backend().publish, room, RATE, seconds)
            answer = crowd.wait_received(due, wait_s=5)
            cpu = server.cpu_s() - cpu
            check(server, answer, due)
            case = f"{title(row, members)}members, {RATE} messages/s"
            for figure, key in (("p50", "latency_p50_ns"), ("p99", "latency_p99_ns")):
                run.figures.of(case, figure, "us", 0).add(name, answer[key] / 1e3)
            run.figures.of(case, "server CPU a message", "us", 0).add(name, cpu / (RATE * seconds) * 1e6)


def small_rooms(run: "PeersRun", name: str, row: int) -> None:
    """Row 8: messages spread over rooms of two, as fast as JetStream stores them."""
    count = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
    messages = run.options.messages or (MESSAGES_QUICK if run.quick else MESSAGES)
    with run.turn(name, row, count) as server:
        if server is None:
            return
        small = SmallRooms(run, server, Flood(run.start_nats().port, SUBJECT), count)
        chunks = small.encode(messages)
        published = sum(chunk.messages for chunk in chunks)
        small.crowd.ask("reset")
        cpu, began_ns = server.cpu_s(), time.monotonic_ns()
        small.flood.pour(chunks)
        answer = small.crowd.wait_received(published * MEMBERS)
        cpu = server.cpu_s() - cpu
        check(server, answer, published * MEMBERS)
        seconds = (answer["last_received_ns"] - began_ns) / 1e9
        case = f"{title(row, count)}connections, {count // MEMBERS:,} rooms"
        run.figures.of(case, "messages", "1/s", 0).add(name, published / seconds, answer)
        run.figures.of(case, "server CPU a delivery", "us", 2).add(name, cpu / published / MEMBERS * 1e6)


ALONE = 5
ROWS: dict[int, Measure] = {2: memory, 4: handshakes, 5: fan_out, 6: fan_out, 7: steady, 8: small_rooms}
FROM_JETSTREAM = (7, 8)


def title(row: int, size: int | None = None) -> str:
    """What the names of a row's cases begin with, or of those of one size."""
    return f"{row}: " if size is None else f"{row}: {size:,} "


def measure(run: "PeersRun") -> None:
    with run.progress(sum(len(list(run.servers_of(row))) for row in run.rows), "starting") as step:
        for row in run.rows:
            for name in run.servers_of(row):
                ROWS[row](run, name, row)
                step(f"row {row}, {name}")
