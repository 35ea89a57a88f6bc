"""im-gateway: pushes by gRPC with and without acks, groups from Kafka, memory of registered connections, registrations.

All with real servers: etcd, Kafka and Redis of one node each, a user service that answers at once, and clients that ack
(the load generator's). Beside each figure stands, as `limit`, the least that the same work takes here: for a push a
bare gRPC server that answers at once, for a group a bare Kafka consumer and the limit program, for a connection the
limit program, for a registration its key put bare. All processes share the cores. A push that is not delivered or a
message that is lost ends the benchmark.
"""

import contextlib

from bench_run import main
from push_calls import CALLS, calls
from push_groups import groups
from push_registry import CONNECTIONS, REGISTRATIONS, connections, registrations
from push_rig import Outside, PushRun

CASES = {"calls": calls, "groups": groups, "connections": connections, "registrations": registrations}


def push() -> None:
    choices = {"case": tuple(CASES)}
    numbers = {"connections": CONNECTIONS, "registrations": REGISTRATIONS, "calls": CALLS}
    with PushRun("push", __doc__ or "", None, choices, **numbers) as run:
        outside = Outside(run)
        cases = [name for name in CASES if run.options.case in (None, name)]
        with run.progress(run.runs * len(cases), "starting") as step:
            for _ in range(run.runs):
                for name in cases:
                    with run.part(), contextlib.ExitStack() as stack:
                        CASES[name](run, outside, stack)
                    step(name)


if __name__ == "__main__":
    main(push)
