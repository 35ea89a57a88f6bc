"""Logging that neither waits nor tells: lines go through a bounded queue to a thread, and no token gets into one.

The event loop serves every client, so a full disk or a stuck terminal must not stop it: what does not fit is dropped
and counted. One line an event, on the console for people, as JSON for machines; `extra={"fields": {...}}` gives a line
ids that machines find under keys of their own. Rule: every text that leaves, message, arguments, fields and traceback
alike, passes `redact`.
"""

import logging
import logging.handlers
import os
import queue
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson


class Logs:
    """Owns the root logger from `start` to `stop`."""

    def __init__(self, level: str, *, production: bool, stream: TextIO | None = None, queued_max: int = 0) -> None:
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(queued_max or QUEUED_MAX)
        self._inlet = _Inlet(self._queue)
        self._outlet = logging.StreamHandler(stream or sys.stderr)
        self._outlet.setFormatter(JsonFormatter() if production else ConsoleFormatter())
        self._listener = logging.handlers.QueueListener(self._queue, self._outlet)
        self._before: tuple[list[logging.Handler], int] = ([], logging.WARNING)
        self.set_level(level)

    @property
    def dropped(self) -> int:
        return self._inlet.dropped

    def set_level(self, level: str) -> None:
        """One of debug, info, warn, error; takes effect at once."""
        self._level = LEVELS[level]
        if self._inlet in logging.getLogger().handlers:
            self._apply_level()

    def start(self) -> None:
        root = logging.getLogger()
        self._before = (root.handlers[:], root.level)
        root.handlers[:] = [self._inlet]
        for name, value in PAST_US.items():
            os.environ.setdefault(name, value)
        self._apply_level()
        self._listener.start()

    def stop(self) -> None:
        """Writes what is queued; logging is as it was before `start`."""
        root = logging.getLogger()
        root.handlers[:], level = self._before
        root.setLevel(level)
        self._listener.stop()

    def _apply_level(self) -> None:
        logging.getLogger().setLevel(self._level)
        for name, least in CHATTY.items():
            chatty = logging.getLogger(name)
            chatty.setLevel(max(self._level, least))
            # uvicorn brings its own handlers, which would write past the queue and past `redact`
            chatty.handlers.clear()
            chatty.propagate = True


class _Inlet(logging.handlers.QueueHandler):
    """Never waits. Counts what did not fit and says so once there is room again."""

    def __init__(self, target: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(target)
        self.dropped = 0
        self._untold = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Makes the text here, in the thread that knows the arguments; they may have changed when the other looks."""
        flat = logging.makeLogRecord(record.__dict__)
        flat.msg, flat.args = redact(_message(record)), None
        if record.exc_info or record.exc_text or record.stack_info:
            flat.exc_text = redact(_trace(record))
        flat.exc_info = flat.stack_info = None
        flat.fields = _fields(record)
        return flat

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._untold:
                self.queue.put_nowait(_dropped_line(self._untold))
                self._untold = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            self._untold += 1


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong format string or a failing __str__ costs its line only
        return f"unprintable log message in {record.pathname}:{record.lineno}: {type(error).__name__}"


def _fields(record: logging.LogRecord) -> dict[str, str | int]:
    """Those of `extra`, without secrets. One named like a key that each line has already is left out."""
    found = getattr(record, "fields", None)
    if not isinstance(found, Mapping):
        return {}
    return {str(key): _field(str(key), value) for key, value in found.items() if key not in OWN_KEYS}


def _field(key: str, value: object) -> str | int:
    """The key is looked at too: a number named `token` is a secret."""
    if not isinstance(value, str | int):
        return f"a {type(value).__name__}, where a text or a number belongs"
    named = f"{key}={value}"
    clean = redact(named)
    if clean != named:
        return clean.removeprefix(f"{key}=")
    return value if isinstance(value, int) and abs(value) < JSON_INT_END else str(value)


def _trace(record: logging.LogRecord) -> str:
    formatter = logging.Formatter()
    parts = [record.exc_text or (formatter.formatException(record.exc_info) if record.exc_info else "")]
    parts.append(record.stack_info or "")
    return "\n".join(part for part in parts if part)


def _dropped_line(count: int) -> logging.LogRecord:
    text = f"{count} log lines were dropped: they came faster than the output takes them; raise LOG_LEVEL"
    return logging.LogRecord("tidegate.logs", logging.WARNING, __file__, 0, text, None, None)


# --- formats ----------------------------------------------------------------------------------------------------------


class ConsoleFormatter(logging.Formatter):
    """`12:30:05.123 warn  tidegate.gateway: text`; one line an event, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        text = " ".join([record.getMessage(), *[f"{key}={value}" for key, value in _told(record).items()]])
        line = f"{moment} {_level_name(record):<5} {record.name}: {_one_line(text)}"
        return f"{line}\n{record.exc_text}" if record.exc_text else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, whatever the text holds."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": moment, "level": _level_name(record), "logger": record.name, "message": record.getMessage()}
        if record.exc_text:
            line["traceback"] = record.exc_text
        valid = {_valid(key): _valid(value) for key, value in (line | _told(record)).items()}
        return orjson.dumps(valid).decode()


def _told(record: logging.LogRecord) -> dict[str, Any]:
    """What `prepare` made of the fields."""
    return getattr(record, "fields", {})


def _valid(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _level_name(record: logging.LogRecord) -> str:
    return {"WARNING": "warn", "CRITICAL": "error"}.get(record.levelname, record.levelname.lower())


def _one_line(text: str) -> str:
    """A client's text can't forge a line or steer a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else f"\\x{ord(char):02x}" for char in text)


# --- secrets ----------------------------------------------------------------------------------------------------------


def redact(text: str) -> str:
    """The text without tokens: in URLs, in headers, or bare."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


MASK = "********"

SECRETS = (
    # token=..., also percent-encoded or inside JSON; the names that the profiles and our own settings use
    (
        re.compile(
            r"""(?i)((?:token|secret(?:_key)?|password|api_?key|access_token)["']?\s*(?:=|%3d|:)\s*["']?)[^\s&"',;)}]+"""
        ),
        rf"\1{MASK}",
    ),
    (
        re.compile(r"""(?i)(authorization["']?\s*[:=,]\s*(?:b(?=["']))?["']?)(?:[a-z-]+\s+)?[^\s"',;)}]+"""),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)(\s+|%20)[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    # A JWT: base64url of '{"' is eyJ; the signature may be cut off
    (re.compile(r"eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,4}"), MASK),
    # user:password@ in a URL
    (re.compile(r"//[^/@\s]+@"), f"//{MASK}@"),
)

# A second of lines at more than a loaded machine writes; each is about 1 KB
QUEUED_MAX = 8192

# What every JSON line has; a field must not pass for one of them
OWN_KEYS = frozenset({"time", "level", "logger", "message", "traceback"})
# JSON's writer takes 64 bits; what is longer is written as text
JSON_INT_END = 2**63

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}

# gRPC's core writes to stderr itself, past the queue and past `redact`; it reads this when it is imported
PAST_US = {"GRPC_VERBOSITY": "NONE"}

# Libraries that tell their own life at info, or every request; nats-py logs a line a reconnect attempt as an error.
# CRITICAL is never used by them: such a library is silent
CHATTY = {
    "uvicorn": logging.WARNING,
    # it warns about every odd request: a client could fill the disk with that
    "uvicorn.error": logging.ERROR,
    "uvicorn.access": logging.CRITICAL,
    "uvicorn.asgi": logging.WARNING,
    "nats": logging.WARNING,
    "nats.aio": logging.WARNING,
    "asyncio": logging.WARNING,
    "websockets": logging.WARNING,
    # it quotes what a call raised, and a peer can make it do so at will; who calls and who serves tell by themselves
    "grpc": logging.CRITICAL,
    "aetcd": logging.CRITICAL,
    # a collector that is down is told once, by `tracing.py`; the exporter's client logs each try
    "opentelemetry": logging.CRITICAL,
    "urllib3": logging.CRITICAL,
    # a line a broker and attempt; `is_ready` and the bus's own words say it
    "confluent_kafka": logging.ERROR,
}
