"""What the bus asks a Kafka cluster beside messages: which topics there are, where they begin and end, where we are.

Why a consumer that reads nothing: its answers come only while somebody polls it, and the one that reads is not polled
while a hand-over waits. Why not the library's admin client: in librdkafka 2.16 a broker that has just started can
answer its questions for topics and for a group's offsets so that the whole process ends (an assertion, a bad pointer),
and its question for a topic's end does not notice new partitions. Rule: every question ends within GIVE_UP_S, with
TroubleError at worst; commits go out one at a time, so an old one is never kept after a newer one.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from tidegate.buses._kafka_link import (
    ANSWER_S_MAX,
    DETAILS,
    GIVE_UP_S,
    AdminClient,
    Consumer,
    KafkaError,
    NewTopic,
    Place,
    TopicPartition,
    TroubleError,
    answered,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")
# A topic's partitions, None = there is no such topic, or what is the matter with it
Topic: TypeAlias = list[Place] | TroubleError | None


class Cluster:
    def __init__(self, settings: Mapping[str, Any], group: str) -> None:
        # Failures show where an answer is missing; without a callback the library would print them.
        self._settings = {**settings, "error_cb": lambda error: None}
        own = {"group.id": group, "enable.auto.commit": False, "on_commit": self._on_commit}
        self._consumer = Consumer(self._settings | own, logger=DETAILS)
        self._thread = ThreadPoolExecutor(1, "tidegate-kafka-ask")
        self._is_committing = False
        self._outcome: tuple[KafkaError | None, list[TopicPartition]] = (None, [])

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Raises TroubleError when nobody answers."""
        return await self._call(self._topics, list(names))

    async def stored(self, places: Iterable[Place]) -> dict[Place, int]:
        """Offsets that were committed; a place without one is not in it. Raises TroubleError."""
        return await self._call(self._committed, [TopicPartition(*place) for place in places])

    async def store(self, offsets: Mapping[Place, int]) -> set[Place]:
        """Commits. Returns what was: a place of a topic that is gone is not. Raises TroubleError."""
        return await self._call(self._commit, [TopicPartition(*place, offset) for place, offset in offsets.items()])

    async def bounds(self, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
        """The offsets of the oldest message and of the next new one. Raises TroubleError."""
        return await self._call(self._bounds, list(places))

    async def create(self, name: str, settings: dict[str, str]) -> None:
        """With one partition, and as many copies as the cluster's own default says."""
        admin = AdminClient(self._settings, logger=DETAILS)  # must be there until it has answered
        topic = NewTopic(name, num_partitions=1, replication_factor=-1, config=settings)
        asked = admin.create_topics([topic], request_timeout=ANSWER_S_MAX, operation_timeout=ANSWER_S_MAX)
        try:
            await answered(asked[name], GIVE_UP_S)
        except TroubleError as trouble:
            if trouble.code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    async def close(self) -> None:
        try:
            await answered(self._thread.submit(self._consumer.close), GIVE_UP_S)
        except TroubleError:
            log.warning("the Kafka client of this node's offsets did not end within %.0f s", GIVE_UP_S)
        self._thread.shutdown(wait=False)

    async def _call(self, ask: Callable[[Any], Result], about: object) -> Result:
        return await answered(self._thread.submit(ask, about), GIVE_UP_S)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _topics(self, names: list[str]) -> dict[str, Topic]:
        self._consumer.poll(0)  # it reads nothing, but its log lines wait for that
        deadline = time.monotonic() + ANSWER_S_MAX
        return {name: self._topic(name, max(MOMENT_S, deadline - time.monotonic())) for name in names}

    def _topic(self, name: str, within: float) -> Topic:
        found = self._consumer.list_topics(name, within)
        topic = found.topics.get(name)
        if not found.brokers or topic is None:
            raise TroubleError("no broker is in service yet")
        if topic.error is None:
            return [Place(name, number) for number in sorted(topic.partitions)]
        return None if topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART else TroubleError.of(topic.error)

    def _bounds(self, places: list[Place]) -> dict[Place, tuple[int, int]]:
        deadline = time.monotonic() + ANSWER_S_MAX
        found = {}
        for place in places:
            within = max(MOMENT_S, deadline - time.monotonic())
            bounds = self._consumer.get_watermark_offsets(TopicPartition(*place), within, cached=False)
            if bounds is None:
                raise TroubleError(f"no answer within {ANSWER_S_MAX:.0f} s")
            found[place] = bounds
        return found

    def _committed(self, parts: list[TopicPartition]) -> dict[Place, int]:
        found = self._consumer.committed(parts, ANSWER_S_MAX)
        for part in found:
            if part.error is not None:
                raise TroubleError.of(part.error)
        return {Place(part.topic, part.partition): part.offset for part in found if part.offset >= 0}

    def _commit(self, parts: list[TopicPartition]) -> set[Place]:
        deadline = time.monotonic() + ANSWER_S_MAX
        self._await_commit(deadline)
        self._is_committing = True
        self._consumer.commit(offsets=parts, asynchronous=True)
        self._await_commit(deadline)
        error, kept = self._outcome
        faults = [part.error for part in kept if part.error is not None] + ([error] if error else [])
        for fault in faults:
            if fault.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TroubleError.of(fault)
        return {Place(part.topic, part.partition) for part in kept if part.error is None} if not error else set()

    def _await_commit(self, deadline: float) -> None:
        while self._is_committing:
            if time.monotonic() > deadline:
                raise TroubleError(f"no answer within {ANSWER_S_MAX:.0f} s")
            self._consumer.poll(COMMIT_POLL_S)

    def _on_commit(self, error: KafkaError | None, parts: list[TopicPartition]) -> None:
        self._outcome = error, parts
        self._is_committing = False


# The library calls us back within a poll and polls on, so this is how late an answer is seen.
COMMIT_POLL_S = 0.005
# What the last of several questions still has, when the time is up: an answer that is there is taken.
MOMENT_S = 0.05
