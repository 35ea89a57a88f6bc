"""`tidegate demo`: a gateway at work in this process, with clients that connect over real sockets and a publisher.

`crowd.py` are the people, `dialects.py` what they say under each profile, `tally.py` counts what they saw, `view.py`
shows it. Rule: it needs nothing that is installed or running, leaves nothing behind, and ends well on
Ctrl-C.
"""

import asyncio
import socket
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from tidegate import profiles
from tidegate.app import App, loop_factory
from tidegate.buses import open_bus
from tidegate.config import Settings
from tidegate.config.sources import profile_layer
from tidegate.demo.crowd import Crowd, Publish, publish_steadily
from tidegate.demo.dialects import Dialect, find
from tidegate.demo.tally import Tally
from tidegate.demo.view import Invitation, Rates, console, line, panel
from tidegate.errors import FAILED, INTERRUPTED, OK, StartError
from tidegate.signals import Signals

HOST = "127.0.0.1"
METRICS_PORT = 9090
GRPC_PORT = 9093
# A lively chat; about one percent of a core
LIVE_RATE = 20.0
# Ten times what a busy chat sees and far below what the gateway can do: the latency is its own, not a queue's
ONCE_RATE = 1_000.0
# The bus here is ready at once and deliveries follow in a millisecond; this is for a machine that swaps
PATIENCE_S = 5.0
CHECK_S = 0.01
# Often enough to look alive, seldom enough to cost nothing
LIVE_LOOK_S = 0.25
PLAIN_LOOK_S = 2.0


def run(*, profile: str, once: bool, port: int | None, messages: int) -> int:
    """The exit code."""
    dialect = find(profile)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_demo(dialect, _settings(dialect, port), messages if once else None))


def _settings(dialect: Dialect, port: int | None) -> Settings:
    """All secrets are made up for this run, and only this machine can connect."""
    shown, spec = dialect.settings(), profiles.find(dialect.profile)
    shown["ws"] = {"shutdown_grace": "1s"} | shown.get("ws", {})
    shown |= {
        "server": {"host": HOST, "port": _free_or_any(dialect.port) if port is None else port},
        "metrics": {"host": HOST, "port": _free_or_any(METRICS_PORT)},
    }
    if spec.services:
        # a number before it listens: backends find this node by its name in the registry
        backends = _free_or_any(GRPC_PORT) or _free()
        shown["grpc"] = {"host": HOST, "port": backends}
        shown["registry"] = shown["registry"] | {"node": f"{HOST}:{backends}"}
    return Settings.from_layers([shown, profile_layer(spec).nested()])


def _free_or_any(port: int) -> int:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return 0
    return port


def _free() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


async def _demo(dialect: Dialect, settings: Settings, messages: int | None) -> int:
    """With a number of messages, those are sent and checked; without, it goes on until somebody ends it."""
    signals = Signals(on_hangup=lambda: None)
    signals.install()
    try:
        async with App(settings, profiles.find(dialect.profile)) as app:
            playing = asyncio.ensure_future(_play(app, dialect, messages))
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


async def _play(app: App, dialect: Dialect, messages: int | None) -> int:
    if not await _until(lambda: app.why_not_ready() is None):
        raise StartError("the embedded bus did not start", "This machine is overloaded; try again.")
    screen, tally = console(), Tally(dialect.members)
    if messages is None:
        screen.print(dialect.invitation(_invitation(app)), markup=False)
    async with Crowd(dialect, lambda name: dialect.url(name, app.port, app.settings.jwt), tally) as crowd:
        publish = _publisher(app) if dialect.is_published else crowd.say
        showing = asyncio.create_task(_show(screen, tally, crowd, is_brief=messages is not None))
        try:
            rate = LIVE_RATE if messages is None else ONCE_RATE
            await publish_steadily(publish, dialect, tally, rate=rate, messages=messages)
            await _until(lambda: tally.seen >= tally.expected, lambda: tally.seen)
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

    async def publish(_room: str, event: bytes) -> None:
        await bus.publish(app.settings.publish.subject, event)

    return publish


def _invitation(app: App) -> Invitation:
    metrics_port = app.port if app.settings.metrics.shared else app.metrics_port
    return Invitation(
        url=f"http://{HOST}:{app.port}",
        metrics_url=f"http://{HOST}:{metrics_port}",
        publish_key=app.settings.publish.key.get_secret_value(),
        jwt=app.settings.jwt,
        grpc=f"{HOST}:{app.grpc_port}" if app.grpc_port else "",
    )


async def _until(is_so: Callable[[], bool], progress: Callable[[], int] = lambda: 0) -> bool:
    """Whether it came to be so before PATIENCE_S went by without progress, which has an end."""
    before, deadline = progress(), time.monotonic() + PATIENCE_S
    while not is_so() and time.monotonic() < deadline:
        await asyncio.sleep(CHECK_S)  # others count, nobody could set an event
        if (now := progress()) != before:
            before, deadline = now, time.monotonic() + PATIENCE_S
    return is_so()
