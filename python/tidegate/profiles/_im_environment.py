"""The environment of im-gateway: its variables, and the other names that some deployments have for them.

Addresses are host:port there and URLs here; a variable that means two settings sets both. Rule: only names and shapes
are read here, whether a value is good is for `config` to say, so nothing that makes no sense starts silently.
"""

import platform
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

from tidegate.config.units import parse_duration, parse_size
from tidegate.profile import FromEnvironment
from tidegate.profiles._environment import Environment

# "Unlimited": what one process has been shown to hold
CONNECTIONS_MAX = 1_000_000
# What may come at once at the engine, in seconds of the rate; a user's window of one second is exact behind it
BURST_S = 2
GROUP_TOPICS = "group_msg"
RECEIPT_TOPICS = "read_receipt,read_receipt_events"
MEMBERSHIP_TOPICS = "group_membership_change,membership_change"
GRPC_PORT = "9093"

# Variables that are a setting as they stand, the stronger first
PLAIN = {
    "KAFKA_GROUP_ID": "kafka.group_id",
    "KAFKA_MIN_BYTES": "kafka.min_bytes",
    "KAFKA_MAX_BYTES": "kafka.max_bytes",
    "KAFKA_COMMIT_INTERVAL": "kafka.commit_interval",
    "READ_BUFFER_SIZE": "ws.read_buffer_size",
    "WRITE_BUFFER_SIZE": "ws.write_buffer_size",
    "WRITE_WAIT": "ws.write_timeout",
    "REGISTRY_TTL": "registry.ttl",
    "REGISTRY_RENEW_INTERVAL": "registry.renew_interval",
    "ACK_TIMEOUT": "im.ack_timeout",
    "ACK_MODE": "im.ack_mode",
    "WS_DIALECT": "im.dialect",
    "STRICT_ACK": "im.strict_ack",
    "LARGE_GROUP_THRESHOLD": "im.large_group",
    "MAX_DEVICES_PER_USER": "im.devices_per_user",
    "GATEWAY_NODES": "im.nodes",
    "SECURITY_ALLOW_EMPTY_ORIGIN": "ws.allow_empty_origin",
    "AUTH_JWT_SECRET": "jwt.secret_key",
    "SHUTDOWN_TIMEOUT": "ws.shutdown_grace",
}
# Several names for one: the first that is set counts
EITHER = {
    "server.port": ("PORT", "WEBSOCKET_PORT", "SERVER_HTTP_PORT"),
    "grpc.port": ("GRPC_PORT", "SERVER_GRPC_PORT"),
    "metrics.port": ("METRICS_PORT", "OBSERVABILITY_METRICS_PORT"),
    "log.level": ("LOG_LEVEL", "OBSERVABILITY_LOG_LEVEL"),
    "otel.endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT", "OBSERVABILITY_OTLP_ENDPOINT"),
    "otel.service_name": ("OTEL_SERVICE_NAME", "SERVICE_NAME", "OBSERVABILITY_SERVICE_NAME"),
}
ADDRESSES = {
    "services.auth_url": ("AUTH_SERVICE_ADDR", "SERVICE_DISCOVERY_AUTH_SERVICE_ADDR"),
    "services.im_url": ("IM_SERVICE_ADDR", "SERVICE_DISCOVERY_IM_SERVICE_ADDR"),
    "services.user_url": ("USER_SERVICE_ADDR", "SERVICE_DISCOVERY_USER_SERVICE_ADDR"),
}


def read_environment(environ: Mapping[str, str]) -> FromEnvironment:
    reader = _Reader(environ)
    for name, key in PLAIN.items():
        reader.take(key, (name,))
    for key, names in EITHER.items():
        reader.take(key, names)
    for key, names in ADDRESSES.items():
        reader.take(key, names, lambda text: text if "://" in text or text.startswith("memory:") else f"grpc://{text}")
    reader.take("ws.max_connections", ("MAX_CONNECTIONS",), lambda text: CONNECTIONS_MAX if text == "0" else text)
    reader.take("log.production", ("LOG_FORMAT", "OBSERVABILITY_LOG_FORMAT"), lambda text: text.lower() == "json")
    reader.take("ws.allowed_origins", ("SECURITY_ALLOWED_ORIGINS",), lambda text: "" if text == "*" else text)
    reader.etcd()
    reader.redis()
    reader.kafka()
    reader.message_size()
    reader.rate()
    reader.heartbeat()
    reader.node()
    return reader.found()


class _Reader(Environment):
    def first(self, *names: str) -> tuple[str, str]:
        """The first that is set, and its name."""
        found = ((name, self.text(name)) for name in names)
        return next(((name, text) for name, text in found if text), (names[0], ""))

    def take(self, key: str, names: tuple[str, ...], make: Callable[[str], object] = str) -> None:
        name, text = self.first(*names)
        if text and not self.has(key):
            self.set(name, key, make(text))

    def etcd(self) -> None:
        """With or without http://, as etcd's own tools write endpoints; https:// is refused where it is opened."""
        if text := self.text("ETCD_ENDPOINTS"):
            hosts = ",".join(re.sub(r"^http://", "", piece.strip()).rstrip("/") for piece in text.split(","))
            self.set("ETCD_ENDPOINTS", "registry.url", f"etcd://{self._login('ETCD_USERNAME', 'ETCD_PASSWORD')}{hosts}")

    def redis(self) -> None:
        text, database = self.text("REDIS_ADDR"), self.text("REDIS_DB")
        login = self._login("", "REDIS_PASSWORD")
        if text or login or database:
            url = text if "://" in text else f"redis://{login}{text or 'localhost:6379'}/{database or 0}"
            self.set("REDIS_ADDR", "redis.url", url)

    def _login(self, user_name: str, password_name: str) -> str:
        user = quote(self._environ.get(user_name, ""), safe="") if user_name else ""
        password = quote(self._environ.get(password_name, ""), safe="")
        return f"{user}:{password}@" if user or password else ""

    def kafka(self) -> None:
        if text := self.text("KAFKA_BROKERS"):
            self.set("KAFKA_BROKERS", "kafka.url", f"kafka://{','.join(piece.strip() for piece in text.split(','))}")
        named = {
            "im.group_topics": ("KAFKA_TOPIC", GROUP_TOPICS),
            "im.receipt_topics": ("READ_RECEIPT_TOPICS", RECEIPT_TOPICS),
            "im.membership_topics": ("MEMBERSHIP_TOPICS", MEMBERSHIP_TOPICS),
        }
        topics, given = [], ""
        for key, (variable, default) in named.items():
            chosen = self.text(variable)
            topics.append(chosen or default)
            if chosen:
                self.set(variable, key, chosen)
                given = given or variable
        if given:
            self.set(given, "kafka.topics", ",".join(topics))

    def message_size(self) -> None:
        """Up to twice as much is read, to be answered with an error instead of a close."""
        if text := self.text("MAX_MESSAGE_SIZE"):
            try:
                self.set("MAX_MESSAGE_SIZE", "ws.max_message_size", 2 * parse_size(text))
            except ValueError:
                self.set("MAX_MESSAGE_SIZE", "ws.max_message_size", text)

    def rate(self) -> None:
        if text := self.text("MAX_MESSAGES_PER_SECOND"):
            self.set("MAX_MESSAGES_PER_SECOND", "ws.message_rate_per_user", text)
            self.set("MAX_MESSAGES_PER_SECOND", "ws.message_rate", text)
            if text.isascii() and text.isdecimal() and int(text):
                self.set("MAX_MESSAGES_PER_SECOND", "ws.message_burst", BURST_S * int(text))

    def heartbeat(self) -> None:
        """Dead is who was not heard for PONG_WAIT or HEARTBEAT_TIMEOUT, whichever is shorter.

        Two pings go out in that time, so that a client which never answers them, but says something each
        HEARTBEAT_INTERVAL, was heard between them; after the second it has what PING_PERIOD leaves for an answer.
        """
        period, wait = self._seconds("PING_PERIOD", 54.0), self._seconds("PONG_WAIT", 60.0)
        silent = self._seconds("HEARTBEAT_TIMEOUT", 90.0)
        if period is None or wait is None or silent is None:
            return
        longest = min(wait, silent)
        if longest <= period:
            self.warnings.append("PONG_WAIT and HEARTBEAT_TIMEOUT must be more than PING_PERIOD: a second more counts")
        given = [name for name in ("PONG_WAIT", "HEARTBEAT_TIMEOUT", "PING_PERIOD") if self.text(name)]
        if given:
            self.set(given[0], "ws.ping_interval", f"{period * 500:.0f}ms")
            self.set(given[0], "ws.pong_timeout", f"{max(1.0, longest - period) * 1000:.0f}ms")

    def _seconds(self, name: str, default: float) -> float | None:
        """None, and a setting that says so, for what is no duration."""
        text = self.text(name)
        if not text:
            return default
        try:
            return parse_duration(text)
        except ValueError:
            self.set(name, "ws.pong_timeout", text)
            return None

    def node(self) -> None:
        """As others dial it: the pod's address, else this machine's name, and the port of gRPC. The profile's default
        is what it is where no variable says anything."""
        given, text = self.first("GATEWAY_NODE_ID", "POD_IP", "GRPC_PORT", "SERVER_GRPC_PORT")
        if text:
            _, port = self.first("GRPC_PORT", "SERVER_GRPC_PORT")
            node = self.text("GATEWAY_NODE_ID") or default_node(self.text("POD_IP"), port)
            self.set(given, "registry.node", node)
            self.set(given, "node_id", plain_name(node))


def default_node(host: str = "", port: str = "") -> str:
    return f"{host or platform.node()}:{port or GRPC_PORT}"


def plain_name(node: str) -> str:
    """With nothing in it that a consumer's name can't hold."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", node)[:128]
