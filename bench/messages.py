"""Messages from clients, by kind: how many a second the server answers, and what each costs it.

10,000 clients in rooms of two send one message each, over and over: `ping` is answered with `pong`; `join` and `leave`,
in turn, with `joined` and `left`; `typing` goes to the other member of the sender's room. All of them pass the profile,
which is Python. The limit program answers each message with a fixed text of about a pong's size: one read and one send,
which is all that any of these takes of the kernel. An answer or a typing event that did not come ends the benchmark.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from bench_run import BenchRun, main
from tidegate.bench.rig import Answer, Crowd, LostError, Server, Tidegate

CONNECTIONS = 10_000
CONNECTIONS_QUICK = 1_000
TIMES = 20  # messages of each client: below the burst that a client may send at once
TIMES_QUICK = 4
MEMBERS = 2  # of a room
ANSWER = '{"type":"pong","timestamp":"2026-01-01T00:00:00Z"}'


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    texts: tuple[str, ...]  # sent in turn, each by every client


KINDS = (
    Kind("ping", ('{"type":"ping"}',)),
    Kind("join and leave", tuple(f'{{"type":"{kind}","room":"chat:x{{i/{MEMBERS}}}"}}' for kind in ("join", "leave"))),
    Kind("typing", (f'{{"type":"typing","room":"chat:r{{i/{MEMBERS}}}"}}',)),
)


def messages() -> None:
    with BenchRun("messages", __doc__ or "", connections=CONNECTIONS, times=TIMES) as run:
        connections = run.options.connections or (CONNECTIONS_QUICK if run.quick else CONNECTIONS)
        times = run.options.times or (TIMES_QUICK if run.quick else TIMES)
        servers = run.servers(connections, "--answer", ANSWER)
        with run.progress(len(KINDS) * run.runs, "opening connections") as step:
            crowds = [run.crowd(server, f"chat:r{{i/{MEMBERS}}}", connections) for server in servers]
            for crowd in crowds:
                crowd.open(connections)
            for kind in KINDS:
                for _ in range(run.runs):
                    for crowd in crowds:
                        measure(run, crowd, kind, connections, times)
                    step(kind.name)
        run.notes.append(
            f"{connections:,} connections in rooms of {MEMBERS}, {times} messages of each; all were answered"
        )


def measure(run: BenchRun, crowd: Crowd, kind: Kind, connections: int, times: int) -> None:
    server, due = crowd.server, connections * times
    crowd.ask("reset")
    cpu, python, began = server.cpu_s(), main_thread_s(server), time.monotonic()
    answer: Answer = {}
    for sent, text in enumerate(kind.texts, 1):
        crowd.ask(f"send {times // len(kind.texts)} {text}")
        answer = crowd.wait("other", due * sent // len(kind.texts), wait_s=60)
    seconds = time.monotonic() - began
    cpu, python = server.cpu_s() - cpu, main_thread_s(server) - python
    check(server, answer, due)
    run.figures.of(kind.name, "server CPU a message", "us", 2).add(server.name, cpu / due * 1e6)
    if isinstance(server, Tidegate):
        run.figures.of(kind.name, "of it in Python's thread", "us", 2).add(server.name, python / due * 1e6)
    run.figures.of(kind.name, "messages", "1/s", 0).add(server.name, due / seconds, answer)


def main_thread_s(server: Server) -> float:
    """CPU of the thread that the process began with: tidegate's runs Python, the others are its shards."""
    schedstat = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text()
    return int(schedstat.split()[0]) / 1e9


def check(server: Server, answer: Answer, due: int) -> None:
    seen = {key: answer[key] for key in ("texts_sent", "other", "sends_blocked", "failed")}
    if seen != {"texts_sent": due, "other": due, "sends_blocked": 0, "failed": {}}:
        raise LostError(f"{server.name}: {due:,} messages and as many answers were due; {seen}")


if __name__ == "__main__":
    main(messages)
