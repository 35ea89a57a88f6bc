"""One JetStream stream and its durable consumer: made where missing, checked, and made again where there is doubt.

Why not trust the durable: a message that the server sent and a broken connection swallowed comes again only after the
ack wait, late and out of order. So the node keeps its own position (the last sequence handed over) and after any doubt
makes the durable again from position + 1. Acknowledgements still keep its floor exact, for the process after us.
Rule: a node touches its own consumer only; one that several nodes share is used as it is.

Specification: JetStream wire API (`$JS.API.*`).
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from tidegate.buses import Offer
from tidegate.buses._feed import AHEAD_MAX, SECOND_NS, Feed, Position
from tidegate.buses._tap import tap_on
from tidegate.buses._tapped import TappedFeed

log = logging.getLogger(__name__)

Answer = dict[str, Any]


class RefusedError(Exception):
    """JetStream answered with an error."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code


@dataclass(frozen=True, slots=True)
class Durable:
    """A consumer's name and sort. A node's own is ordered and may be made again; a shared one belongs to all nodes."""

    stream: str
    name: str
    shared: bool
    create_stream: bool

    @property
    def path(self) -> str:
        return f"{self.stream}.{self.name}"

    def config(self, start: Mapping[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = {
            "durable_name": self.name,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_NS,
            "max_ack_pending": ACK_PENDING_MAX,
            "replay_policy": "instant",
            **start,
        }
        if not self.shared:
            config["inactive_threshold"] = INACTIVE_THRESHOLD_NS
        return config


async def open_feed(nc: Client, durable: Durable, position: Position, offer: Offer | None) -> Feed:
    """Makes what is missing (stream, consumer) and starts pulling where `position` ends."""
    info = await stream_info(nc, durable, position)
    existing = await consumer_info(nc, durable)
    if position.delivered is None and existing is not None:
        # A process before us: everything up to the floor was handed over.
        position.delivered = existing["ack_floor"]["stream_seq"]
    follow_stream(durable.stream, position, info)
    bind = bind_shared if durable.shared else bind_own
    first = await bind(nc, durable, position, existing)
    tap = await tap_on(nc) if first is not None else None
    if tap is None or first is None:
        feed = Feed(nc, durable.stream, durable.name, position, first)
    else:
        feed = TappedFeed(nc, (durable.stream, durable.name), position, first, tap=tap, offer=offer)
    await feed.start()
    return feed


async def stream_info(nc: Client, durable: Durable, position: Position) -> Answer:
    try:
        return await ask(nc, f"STREAM.INFO.{durable.stream}")
    except RefusedError as refusal:
        if refusal.code != STREAM_NOT_FOUND:
            raise
    # Whoever makes it later: everything in it is newer than this look.
    position.delivered, position.created = 0, ""
    if not durable.create_stream:
        raise RefusedError(STREAM_NOT_FOUND, "no such stream; create it, or set nats.ensure_streams to true")
    return await create_stream(nc, durable.stream)


async def create_stream(nc: Client, name: str) -> Answer:
    """Both spellings: publishers are known to write to `chat.events` for a stream CHAT."""
    subjects = sorted({f"{name}.>", f"{name.lower()}.>"})
    config: Answer = {"name": name, "subjects": subjects, "storage": "file", "retention": "limits", "num_replicas": 1}
    try:
        info = await ask(nc, f"STREAM.CREATE.{name}", config)
    except RefusedError as refusal:
        if refusal.code != SUBJECTS_OVERLAP:
            raise
        log.warning("another stream takes %s.>: creating %s with %s.> only", name.lower(), name, name)
        info = await ask(nc, f"STREAM.CREATE.{name}", config | {"subjects": [f"{name}.>"]})
    log.info("created stream %s for %s", name, ", ".join(info["config"]["subjects"]))
    return info


def follow_stream(name: str, position: Position, info: Answer) -> None:
    """Checks that the stream is the one our position is in; else everything in it is new."""
    state = info["state"]
    if position.delivered is not None:
        replaced = position.created not in ("", info["created"])
        if replaced or state["last_seq"] < position.delivered:
            log.warning("stream %s was lost or made again: delivering it from its first message", name)
            position.delivered = 0
        elif state["first_seq"] > position.delivered + 1:
            gone = (position.delivered + 1, state["first_seq"] - 1)
            log.warning("stream %s no longer keeps the sequences %d to %d: its limits are too low", name, *gone)
    position.created = info["created"]


async def bind_own(nc: Client, durable: Durable, position: Position, existing: Answer | None) -> int:
    """The consumer sequence that the next message must have."""
    if position.delivered is None:
        made = await create_consumer(nc, durable, {"deliver_policy": "new"})
        position.delivered = made["ack_floor"]["stream_seq"]
        return 1
    if existing is not None:
        if is_where_we_are(existing, durable, position.delivered):
            return int(existing["delivered"]["consumer_seq"]) + 1
        await ask(nc, f"CONSUMER.DELETE.{durable.path}")
    start = {"deliver_policy": "by_start_sequence", "opt_start_seq": position.delivered + 1}
    position.lag = (await create_consumer(nc, durable, start))["num_pending"]
    return 1


async def bind_shared(nc: Client, durable: Durable, position: Position, existing: Answer | None) -> None:
    """Whatever is missing of it, the server repeats after the ack wait, to any of the nodes."""
    if existing is None:
        # Everything where the stream is younger than our first look.
        existing = await create_consumer(nc, durable, {"deliver_policy": "all" if position.delivered == 0 else "new"})
        position.delivered = existing["ack_floor"]["stream_seq"]
    config = existing["config"]
    if config.get("deliver_subject") or config.get("ack_policy") != "explicit":
        cure = f"remove it with: nats consumer rm {durable.stream} {durable.name}"
        raise RefusedError(0, f"the consumer {durable.name} is not a pull consumer with explicit acks; {cure}")
    if taken := config.get("filter_subject") or config.get("filter_subjects"):
        log.warning("consumer %s on %s takes only %s; remove it to get all", durable.name, durable.stream, taken)


def is_where_we_are(existing: Answer, durable: Durable, delivered: int) -> bool:
    """Nothing under way and nothing else wanted: the consumer can be used as it is."""
    config = existing["config"]
    return (
        not existing.get("num_ack_pending")
        and existing["ack_floor"]["stream_seq"] == existing["delivered"]["stream_seq"] == delivered
        and not any(config.get(key) for key in ("filter_subject", "filter_subjects", "deliver_subject", "pause_until"))
        and all(config.get(key) == value for key, value in durable.config({}).items())
    )


async def consumer_info(nc: Client, durable: Durable) -> Answer | None:
    try:
        return await ask(nc, f"CONSUMER.INFO.{durable.path}")
    except RefusedError as refusal:
        if refusal.code == CONSUMER_NOT_FOUND:
            return None
        raise


async def create_consumer(nc: Client, durable: Durable, start: Mapping[str, Any]) -> Answer:
    request = {"stream_name": durable.stream, "config": durable.config(start)}
    return await ask(nc, f"CONSUMER.DURABLE.CREATE.{durable.path}", request)


async def ask(nc: Client, subject: str, request: Mapping[str, Any] | None = None) -> Answer:
    """One request to the JetStream API. Raises RefusedError, or `nats.errors.Error` when nobody answers."""
    try:
        answer = await nc.request(
            f"$JS.API.{subject}", orjson.dumps(request) if request else b"", timeout=API_TIMEOUT_S
        )
    except nats.errors.NoRespondersError:
        raise RefusedError(NO_JETSTREAM, NO_JETSTREAM_CURE) from None
    try:
        content: Answer = orjson.loads(answer.data)
        error = content.get("error")
    except (orjson.JSONDecodeError, AttributeError):
        raise RefusedError(0, "JetStream's answer is not JSON: is something else subscribed to $JS.API?") from None
    if error:
        code = error.get("err_code", 0)
        raise RefusedError(
            code, NO_JETSTREAM_CURE if code in JETSTREAM_OFF else error.get("description", "no reason given")
        )
    return content


def name_token(text: str) -> str:
    """`text` as part of a stream's, consumer's or subject's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


# JetStream's default; a node's own consumer never relies on it, nodes that share one wait so long for a lost message.
ACK_WAIT_NS = 30 * SECOND_NS
# Ten times AHEAD_MAX: acknowledgements on their way never stop delivery (the default of 1,000 would).
ACK_PENDING_MAX = 10 * AHEAD_MAX
# The contract: a node that is away for longer starts with new messages, and its consumer leaves nothing behind.
INACTIVE_THRESHOLD_NS = 300 * SECOND_NS
# JetStream answers in milliseconds; in a cluster that elects a leader, in a few seconds.
API_TIMEOUT_S = 5.0

# Error codes of the JetStream API.
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
SUBJECTS_OVERLAP = 10065
NO_JETSTREAM = 10076
JETSTREAM_OFF = (10076, 10039)
NO_JETSTREAM_CURE = "JetStream is not enabled there: start nats-server with -js, or enable it for this account"
