"""The options of the native engine, typed: the one place where Python's names meet the engine's.

Rule: plain numbers and strings; `config.py` gives each its default and reason, `app.py` fills this in.
"""

from typing import TypedDict


class Options(TypedDict):
    """Every key is required. Times are milliseconds, sizes bytes, rates a second; 0 switches a limit off where it says so."""

    host: str
    port: int  # 0 = any free port
    shards: int  # 0 = as many as cores and max_connections need
    ws_paths: list[str]
    headers: list[str]  # lower-case names of the headers that UPGRADE carries
    http_socket: str  # abstract UNIX socket name (without the NUL) of the HTTP app; requests that are no upgrade are relayed there
    connections_max: int
    connections_per_address_max: int  # 0 = no limit
    connections_per_user_max: int  # 0 = no limit
    handshakes_per_s: int  # 0 = no limit
    head_bytes_max: int
    headers_max: int
    handshake_ms: int
    proxy_protocol: bool
    proxy_trusted: list[str]  # addresses or CIDR networks that may send a PROXY header; others are refused
    message_bytes_max: int
    fragments_max: int
    message_rate: int  # 0 = no limit
    message_burst: int
    rooms_max: int
    ping_interval_ms: int
    pong_timeout_ms: int
    write_timeout_ms: int
    close_timeout_ms: int
    outbox_bytes_max: int
    outbox_total_max: int
    outbox_messages_max: int  # 0 = close who overruns outbox_bytes_max; else drop the newest beyond so many
    backlog_bytes_max: int
    compression: bool
    tls_certificate_pem: bytes | None
    tls_key_pem: bytes | None
