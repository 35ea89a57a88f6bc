"""What tests of upstreams share: settings, requests of the contracts, and an upstream that is closed after.

Rule: requests only; what a backend does with them is told to the backend.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr
from tidegate.calls import HttpAnswer, HttpRequest, RpcRequest
from tidegate.errors import UpstreamError
from tidegate.upstreams import Upstream, open_upstream

from tests.rest_backend import RestBackend

# For conditions that hold in well under a second on a quiet machine; only a failing test waits so long.
WAIT_S_MAX = 40
KEY = {"X-Internal-API-Key": RestBackend.KEY}


@dataclass(frozen=True)
class Backend:
    key: SecretStr = field(default_factory=lambda: SecretStr(RestBackend.KEY))
    timeout: float = 30.0
    max_requests: int = 256


@dataclass(frozen=True)
class Services:
    timeout: float = 30.0


@dataclass(frozen=True)
class Settings:
    backend: Backend = field(default_factory=Backend)
    services: Services = field(default_factory=Services)


@contextlib.asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Upstream]:
    backend = Backend(**settings)
    upstream = open_upstream(url, Settings(backend, Services(backend.timeout)), "the test's")
    try:
        yield upstream
    finally:
        await upstream.close(0)


def auth(token: str, key: dict[str, str] = KEY) -> HttpRequest:
    return post("/api/internal/v1/auth/validate", {"token": token}, key)


def members(chat: int = 1, shared_s: float = 0.0) -> HttpRequest:
    return HttpRequest("GET", f"/api/internal/v1/chats/{chat}/members", KEY, shared_s=shared_s)


def send(text: str, token: str = "user-2", chat: int = 1) -> HttpRequest:
    return post(
        "/api/v1/messages", {"chatId": chat, "text": text, "replyToId": None, "attachmentIds": None}, as_(token)
    )


def react(message: int, emoji: str = "+1", token: str = "user-2") -> HttpRequest:
    return post(f"/api/v1/messages/{message}/reactions", {"emoji": emoji}, as_(token))


def read(messages: list[int], token: str = "user-2") -> HttpRequest:
    return post("/api/v1/messages/read", {"messageIds": messages}, as_(token))


def post(path: str, body: Any, headers: dict[str, str]) -> HttpRequest:
    return HttpRequest("POST", path, headers, json.dumps(body).encode())


def as_(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def said(answer: HttpAnswer) -> Any:
    return json.loads(answer.body)


def validate(token: str, **options: Any) -> RpcRequest:
    return RpcRequest("auth.v1.AuthService/ValidateToken", {"access_token": token}, **options)


async def outcome(upstream: Upstream, method: str, request: HttpRequest) -> str:
    """A status as text, or "unavailable"."""
    try:
        return str((await upstream.call(method, request)).status)
    except UpstreamError as error:
        assert error.message == "backend unavailable"
        assert error.cure, "the log needs a cure"
        return "unavailable"


async def ended(upstream: Upstream, request: Any, method: str = "asked") -> str:
    """How a call of any kind ended: "answer", or the outcome of the UpstreamError. Anything else is raised."""
    try:
        await upstream.call(method, request)
        return "answer"
    except UpstreamError as error:
        assert error.message == "backend unavailable"
        assert error.cure, "the log needs a cure"
        return error.outcome


async def until(condition: Callable[[], bool]) -> None:
    # Polled: the other side of the condition has no event to wait for.
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
