"""Cross-origin answers as the original gives them: everybody may read, with these request headers.

That is safe because nothing here goes by cookies: what is secret wants a key in a header. Rule: every answer has it,
errors too.
"""

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALLOWED_HEADERS = "Origin, Content-Type, Accept, Authorization"
ALLOWED_METHODS = "GET, HEAD, POST, OPTIONS"


class Cors:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Access-Control-Allow-Origin"] = "*"
            await send(message)

        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = {
                "Access-Control-Allow-Methods": ALLOWED_METHODS,
                "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            }
            await Response(status_code=204, headers=headers)(scope, receive, send_allowed)
        else:
            await self._app(scope, receive, send_allowed)
