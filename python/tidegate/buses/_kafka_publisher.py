"""One producer, opened when something is first sent: what `publish` waits for, and broadcasts that nobody waits for.

The library sends again what was not confirmed, under a number by which the broker drops the second copy, and gives up
after PUBLISH_TIMEOUT_S. Rule: nothing here waits for a broker but `send` and `close`, and those only so long.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tidegate.buses._kafka_link import (
    DETAILS,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TroubleError,
    call_in,
    describe,
)

log = logging.getLogger(__name__)


class Publisher:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {**settings, **PRODUCER}
        self._open: Running | None = None

    async def send(self, topic: str, key: str, data: bytes) -> None:
        """Returns when it is kept. Raises TroubleError."""
        confirmed: asyncio.Future[KafkaError | None] = asyncio.get_running_loop().create_future()

        def confirm(error: KafkaError | None) -> None:
            if not confirmed.done():
                confirmed.set_result(error)

        self._put(topic, confirm, value=data, key=key.encode())
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S + GRACE_S):
                error = await confirmed
        except TimeoutError:
            raise TroubleError("no confirmation") from None
        if error is not None:
            self._replace_if_fatal(error)
            raise TroubleError.of(error)

    def post(
        self, topic: str, data: bytes, headers: dict[str, bytes], done: Callable[[KafkaError | None], None]
    ) -> None:
        """`done` is called in the loop, later. Raises TroubleError where it can't even wait for its turn."""
        self._put(topic, done, value=data, headers=list(headers.items()))

    async def close(self) -> None:
        """What waits is sent if that is soon done."""
        running, self._open = self._open, None
        if running is not None:
            await asyncio.to_thread(running.stop)

    def _put(self, topic: str, done: Callable[[KafkaError | None], None], **record: Any) -> None:
        loop = asyncio.get_running_loop()

        def report(error: KafkaError | None, _: Message) -> None:
            call_in(loop, done, error)

        if self._open is None:
            self._open = Running(self._settings)
        try:
            self._open.producer.produce(topic, on_delivery=report, **record)
        except KafkaException as error:
            self._replace_if_fatal(error.args[0])
            raise TroubleError.of(error) from None
        except BufferError:
            raise TroubleError("too many messages wait to be sent", KafkaError._QUEUE_FULL) from None

    def _replace_if_fatal(self, error: KafkaError) -> None:
        """A producer whose numbers the broker no longer knows sends nothing more; another one does."""
        if error.fatal() and self._open is not None:
            log.warning("Kafka producer: %s; opening another", describe(error))
            running, self._open = self._open, None
            threading.Thread(target=running.stop, daemon=True, name="tidegate-kafka-end").start()


class Running:
    """A producer and the thread that hears its confirmations."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.producer = Producer({**settings, "error_cb": hear}, logger=DETAILS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="tidegate-kafka-send")
        self._thread.start()

    def stop(self) -> None:
        """Blocks for FLUSH_S_MAX and a poll at most."""
        self.producer.flush(FLUSH_S_MAX)
        self.producer.purge()
        self.producer.poll(0)
        self._stopping.set()
        self._thread.join(SERVE_S + GRACE_S)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self.producer.poll(SERVE_S)


def hear(error: KafkaError) -> None:
    log.debug("Kafka producer: %s", describe(error))


# As long as a NATS publish waits for its confirmation.
PUBLISH_TIMEOUT_S = 5.0
# The library looks at its time limits about once a second.
GRACE_S = 2.0
# A broadcast right before the end goes out to a broker that is there; one that is away is not waited for.
FLUSH_S_MAX = 1.0
# A confirmation ends the wait at once.
SERVE_S = 0.2
PRODUCER: Mapping[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    # nothing waits for company: a burst makes its batches while the one before is on its way
    "linger.ms": 0,
    "message.timeout.ms": round(PUBLISH_TIMEOUT_S * 1000),
    # a topic that the broker does not make by itself: said as such, before the time is up
    "topic.metadata.propagation.max.ms": 3000,
    # how large a message may be is the broker's to say; this is what the library would take
    "message.max.bytes": 64 * 1024 * 1024,
    "queue.buffering.max.kbytes": 128 * 1024,
}
