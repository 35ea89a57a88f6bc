"""The composition root: settings become objects, run, drain and stop. The only file that knows all layers.

Order of a stop: not ready, the bus hands over and acknowledges what it accepted, clients are closed over the grace
time, what clients sent to backends is confirmed, everything ends. Rules: signals are caught before anything waits;
nothing here waits without a bound; a background task that dies is started again.
"""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import tidegate
from tidegate._core import Engine
from tidegate.api.http import Node, counts, http_app, metrics_app
from tidegate.api.server import abstract_name, bind_abstract, bind_tcp, cannot_listen, serve_http
from tidegate.api.system import System
from tidegate.auth import Authenticator
from tidegate.config import Loaded, Settings
from tidegate.counters import GatewayCounters
from tidegate.engine import Options, options_of, read_tls
from tidegate.errors import OK, BusError, ConfigError, StartError, TidegateError
from tidegate.gateway import Gateway
from tidegate.logs import Logs
from tidegate.metrics import Exposition, Sources
from tidegate.outside import Outside
from tidegate.profile import HasWelcome, ProfileSpec
from tidegate.signals import Signals
from tidegate.supervise import supervise

if TYPE_CHECKING:
    from tidegate.api.grpc import GrpcServer

log = logging.getLogger("tidegate.app")

# So long may the bus hold up the first close frame: an acknowledgement on its way takes a millisecond
BUS_HEAD_START_S = 0.05
# Then it is given up; what was not acknowledged is delivered again after a restart
BUS_STOP_S = 5.0
# Closes are spread over this much of the grace time, so that the last client has time to answer as well
CLOSING_SHARE = 0.8
# When calls to backends took all of the grace time, clients still get a close frame
CLOSING_S_MIN = 1.0
# A registry takes our places out in one call a thousand; what does not answer has its own time-outs for the rest
OUTSIDE_STOP_S = 1.0
# Nobody tells when the last connection is gone; looking costs microseconds
DRAINED_CHECK_S = 0.02
# What clients sent to backends is confirmed in milliseconds, or the bus is down
SETTLE_S = 2.0


def run(
    spec: ProfileSpec,
    loaded: Loaded,
    *,
    reload: Callable[[], Loaded] | None = None,
    ready: Callable[["App"], None] | None = None,
) -> int:
    """`tidegate serve`: logs, event loop, `serve`. Returns the exit code."""
    settings = loaded.settings
    logs = Logs(settings.log.level, production=settings.log.production)
    logs.start()
    try:
        for warning in loaded.warnings:
            log.warning("%s", warning)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve(settings, spec, ready=ready, reload=reload, logs=logs))
    finally:
        logs.stop()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where it installs; TIDEGATE_LOOP=asyncio for the other."""
    if os.environ.get("TIDEGATE_LOOP") != "asyncio":
        try:
            import uvloop  # noqa: PLC0415 - not on every platform

            return uvloop.new_event_loop
        except ImportError:
            pass
    return asyncio.new_event_loop


async def serve(
    settings: Settings,
    spec: ProfileSpec,
    *,
    ready: Callable[["App"], None] | None = None,
    reload: Callable[[], Loaded] | None = None,
    logs: Logs | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT, drains, and returns the exit code."""
    app = App(settings, spec, logs=logs)
    signals = Signals(on_hangup=lambda: app.reload(reload))
    signals.install()
    try:
        async with app:
            if ready is not None:
                ready(app)
            await signals.asked.wait()
            await _first_of(app.drain(), signals.insisted.wait())
    finally:
        signals.remove()
    if signals.insisted.is_set():
        log.warning("stopped before the drain was over")
        return signals.exit_code
    log.info("drained and stopped")
    return OK


async def _first_of(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


class App:
    """One gateway in this process. `async with` starts and stops it; a `drain` before lets nobody lose anything."""

    def __init__(self, settings: Settings, spec: ProfileSpec, *, logs: Logs | None = None) -> None:
        self.settings = settings
        self.spec = spec
        self.counters = GatewayCounters.of(spec)
        self.profile = spec.build(settings)
        self.auth = Authenticator(settings.jwt)
        self.outside = Outside(settings, spec)
        self.bus = self.outside.bus
        self._exposition = Exposition(self._sources(), spec)
        self.port = 0
        self.metrics_port = 0
        self.grpc_port = 0
        self._logs = logs
        self._system = System()
        self._engine: Engine | None = None
        self._grpc: GrpcServer | None = None
        self._gateway: Gateway | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False

    async def __aenter__(self) -> Self:
        try:
            self._start()
            await self._start_grpc()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _start(self) -> None:
        settings, spec = self.settings, self.spec
        http_name = abstract_name()
        self._supervise("http", self._http_server(http_name))
        if settings.metrics.enabled and not settings.metrics.shared:
            self._supervise("metrics", self._metrics_server())
        engine = self._engine = _engine(options_of(settings, spec, http_name))
        self.port = engine.port
        gateway = self._gateway = Gateway(
            engine,
            spec,
            self.profile,
            auth=self.auth,
            bus=self.bus,
            counters=self.counters,
            upstreams=self.outside.asked(),
            tracer=self.outside.tracer,
        )
        asyncio.get_running_loop().add_reader(engine.fileno(), gateway.pump)
        if (registry := self.outside.registry) is not None:
            self._supervise("registry", lambda: registry.run(gateway.taken))
        if (bus := self.bus) is not None:
            self._supervise("bus", lambda: bus.run(gateway.deliver, gateway.receive, gateway.offer))
        where = "the same" if settings.metrics.shared else self.metrics_port or "no port"
        log.info("%s serves on port %d, metrics on %s", spec.name, self.port, where)

    async def _start_grpc(self) -> None:
        """Where backends call, once there is somebody to answer."""
        if not self.spec.services or self._gateway is None:
            return
        from tidegate.api.grpc import GrpcServer  # noqa: PLC0415 - the library is an extra

        grpc = self.settings.grpc
        self._grpc = GrpcServer(
            self.spec.services, self._gateway.answer, self.why_not_ready, host=grpc.host, port=grpc.port
        )
        self.grpc_port = await self._grpc.start()
        log.info("backends call on port %d", self.grpc_port)

    def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.get_running_loop().create_task(supervise(name, run, self.counters.count_error), name=name)
        self._tasks[name] = task

    def _http_server(self, name: str) -> Callable[[], Awaitable[None]]:
        """The socket is bound at once, so that the engine finds it; a server that died binds it anew."""
        app, head_s = http_app(self._node(), self.spec.ws_paths), self.settings.server.read_timeout
        return _rebinding(lambda listener: serve_http(app, listener, head_s), lambda: bind_abstract(name))

    def _metrics_server(self) -> Callable[[], Awaitable[None]]:
        metrics = self.settings.metrics
        app, head_s = metrics_app(self._exposition.render), self.settings.server.read_timeout
        listener = bind_tcp(metrics.host, metrics.port, "metrics.port")
        self.metrics_port = port = listener.getsockname()[1]
        return _rebinding(
            lambda bound: serve_http(app, bound, head_s), lambda: bind_tcp(metrics.host, port, "metrics.port"), listener
        )

    def _sources(self) -> Sources:
        return Sources(
            engine=self.stats,
            counters=self.counters,
            bus=self.bus,
            tokens=self.auth,
            upstreams=lambda: self.outside.upstreams,
            registry=lambda: self.outside.registry,
            tracer=lambda: self.outside.tracer,
            rpcs=lambda: self._grpc,
            version=tidegate.__version__,
            node_id=self.settings.node_id,
        )

    # --- what the API tells ------------------------------------------------------------------------------------------

    def _node(self) -> Node:
        return Node(
            stats=self.stats,
            why_not_ready=self.why_not_ready,
            health=self._health,
            publish=self._publish,
            publish_key=self.settings.publish.key.get_secret_value() if self.bus else "",
            body_s=self.settings.server.read_timeout,
            pages=self.spec.pages,
            render_metrics=self._exposition.render if self._shares_metrics() else None,
        )

    def _shares_metrics(self) -> bool:
        return self.settings.metrics.enabled and self.settings.metrics.shared

    def stats(self) -> Mapping[str, int]:
        if self._engine is None:
            return {"connections": 0, "connections_now": 0, "rooms_now": 0}
        return self._engine.stats()

    def why_not_ready(self) -> str | None:
        if self._draining:
            return "draining"
        return self.outside.why_not_ready()

    def _health(self) -> Mapping[str, Any]:
        is_ready = self.bus is None or self.bus.is_ready()
        streams = len(self.settings.nats.streams) if is_ready and self.spec.bus == "nats.url" else 0
        health = {
            "ready": is_ready,
            "consumers": streams,
            "streams": streams,
            "stats": counts(self.stats()),
            "system": self._system.load(),
        }
        if isinstance(self.profile, HasWelcome):
            return self.profile.welcome(health)
        status = "healthy" if is_ready else "degraded"
        return {"status": status, "profile": self.spec.name, "version": tidegate.__version__, **health}

    async def _publish(self, event: bytes) -> None:
        if self.bus is None or self._draining:
            raise BusError("the gateway is draining")
        await self.bus.publish(self.settings.publish.subject, event)

    # --- reload, drain, stop -----------------------------------------------------------------------------------------

    def reload(self, load: Callable[[], Loaded] | None) -> None:
        """SIGHUP: certificate, token keys and log level anew; what can't be read stays as it was."""
        try:
            settings = load().settings if load else self.settings
        except TidegateError as error:
            log.error("nothing was reloaded: %s", error)
            return
        parts: dict[str, Callable[[Settings], None]] = {
            "the certificate": self._reload_tls,
            "the token keys": lambda new: self.auth.reload(new.jwt),
            "the log level": self._reload_log_level,
        }
        for what, part in parts.items():
            try:
                part(settings)
                log.info("reloaded %s", what)
            except (TidegateError, ValueError) as error:
                log.error("%s stayed as before: %s", what, error)

    def _reload_tls(self, settings: Settings) -> None:
        tls = read_tls(settings)
        if tls and self._engine is not None:
            self._engine.set_tls(*tls)

    def _reload_log_level(self, settings: Settings) -> None:
        if self._logs is not None:
            self._logs.set_level(settings.log.level)

    async def drain(self) -> None:
        """Everything accepted before is delivered; every client is closed with 1001 within the grace time."""
        grace = self.settings.ws.shutdown_grace
        log.info("draining, %g s at most", grace)
        self._draining = True
        if self._engine is None or self._gateway is None:
            return
        deadline = time.monotonic() + grace
        # who has asked a backend gets the answer, and others get what it leads to
        await self._gateway.finish_calls(grace)
        bus = asyncio.get_running_loop().create_task(self._end("bus", BUS_STOP_S))
        await asyncio.wait([bus], timeout=BUS_HEAD_START_S)
        left = max(CLOSING_S_MIN, deadline - time.monotonic())
        self._engine.begin_drain(round(left * CLOSING_SHARE * 1000))
        try:
            async with asyncio.timeout(left):
                while not self._engine.is_drained():  # noqa: ASYNC110 - the engine can't set an event of ours
                    await asyncio.sleep(DRAINED_CHECK_S)
        except TimeoutError:
            log.warning("the grace time is over with %d connections open", self.stats()["connections_now"])
        await bus
        if self._grpc is not None:
            await self._grpc.stop(SETTLE_S)
        await self._gateway.close(SETTLE_S)

    async def stop(self) -> None:
        """At once, in whatever state; a second time does nothing."""
        await self._end("bus", BUS_HEAD_START_S)
        if self._grpc is not None:
            await self._grpc.stop(0)
        engine, self._engine = self._engine, None
        if engine is not None:
            asyncio.get_running_loop().remove_reader(engine.fileno())
            engine.stop()
        if self._gateway is not None:
            await self._gateway.close(0)
        await asyncio.gather(*[self._end(name, BUS_STOP_S) for name in list(self._tasks)])
        await self.outside.close(OUTSIDE_STOP_S)

    async def _end(self, name: str, within_s: float) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=within_s)


def _rebinding(
    serve_on: Callable[[Any], Awaitable[None]], bind: Callable[[], Any], bound: Any = None
) -> Callable[[], Awaitable[None]]:
    """A server's run: on the socket that is bound already the first time, on a new one after that."""
    waiting = [bound if bound is not None else bind()]

    async def run_once() -> None:
        await serve_on(waiting.pop() if waiting else bind())

    return run_once


def _engine(options: Options) -> Engine:
    try:
        return Engine(options)
    except ValueError as error:
        raise ConfigError(f"the engine can't start: {error}", "Put that setting right and start again.") from None
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise cannot_listen(options["host"], options["port"], error, "server.port") from None
        cure = "`tidegate doctor` looks at the machine's limits."
        if error.errno in (errno.EMFILE, errno.ENFILE):
            cure = f"Raise the limit of descriptors (ulimit -n), or lower ws.max_connections; {cure}"
        raise StartError(error.strerror or str(error), cure) from None
