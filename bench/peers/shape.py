"""What every Python peer has in the same shape, so that only its WebSocket library differs.

Rule: a peer does what the attchat contract asks of a gateway and nothing more: a token checked by PyJWT, three rooms a
client (its user's, its brand's, and the one it names), numbered messages on the driver's word, events from JetStream to
the room that they name. Nothing here knows a WebSocket library.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs

import jwt
import nats
import orjson
from nats.errors import TimeoutError as NothingCame
from nats.js.api import ConsumerConfig, DeliverPolicy

ISSUER = "attchat"  # whose tokens the drivers write
PING_S = 30  # the contract's ping interval; no connection lives through more than one in a benchmark
FETCH_MAX = 256  # messages a pull; of the round trip to NATS less than a hundredth is left for each
INACTIVE_S = 60.0  # NATS then forgets the consumer of a process that ended
FETCH_S_MAX = 5.0  # how long a pull waits for its first message

Publish = Callable[[str, str], None]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--secret", required=True, help="of HS256")
    parser.add_argument("--nats", help="URL of a server with JetStream; without it, only the driver publishes")
    parser.add_argument("--subject", default="chat.>")
    return parser.parse_args()


def rooms_of(secret: str, token: str, named: str) -> tuple[str, ...]:
    """The rooms of whom a token names; jwt.PyJWTError if nobody may come in by it."""
    claims = jwt.decode(token, secret, algorithms=["HS256"], issuer=ISSUER)
    return (f"user:{claims['user_id']}", f"brand:{claims['brand_id']}", *((named,) if named else ()))


def rooms_by_query(secret: str, query: str) -> tuple[str, ...]:
    values = parse_qs(query)
    return rooms_of(secret, values.get("token", [""])[0], values.get("room_id", [""])[0])


class Orders:
    """The driver's side: `publish ROOM COUNT SIZE BATCH` and `stats`, as text messages on the path /control.

    All messages of a BATCH are handed over before the loop gets its turn, as those of one pull from a bus would be; a
    library that writes at the end of a turn then writes them together.
    """

    def __init__(self, publish: Publish, present: Callable[[], int]) -> None:
        self._publish, self._present = publish, present
        self._next: dict[str, int] = {}

    def parts(self, command: str) -> Iterator[None]:
        """Does what is asked for; after each part the loop may have its turn."""
        match command.split():
            case ["publish", room, count, size, batch]:
                for index in range(int(count)):
                    self._publish(room, self._event(room, int(size)))
                    if (index + 1) % int(batch) == 0:
                        yield
            case ["stats"]:
                return
            case _:
                raise ValueError("use publish ROOM COUNT SIZE BATCH, or stats")

    def answer(self) -> str:
        return json.dumps({"open": self._present()})

    async def obey(self, command: str) -> str:
        for _ in self.parts(command):
            await asyncio.sleep(0)
        return self.answer()

    def _event(self, room: str, size: int) -> str:
        number = self._next.get(room, 1)
        self._next[room] = number + 1
        head = f'{{"type":"message","room":"{room}","payload":{{"n":{number},"t":{time.monotonic_ns()},"x":"'
        return head + "x" * (size - len(head) - len(TAIL)) + TAIL


TAIL = '"}}'


async def forward(url: str, subject: str, publish: Publish) -> None:
    """JetStream events to their rooms for ever, by a durable pull consumer that begins with what is new."""
    client = await nats.connect(url)
    consumer = ConsumerConfig(deliver_policy=DeliverPolicy.NEW, inactive_threshold=INACTIVE_S)
    name = f"peer-{os.getpid()}"  # what an earlier process left of its own would come first
    subscription = await client.jetstream().pull_subscribe(subject, durable=name, config=consumer)
    print("forwarding", flush=True)
    while True:
        try:
            messages = await subscription.fetch(FETCH_MAX, timeout=FETCH_S_MAX)
        except NothingCame:
            continue
        for message in messages:
            publish(orjson.loads(message.data)["room"], message.data.decode())
            await message.ack()
