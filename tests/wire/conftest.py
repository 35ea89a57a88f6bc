"""One echo gateway for all wire tests that need no setting of their own: what one test does must not hurt the next."""

from collections.abc import Iterator

import pytest

from tests.gateways import Gateway, running
from tests.wire.attacks import OUTBOX_BYTES


@pytest.fixture(scope="session")
def echo() -> Iterator[Gateway]:
    with running("echo", WS_ENABLE_COMPRESSION="true", WS_HANDSHAKE_TIMEOUT="10s") as gateway:
        yield gateway


@pytest.fixture(scope="session")
def strict() -> Iterator[Gateway]:
    """Echo under the limits of a profile that faces the public: messages, fragments, outboxes."""
    limits = {"WS_MAX_MESSAGE_SIZE": "64KiB", "WS_MAX_FRAGMENTS": "1024", "WS_OUTBOX_BYTES": str(OUTBOX_BYTES)}
    with running("echo", WS_ENABLE_COMPRESSION="true", **limits) as gateway:
        yield gateway
