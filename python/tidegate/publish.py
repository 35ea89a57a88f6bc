"""`tidegate publish`: one message as a backend would send it, over the configured bus or through a running gateway.

Rule: a `memory:` bus lives inside one process, so it is reached through that process's HTTP API; the message says so.
"""

import os
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

import orjson

from tidegate.buses import open_bus, scheme_of
from tidegate.config import Settings
from tidegate.config.settings import hostname
from tidegate.errors import ConfigError, TidegateError

# A gateway answers in milliseconds, after its bus has confirmed within 5 s
HTTP_TIMEOUT_S = 10.0
# Longer answers are no gateway's
ANSWER_BYTES_MAX = 65_536


def event_of(target: str | None, text: str | None, json_text: str | None, *, to_user: bool = False) -> bytes:
    """A text as a chat message, or the event object given; to the room or user, or to whom the object names."""
    if text is not None and json_text is None:
        event = {"type": "message", "payload": _payload(text)}
    elif json_text is not None and text is None:
        event = _object(json_text)
    else:
        raise ConfigError("give either a text or --json", "For example: tidegate publish chat:1 hello")
    if target:
        event["user_id" if to_user else "room"] = target
    if not event.get("room") and not event.get("user_id"):
        raise ConfigError("the event has no target", "Name a room: tidegate publish chat:1 hello")
    event.setdefault("timestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    try:
        return orjson.dumps(event)
    except orjson.JSONEncodeError:
        raise ConfigError("the message can't be written as JSON", "It must be UTF-8 and not nested deeply.") from None


def _payload(text: str) -> dict[str, Any]:
    """People paste payloads as well as words."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {"text": text}


def _object(text: str) -> dict[str, Any]:
    try:
        event = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the event is not JSON: {error}", """Write it like '{"type":"message"}'.""") from None
    if not isinstance(event, dict):
        raise ConfigError("the event is no JSON object", """Write it like '{"type":"message"}'.""")
    return event


async def over_bus(url: str, settings: Settings, event: bytes) -> None:
    """Raises BusError when the bus did not confirm it."""
    if scheme_of(url) == "memory":
        cure = "Give --url http://localhost:8086 and --key with the gateway's publish.key."
        raise ConfigError("a memory: bus lives inside the gateway's process and can't be reached from here", cure)
    bus = open_bus(url, settings, node_id=hostname())
    try:
        await bus.publish(settings.publish.subject, event)
    finally:
        await bus.close()


def over_http(url: str, key: str, event: bytes) -> None:
    """Through `POST /api/publish` of a running gateway."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url} is no HTTP URL", "Write it like http://localhost:8086.")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/api/publish", event, headers, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:  # noqa: S310 - http or https, see above
            answer.read(ANSWER_BYTES_MAX)
    except urllib.error.HTTPError as refused:
        with refused:
            raise _refusal(refused.code) from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        why = os.strerror(reason.errno).lower() if isinstance(reason, OSError) and reason.errno else reason
        raise TidegateError(f"no answer from {url}: {why}", "Is the gateway running, and is that its port?") from None


def _refusal(status: int) -> TidegateError:
    cures = {
        401: "Give --key with the gateway's publish.key.",
        404: "The API is off: set publish.key (GATEWAY_PUBLISH_KEY) and start the gateway again.",
        503: "Its bus did not confirm the message, or it is draining; try again.",
    }
    return TidegateError(f"the gateway refused the message with status {status}", cures.get(status, "See its log."))
