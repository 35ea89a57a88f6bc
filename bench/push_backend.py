"""What stands beside im-gateway in `push.py`: its user service, and two bare programs that do the least of its work.

`users PORT` says who is in a group, by the group's name: `group_H_T` has T members, of whom the first H are clients of
the crowd. `push PORT` answers PushMessage at once. `read BROKER TOPIC` takes what Kafka brings, and that is all.
Rule: nothing of tidegate is used but the definitions of messages, and nothing is decided, so that the gateway is what
is measured.
"""

import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median, quantiles
from typing import Any

import grpc
import uvloop
from confluent_kafka import Consumer, TopicPartition
from tidegate.protos import im_gateway_pb2, user_pb2

PAGE = 1_000  # the contract's
READ_S_MAX = 120.0  # a record that does not come by then ends the benchmark
POLL_S = 0.1
READ_MAX = 1_000  # records at once
SERVICE = "im_gateway_servicepb.UimUgatewayUserviceService"
# What a gateway must have told a server: else it cancels calls of a burst at random
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 4_096),
    ("grpc.server.max_pending_requests_hard_limit", 4_096),
)
STAMP = re.compile(rb'\\"t\\":(\d+)')
Answer = Callable[[Any, Any], Awaitable[Any]]


async def members(request: Any, _context: Any) -> Any:
    here, total = sizes(request.group_id)
    first = int(request.cursor or 0)
    end = min(first + PAGE, total)
    page = [user_pb2.GroupMember(user_id=member(number, here)) for number in range(first, end)]
    more = end < total
    return user_pb2.GetGroupMembersResponse(members=page, has_more=more, next_cursor=str(end) if more else "")


async def is_member(request: Any, _context: Any) -> Any:
    here, _ = sizes(request.group_id)
    user = request.user_id
    return user_pb2.ValidateGroupMembershipResponse(is_member=user.startswith("x") or int(user[1:]) < here)


def sizes(group: str) -> tuple[int, int]:
    _, here, total = group.split("_")
    return int(here), int(total)


def member(number: int, here: int) -> str:
    return f"u{number}" if number < here else f"x{number}"


async def pushed(_request: Any, _context: Any) -> Any:
    return im_gateway_pb2.PushMessageResponse(success=True, delivered_count=1)


def answering(answer: Answer, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=lambda said: said.SerializeToString()
    )


USERS = {
    "GetGroupMembers": answering(members, user_pb2.GetGroupMembersRequest),
    "ValidateGroupMembership": answering(is_member, user_pb2.ValidateGroupMembershipRequest),
}
PUSH = {"PushMessage": answering(pushed, im_gateway_pb2.PushMessageRequest)}


async def serve(service: str, methods: dict[str, Any], port: int) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def read(broker: str, topic: str) -> None:
    """Each line on stdin is a number: so many records are read, then a line says how long they took to come."""
    consumer = Consumer(
        {"bootstrap.servers": broker, "group.id": "bare", "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    )
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), READ_S_MAX)
    consumer.assign([TopicPartition(topic, 0, end)])
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(taken(consumer, int(line))), flush=True)


def taken(consumer: Consumer, count: int) -> dict[str, float]:
    waits: list[float] = []
    deadline = time.monotonic() + READ_S_MAX
    while len(waits) < count and time.monotonic() < deadline:
        first = consumer.poll(POLL_S)  # `consume` would wait for company
        more = consumer.consume(min(READ_MAX, count - len(waits) - 1), 0) if first and count - len(waits) > 1 else []
        for record in [first, *more] if first else []:
            if record.error():
                sys.exit(str(record.error()))
            stamp = STAMP.search(record.value() or b"")
            waits.append((time.monotonic_ns() - int(stamp[1]) if stamp else 0) / 1e3)
    if len(waits) < count:
        return {"read": len(waits)}
    p99 = quantiles(waits, n=100)[98] if count > 1 else waits[0]
    return {"read": len(waits), "p50_us": median(waits), "p99_us": p99}


if __name__ == "__main__":
    role, place = sys.argv[1:3]
    if role == "read":
        read(place, sys.argv[3])
    else:
        uvloop.run(serve(*{"users": ("user.v1.UserService", USERS), "push": (SERVICE, PUSH)}[role], int(place)))
