"""Where Kafka's brokers are, how its library is told to behave, and what its errors mean: the edge to confluent_kafka.

The library keeps its own connections, in threads of its own, and heals them by itself. It says so in many lines, which
go to our log as details: what a person must know is said once by the bus. Rule: the package is imported here and
nowhere else.
"""

import asyncio
import contextlib
import logging
import re
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # public by its docs

from tidegate.errors import ConfigError

__all__ = [
    "AdminClient",
    "Consumer",
    "KafkaError",
    "KafkaException",
    "Message",
    "NewTopic",
    "Producer",
    "TopicPartition",
]

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Place(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class TroubleError(Exception):
    """What Kafka says, or that it says nothing. `code` as in Kafka's protocol, negative where the library speaks."""

    def __init__(self, text: str, code: int = KafkaError._TIMED_OUT) -> None:
        super().__init__(text)
        self.code = code

    @classmethod
    def of(cls, error: KafkaException | KafkaError) -> "TroubleError":
        cause = error.args[0] if isinstance(error, KafkaException) else error
        if not isinstance(cause, KafkaError):
            return cls(str(cause))
        return cls(describe(cause), cause.code())

    @property
    def is_refusal(self) -> bool:
        """It needs a person, not time."""
        return self.code in REFUSALS


def describe(error: KafkaError) -> str:
    text = str(error.str() or error.name())
    if error.code() in NOT_ALLOWED:
        return f"{text}: this node's user may not do that, ask for the right by an ACL"
    return text


def parse_brokers(url: str) -> str:
    """`bootstrap.servers` of a URL: a comma list, of which any one that answers names the others."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme.lower() != "kafka":
        raise bad_url(url)
    pieces = [piece.strip() for piece in rest.rstrip("/").split(",")]
    brokers = [parse_broker(piece.removeprefix("kafka://"), url) for piece in pieces if piece]
    if not brokers:
        raise bad_url(url)
    return ",".join(brokers)


def parse_broker(piece: str, url: str) -> str:
    try:
        parts = urlsplit(f"kafka://{piece}")
        host, port = parts.hostname, parts.port or 9092
    except ValueError:
        raise bad_url(url) from None
    if not host or not HOST.fullmatch(host) or "@" in piece or parts.path or parts.query or parts.fragment:
        raise bad_url(url)
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def bad_url(url: str) -> ConfigError:
    # Whatever comes before the last @ may be a password, and so may what follows a ? or #.
    shown = re.split(r"[?#]", url.rpartition("@")[2], maxsplit=1)[0]
    cure = (
        "Write kafka://host:9092, with commas between several; brokers are spoken to in plain text and without login."
    )
    return ConfigError(f"kafka.url {('***@' if '@' in url else '') + shown!r} is not a Kafka URL", cure)


class Details:
    """Takes the library's log lines. A broker that is away fills a screen of them, all known to whoever reads ours."""

    def log(self, level: int, text: str, *arguments: object) -> None:
        log.debug(text, *arguments)


DETAILS = Details()


def client_settings(brokers: str, name: str) -> dict[str, Any]:
    """For everything that connects."""
    return {
        "bootstrap.servers": brokers,
        "client.id": name,
        "socket.timeout.ms": round(SILENCE_S_MAX * 1000),
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
        "reconnect.backoff.max.ms": round(RECONNECT_S_MAX * 1000),
    }


async def answered(future: "Future[Answer]", within: float) -> Answer:
    """What the library's threads bring. Raises TroubleError; whoever stops waiting leaves them to it."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: call_in(loop, done.set))
    try:
        async with asyncio.timeout(within):
            await done.wait()
    except TimeoutError:
        raise TroubleError(f"no answer within {within:.0f} s") from None
    try:
        return future.result()
    except KafkaException as error:
        raise TroubleError.of(error) from None


def call_in(loop: asyncio.AbstractEventLoop, callback: Any, *arguments: object) -> None:
    """From a thread of the library's, which may outlive the loop."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)


HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9a-fA-F:.]+(%[A-Za-z0-9]+)?")
NOT_ALLOWED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
REFUSALS = NOT_ALLOWED | {
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_REPLICATION_FACTOR,
}
# A broker that stands still is noticed after so long, and one that collects garbage mostly is not.
ANSWER_S_MAX = 3.0
# The library keeps its limit itself; this one is for the day it does not.
GIVE_UP_S = ANSWER_S_MAX + 2.0
# A connection on which nothing comes for so long is given up: a broker may stand still for a garbage collection.
SILENCE_S_MAX = 10.0
# A broker that is back is found again so soon.
RECONNECT_S_MAX = 1.0
