"""The HTTP API: what operators, load balancers and backends without a bus ask of a running gateway.

Rule: every answer is small and fixed in form, says what is true, and an error says its cure. Nothing of a request is
ever quoted in an answer.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tidegate.api.cors import Cors
from tidegate.errors import BusError

# A batch from a backend; as large as the largest message that NATS takes by default
BODY_BYTES_MAX = 1 << 20
EVENTS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Node:
    """What the API asks of the gateway; each is called once a request."""

    stats: Callable[[], Mapping[str, int]]
    why_not_ready: Callable[[], str | None]
    health: Callable[[], Mapping[str, Any]]
    publish: Callable[[bytes], Awaitable[None]]
    publish_key: str  # "" = off
    body_s: float  # within which a body must be here
    pages: Mapping[str, tuple[str, bytes]] | None = None  # `ProfileSpec.pages`
    render_metrics: Callable[[str], tuple[bytes, str]] | None = None  # on this port too


def http_app(node: Node, ws_paths: tuple[str, ...]) -> Starlette:
    async def health(_request: Request) -> Response:
        return _json(200, node.health())

    async def ready(_request: Request) -> Response:
        reason = node.why_not_ready()
        return _json(503, {"status": "not_ready", "reason": reason}) if reason else _json(200, {"status": "ready"})

    async def stats(_request: Request) -> Response:
        return _json(200, counts(node.stats()))

    async def publish(request: Request) -> Response:
        return await _publish(node, request)

    routes = [Route("/ready", ready)]
    if node.render_metrics is not None:
        routes.append(_metrics_route(node.render_metrics))
    if node.pages is not None:
        routes += [Route(path, _page(*page)) for path, page in node.pages.items()]
    else:
        routes += [
            Route("/", health),
            Route("/health", health),
            Route("/stats", stats),
            Route("/api/publish", publish, methods=["POST"]),
            *[Route(path, _upgrade_required) for path in ws_paths if path not in ("/", "/health", "/ready", "/stats")],
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _internal_error})
    app.add_middleware(Cors)
    return _without_redirects(app)


def metrics_app(render: Callable[[str], tuple[bytes, str]]) -> Starlette:
    """On a port of its own, for Prometheus."""

    async def health(_request: Request) -> Response:
        return Response(b"OK", media_type="text/plain")

    app = Starlette(
        routes=[_metrics_route(render), Route("/health", health)],
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )
    return _without_redirects(app)


def _metrics_route(render: Callable[[str], tuple[bytes, str]]) -> Route:
    async def metrics(request: Request) -> Response:
        body, content_type = render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return Route("/metrics", metrics)


def _page(media_type: str, body: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def page(_request: Request) -> Response:
        return Response(body, headers={"content-type": media_type})

    return page


def _without_redirects(app: Starlette) -> Starlette:
    """The one from `/ws/` to `/ws` would quote the Host header and the whole query, token included."""
    app.router.redirect_slashes = False
    return app


def counts(stats: Mapping[str, int]) -> dict[str, int]:
    """Under the names of `/stats`."""
    return {
        "total_connections": stats["connections"],
        "current_connections": stats["connections_now"],
        "total_rooms": stats["rooms_now"],
    }


# --- publish ----------------------------------------------------------------------------------------------------------


async def _publish(node: Node, request: Request) -> Response:
    if not node.publish_key:
        return _error(404, "not_found", "Publishing over HTTP is off; set publish.key to switch it on.")
    if not _holds_key(request, node.publish_key):
        return _error(401, "unauthorized", "Send the header `Authorization: Bearer` with the value of publish.key.")
    try:
        async with asyncio.timeout(node.body_s):
            events = _events(await _body(request))
    except ClientDisconnect:
        return _error(400, "disconnected", "Nobody reads this.")
    except TimeoutError:
        return _error(408, "timeout", "Send the whole body faster, or raise server.read_timeout.")
    except _RefusedError as refused:
        return _error(refused.status, refused.error, refused.cure)
    return await _publish_all(node, events)


class _RefusedError(Exception):
    def __init__(self, status: int, error: str, cure: str) -> None:
        super().__init__(error)
        self.status, self.error, self.cure = status, error, cure


def _holds_key(request: Request, key: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # both sides as bytes: the comparison takes the same time whatever they share
    is_same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), key.encode("utf-8", "replace"))
    return scheme.lower() == "bearer" and is_same


async def _body(request: Request) -> bytes:
    """An announced length is believed before the first byte is read."""
    too_large = _RefusedError(413, "too_large", f"Send at most {BODY_BYTES_MAX} bytes a request.")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > BODY_BYTES_MAX:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise too_large
    return bytes(body)


def _events(body: bytes) -> list[bytes]:
    """Each event as JSON; a single one keeps its bytes."""
    bad_event = _RefusedError(400, "bad_event", "Send a JSON object with a room or user_id, or a list of such objects.")
    try:
        value = orjson.loads(body)
        if isinstance(value, dict):
            return [body]
        if not isinstance(value, list) or not value or not all(isinstance(event, dict) for event in value):
            raise bad_event
        if len(value) > EVENTS_MAX:
            raise _RefusedError(413, "too_many", f"Send at most {EVENTS_MAX} events a request.")
        return [orjson.dumps(event) for event in value]
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # it reads deeper nesting than it writes
        raise bad_event from None


async def _publish_all(node: Node, events: list[bytes]) -> Response:
    """One after the other, so that the order is kept and the answer can say how far it came."""
    for count, event in enumerate(events):
        try:
            await node.publish(event)
        except BusError:
            cure = "The bus did not confirm; send the events after the first `published` ones again."
            return _error(503, "not_confirmed", cure, published=count)
    return _json(202, {"published": len(events)})


# --- answers ----------------------------------------------------------------------------------------------------------


def _json(status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _error(status: int, error: str, cure: str, **more: int) -> Response:
    return _json(status, {"error": error, "cure": cure, **more})


async def _upgrade_required(_request: Request) -> Response:
    body = {"error": "upgrade_required", "cure": "Connect with a WebSocket client."}
    return _json(426, body, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    names = {404: "not_found", 405: "method_not_allowed"}
    cures = {404: "See /health, /ready, /stats.", 405: "See the Allow header."}
    body = {"error": names.get(status, "bad_request"), "cure": cures.get(status, "Check the request.")}
    return _json(status, body, headers)


async def _internal_error(_request: Request, _error_: Exception) -> Response:
    return _error(500, "internal", "See the gateway's log.")
