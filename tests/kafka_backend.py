"""Kafka as seen from outside: what a backend writes, and what an operator does to topics and offsets.

Rule: nothing here is used by the bus under test; a client that met a broker's death is replaced by a new one.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from tidegate.buses import Bus, open_bus
from tidegate.buses.kafka import KafkaBus

from tests.buses import WAIT_S_MAX, Kafka, Settings
from tests.kafka_server import KafkaServer

SILENT: dict[str, Any] = {"error_cb": lambda error: None, "log_level": 0}
# Larger than the library's own limit, as the contract's largest message is.
PRODUCER: dict[str, Any] = {"enable.idempotence": True, "linger.ms": 0, "message.max.bytes": 8 * 1024 * 1024}


class KafkaBackend:
    def __init__(self, server: KafkaServer, partitions: int = 1, **settings: object) -> None:
        """The topic is there from the start; `partitions` 0 = it is not."""
        self.server = server
        name = secrets.token_hex(4)
        self.stream = f"chat{name}"
        own = {"topics": [self.stream], "group_id": f"g{name}", "broadcast_topic": f"broadcast{name}"}
        self.settings = Kafka(**(own | settings))  # type: ignore[arg-type]
        self.partitions = max(1, partitions)
        self._producer: Producer | None = None
        if partitions:
            self.create(self.stream, partitions)

    @property
    def subject(self) -> str:
        return f"{self.stream}.events"

    def group_of(self, node: str) -> str:
        return f"{self.settings.group_id}-{node}"

    def bus(self, node_id: str, **settings: object) -> KafkaBus:
        return self.bus_at(self.server.url, node_id, **settings)  # type: ignore[return-value]

    def bus_at(self, url: str, node_id: str, **settings: object) -> Bus:
        return open_bus(url, Settings(kafka=replace(self.settings, **settings)), node_id=node_id)  # type: ignore[arg-type]

    # --- as a backend ------------------------------------------------------------------------------------------------

    async def publish(self, data: Sequence[bytes | None], *, key: str | None = None, partition: int = 0) -> None:
        """Returns when all are kept, in this order."""
        await self.write([(self.stream, key or self.subject, item, partition) for item in data])

    async def write(self, records: Sequence[tuple[str, str | bytes, bytes | None, int]]) -> None:
        """Topic, key, value, partition."""
        errors: list[KafkaError] = []
        producer = self._producer = self._producer or Producer(
            {"bootstrap.servers": self.server.address, **PRODUCER, **SILENT}
        )

        def confirm(error: KafkaError | None, _: object) -> None:
            errors.extend([error] if error else [])

        for topic, key, value, partition in records:
            producer.produce(topic, value, key, partition, on_delivery=confirm)
            producer.poll(0)
        left = await asyncio.to_thread(producer.flush, WAIT_S_MAX)
        if left or errors:
            raise KafkaException(errors[0] if errors else KafkaError(KafkaError._TIMED_OUT))

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await asyncio.to_thread(producer.purge)
            producer.poll(0)

    # --- as an operator ----------------------------------------------------------------------------------------------

    def create(self, topic: str, partitions: int = 1, **settings: str) -> None:
        made = NewTopic(
            topic, partitions, 1, config={name.replace("_", "."): value for name, value in settings.items()}
        )
        self._answer(lambda admin: admin.create_topics([made])[topic])

    def delete(self, topic: str) -> None:
        self._answer(lambda admin: admin.delete_topics([topic])[topic])

    def grow(self, partitions: int) -> None:
        wanted = NewPartitions(self.stream, partitions)
        self._answer(lambda admin: admin.create_partitions([wanted])[self.stream])

    def transaction(self, data: Sequence[bytes], *, commit: bool) -> None:
        settings = {"bootstrap.servers": self.server.address, "transactional.id": secrets.token_hex(4), **SILENT}
        producer = Producer(settings)
        producer.init_transactions(WAIT_S_MAX)
        producer.begin_transaction()
        for item in data:
            producer.produce(self.stream, item, partition=0)
        producer.flush(WAIT_S_MAX)
        if commit:
            producer.commit_transaction(WAIT_S_MAX)
        else:
            producer.abort_transaction(WAIT_S_MAX)

    def trim(self, before: int, partition: int = 0) -> None:
        place = TopicPartition(self.stream, partition, before)
        self._answer(lambda admin: admin.delete_records([place])[place])

    def committed(self, node: str) -> Mapping[int, int]:
        """Partition -> offset."""
        # Not by the admin client, whose question ends the process when the broker is no coordinator yet.
        consumer = Consumer({"bootstrap.servers": self.server.address, "group.id": self.group_of(node), **SILENT})
        try:
            parts = [TopicPartition(self.stream, number) for number in range(self.partitions)]
            return {part.partition: part.offset for part in consumer.committed(parts, WAIT_S_MAX) if part.offset >= 0}
        finally:
            consumer.close()

    def _answer(self, ask: Callable[[AdminClient], Any]) -> Any:
        """A coordinator or leader that is just being chosen is asked again."""
        deadline = time.monotonic() + WAIT_S_MAX
        admin = AdminClient({"bootstrap.servers": self.server.address, **SILENT})  # must live until it has answered
        while True:
            try:
                return ask(admin).result(WAIT_S_MAX)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@contextlib.asynccontextmanager
async def kafka_backend_on(server: KafkaServer, partitions: int = 1, **settings: object) -> AsyncIterator[KafkaBackend]:
    backend = KafkaBackend(server, partitions, **settings)
    try:
        yield backend
    finally:
        await backend.close()
