"""Every setting once: its key, type, default, bounds, unit and the reason for the default.

The README's table, `serve --print-config`, the messages about wrong values and the JSON schema come from this file:
none of them can say something else. Where a default is a contract's (`profiles/`), it stays what the original has.
Rule: durations are seconds (float), sizes bytes (int) once read; `units.py` knows how people write them. Sections are
frozen, and what depends on two of them is checked in `checks.py`.
"""

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from tidegate.config.keys import ALGORITHMS
from tidegate.config.units import parse_duration, parse_size, split_list
from tidegate.origins import ORIGIN_PATTERN


def setting(default: Any, unit: str, reason: str, **bounds: Any) -> Any:
    """A setting's definition; `bounds` are pydantic's ge, gt, le, lt."""
    extra: JsonDict = {"unit": unit}
    if callable(default):
        return Field(default_factory=default, description=reason, json_schema_extra=extra, **bounds)
    return Field(default=default, description=reason, json_schema_extra=extra, **bounds)


# The engine counts milliseconds: less would become 0, which means "off" or "at once" there
MS = 0.001


# --- types ------------------------------------------------------------------------------------------------------------


def _whole(value: object) -> object:
    if isinstance(value, (bool, float)) or (isinstance(value, str) and not re.fullmatch(r"\s*-?\d{1,18}\s*", value)):
        raise ValueError("a whole number is expected")
    return value


def _word(value: object) -> object:
    """YAML turns `no`, `12` and `1.5` into something else than text: refuse rather than guess what was written."""
    if not isinstance(value, str):
        raise ValueError("a text is expected; put it in quotes")
    return value.strip()


def _secret(value: object) -> object:
    """As it is: blanks at its ends may be part of the key that others sign with."""
    if not isinstance(value, (str, SecretStr)):
        raise ValueError("a text is expected; put it in quotes")
    return value


def _log_level(value: object) -> object:
    level = value.strip().lower() if isinstance(value, str) else value
    return "warn" if level == "warning" else level


def _matches(pattern: str, sentence: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


def _each_matches(pattern: str, sentence: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not compiled.fullmatch(value):
                raise ValueError(f"{value!r} in it: {sentence}")
        return values

    return AfterValidator(check)


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f"{value!r} in it is no address or network such as 10.0.0.0/8") from None
    return values


def _algorithms(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value not in ALGORITHMS:
            raise ValueError(f"{value!r} in it is none of {', '.join(ALGORITHMS)}")
    return values


def hostname() -> str:
    """This machine's name with what a consumer name can't hold replaced."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:128] or "node"


Duration: TypeAlias = Annotated[
    float, BeforeValidator(parse_duration), WithJsonSchema({"type": "string", "format": "duration-go"})
]
Size: TypeAlias = Annotated[
    int, BeforeValidator(parse_size), WithJsonSchema({"type": ["integer", "string"], "format": "size"})
]
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Text: TypeAlias = Annotated[str, BeforeValidator(_word)]
Secret: TypeAlias = Annotated[SecretStr, BeforeValidator(_secret)]
Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(split_list)]
Name: TypeAlias = Annotated[
    Text,
    _matches(r"[A-Za-z0-9_-]{1,128}", "letters, digits, - and _ only, at most 128: NATS consumers are named with it"),
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


# --- sections ---------------------------------------------------------------------------------------------------------


class Server(Section):
    host: Text = setting("0.0.0.0", "address", "clients come from elsewhere; the originals listen everywhere too")  # noqa: S104
    port: Whole = setting(8086, "port", "the contract's; 0 takes any free one", ge=0, le=65535)
    read_timeout: Duration = setting("10s", "time", "plain HTTP requests only, never an upgraded socket", ge=MS)
    write_timeout: Duration = setting(
        "10s", "time", "no effect: the relay cuts an HTTP client that takes nothing", ge=MS
    )
    tls_cert: Text = setting("", "path", "PEM chain; empty = no TLS, as behind a load balancer; read again on SIGHUP")
    tls_key: Text = setting("", "path", "PEM private key that belongs to server.tls_cert")


class Jwt(Section):
    secret_key: Secret = setting("", "secret", "enables HS256; no default, since a known secret lets everybody in")
    public_key: Text = setting("", "PEM", "RSA, EC or Ed25519 public key or certificate; enables its algorithms")
    public_key_file: Text = setting("", "path", "the same from a file; read again on SIGHUP")
    algorithms: Annotated[Texts, AfterValidator(_algorithms)] = setting(
        (),
        "list",
        "empty = HS256 with a secret, RS256 with an RSA key, else what the key's kind says; never a token's choice",
    )
    validate_exp: bool = setting(
        True, "bool", "false accepts expired tokens: for replaying traffic, never in production"
    )
    allowed_issuers: Texts = setting(("attchat",), "list", "exact match with `iss`; empty switches the check off")
    audience: Texts = setting(
        (), "list", "`aud` must name one of them; empty = `aud` is not looked at, as in the original"
    )
    leeway: Duration = setting(
        "0s", "time", "clocks kept by NTP need none; more than 60s would revive dead tokens", ge=0, le=60
    )
    cache_size: Whole = setting(
        65536,
        "tokens",
        "verified RS, PS, ES and EdDSA tokens kept for storms, about 0.4 KB each; 0 = none",
        ge=0,
        le=10_000_000,
    )


class Nats(Section):
    url: Text = setting("nats://localhost:4222", "URL", "comma list = cluster; memory: = the bus inside the process")
    cluster_id: Text = setting("attchat", "text", "no effect; accepted because configurations have it")
    client_id: Name = setting("gateway", "text", "connection name, and part of the consumer's name")
    reconnect_wait: Duration = setting(
        "2s", "time", "the original's; long enough not to storm a server that starts", ge=MS
    )
    max_reconnects: Whole = setting(-1, "attempts", "-1 = for ever: a gateway without its bus only waits", ge=-1)
    streams: Annotated[
        Texts,
        _each_matches(r"[^\s.*>/\\]{1,255}", "a stream's name has no blanks and none of . * > / \\"),
        Field(min_length=1),
    ] = setting(("CHAT", "NOTIFY"), "list", "JetStream streams to consume; the contract's")
    consumer_mode: Literal["per-node", "shared"] = setting(
        "per-node",
        "word",
        "every node sees every event; shared restores the original, where each event reaches one node",
    )
    publish_unknown: bool = setting(False, "bool", "true publishes client messages of unknown type to {type}.events")
    ensure_streams: bool = setting(True, "bool", "creates missing streams at start; false where operators own them")


class Redis(Section):
    url: Text = setting("", "URL", "redis://host:6379/0, rediss:// with TLS; empty = this node is alone")
    streams: Annotated[
        Texts, _each_matches(r"[^\s.*>/\\]{1,255}", "a stream's name has no blanks and none of . * > / \\")
    ] = setting(("CHAT", "NOTIFY"), "list", "Redis streams to consume; empty = none, only what other nodes broadcast")
    stream_length: Whole = setting(
        100_000, "entries", "about what a stream keeps for nodes that are away: an hour of 30 a second", ge=1000
    )
    channel: Text = setting(
        "", "text", "Pub/Sub channel to the other nodes; empty = tidegate's own, with tidegate's own envelope"
    )


class Backend(Section):
    url: Text = setting("memory:", "URL", "REST backend of profiles that ask one; memory: = a chat inside the process")
    key: Secret = setting("", "secret", "sent to the backend's internal endpoints; no default, since it opens them")
    timeout: Duration = setting("10s", "time", "for a whole request; the contract's", ge=MS, le=30)
    max_requests: Whole = setting(
        256, "requests", "on their way at once; the others wait, so that a slow backend is not buried", ge=1, le=16384
    )
    body_style: Literal["camel", "snake", "both"] = setting(
        "camel", "word", "names in request bodies: the original gateway's, the published backend's, or all of them"
    )
    members_cache_ttl: Duration = setting(
        "2s", "time", "a chat's members are asked for at most so often; 0 = for each event, as in the original", ge=0
    )


class Kafka(Section):
    url: Text = setting("kafka://localhost:9092", "URL", "kafka://host:9092, commas between several; memory: for a try")
    group_id: Annotated[Text, _matches(r"[A-Za-z0-9._-]{1,128}", "letters, digits and . _ - only, at most 128")] = (
        setting("tidegate", "text", "each node's position is kept under this and the node's name: every node reads all")
    )
    topics: Annotated[
        Texts, _each_matches(r"[A-Za-z0-9._-]{1,249}", "a topic's name has letters, digits and . _ - only")
    ] = setting(("chat",), "list", "topics to consume; one that is not there yet is read from its beginning once it is")
    min_bytes: Size = setting("1KiB", "size", "a broker waits for so much, but no longer than 10 ms", ge=1, le=1 << 30)
    max_bytes: Size = setting("10MiB", "size", "a broker sends at most so much at once", ge=1024, le=1 << 30)
    commit_interval: Duration = setting(
        "1s", "time", "what was handed over since is repeated after a crash; a clean stop commits", ge=MS
    )
    broadcast_topic: Text = setting(
        "tidegate.broadcast", "text", "what nodes tell each other; empty = nothing, for profiles that have another way"
    )


class Registry(Section):
    url: Text = setting("memory:", "URL", "who is connected where: etcd://host:2379, commas between several; memory:")
    node: Annotated[Text, _matches(r"[^\s|/]{0,255}", "no blanks, no | and no /: it is part of keys and values")] = (
        setting("", "text", "this node as others know it, best host:port of its gRPC listener; empty = node_id")
    )
    ttl: Duration = setting("90s", "time", "a node that died is forgotten after it", ge=3, le=86400)
    renew_interval: Duration = setting(
        "30s", "time", "two lost renewals must not matter: a third of registry.ttl", ge=1
    )


class Grpc(Section):
    host: Text = setting("0.0.0.0", "address", "backends call from elsewhere")  # noqa: S104
    port: Whole = setting(9093, "port", "for profiles that backends call by gRPC; 0 takes any free one", ge=0, le=65535)


class Services(Section):
    auth_url: Text = setting("grpc://localhost:9095", "URL", "who validates tokens; not asked with jwt.secret_key")
    im_url: Text = setting("grpc://localhost:9094", "URL", "who routes messages")
    user_url: Text = setting("grpc://localhost:9096", "URL", "who knows the members of groups")
    timeout: Duration = setting("3s", "time", "for a whole call", ge=MS, le=30)


class Im(Section):
    ack_mode: Literal["ack", "queued"] = setting(
        "ack",
        "word",
        "PushMessage waits for the devices' acks; queued restores the original, which counts what it sent",
    )
    ack_timeout: Duration = setting("5s", "time", "how long a PushMessage waits at most", ge=MS, le=30)
    dialect: Literal["seed", "sdk"] = setting("seed", "word", "frames as the server or as the browser SDK has them")
    strict_ack: bool = setting(False, "bool", "true answers an ack that nobody waits for with ACK_NOT_FOUND")
    large_group: Whole = setting(
        1000, "members", "of a larger group only those who are connected here are kept", ge=1, le=10_000_000
    )
    devices_per_user: Whole = setting(5, "devices", "one more is refused with 429", ge=1, le=1000)
    nodes: Annotated[
        Texts, _each_matches(r"[^\s|/=]+=[^\s|/=]+:\d{1,5}", "write id=host:port, with commas between nodes")
    ] = setting((), "list", "addresses of nodes whose ids are none")
    group_topics: Texts = setting(("group_msg",), "list", "topics of messages to groups")
    receipt_topics: Texts = setting(("read_receipt", "read_receipt_events"), "list", "topics of read receipts")
    membership_topics: Texts = setting(
        ("group_membership_change", "membership_change"), "list", "topics that say who joined or left a group"
    )


class Otel(Section):
    endpoint: Text = setting("", "URL", "spans go there by OTLP over HTTP, such as http://localhost:4318; empty = none")
    service_name: Text = setting("tidegate", "text", "the resource that spans belong to")


class Metrics(Section):
    host: Text = setting("0.0.0.0", "address", "Prometheus comes from elsewhere, and the original listens everywhere")  # noqa: S104
    port: Whole = setting(9090, "port", "the contract's; 0 takes any free one", ge=0, le=65535)
    enabled: bool = setting(True, "bool", "the contract's")
    shared: bool = setting(False, "bool", "true serves /metrics on server.port, where clients see it too")


class Ws(Section):
    max_connections: Whole = setting(10_000, "connections", "the contract's; more get 503", ge=1, le=16_000_000)
    max_connections_per_address: Whole = setting(
        0, "connections", "0 = no limit: whole offices share one address; set it where clients come directly", ge=0
    )
    max_connections_per_user: Whole = setting(0, "connections", "0 = no limit: many tabs are the contract's", ge=0)
    handshakes_per_second: Whole = setting(
        0,
        "1/s",
        "0 = no limit: a load balancer in front is the better place; excess gets 503 with Retry-After",
        ge=0,
        le=10_000_000,
    )
    handshake_timeout: Duration = setting(
        "10s", "time", "accept to decision, TLS included; stops trickled headers", ge=MS
    )
    max_header_size: Size = setting(
        "16KiB", "size", "request head; room for an 8 KiB token in the URL", ge=1024, le=1 << 20
    )
    max_headers: Whole = setting(100, "headers", "browsers send about 15; what Apache allows", ge=8, le=10_000)
    max_message_size: Size = setting(
        "64KiB", "size", "the contract's and OWASP's figure; more is closed 1009", ge=1, le=1 << 30
    )
    max_fragments: Whole = setting(
        1024, "fragments", "a message in more is an attack on memory; closed 1009", ge=1, le=1 << 24
    )
    message_rate: Whole = setting(
        100, "1/s", "messages a connection; people type 5; 0 = no limit; more is closed 1008", ge=0, le=1_000_000
    )
    message_burst: Whole = setting(
        200, "messages", "that may come at once, such as joins after a reconnect", ge=1, le=1_000_000
    )
    message_rate_per_user: Whole = setting(
        0, "1/s", "messages a user, over all connections, where a profile knows users; 0 = no limit", ge=0, le=1_000_000
    )
    max_rooms: Whole = setting(1000, "rooms", "a connection; more is closed 1008", ge=1, le=1_000_000)
    ping_interval: Duration = setting(
        "30s", "time", "the contract's; below the 60s after which proxies cut idle sockets", ge=MS
    )
    pong_timeout: Duration = setting("10s", "time", "nothing heard so long after a ping: closed", ge=MS)
    unanswered_pings: Whole = setting(
        2, "pings", "in a row before pong_timeout runs; 1 drops a silent client one interval sooner", ge=1, le=100
    )
    auth_timeout: Duration = setting(
        "0s", "time", "after the upgrade, where a profile's clients log in by a message; 0 = no limit", ge=0
    )
    write_timeout: Duration = setting("10s", "time", "bytes owed and none taken so long: closed 1013", ge=MS)
    close_timeout: Duration = setting("5s", "time", "for the peer to answer a close frame", ge=MS)
    outbox_bytes: Size = setting(
        "1MiB", "size", "owed to one connection; Centrifugo's figure; more is closed 1013", ge=4096
    )
    outbox_total: Size = setting(
        "256MiB", "size", "owed to all connections, so that slow readers can't take the memory", ge=4096
    )
    outbox_policy: Literal["close", "drop"] = setting(
        "close", "word", "never a silent gap; drop restores the original, which loses the newest message"
    )
    outbox_messages: Whole = setting(
        256, "messages", "owed to one connection under outbox_policy=drop; the original's", ge=1, le=1_000_000
    )
    backlog_bytes: Size = setting("64MiB", "size", "waiting for fan-out; beyond it the bus is held back", ge=65536)
    read_buffer_size: Whole = setting(4096, "bytes", "no effect: an idle connection owns no buffer", ge=0)
    write_buffer_size: Whole = setting(4096, "bytes", "no effect: frames are shared, not copied", ge=0)
    enable_compression: bool = setting(False, "bool", "permessage-deflate; costs CPU and can leak secrets by length")
    compression_min_size: Size = setting(
        "64", "size", "smaller messages go plain: a deflate block's header eats what it saves; 0 = compress all", ge=0
    )
    proxy_protocol: bool = setting(False, "bool", "true behind a load balancer that sends PROXY v1 or v2 headers")
    proxy_trusted: Annotated[Texts, AfterValidator(_networks)] = setting(
        (), "list", "addresses or networks that may send a PROXY header; nobody else may connect then"
    )
    shards: Whole = setting(0, "threads", "0 = one a core, more where descriptors are scarce", ge=0, le=1024)
    allow_empty_origin: bool = setting(
        True, "bool", "programs that are no browsers send none; false refuses them, where a profile checks origins"
    )
    allowed_origins: Annotated[
        Texts,
        _each_matches(
            ORIGIN_PATTERN,
            "write origins as browsers do, https://example.com without a path, or *.example.com for all below it; "
            "for all origins, leave it empty",
        ),
    ] = setting(
        (),
        "list",
        "exact match with Origin, or all below a name; empty = all, as in the original, whose tokens are in the URL",
    )
    shutdown_grace: Duration = setting(
        "30s", "time", "closes are spread over it on SIGTERM; what Kubernetes waits", ge=0
    )


class Rooms(Section):
    join_policy: Literal["member-prefix", "open", "claims"] = setting(
        "member-prefix", "word", "nobody reads another user's room; open restores the original"
    )
    typing_requires_join: bool = setting(False, "bool", "the original lets anybody who may join a room type there")


class Publish(Section):
    key: Secret = setting("", "secret", "enables POST /api/publish for who knows it; empty = off")
    subject: Annotated[
        Text, _matches(r"[^\s.*>]+(\.[^\s.*>]+)*", "a subject has words separated by dots, no blanks, no * and no >")
    ] = setting("chat.events", "subject", "where POST /api/publish publishes; what the known backend uses")


class Log(Section):
    level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_log_level)] = setting(
        "info", "word", "debug adds a line a connection"
    )
    production: bool = setting(False, "bool", "JSON lines; APP_ENV=production sets it")


class Settings(BaseSettings):
    """The whole. Made by `config.load` only, from the sources it names: nothing is picked up by the way."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=False,
    )

    server: Server = Server()
    jwt: Jwt = Jwt()
    nats: Nats = Nats()
    redis: Redis = Redis()
    backend: Backend = Backend()
    kafka: Kafka = Kafka()
    registry: Registry = Registry()
    grpc: Grpc = Grpc()
    services: Services = Services()
    im: Im = Im()
    otel: Otel = Otel()
    metrics: Metrics = Metrics()
    ws: Ws = Ws()
    rooms: Rooms = Rooms()
    publish: Publish = Publish()
    log: Log = Log()
    node_id: Name = setting(hostname, "text", "part of the consumer's name: must stay the same over a restart")

    @classmethod
    def from_layers(cls, layers: Sequence[Mapping[str, Any]]) -> "Settings":
        """From nested values, strongest layer first."""
        values: dict[str, Any] = {"layers": layers}
        return cls(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The library's own environment reader can't know a profile's names, so only what we hand over counts."""
        values = dict(init_settings())
        layers = values.pop("layers", ())
        return tuple(InitSettingsSource(settings_cls, layer) for layer in (values, *layers))


def definitions() -> dict[str, FieldInfo]:
    """Every key as people write it, in the order of this file."""
    found: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= {f"{name}.{key}": inner for key, inner in field.annotation.model_fields.items()}
        else:
            found[name] = field
    return found


DEFINITIONS = definitions()
