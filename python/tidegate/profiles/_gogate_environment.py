"""The environment of gogate: its variables with their own units, and its way with values that make no sense.

Whole seconds and bare numbers become settings; an empty or unreadable value counts as absent, as in the original, but
is not silent. Rule: what would switch off a protection by accident is refused like any wrong setting: a negative number
is unreadable, and only `0` means off where the contract says so.
"""

from collections.abc import Callable, Mapping

from tidegate.profile import FromEnvironment
from tidegate.profiles._environment import Environment

# "Unlimited": what one process has been shown to hold
CONNECTIONS_MAX = 1_000_000
# What may come at once, in seconds of the rate: the contract's 40 for 20 a second
BURST_S = 2


def read_environment(environ: Mapping[str, str]) -> FromEnvironment:
    reader = _Reader(environ)
    reader.plain(
        {
            "BACKEND_API_URL": "backend.url",
            "INTERNAL_API_KEY": "backend.key",
            "ALLOWED_ORIGINS": "ws.allowed_origins",
            "REDIS_URL": "redis.url",
            "NODE_ID": "node_id",
            "TLS_CERT_FILE": "server.tls_cert",
            "TLS_KEY_FILE": "server.tls_key",
            "LOG_LEVEL": "log.level",
        }
    )
    reader.number("PORT", "server.port", str, most=65535)
    reader.number("MAX_MESSAGE_SIZE", "ws.max_message_size", str, least=1)
    reader.number("READ_BUFFER_SIZE", "ws.read_buffer_size", str)
    reader.number("WRITE_BUFFER_SIZE", "ws.write_buffer_size", str)
    reader.number("WRITE_WAIT", "ws.write_timeout", _seconds, least=1)
    reader.number("AUTH_TIMEOUT", "ws.auth_timeout", _seconds)
    reader.number("BACKEND_TIMEOUT", "backend.timeout", _seconds, least=1)
    reader.number("SHUTDOWN_TIMEOUT", "ws.shutdown_grace", _seconds)
    reader.number("MEMBERS_CACHE_TTL_MS", "backend.members_cache_ttl", lambda ms: f"{ms}ms" if ms else "0s")
    reader.number("RATE_LIMIT_PER_USER", "ws.message_rate_per_user", str)
    reader.number("MAX_CONNECTIONS", "ws.max_connections", lambda limit: limit or CONNECTIONS_MAX)
    reader.number("MAX_CONNECTIONS_PER_USER", "ws.max_connections_per_user", str)
    reader.rate()
    reader.heartbeat()
    reader.word("BACKEND_BODY_STYLE", "backend.body_style", {"camel": "camel", "snake": "snake", "both": "both"})
    reader.word("LOG_FORMAT", "log.production", {"text": False, "json": True})
    reader.metrics_port()
    return reader.found()


def _seconds(seconds: int) -> str:
    return f"{seconds}s"


class _Reader(Environment):
    def plain(self, names: Mapping[str, str]) -> None:
        for name, key in names.items():
            if value := self.text(name):
                self.set(name, key, value)

    def number(
        self, name: str, key: str, make: Callable[[int], object], *, least: int = 0, most: int = 10**9
    ) -> int | None:
        """None if it is absent or unreadable."""
        text = self.text(name)
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and least <= int(text[:11]) <= most):
            self.warnings.append(f"{name} is no whole number from {least} to {most}: the default counts, as in gogate")
            return None
        self.set(name, key, make(int(text)))
        return int(text)

    def word(self, name: str, key: str, values: Mapping[str, object]) -> None:
        text = self.text(name).lower()
        if text in values:
            self.set(name, key, values[text])
        elif text:
            self.warnings.append(f"{name} is none of {', '.join(values)}: the default counts, as in gogate")

    def rate(self) -> None:
        rate = self.number("RATE_LIMIT_PER_CONNECTION", "ws.message_rate", str, most=500_000)
        if rate:
            self.set("RATE_LIMIT_PER_CONNECTION", "ws.message_burst", rate * BURST_S)

    def heartbeat(self) -> None:
        """Dead is who was not heard for PONG_WAIT; pings go out each PING_PERIOD, so the rest is for the answer."""
        period = self.number("PING_PERIOD", "ws.ping_interval", _seconds, least=1) or 54
        wait = self.number("PONG_WAIT", "ws.pong_timeout", _seconds, least=1) or 60
        if wait <= period:
            self.warnings.append(f"PONG_WAIT ({wait}) must be more than PING_PERIOD ({period}): a second more counts")
        if self.has("ws.ping_interval") or self.has("ws.pong_timeout"):
            self.set("PONG_WAIT", "ws.pong_timeout", _seconds(max(1, wait - period)))

    def metrics_port(self) -> None:
        port = self.number("METRICS_PORT", "metrics.port", str, most=65535)
        if port:
            self.set("METRICS_PORT", "metrics.shared", False)
