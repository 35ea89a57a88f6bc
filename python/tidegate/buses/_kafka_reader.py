"""One consumer and the one thread that touches it: batches come out, each of one topic and in its order.

Partitions are assigned by hand at offsets that are given, so there is no group to join and none to be thrown out of.
Rule: nothing here knows what was handed over; a partition that is assigned anew starts where it is told to.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tidegate.buses._kafka_link import (
    DETAILS,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Place,
    TopicPartition,
    TroubleError,
    answered,
    call_in,
    describe,
)
from tidegate.errors import ConfigError
from tidegate.profile import BusMessage

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """Of one topic. `reached` is where each of its partitions is after it, `junk` how many records were no messages."""

    topic: str
    messages: list[BusMessage] = field(default_factory=list)
    reached: dict[Place, int] = field(default_factory=dict)
    junk: int = 0


@dataclass(slots=True)
class Arrival:
    """What one look at the consumer's queue brought, and the offset at which each partition ends as far as it knows."""

    batches: dict[str, Batch] = field(default_factory=dict)
    ends: dict[Place, int] = field(default_factory=dict)
    astray: set[Place] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)  # topic -> what the consumer says of it


class Reader:
    def __init__(
        self, settings: Mapping[str, Any], subject_of: Callable[[Message], str], on_down: Callable[[], None]
    ) -> None:
        """`on_down` is called in the loop when no broker can be reached."""
        self._loop = asyncio.get_running_loop()
        self._subject_of = subject_of
        self._on_down = on_down
        try:
            self._consumer = Consumer({**settings, "error_cb": self._on_error}, logger=DETAILS)
        except KafkaException as error:
            raise ConfigError(f"Kafka's library refuses its settings: {TroubleError.of(error)}") from None
        self._thread = ThreadPoolExecutor(1, "tidegate-kafka")
        self._assigned: set[Place] = set()

    async def assign(self, starts: Mapping[Place, int]) -> None:
        """From now on these are read as well, from there on; of one that was read already nothing old comes."""
        await self._loop.run_in_executor(self._thread, self._assign, dict(starts))

    async def leave(self, places: set[Place]) -> None:
        """These are read no more."""
        await self._loop.run_in_executor(self._thread, self._leave, places)

    async def read(self) -> Arrival:
        """What is there, or after POLL_S nothing."""
        return await self._loop.run_in_executor(self._thread, self._take)

    async def close(self) -> None:
        """Whatever the thread does comes to its end first."""
        try:
            await answered(self._thread.submit(self._consumer.close), CLOSE_S_MAX)
        except TroubleError:
            log.warning("the Kafka consumer did not end within %.0f s", CLOSE_S_MAX)
        self._thread.shutdown(wait=False)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _assign(self, starts: dict[Place, int]) -> None:
        if again := self._assigned & starts.keys():
            self._consumer.incremental_unassign([TopicPartition(*place) for place in again])
        self._consumer.incremental_assign([TopicPartition(*place, start) for place, start in starts.items()])
        self._assigned |= starts.keys()

    def _leave(self, places: set[Place]) -> None:
        if left := self._assigned & places:
            self._consumer.incremental_unassign([TopicPartition(*place) for place in left])
        self._assigned -= places

    def _take(self) -> Arrival:
        arrival = Arrival()
        if (first := self._consumer.poll(POLL_S)) is None:
            return arrival
        received_at = time.perf_counter()
        # not consume(500, POLL_S): that waits for 500
        for record in (first, *self._consumer.consume(BATCH_MESSAGES_MAX - 1, 0)):
            if error := record.error():
                self._add_event(arrival, record, error)
            else:
                self._add_message(arrival, record, received_at)
        self._add_ends(arrival)
        return arrival

    def _add_message(self, arrival: Arrival, record: Message, received_at: float) -> None:
        topic, offset, data = record.topic() or "", record.offset() or 0, record.value()
        if (batch := arrival.batches.get(topic)) is None:
            batch = arrival.batches[topic] = Batch(topic)
        batch.reached[Place(topic, record.partition() or 0)] = offset + 1
        if data is None:
            batch.junk += 1
        else:
            batch.messages.append(BusMessage(topic, self._subject_of(record), data, offset + 1, received_at))

    def _add_event(self, arrival: Arrival, record: Message, error: KafkaError) -> None:
        topic, place = record.topic(), Place(record.topic() or "", record.partition() or 0)
        if topic is None:
            self._on_error(error)
        elif error.code() == KafkaError._PARTITION_EOF:
            # The end of a transaction takes an offset and is no message.
            arrival.batches.setdefault(topic, Batch(topic)).reached[place] = record.offset() or 0
            arrival.ends[place] = record.offset() or 0
        elif error.code() in LOST_POSITION:
            arrival.astray.add(place)
        else:
            arrival.faults[topic] = describe(error)

    def _add_ends(self, arrival: Arrival) -> None:
        for place in {place for batch in arrival.batches.values() for place in batch.reached} - arrival.ends.keys():
            with contextlib.suppress(KafkaException):  # of a topic that has just gone
                known = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
                arrival.ends[place] = known[1] if known else 0

    def _on_error(self, error: KafkaError) -> None:
        log.debug("Kafka consumer: %s", describe(error))
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            call_in(self._loop, self._on_down)


def key_of(record: Message) -> str:
    key = record.key()
    return key.decode(errors="replace") if key else ""


LOST_POSITION = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
# The same bound as on NATS: some milliseconds of the engine's time.
BATCH_MESSAGES_MAX = 500
# A message ends the wait at once. A bus that stops, or has a partition more to read, waits no longer than that.
POLL_S = 0.05
# A consumer without a group to leave ends in milliseconds; its thread may be in a poll.
CLOSE_S_MAX = 3.0
