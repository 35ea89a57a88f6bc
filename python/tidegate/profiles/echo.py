"""Returns every message on `/ws`, text or binary, to its sender: the shortest profile there is, to copy for your own.

It asks for no token and needs no bus; conformance suites run against it, so its limits are wide.
"""

from collections.abc import Iterable
from typing import Any

from tidegate.profile import Action, Admit, BusMessage, ProfileSpec, Reply, Session, Steps, Upgrade


class Echo:
    """Ten lines that decide: let everybody in, give everything back."""

    def on_open(self, upgrade: Upgrade) -> Steps:
        yield Admit(session=b"")

    def on_message(self, session: Session, payload: bytes, text: bool) -> Steps:
        yield Reply(payload, text)

    def on_bus(self, message: BusMessage) -> Iterable[Action]:
        return ()

    def on_close(self, session: Session, code: int) -> Steps:
        yield from ()


def build(settings: Any) -> Echo:
    return Echo()


PROFILE = ProfileSpec(
    name="echo",
    summary="returns every message to its sender; no token, no bus",
    ws_paths=("/ws",),
    headers=(),
    env_prefix="GATEWAY_",
    env_names={},
    # The Autobahn cases send 16 MiB in one message, or one message in 65,536 fragments, as fast as they can
    defaults={
        "ws.max_message_size": 16 * 1024 * 1024,
        "ws.max_fragments": 65_536,
        "ws.message_rate": 0,
        "ws.outbox_bytes": 64 * 1024 * 1024,
        "ws.compression_min_size": 0,
    },
    bus=None,
    needs_token=False,
    metrics=None,
    build=build,
)
