"""`tidegate demo`: a gateway at work in this process, with clients that connect over real sockets and a publisher.

`crowd.py` are the people, `tally.py` counts what they saw, `view.py` shows it. Rule: it needs nothing that is installed
or running, leaves nothing behind, and ends well on Ctrl-C.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from tidegate.app import App, loop_factory
from tidegate.buses import open_bus
from tidegate.config import Settings
from tidegate.demo.crowd import MEMBERS, Crowd, Publish, publish_steadily
from tidegate.demo.tally import Tally
from tidegate.demo.view import Invitation, Rates, console, line, panel
from tidegate.errors import FAILED, INTERRUPTED, OK, StartError
from tidegate.profiles import DEFAULT, find
from tidegate.signals import Signals
from tidegate.tokens import Person, mint

HOST = "127.0.0.1"
# The contract's ports, so that what people try here works there
PORT = 8086
METRICS_PORT = 9090
# A lively chat; about one percent of a core
LIVE_RATE = 20.0
# Ten times what a busy chat sees and far below what the gateway can do: the latency is its own, not a queue's
ONCE_RATE = 1_000.0
# The bus here is ready at once and the last deliveries follow in a millisecond; this is for a machine that swaps
PATIENCE_S = 5.0
CHECK_S = 0.01
# Often enough to look alive, seldom enough to cost nothing
LIVE_LOOK_S = 0.25
PLAIN_LOOK_S = 2.0
# Nobody looks at a demo for longer than a day's work
TOKEN_LIFETIME_S = 12 * 3600.0


def run(*, once: bool, port: int | None, messages: int) -> int:
    """The exit code."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_demo(_settings(port), messages if once else None))


def _settings(port: int | None) -> Settings:
    """All secrets are made up for this run, and only this machine can connect."""
    return Settings.model_validate(
        {
            "server": {"host": HOST, "port": _free_or_any(PORT) if port is None else port},
            "metrics": {"host": HOST, "port": _free_or_any(METRICS_PORT)},
            "jwt": {"secret_key": secrets.token_hex(32)},
            "publish": {"key": secrets.token_hex(16)},
            "nats": {"url": "memory:demo"},
            "ws": {"shutdown_grace": "1s"},
        }
    )


def _free_or_any(port: int) -> int:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return 0
    return port


async def _demo(settings: Settings, messages: int | None) -> int:
    """With a number of messages, those are sent and checked; without, it goes on until somebody ends it."""
    signals = Signals(on_hangup=lambda: None)
    signals.install()
    try:
        async with App(settings, find(DEFAULT)) as app:
            playing = asyncio.ensure_future(_play(app, messages))
            asked = asyncio.ensure_future(signals.asked.wait())
            await asyncio.wait([playing, asked], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if playing.done():
                return playing.result()
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            await app.drain()  # who connected from another terminal is told that it ends
            return OK if messages is None else INTERRUPTED
    finally:
        signals.remove()


async def _play(app: App, messages: int | None) -> int:
    if not await _until(lambda: app.why_not_ready() is None):
        raise StartError("the embedded bus did not start", "This machine is overloaded; try again.")
    screen, tally = console(), Tally(MEMBERS)
    if messages is None:
        screen.print(_invitation(app).text(), markup=False)
    async with Crowd(lambda name: _url(app, name), tally) as crowd:
        showing = asyncio.create_task(_show(screen, tally, crowd, is_brief=messages is not None))
        try:
            rate = LIVE_RATE if messages is None else ONCE_RATE
            await publish_steadily(_publisher(app), tally, rate=rate, messages=messages)
            await _until(lambda: tally.arrived + tally.strays >= tally.expected)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
    screen.print(tally.summary(), markup=False)
    return OK if tally.is_complete() else FAILED


async def _show(screen: Console, tally: Tally, crowd: Crowd, *, is_brief: bool) -> None:
    """A moving picture on a terminal, a line now and then elsewhere, nothing beside the one line of `--once`."""
    rates = Rates(at=time.monotonic())
    if screen.is_terminal:
        with Live(console=screen, auto_refresh=False, transient=is_brief) as live:
            while True:
                rates.look(tally, time.monotonic())
                live.update(panel(tally, rates, crowd.size), refresh=True)
                await asyncio.sleep(LIVE_LOOK_S)
    while not is_brief:
        await asyncio.sleep(PLAIN_LOOK_S)
        rates.look(tally, time.monotonic())
        screen.print(line(tally, rates, crowd.size), markup=False)


def _publisher(app: App) -> Publish:
    """A backend's end of the bus, beside the gateway's own."""
    bus = open_bus(app.settings.nats.url, app.settings, node_id="demo-backend")

    async def publish(event: bytes) -> None:
        await bus.publish(app.settings.publish.subject, event)

    return publish


def _invitation(app: App) -> Invitation:
    return Invitation(
        url=f"http://{HOST}:{app.port}",
        metrics_url=f"http://{HOST}:{app.metrics_port}",
        token=_token(app, "you"),
        key=app.settings.publish.key.get_secret_value(),
    )


def _url(app: App, name: str) -> str:
    return f"ws://{HOST}:{app.port}/ws?token={_token(app, name)}"


def _token(app: App, name: str) -> str:
    person = Person(user_id=name, brand_id="demo", type="customer")
    return mint(person, app.settings.jwt, lifetime_s=TOKEN_LIFETIME_S)


async def _until(is_so: Callable[[], bool]) -> bool:
    """Whether it came to be so in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so() and time.monotonic() < deadline:  # noqa: ASYNC110 - others count, nobody could set an event
        await asyncio.sleep(CHECK_S)
    return is_so()
