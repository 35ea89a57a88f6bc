"""Fan-out: one message to every member of a room, alone and in bursts; deliveries a second and server CPU for each.

`tidegate.bench.fanout` says what is measured and how; here is how many members, and what size of messages.
"""

from bench_run import BenchRun, main
from tidegate.bench.fanout import Audience, Shape, measure, record

__all__ = ["Audience", "fanout", "record"]

ROOMS = (1_000, 15_000, 100_000)
ROOMS_QUICK = (200, 2_000)
SIZES = (128, 512)  # bytes of an event: a short chat line, a long one
QUICK = 10  # times fewer deliveries


def fanout() -> None:
    with BenchRun("fanout", __doc__ or "", members=max(ROOMS)) as run:
        rooms = (run.options.members,) if run.options.members else ROOMS_QUICK if run.quick else ROOMS
        measure(run, rooms, Shape(SIZES[:1], share=QUICK) if run.quick else Shape(SIZES))


if __name__ == "__main__":
    main(fanout)
