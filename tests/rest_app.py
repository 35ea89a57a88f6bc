"""The process behind `tests/rest_backend.py`: a chat backend over HTTP that does what a test tells it.

It answers the five requests of the gogate contract's section 7 as one of the two backends that exist, remembers what it
received, and misbehaves on demand. Rule: written from the contract alone, so that it does not share the mistakes of the
upstream that is tested with it. `python -m tests.rest_app PORT`.
"""

import asyncio
import json
import re
import sys
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

DEFAULT: dict[str, Any] = {
    "shape": "original",
    "key": "internal-key",
    "slow": {},
    "hold": [],
    "lie": {},
    "refuse": {},
    "members": {},
    "member_form": "user_id",
    "chat_id_in": ["send"],
}
CALLS = (
    ("auth", "POST", re.compile("/api/internal/v1/auth/validate")),
    ("members", "GET", re.compile("/api/internal/v1/chats/([0-9]+)/members")),
    ("send", "POST", re.compile("/api/v1/messages")),
    ("react", "POST", re.compile("/api/v1/messages/([0-9]+)/reactions")),
    ("read", "POST", re.compile("/api/v1/messages/read")),
)
LIES = {
    "bad_json": (200, b'{"id":'),
    "wrong_types": (200, b'{"valid":"yes","user":[],"members":{"1":2},"id":"one","chat_id":"one"}'),
    "not_an_object": (200, b"[1,2,3]"),
    "empty": (200, b""),
    "no_content": (204, b""),
    "accepted": (202, b'{"valid":true,"user":{"id":1},"chat_id":1,"members":[]}'),
    "server_error": (500, b"<html><h1>500 Internal Server Error</h1></html>"),
    "too_large": (200, b'{"members":[' + b" " * (1024 * 1024) + b"]}"),
}
REQUESTS_MAX = 50_000


class Chat:
    """State of the process: how to behave, what came, who is where."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.inside = self.life = 0
        self.reset()

    def reset(self) -> None:
        self.life += 1  # nobody waits for what was told before
        self.behaviour = {**DEFAULT}
        self.received: list[dict[str, Any]] = []
        self.together = self.inside
        self.authenticated: dict[int, None] = {}
        self.messages: dict[int, int] = {}  # id -> chat

    def says(self, name: str, call: str) -> Any:
        """What a behaviour is for this call; "all" is for every call."""
        value = self.behaviour[name]
        return value.get(call, value.get("all")) if isinstance(value, dict) else call in value or "all" in value


chat = Chat()


async def serve(request: Request) -> Response:
    call, argument = routed(request.method, request.url.path)
    chat.inside += 1
    chat.together = max(chat.together, chat.inside)
    try:
        await remember(request, call)
        await delayed(call)
        if lie := chat.says("lie", call):
            status, body = LIES[lie]
            return Response(body, status, media_type="application/json")
        if refused := chat.says("refuse", call):
            return JSONResponse(refused[1], refused[0])
        return await ANSWERS[call](request, argument)
    except ClientDisconnect:
        return Response(status_code=400)
    finally:
        chat.inside -= 1


def routed(verb: str, path: str) -> tuple[str, int]:
    for call, wanted, pattern in CALLS:
        if verb == wanted and (found := pattern.fullmatch(path)):
            return call, int(found.group(1)) if found.groups() else 0
    return "unknown", 0


async def remember(request: Request, call: str) -> None:
    body = (await request.body()).decode("utf-8", "replace")
    seen = {"call": call, "verb": request.method, "path": request.url.path, "body": body}
    chat.received.append(seen | {"headers": dict(request.headers)})
    del chat.received[:-REQUESTS_MAX]


async def delayed(call: str) -> None:
    until, life = time.monotonic() + (chat.says("slow", call) or 0), chat.life
    while life == chat.life and (chat.says("hold", call) or time.monotonic() < until):
        changed, left = chat.changed, until - time.monotonic()
        try:
            await asyncio.wait_for(changed.wait(), None if chat.says("hold", call) else max(left, 0))
        except TimeoutError:
            return


# --- the five ---------------------------------------------------------------------------------------------------------


async def auth(request: Request, _: int) -> Response:
    if (refusal := key_refused(request)) is not None:
        return refusal
    token = (await request.json()).get("token")
    if not token:
        return JSONResponse({"error": "Token required"}, 400)
    if token.startswith("bad"):
        return JSONResponse({"error": "Invalid token"}, 401)
    chat.authenticated[user_id(token)] = None
    return JSONResponse({"valid": True, "user": user(user_id(token))})


async def members(request: Request, chat_id: int) -> Response:
    if (refusal := key_refused(request)) is not None:
        return refusal
    listed = (chat.behaviour["members"] or {"1": list(chat.authenticated)}).get(str(chat_id))
    if listed is None:
        return JSONResponse({"error": "Chat not found"}, 404)
    if chat.behaviour["shape"] == "published":
        return JSONResponse({"chat_id": chat_id, "members": [user(number) for number in listed]})
    form = chat.behaviour["member_form"]
    return JSONResponse({"chat_id": chat_id, "members": [{form: number} for number in listed]})


async def send(request: Request, _: int) -> Response:
    if (sender := bearer(request)) is None:
        return JSONResponse({"message": "Authentication required"}, 401)
    said = await request.json()
    names = ("chatId", "text") if chat.behaviour["shape"] == "original" else ("chat_id", "content")
    chat_id, text = (said.get(name) for name in names)
    if type(chat_id) is not int or not isinstance(text, str | None) or len(text or "") > 10_000:
        return JSONResponse({"message": f"{' and '.join(names)} are needed; text has at most 10000 characters"}, 422)
    number = len(chat.messages) + 1
    chat.messages[number] = chat_id
    shown = {"id": number, "chat_id": chat_id, "user": user(sender), "type": "text", "text": text, "reply_to": None}
    shown |= {"attachments": [], "reactions": [], "read_count": 0, "mentions": None}
    shown |= {"created_at": "2025-10-25T12:34:56Z", "edited_at": None, "is_edited": False}
    if not chat.says("chat_id_in", "send"):
        del shown["chat_id"]
    return JSONResponse(shown, 201)


async def react(request: Request, number: int) -> Response:
    if bearer(request) is None:
        return JSONResponse({"message": "Authentication required"}, 401)
    if not 1 <= len((await request.json()).get("emoji") or "") <= 20:
        return JSONResponse({"message": "emoji must have 1 to 20 characters"}, 422)
    if number not in chat.messages:
        return JSONResponse({"error": "Message not found"}, 404)
    return JSONResponse({"message": "Reaction added successfully"} | where("react", number))


async def read(request: Request, _: int) -> Response:
    if bearer(request) is None:
        return JSONResponse({"message": "Authentication required"}, 401)
    said = await request.json()
    numbers = said.get("messageIds" if chat.behaviour["shape"] == "original" else "message_ids")
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= 100:
        return JSONResponse({"message": "1 to 100 message ids are needed"}, 422)
    return JSONResponse({"message": "Messages marked as read"} | where("read", numbers[0]))


async def unknown(_request: Request, _: int) -> Response:
    return JSONResponse({"error": "Not found"}, 404)


ANSWERS = {"auth": auth, "members": members, "send": send, "react": react, "read": read, "unknown": unknown}


def key_refused(request: Request) -> Response | None:
    given = request.headers.get("x-internal-api-key")
    return None if given == chat.behaviour["key"] else JSONResponse({"error": "Invalid API key"}, 401)


def bearer(request: Request) -> int | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return user_id(token) if scheme == "Bearer" and token and not token.startswith("bad") else None


def user_id(token: str) -> int:
    """`user-7` is user 7. Other tokens get a number of their own."""
    digits = re.fullmatch(r"user-([0-9]+)", token)
    return int(digits.group(1)) if digits else 1_000_000 + sum(token.encode())


def user(number: int) -> dict[str, Any]:
    name, phone = f"User {number}", f"+1555{number:07}"
    if chat.behaviour["shape"] == "original":
        return {"user_id": number, "name": name, "phone": phone}
    named = {"first_name": "User", "last_name": str(number), "full_name": name, "phone": phone}
    return {"id": number, "email": f"user-{number}@example.org", **named, "roles": ["ROLE_USER"], "is_active": True}


def where(call: str, number: int) -> dict[str, int]:
    return {"chat_id": chat.messages[number]} if chat.says("chat_id_in", call) and number in chat.messages else {}


# --- what tests tell it -----------------------------------------------------------------------------------------------


async def told(request: Request) -> Response:
    said = json.loads(await request.body())
    if said.pop("reset", False):
        chat.reset()
    chat.behaviour |= said
    chat.changed.set()
    chat.changed = asyncio.Event()
    return JSONResponse(chat.behaviour)


async def seen(_request: Request) -> Response:
    return JSONResponse({"requests": chat.received, "inside": chat.inside, "together": chat.together})


app = Starlette(
    routes=[
        Route("/_tell", told, methods=["POST"]),
        Route("/_seen", seen),
        Route("/{path:path}", serve, methods=["GET", "POST", "PUT", "DELETE"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", backlog=4096)
