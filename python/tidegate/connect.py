"""`tidegate connect`: a client for people. Prints each frame with the time it came, sends each line that is typed.

A line is sent as it is; `/join chat:1`, `/leave`, `/typing` and `/ping` are short for the frames of attchat-gateway.
Rule: what a line means is decided in `frame_of`, without a socket; the rest only moves lines.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from tidegate.errors import ConfigError, TidegateError

QUIT = "/quit"
HELP = (
    """/join ROOM  /leave ROOM  /typing ROOM  /ping  /quit    any other line is sent as it is ("//" sends one slash)"""
)
# A person waits no longer for a server that does not answer
OPEN_TIMEOUT_S = 10.0
# Answers to piped input arrive within a round trip; this is one across the world with a slow server
LINGER_S = 1.0
# Lines typed or piped and not sent yet: the reader waits then
LINES_MAX = 64
# Larger than any profile's limit
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
READ_BYTES = 65_536


def frame_of(line: str) -> str | None:
    """What a typed line sends; None for nothing. ConfigError names a command that does not exist."""
    line = line.strip()
    if not line:
        return None
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    command, _, room = line[1:].partition(" ")
    room = room.strip()
    if command == "ping" and not room:
        return '{"type":"ping"}'
    if command in ("join", "leave", "typing") and room:
        return orjson.dumps({"type": command, "room": room}).decode()
    raise ConfigError(f"no such command: {line}", HELP)


def with_token(url: str, token: str | None) -> str:
    """The URL to open: the scheme and the path that were left out, and the token in the query."""
    if "://" not in url:
        url = f"ws://{url}"
    scheme, host, path, query, _ = urlsplit(url.replace("http", "ws", 1) if url.startswith("http") else url)
    fields = parse_qsl(query, keep_blank_values=True)
    if token:
        fields = [(name, value) for name, value in fields if name != "token"] + [("token", token)]
    return urlunsplit((scheme, host, path if path.strip("/") else "/ws", urlencode(fields), ""))


async def converse(
    url: str, lines: AsyncIterator[str], show: Callable[[str, str], None], *, linger_s: float = 0.0
) -> tuple[int, str]:
    """Sends `lines` and shows what comes (`show(direction, text)`) until one side ends; the close code and reason."""
    try:
        connection = await connect(url, open_timeout=OPEN_TIMEOUT_S, max_size=MESSAGE_BYTES_MAX)
    except InvalidURI as error:
        raise ConfigError(f"{error.uri} is no WebSocket URL", "Write it like ws://localhost:8086/ws.") from None
    except (InvalidHandshake, OSError, TimeoutError, EOFError) as error:
        raise TidegateError(f"no connection: {_why(error)}", "Is the gateway running, and is that its port?") from None
    show("*", f"connected; {HELP}")
    async with connection:
        sending = asyncio.create_task(_send(connection, lines, show, linger_s))
        with contextlib.suppress(ConnectionClosed):
            async for frame in connection:
                show("<", frame if isinstance(frame, str) else f"({len(frame)} bytes) {frame[:64].hex(' ')}")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return connection.close_code or 1006, connection.close_reason or ""


async def _send(
    connection: ClientConnection, lines: AsyncIterator[str], show: Callable[[str, str], None], linger_s: float
) -> None:
    async for line in lines:
        if line.strip() == QUIT:
            break
        try:
            frame = frame_of(line)
        except ConfigError as error:
            show("!", str(error))
            continue
        if frame is not None:
            await connection.send(frame)
    else:
        await asyncio.sleep(linger_s)  # piped input has ended; its answers are on their way
    await connection.close()


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {OPEN_TIMEOUT_S:g} s"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


# --- terminal ---------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """A frame may hold anything, the terminal's own commands too."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


async def stdin_lines() -> AsyncIterator[str]:
    """Works for terminals, pipes and files alike, which the event loop's own readers don't."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue(LINES_MAX)

    def put(line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()

    # read(2) itself: a daemon thread inside a buffered reader would hold its lock while the interpreter ends
    threading.Thread(target=_read_lines, args=(sys.stdin.fileno(), put), daemon=True).start()
    while (line := await queue.get()) is not None:
        yield line


def _read_lines(descriptor: int, put: Callable[[str | None], None]) -> None:
    rest = b""
    with contextlib.suppress(OSError, RuntimeError, asyncio.CancelledError):  # the loop is closed: nobody listens
        while chunk := os.read(descriptor, READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                put(line.decode(errors="replace"))
            if len(rest) > MESSAGE_BYTES_MAX:
                break
        if rest:
            put(rest.decode(errors="replace"))
        put(None)


def run(url: str) -> tuple[int, str]:
    """With the terminal, until it or the gateway ends; the close code and reason."""
    from rich.console import Console  # noqa: PLC0415 - colours are for people, not for who imports `frame_of`

    console = Console(highlight=False, soft_wrap=True)
    colours = {"<": "cyan", "!": "red", "*": "dim"}

    def show(direction: str, text: str) -> None:
        stamp = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
        console.print(f"{stamp} {direction} {printable(text)}", style=colours[direction], markup=False)

    return asyncio.run(converse(url, stdin_lines(), show, linger_s=0.0 if sys.stdin.isatty() else LINGER_S))
