"""What crosses the boundary to the native engine, typed: options in, events out, commands in.

Rule: plain numbers, texts and bytes. Times are milliseconds, sizes bytes, rates a second; 0 switches a limit off where
it says so. `config` gives each option its default and reason, `options_of` fills them in. A `conn` is an int that is
never reused while the process lives; text is UTF-8 `bytes`; a room name is `str`. The numbers that events and commands
start with are constants of `tidegate._core`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from tidegate.config import Settings
from tidegate.errors import ConfigError
from tidegate.profile import ProfileSpec

# UPGRADE, conn, peer address, target as sent, and one value for each name in Options["headers"]
UpgradeEvent: TypeAlias = tuple[Literal[1], int, str, bytes, tuple[bytes | None, ...]]
# MESSAGE, conn, session, payload, and whether it is text
MessageEvent: TypeAlias = tuple[Literal[2], int, bytes, bytes, bool]
# CLOSED, conn, session, and the close code as in RFC 6455 section 7.4; the last event of its connection. One for each
# ADMIT that answers an upgrade: also for one that came too late or that the engine refused, with 1006
ClosedEvent: TypeAlias = tuple[Literal[3], int, bytes, int]
# FAILED, conn, close code and reason: the client broke a rule; to be closed with CLOSE once its messages are answered
FailedEvent: TypeAlias = tuple[Literal[4], int, int, str]
# OVERDUE, conn, session: no user within Options["auth_ms"]; told once
OverdueEvent: TypeAlias = tuple[Literal[5], int, bytes]
# TOLD, conn, ticket, and what became of that SEND: 0 = queued for the client, 1 = its outbox is full (dropped, or the
# client is closed as too slow, by Options["outbox_messages_max"]), 2 = the connection is not open or never was
ToldEvent: TypeAlias = tuple[Literal[6], int, int, Literal[0, 1, 2]]
Event: TypeAlias = UpgradeEvent | MessageEvent | ClosedEvent | FailedEvent | OverdueEvent | ToldEvent

# ADMIT, conn, session, user or None, rooms, texts, subprotocol or None, close code with reason or None, and which of
# Options["notices"] are for it
AdmitCommand: TypeAlias = tuple[
    Literal[1], int, bytes, str | None, Sequence[str], Sequence[bytes], str | None, tuple[int, str] | None, int
]
# REFUSE, conn, HTTP status, body (JSON), and Retry-After in seconds or None
RefuseCommand: TypeAlias = tuple[Literal[2], int, int, bytes, int | None]
# SEND, conn, payload, whether it is text, and a ticket below 2**64: TOLD says what became of it; 0 = nothing is told
SendCommand: TypeAlias = tuple[Literal[3], int, bytes, bool, int]
# PUBLISH, room, payload, whether it is text, and who is excluded: a conn, a UUID as `Engine.uuid` gives it, or None
PublishCommand: TypeAlias = tuple[Literal[4], str, bytes, bool, int | str | None]
# JOIN, conn, room
JoinCommand: TypeAlias = tuple[Literal[5], int, str]
# LEAVE, conn, room
LeaveCommand: TypeAlias = tuple[Literal[6], int, str]
# SESSION, conn, session
SessionCommand: TypeAlias = tuple[Literal[7], int, bytes]
# CLOSE, conn, code, reason
CloseCommand: TypeAlias = tuple[Literal[8], int, int, str]
# PUBLISH_ROOMS, rooms, payload, and whether it is text: the same to each room, encoded once
PublishRoomsCommand: TypeAlias = tuple[Literal[9], Sequence[str], bytes, bool]
# USER, conn, user: who is on it now, after `Engine.claim_user` said that there may be one more
UserCommand: TypeAlias = tuple[Literal[10], int, str]
# HOLD, conn, and whether what it sends from now on waits in its socket
HoldCommand: TypeAlias = tuple[Literal[11], int, bool]
Command: TypeAlias = (
    AdmitCommand
    | RefuseCommand
    | SendCommand
    | PublishCommand
    | JoinCommand
    | LeaveCommand
    | SessionCommand
    | CloseCommand
    | PublishRoomsCommand
    | UserCommand
    | HoldCommand
)


class Options(TypedDict):
    """Every key is required, and no other is taken."""

    host: str
    port: int  # 0 = any free port
    shards: int  # 0 = as many as cores and max_connections need
    ws_paths: list[str]
    headers: list[str]  # lower-case names of the headers that UPGRADE carries
    http_socket: str  # abstract UNIX socket (without the NUL) of the HTTP app: requests that are no upgrade go there
    connections_max: int
    connections_per_address_max: int  # 0 = no limit
    connections_per_user_max: int  # 0 = no limit
    handshakes_per_s: int  # 0 = no limit
    upgrade_required_status: int  # HTTP status for a request to one of ws_paths that is no upgrade
    head_bytes_max: int
    headers_max: int
    handshake_ms: int
    proxy_protocol: bool
    proxy_trusted: list[str]  # addresses or CIDR networks that may send a PROXY header; others are refused
    message_bytes_max: int
    fragments_max: int
    message_rate: int  # 0 = no limit
    message_burst: int
    rate_mark: bytes | None  # only messages that hold these bytes count in full, others a hundredth; None = all count
    auth_ms: int  # 0 = a connection may be without a user for ever
    rooms_max: int
    ping_interval_ms: int
    pong_timeout_ms: int
    unanswered_pings: int  # in a row, until pong_timeout_ms runs
    silence_code: int  # close code for who is not heard in pong_timeout_ms; 0 = dropped without a word
    # by dialect, see `tidegate.profile.Notices`: excess, silence, farewell
    notices: list[tuple[bytes | None, bytes | None, bytes | None]]
    write_timeout_ms: int
    close_timeout_ms: int
    outbox_bytes_max: int
    outbox_total_max: int
    outbox_messages_max: int  # 0 = close who overruns outbox_bytes_max; else drop the newest beyond so many
    backlog_bytes_max: int
    compression: bool
    compression_bytes_min: int  # 0 = compress every message
    tls_certificate_pem: bytes | None
    tls_key_pem: bytes | None


def options_of(settings: Settings, spec: ProfileSpec, http_socket: str) -> Options:
    ws = settings.ws
    tls = read_tls(settings)
    return Options(
        host=settings.server.host,
        port=settings.server.port,
        shards=ws.shards,
        ws_paths=list(spec.ws_paths),
        headers=list(spec.headers),
        http_socket=http_socket,
        connections_max=ws.max_connections,
        connections_per_address_max=ws.max_connections_per_address,
        connections_per_user_max=ws.max_connections_per_user,
        handshakes_per_s=ws.handshakes_per_second,
        upgrade_required_status=spec.upgrade_required,
        head_bytes_max=ws.max_header_size,
        headers_max=ws.max_headers,
        handshake_ms=_ms(ws.handshake_timeout),
        proxy_protocol=ws.proxy_protocol,
        proxy_trusted=list(ws.proxy_trusted),
        message_bytes_max=ws.max_message_size,
        fragments_max=ws.max_fragments,
        message_rate=ws.message_rate,
        message_burst=ws.message_burst,
        rate_mark=spec.rate_mark,
        auth_ms=_ms(ws.auth_timeout) if ws.auth_timeout else 0,
        rooms_max=ws.max_rooms,
        ping_interval_ms=_ms(ws.ping_interval),
        pong_timeout_ms=_ms(ws.pong_timeout),
        unanswered_pings=ws.unanswered_pings,
        silence_code=spec.silence_code,
        notices=[(one.excess, one.silence, one.farewell) for one in spec.notices],
        write_timeout_ms=_ms(ws.write_timeout),
        close_timeout_ms=_ms(ws.close_timeout),
        outbox_bytes_max=ws.outbox_bytes,
        outbox_total_max=ws.outbox_total,
        outbox_messages_max=ws.outbox_messages if ws.outbox_policy == "drop" else 0,
        backlog_bytes_max=ws.backlog_bytes,
        compression=ws.enable_compression,
        compression_bytes_min=ws.compression_min_size,
        tls_certificate_pem=tls[0] if tls else None,
        tls_key_pem=tls[1] if tls else None,
    )


def read_tls(settings: Settings) -> tuple[bytes, bytes] | None:
    """Certificate chain and key as they are in the files now; None without TLS."""
    server = settings.server
    if not server.tls_cert:
        return None
    return _read("server.tls_cert", server.tls_cert), _read("server.tls_key", server.tls_key)


def _read(key: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} = {path} can't be read: {error.strerror}", "Check the path and its mode.") from None


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
