"""permessage-deflate: what a compressed message costs each member, beside the same message sent plain.

Three crowds of the same size on three processes of tidegate, all with compression on: none, all or one client in two
offers it. Messages are JSON of 2 kB that a chat might send, each different; they come through JetStream one after the
other (`alone`) and in a row (`burst`), and every member's copy is inflated and checked. The limit program sends the
plain ones and, as `limit, small`, messages of the compressed size: the same bytes on the wire.
"""

import json
import random
import time

import rig
from bench_run import BenchRun, main
from flood import Flood
from tidegate.bench.figures import Figure
from tidegate.bench.rig import LostError, Server

MEMBERS = 15_000
MEMBERS_QUICK = 500
MESSAGE_BYTES = 2_048
ALONE = 20  # messages, each when the last one has arrived
BURST = 100
ALONE_QUICK, BURST_QUICK = 3, 20
SETTLE_S = 1.0  # until what a handshake allocated is given back
CROWDS = {"plain": 0, "deflate": 1, "half": 2}  # one client in so many takes compressed messages
SMALL = "limit, small"
SEED = 4  # of the messages: the same in every run


def compression() -> None:
    with BenchRun("compression", __doc__ or "", members=MEMBERS) as run:
        if run.options.bus != "nats":
            raise rig.RigError("compression.py publishes to JetStream; leave --bus out")
        members = run.options.members or (MEMBERS_QUICK if run.quick else MEMBERS)
        depths = {"alone": ALONE_QUICK if run.quick else ALONE, "burst": BURST_QUICK if run.quick else BURST}
        with run.progress(len(CROWDS) + 1 + len(depths) * run.runs, "opening connections") as step:
            audiences = []
            for name in CROWDS if "tidegate" in run.names else ():
                audiences.append(
                    Audience(run, name, run.tidegate(members, GATEWAY_WS_ENABLE_COMPRESSION="true"), members)
                )
                step("opening connections")
            if "limit" in run.names:
                audiences.append(Audience(run, "limit", run.limit(members), members))
            step("opening connections")
            for how, depth in depths.items():
                for _ in range(run.runs):
                    sizes = {one.name: one.measure(how, depth) for one in audiences}
                    if "limit" in run.names and "deflate" in sizes:
                        audiences[-1].measure(how, depth, small_bytes=round(sizes["deflate"]))
                    step(f"{members:,} members, {how}")
        for one in audiences:
            one.measure_memory("with all messages sent")
        run.notes += goals_of(audiences)


class Audience:
    """The members of one room on a server of their own."""

    def __init__(self, run: BenchRun, name: str, server: Server, members: int) -> None:
        self.run, self.name, self.server, self.members = run, name, server, members
        self.room = f"chat:{name}"
        self.chat = Chat(self.room)
        self.flood = None if isinstance(server, rig.Limit) else Flood(run.start_nats().port)
        self.crowd = run.crowd(server, self.room, members, deflate=CROWDS.get(name, 0))
        time.sleep(SETTLE_S)
        self.empty = server.rss_bytes()
        self.crowd.open(members)
        self.measure_memory("idle")

    def measure_memory(self, when: str) -> None:
        time.sleep(SETTLE_S)
        memory = (self.server.rss_bytes() - self.empty) / self.members
        self.figure(f"memory a connection, {when}", "bytes", 0).add(self.column(), memory)

    def measure(self, how: str, depth: int, small_bytes: int = 0) -> float:
        """Bytes on the wire of one delivery."""
        self.crowd.ask("reset")
        cpu, began_ns, busy_ns = self.server.cpu_s(), 0, 0
        answer: rig.Answer = {}
        for due in range(1, depth + 1) if how == "alone" else [depth]:
            began_ns = time.monotonic_ns()
            self.publish(1 if how == "alone" else depth, small_bytes)
            answer = self.crowd.wait_received(self.members * due)
            busy_ns += answer["last_received_ns"] - began_ns
        cpu = self.server.cpu_s() - cpu
        deliveries = self.members * depth
        self.check(answer, deliveries)
        column = SMALL if small_bytes else self.column()
        self.figure(f"{how}: server CPU a delivery", "us", 2).add(column, cpu / deliveries * 1e6)
        self.figure(f"{how}: deliveries", "1/s", 0).add(column, deliveries / busy_ns * 1e9, answer)
        self.figure(f"{how}: bytes of a delivery", "bytes", 0).add(column, answer["bytes"] / deliveries)
        return float(answer["bytes"] / deliveries)

    def publish(self, count: int, small_bytes: int) -> None:
        if self.flood is not None:
            self.flood.pour(self.flood.encode(self.chat.events(count)))
        else:
            self.run.publish(self.server, self.room, count, small_bytes or MESSAGE_BYTES)

    def check(self, answer: rig.Answer, deliveries: int) -> None:
        every = CROWDS.get(self.name, 0)
        compressed = deliveries // self.members * -(-self.members // every) if every else 0
        due = {"received": deliveries, "compressed": compressed, "out_of_order": 0, "missing": 0, "failed": {}}
        seen = {key: answer[key] for key in due}
        if seen != due:
            raise LostError(f"{self.name}: due was {due}; {seen}")

    def column(self) -> str:
        return {"deflate": "tidegate", "limit": "limit"}.get(self.name, f"tidegate, {self.name}")

    def figure(self, name: str, unit: str, digits: int) -> Figure:
        return self.run.figures.of(f"{self.members:,} members, {MESSAGE_BYTES:,} B", name, unit, digits)


class Chat:
    """What a room of people would say, seeded: JSON that compresses as such messages do, not as a run of one letter."""

    def __init__(self, room: str) -> None:
        self.room, self.number = room, 0
        self.random = random.Random(SEED)
        self.words = ["".join(self.random.choices(LETTERS, k=self.random.randint(2, 9))) for _ in range(WORDS)]

    def events(self, count: int) -> list[bytes]:
        return [self._event() for _ in range(count)]

    def _event(self) -> bytes:
        self.number += 1
        head = (
            f'{{"type":"message","room":"{self.room}","payload":{{"n":{self.number},"t":{time.monotonic_ns()},"lines":['
        )
        room = MESSAGE_BYTES - len(head) - len(TAIL)
        lines = self._line()
        while len(lines) + len(more := "," + self._line()) <= room:
            lines += more
        rest = room - len(lines)
        return f"{head}{lines}{TAIL[:MORE_AT]}{self._text()[:rest]:.<{rest}}{TAIL[MORE_AT:]}".encode()

    def _line(self) -> str:
        line = {"id": self.random.getrandbits(48), "from": f"u{self.random.randrange(100_000)}", "text": self._text()}
        return json.dumps(line, separators=(",", ":"))

    def _text(self) -> str:
        return " ".join(self.random.choices(self.words, k=self.random.randint(3, 20)))


LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
WORDS = 2_000  # the vocabulary of everyday speech
TAIL = '],"more":""}}'
MORE_AT = TAIL.index('""') + 1  # a text fills an event up to its size


def goals_of(audiences: list[Audience]) -> list[str]:
    """What compression costs beside the same messages sent plain; the limit's share in that is the kernel's."""
    found = []
    for how in ("alone", "burst"):
        for one in audiences:
            figure = one.figure(f"{how}: server CPU a delivery", "us", 2)
            ours, plain = figure.value("tidegate"), figure.value("tidegate, plain")
            if one.name == "deflate" and ours and plain:
                found.append(f"{how}: compressed / plain server CPU a delivery: {ours / plain:.2f} (goal: at most 1.3)")
    return found


if __name__ == "__main__":
    main(compression)
