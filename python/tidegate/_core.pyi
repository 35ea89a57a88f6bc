"""The engine: sockets, frames, rooms and fan-out, in native threads that never wait for Python.

`tidegate.engine` has the shapes of what goes in and comes out. Nothing here blocks except `Engine(...)` and `Engine.stop`.
"""

from collections.abc import Sequence
from typing import Final, final

from tidegate.engine import Command, Event, Options

__version__: Final[str]

# Events begin with one of these
UPGRADE: Final = 1
MESSAGE: Final = 2
CLOSED: Final = 3
FAILED: Final = 4

# Commands begin with one of these
ADMIT: Final = 1
REFUSE: Final = 2
SEND: Final = 3
PUBLISH: Final = 4
JOIN: Final = 5
LEAVE: Final = 6
SESSION: Final = 7
CLOSE: Final = 8

def run_limit(arguments: Sequence[str]) -> None:
    """The limit program of the benchmarks (`bench/limit`), until its driver says `exit`; its ports go to stdout.

    For a process of its own: it sets an alarm that ends the process after `--seconds-max`, and has it end with its parent.
    Raises RuntimeError for a wrong option or what the machine refuses.
    """

def run_loadgen(arguments: Sequence[str]) -> None:
    """The load generator of the benchmarks (`bench/loadgen`), until stdin ends; for a process of its own, as `run_limit`."""

@final
class Engine:
    """Shard threads with their listeners, connections and rooms."""

    def __new__(cls, options: Options) -> Engine:
        """Binds the port and starts the shards; clients are served from here on.

        `options` holds every key of `tidegate.engine.Options`, no other.

        Raises ValueError for a missing, unknown or impossible option, OSError when the port can't be bound or a thread
        not started.
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
        Raises TypeError, ValueError or OverflowError for a malformed command; none of the batch is carried out then.
        """

    def pressed(self) -> bool:
        """Whether more is queued for fan-out than `backlog_bytes_max`: hold back bus messages until the eventfd wakes you."""

    def uuid(self, conn: int) -> str:
        """The UUID by which clients and backends know `conn`."""

    def stats(self) -> dict[str, int]:
        """Counters summed over the shards; the keys are the fields of `Stats` in rust_core/hub/src/stats.rs.

        Instead of `refused` there is one `refused.REASON` key each; also `shards`, `shard_lag_us_max` (the longest recent
        pass of a shard's loop), `http_relays_now`, `events_queued_now`.
        """

    def set_tls(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """New TLS handshakes use this certificate. ValueError names what is wrong with it; the old one stays then."""

    def begin_drain(self, within_ms: int) -> None:
        """Refuses upgrades with 503, delivers what is owed, closes everybody with 1001 spread over the time."""

    def is_drained(self) -> bool: ...
    def stop(self) -> None:
        """Ends all shards at once and joins their threads. Later calls do nothing."""
