"""The engine: sockets, frames, rooms and fan-out, in native threads that never wait for Python.

Shapes: a `conn` is an int that is never reused while the process lives. Text is UTF-8 `bytes`. A room name is `str`.
Nothing here blocks except `Engine.stop`.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias, final

__version__: Final[str]

# --- events: what `Engine.drain` returns, told apart by their first field --------------------------------------------

UPGRADE: Final = 1
MESSAGE: Final = 2
CLOSED: Final = 3

# (UPGRADE, conn, peer address, target as sent, one value for each name in Options["headers"])
UpgradeEvent: TypeAlias = tuple[Literal[1], int, str, bytes, tuple[bytes | None, ...]]
# (MESSAGE, conn, session, payload, is_text)
MessageEvent: TypeAlias = tuple[Literal[2], int, bytes, bytes, bool]
# (CLOSED, conn, session, close code as in RFC 6455 section 7.4)
ClosedEvent: TypeAlias = tuple[Literal[3], int, bytes, int]
Event: TypeAlias = UpgradeEvent | MessageEvent | ClosedEvent

# --- commands: what `Engine.submit` takes ----------------------------------------------------------------------------

ADMIT: Final = 1
REFUSE: Final = 2
SEND: Final = 3
PUBLISH: Final = 4
JOIN: Final = 5
LEAVE: Final = 6
SESSION: Final = 7
CLOSE: Final = 8

# (ADMIT, conn, session, user or None, rooms, texts, subprotocol or None, (close code, reason) or None)
AdmitCommand: TypeAlias = tuple[
    Literal[1], int, bytes, str | None, Sequence[str], Sequence[bytes], str | None, tuple[int, str] | None
]
# (REFUSE, conn, HTTP status, body (JSON), Retry-After in seconds or None)
RefuseCommand: TypeAlias = tuple[Literal[2], int, int, bytes, int | None]
# (SEND, conn, payload, is_text)
SendCommand: TypeAlias = tuple[Literal[3], int, bytes, bool]
# (PUBLISH, room, payload, is_text, excluded: a conn, the UUID of one as `Engine.uuid` gives it, or None)
PublishCommand: TypeAlias = tuple[Literal[4], str, bytes, bool, int | str | None]
JoinCommand: TypeAlias = tuple[Literal[5], int, str]
LeaveCommand: TypeAlias = tuple[Literal[6], int, str]
SessionCommand: TypeAlias = tuple[Literal[7], int, bytes]
# (CLOSE, conn, code, reason)
CloseCommand: TypeAlias = tuple[Literal[8], int, int, str]
Command: TypeAlias = (
    AdmitCommand
    | RefuseCommand
    | SendCommand
    | PublishCommand
    | JoinCommand
    | LeaveCommand
    | SessionCommand
    | CloseCommand
)

@final
class Engine:
    """Shard threads with their listeners, connections and rooms."""

    def __new__(cls, options: dict[str, Any]) -> Engine:
        """Binds the port and starts the shards; clients are served from here on.

        `options` holds every key of `tidegate.engine.Options`, no other.

        Raises ValueError for a missing, unknown or impossible option, OSError when the port can't be bound or a thread not started.
        """

    @property
    def port(self) -> int:
        """The port bound, also when 0 was asked for."""

    def fileno(self) -> int:
        """An eventfd, readable when `drain` has events or `pressed` may have turned false."""

    def drain(self, limit: int) -> list[Event]:
        """Up to `limit` events, oldest first; empty resets the eventfd."""

    def submit(self, commands: Sequence[Command]) -> bool:
        """Hands commands to the shards, in order for each connection and each room; PUBLISH is encoded once a call and room.

        Commands for a connection that is gone are ignored. Returns `pressed()`.
        Raises TypeError or ValueError for a malformed command; none of the batch is carried out then.
        """

    def pressed(self) -> bool:
        """Whether more is queued for fan-out than `backlog_bytes_max`: hold back bus messages until the eventfd wakes you."""

    def uuid(self, conn: int) -> str:
        """The UUID by which clients and backends know `conn`."""

    def stats(self) -> dict[str, int]:
        """Counters summed over the shards; the keys are the fields of `Stats` in rust_core/hub/src/stats.rs.

        Also `refused`: one `refused.REASON` key each, `shards`, `shard_lag_us_max` (the longest recent pass of a shard's loop),
        `http_relays_now`, `events_queued_now`.
        """

    def set_tls(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """New TLS handshakes use this certificate. ValueError names what is wrong with it; the old one stays then."""

    def begin_drain(self, within_ms: int) -> None:
        """Refuses upgrades with 503, delivers what is owed, closes everybody with 1001 spread over the time."""

    def is_drained(self) -> bool: ...
    def stop(self) -> None:
        """Ends all shards at once and joins their threads. Later calls do nothing."""
