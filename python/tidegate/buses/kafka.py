"""`kafka://host:9092,host2:9092`: every node reads every record of its topics and keeps its own place in them.

A consumer group a node, `{kafka.group_id}-{node_id}`, used for nothing but the committed offsets: partitions are
assigned by hand, so nobody rebalances, a start waits for no join, and an old process of the same node can't take any
away. Rule: an offset is committed only after the hand-over of what is before it, and not before that was served; a
broker that is away, slow or frozen never ends `run`.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from tidegate.buses import BusSettings, Deliver, IsServed, KafkaSettings, Offer, Receive
from tidegate.buses._backoff import backoff_s, level_of
from tidegate.buses._kafka_cluster import Cluster
from tidegate.buses._kafka_link import (
    RECONNECT_S_MAX,
    KafkaError,
    Message,
    TroubleError,
    client_settings,
    parse_brokers,
)
from tidegate.buses._kafka_publisher import PUBLISH_TIMEOUT_S, Publisher
from tidegate.buses._kafka_reader import Arrival, Batch, Reader, key_of
from tidegate.buses._kafka_survey import Survey
from tidegate.errors import BusError

log = logging.getLogger(__name__)


def open_bus(url: str, settings: BusSettings, node_id: str) -> "KafkaBus":
    return KafkaBus(parse_brokers(url), settings.kafka, node_id)


async def probe(url: str, within: float) -> None:
    """Whether anybody answers there. No topic is touched and no offset. Raises BusError."""
    cluster = Cluster(client_settings(parse_brokers(url), "tidegate-probe"), "tidegate-probe")
    try:
        async with asyncio.timeout(within):
            await cluster.topics([ANY_TOPIC])
    except TimeoutError:
        raise BusError(f"no answer within {within:.0f} s") from None
    except TroubleError as trouble:
        raise BusError(str(trouble)) from None
    finally:
        await cluster.close()


class KafkaBus:
    """One gateway node. `run` follows the topics; `publish` works with and without it."""

    def __init__(self, brokers: str, settings: KafkaSettings, node_id: str) -> None:
        self._brokers = brokers
        self._settings = settings
        self._client = client_settings(brokers, f"tidegate-{node_id}")
        self._group = f"{settings.group_id}-{node_id}"
        self._sender = f"{node_id}#{secrets.token_hex(8)}"  # another one after a restart
        self._topics = Survey(settings.topics, keeps=True)
        self._broadcasts = Survey([settings.broadcast_topic] if settings.broadcast_topic else [], keeps=False)
        self._publisher = Publisher(self._client)
        self._look_now = asyncio.Event()
        self._is_up = self._is_running = self._handing_over = False
        self._messages = self._bytes = self._reconnects = self._dropped = self._decode_errors = 0
        self._faults: dict[str, str] = {}

    def is_ready(self) -> bool:
        return self._is_up and self._topics.is_live() and self._broadcasts.is_live()

    def stats(self) -> dict[str, int]:
        return {
            "messages": self._messages,
            "bytes": self._bytes,
            "reconnects": self._reconnects,
            "lag": sum(self.lag_by_stream().values()),
            "broadcasts_dropped": self._dropped,
            "decode_errors": self._decode_errors,
        }

    def lag_by_stream(self) -> Mapping[str, int]:
        """Topic -> how many messages the brokers hold that we have not handed over."""
        return self._topics.lag_by_topic()

    def lost_by_stream(self) -> Mapping[str, int]:
        """Topic -> how many messages were trimmed before this node read them."""
        return self._topics.lost

    async def close(self) -> None:
        await self._publisher.close()

    # --- consuming ---------------------------------------------------------------------------------------------------

    async def run(self, deliver: Deliver, receive: Receive, offer: Offer | None = None) -> None:
        self._is_running = True
        cluster = Cluster(self._client, self._group)
        reader = Reader(self._consumer(), key_of, self._all_down)
        listener = Reader(self._consumer(), sender_of, self._all_down) if self._broadcasts.names else None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look_around(cluster))
                tasks.create_task(self._follow(reader, deliver, offer))
                tasks.create_task(self._keep_positions(cluster))
                if listener:
                    tasks.create_task(self._listen(listener, receive))
        except BaseExceptionGroup as group:
            # The caller wants it as it is: what `deliver` raised.
            raise group.exceptions[0] from None
        finally:
            self._is_running = False
            await self._finish(cluster, [each for each in (reader, listener) if each])

    def _consumer(self) -> dict[str, Any]:
        most = self._settings.max_bytes
        return (
            self._client
            | CONSUMER
            | {
                "group.id": self._group,
                "fetch.min.bytes": self._settings.min_bytes,
                "fetch.max.bytes": most,
                "max.partition.fetch.bytes": most,
                # only since the library wants it to be no more than that; a larger message arrives all the same
                "message.max.bytes": min(most, 1_000_000),
            }
        )

    async def _look_around(self, cluster: Cluster) -> None:
        failures = 0
        while True:
            self._look_now.clear()
            try:
                await self._look(cluster)
            except TroubleError as trouble:
                failures += 1
                self._down()
                log.log(level_of(failures), "Kafka at %s: %s; retrying", self._brokers, trouble)
            else:
                failures = 0
                self._up()
            await happens(self._look_now, backoff_s(failures, RECONNECT_S_MAX) if failures else LOOK_S)

    async def _look(self, cluster: Cluster) -> None:
        if not (self._topics.names or self._broadcasts.names):
            await cluster.topics([ANY_TOPIC])
        if self._broadcasts.names:
            await self._make_broadcast_topic(cluster)
        await self._broadcasts.look(cluster)
        await self._topics.look(cluster)
        if self._handing_over:
            await self._topics.measure(cluster)

    async def _make_broadcast_topic(self, cluster: Cluster) -> None:
        (name,) = self._broadcasts.names
        if not self._broadcasts.is_live() and (await cluster.topics([name]))[name] is None:
            try:
                await cluster.create(name, BROADCAST_TOPIC)
            except TroubleError as trouble:
                if not trouble.is_refusal:
                    raise
                self._fault(name, f"it is not there and may not be made by this node: {trouble}")

    def _up(self) -> None:
        if not self._is_up:
            log.info("connected to Kafka at %s", self._brokers)
        self._is_up = True

    def _down(self) -> None:
        if self._is_up:
            self._reconnects += 1
            log.warning("Kafka at %s is out of reach; reconnecting", self._brokers)
        self._is_up = False

    def _all_down(self) -> None:
        """The consumers notice a connection that ends before the next look does."""
        if self._is_up:
            self._down()
            self._look_now.set()

    async def _follow(self, reader: Reader, deliver: Deliver, offer: Offer | None) -> None:
        while True:
            arrival = await self._next(reader, self._topics)
            for batch in arrival.batches.values():
                await self._hand_over(batch, deliver, offer)
            for place, end in arrival.ends.items():
                if (position := self._topics.positions.get(place)) is not None:
                    position.heard_of(end)
            self._lose(arrival, self._topics)

    async def _next(self, reader: Reader, survey: Survey) -> Arrival:
        if gone := survey.take_gone():
            await reader.leave(gone)
        if changes := survey.take_changes():
            await reader.assign({place: position.next for place, position in changes.items()})
        arrival = await reader.read()
        for topic, fault in arrival.faults.items():
            self._fault(topic, fault)
        return arrival

    def _lose(self, arrival: Arrival, survey: Survey) -> None:
        """Only now that the positions are those after the last hand-over."""
        if arrival.astray:
            survey.astray |= arrival.astray
            self._look_now.set()

    async def _hand_over(self, batch: Batch, deliver: Deliver, offer: Offer | None) -> None:
        is_served = None
        if batch.messages and not (offer and offer(batch.messages)):
            is_served = await self._deliver(batch, deliver)
        for place, reached in batch.reached.items():
            if (position := self._topics.positions.get(place)) is not None:
                position.reach(reached, is_served)
        self._messages += len(batch.messages)
        self._bytes += sum(len(message.data) for message in batch.messages)
        if batch.junk:
            self._decode_errors += batch.junk
            log.warning("Kafka topic %s: %d records without a value were left out", batch.topic, batch.junk)

    async def _deliver(self, batch: Batch, deliver: Deliver) -> IsServed | None:
        self._handing_over = True
        try:
            return await deliver(batch.messages)
        finally:
            self._handing_over = False

    async def _keep_positions(self, cluster: Cluster) -> None:
        failures = 0
        while True:
            await asyncio.sleep(
                max(self._settings.commit_interval, backoff_s(failures, COMMIT_PAUSE_S) if failures else 0)
            )
            try:
                await self._topics.store(cluster, self._topics.unstored())
                failures = 0
            except TroubleError as trouble:
                failures += 1
                log.log(level_of(failures), "Kafka did not take this node's offsets: %s; retrying", trouble)

    async def _finish(self, cluster: Cluster, readers: list[Reader]) -> None:
        """What is owed: our positions."""
        self._is_up = False
        try:
            await self._topics.store(cluster, self._topics.unstored())
        except TroubleError as trouble:
            log.warning("Kafka did not take this node's offsets, the last messages may be repeated: %s", trouble)
        for survey in (self._topics, self._broadcasts):
            survey.rest()
        await asyncio.gather(cluster.close(), *(reader.close() for reader in readers))

    def _fault(self, topic: str, fault: str) -> None:
        """Once for each: the library says it again and again."""
        if self._faults.get(topic) != fault:
            self._faults[topic] = fault
            log.warning("Kafka topic %s: %s", topic, fault)

    # --- publishing --------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, data: bytes) -> None:
        topic = subject.partition(".")[0]
        if not topic:
            raise BusError("a message needs a subject", "Its first word names the topic: chat.events goes to chat.")
        try:
            await self._publisher.send(topic, subject, data)
        except TroubleError as trouble:
            raise publish_failed(topic, trouble) from None

    # --- broadcasting ------------------------------------------------------------------------------------------------

    def broadcast(self, data: bytes) -> None:
        topic = self._settings.broadcast_topic
        if not (topic and self._is_running and self._is_up):
            self._dropped += 1
            return
        try:
            self._publisher.post(topic, data, {SENDER: self._sender.encode()}, self._broadcast_done)
        except TroubleError:
            self._dropped += 1

    def _broadcast_done(self, error: KafkaError | None) -> None:
        self._dropped += error is not None

    async def _listen(self, listener: Reader, receive: Receive) -> None:
        while True:
            arrival = await self._next(listener, self._broadcasts)
            for batch in arrival.batches.values():
                for place, reached in batch.reached.items():
                    if (position := self._broadcasts.positions.get(place)) is not None:
                        position.next = reached
                for message in batch.messages:
                    self._take(message.subject, message.data, receive)
            self._lose(arrival, self._broadcasts)

    def _take(self, sender: str, data: bytes, receive: Receive) -> None:
        if not sender:
            self._decode_errors += 1
        elif sender != self._sender:
            try:
                receive(data)
            except Exception:
                log.exception("a broadcast from another node could not be used")


def sender_of(record: Message) -> str:
    """Of a broadcast; empty = not from a node of ours."""
    # as a list, whatever the type says: a name may occur twice
    for name, value in list(record.headers() or ()):
        if name == SENDER and isinstance(value, bytes):
            return value.decode(errors="replace")
    return ""


def publish_failed(topic: str, trouble: TroubleError) -> BusError:
    if trouble.code in (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT):
        cure = "It may be kept or not: look before you send it again. Is Kafka up? `tidegate doctor` tells."
        return BusError(f"not confirmed within {PUBLISH_TIMEOUT_S:.0f} s: {trouble}", cure)
    if trouble.code in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
        return BusError(f"Kafka has no topic {topic}", "Create it, or let brokers do so: auto.create.topics.enable.")
    if trouble.code == KafkaError._QUEUE_FULL:
        return BusError(f"Kafka is away or too slow: {trouble}", "Publish more slowly.")
    return BusError(f"Kafka did not take the message: {trouble}")


async def happens(event: asyncio.Event, within: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await event.wait()


# The record header that names the node a broadcast is from.
SENDER = "tidegate-sender"
# Whoever answers a question for this one is there, whether it exists or not.
ANY_TOPIC = "tidegate"
# Nobody reads the past of it.
BROADCAST_TOPIC = {"retention.ms": "3600000"}
# A sign of life, and a look for topics and partitions that are new: a broker that froze shows as not ready within four
# seconds, and a topic that appears is followed after one. It costs the cluster two small questions a node.
LOOK_S = 1.0
# Offsets that are not taken are offered again so often; they only matter after a crash.
COMMIT_PAUSE_S = 10.0
CONSUMER: dict[str, Any] = {
    # positions are ours to keep: no commit by the library, and no other place than the one that we said
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    # where a partition ends is part of how far behind we are
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    # how long a broker waits for fetch.min.bytes: a message alone is as late as that
    "fetch.wait.max.ms": 10,
    # what is fetched ahead while a hand-over waits, and how soon fetching goes on after it
    "queued.max.messages.kbytes": 16 * 1024,
    "fetch.queue.backoff.ms": 10,
}
