"""The documented example of a profile does what its page says."""

from collections.abc import Iterator

import pytest
from tidegate.profile import Admit, BusMessage, Reply, Session, Upgrade
from tidegate.profiles.echo import PROFILE


def session() -> Session:
    return Session(conn=1, data=b"", now=0.0, uuid_of=lambda conn: f"uuid-{conn}")


def test_everybody_is_admitted_without_a_token() -> None:
    upgrade = Upgrade(1, "uuid-1", "127.0.0.1", "/ws", {}, {}, 0.0)
    assert list(PROFILE.build(None).on_open(upgrade)) == [Admit(session=b"")]
    assert not PROFILE.needs_token


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("payload", [b"", b"hello", "chào".encode(), bytes(range(256))])
def test_a_message_comes_back_as_it_was(payload: bytes, text: bool) -> None:
    assert list(PROFILE.build(None).on_message(session(), payload, text)) == [Reply(payload, text)]


def test_backends_and_goodbyes_cause_nothing() -> None:
    echo = PROFILE.build(None)
    message = BusMessage(stream="CHAT", subject="chat.events", data=b"{}", sequence=1, received_at=0.0)
    assert list(echo.on_bus(message)) == []
    closing = echo.on_close(session(), 1000)
    assert isinstance(closing, Iterator)
    assert list(closing) == []
