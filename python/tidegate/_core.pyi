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
OVERDUE: Final = 5
TOLD: Final = 6

# Commands begin with one of these
ADMIT: Final = 1
REFUSE: Final = 2
SEND: Final = 3
PUBLISH: Final = 4
JOIN: Final = 5
LEAVE: Final = 6
SESSION: Final = 7
CLOSE: Final = 8
PUBLISH_ROOMS: Final = 9
USER: Final = 10
HOLD: Final = 11

def run_limit(arguments: Sequence[str]) -> None:
    """The limit program of the benchmarks (`bench/limit`), until its driver says `exit`; its ports go to stdout.

    For a process of its own: it sets an alarm that ends the process after `--seconds-max`, and has it end with its parent.
    Raises RuntimeError for a wrong option or what the machine refuses.
    """

def run_loadgen(arguments: Sequence[str]) -> None:
    """The load generator of the benchmarks (`bench/loadgen`), until stdin ends; for a process of its own, as `run_limit`."""

@final
class Messages:
    """Bus messages of one stream in its order, kept natively."""

    def __len__(self) -> int: ...
    @property
    def payload_bytes(self) -> int: ...
    @property
    def last(self) -> int:
        """The sequence of the newest."""

    def get(self, index: int) -> tuple[str, bytes, int] | None:
        """Subject, payload and sequence of one."""

    def acknowledgements(self) -> bytes:
        """What acknowledges each of them, as the NATS wire wants it."""

@final
class Rule:
    """Where a plain event goes: see `tidegate.profile.BusRule`."""

    def __new__(cls, room: str, user: str, exclude: str, user_rooms: Sequence[str]) -> Rule: ...

@final
class Intake:
    """Cuts what a NATS server sends into frames and keeps the messages of the JetStream consumers it watches."""

    def __new__(cls) -> Intake: ...
    def watch(self, sid: int, first: int, last: int) -> None:
        """From now on keeps what comes for the subscription: `first` is the consumer's next number, `last` the newest
        sequence that was handed over."""

    def forget(self, sid: int) -> None: ...
    def take(self, data: bytes) -> tuple[bytes, list[int]]:
        """Takes what the server sent. Returns what is for the library, in whole frames, and the subscriptions that
        something came for."""

    def arrived(self, sid: int) -> tuple[list[Messages], int, int, int, int, int | None] | None:
        """Batches since the last call; how many messages came in all, the consumer's next number, how many messages
        follow, how many had no position, and the number that came instead of the next, which ends it."""

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

        Commands for a connection that is gone are ignored, but ADMIT is answered by CLOSED and SEND with a ticket by TOLD.
        Returns `pressed()`.
        Raises TypeError, ValueError or OverflowError for a malformed command; none of the batch is carried out then.
        """

    def publish(self, messages: Messages, first: int, rule: Rule) -> tuple[int, int, int, bool]:
        """Hands the plain messages from `first` on to their rooms, up to one that is not plain; one submission.

        Returns the number of publishes, the first message that the profile must be asked about and the one after the last
        of those (both `len(messages)` when all were plain), and `pressed()`.
        """

    def claim_user(self, user: str) -> bool:
        """Whether `user` may be on one connection more. It counts as one from now on: the command USER must follow."""

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
