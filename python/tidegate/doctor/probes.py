"""Whether what a gateway is connected to answers: its bus, its registry and its upstreams, each asked once and at once.

Rule: a probe touches nothing there, ends within PROBE_S, and never fails: what is wrong is a few words.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tidegate.config import Settings
from tidegate.errors import BusError, TidegateError, UpstreamError
from tidegate.outside import url_of
from tidegate.profile import ProfileSpec

# Whoever is on the same continent answers in a tenth of it
PROBE_S = 3.0
NO_ANSWER = "no answer in time"
NOBODY = "nobody answers there"


@dataclass(frozen=True, slots=True)
class Peer:
    """One that is needed, and why it can't be used; "" = it answers."""

    name: str  # bus, registry, or what the profile calls an upstream
    scheme: str
    fault: str = ""


def read_peers(settings: Settings, spec: ProfileSpec) -> tuple[Peer, ...]:
    return asyncio.run(_ask_all(list(_peers(settings, spec)), settings))


def _peers(settings: Settings, spec: ProfileSpec) -> Iterator[tuple[str, str]]:
    """Name and URL of those that are set; an upstream that serves many has no one to ask."""
    keys = {"bus": spec.bus, "registry": spec.registry} | dict(spec.upstreams)
    for name, key in keys.items():
        url = url_of(settings, key)
        if (url and not url.endswith(":")) or url.startswith("memory:"):
            yield name, url


async def _ask_all(peers: list[tuple[str, str]], settings: Settings) -> tuple[Peer, ...]:
    return tuple(await asyncio.gather(*[_ask(name, url, settings) for name, url in peers]))


async def _ask(name: str, url: str, settings: Settings) -> Peer:
    probes = {"bus": _probe_bus, "registry": _probe_registry}
    try:
        scheme, probe = probes.get(name, _probe_upstream)(url, settings)
        async with asyncio.timeout(PROBE_S):
            return Peer(name, scheme, await probe)
    except TimeoutError:
        return Peer(name, scheme, NO_ANSWER)
    except TidegateError as error:
        return Peer(name, url.partition(":")[0], error.message)


Probe = tuple[str, Awaitable[str]]


def _probe_bus(url: str, settings: Settings) -> Probe:
    from tidegate.buses import scheme_of  # noqa: PLC0415 - imports a client library by name

    scheme = scheme_of(url)
    probe: Callable[[str], Awaitable[str]] | None = {
        "nats": _probe_nats,
        "redis": _probe_redis,
        "kafka": _probe_kafka,
    }.get(scheme)
    return scheme, probe(url) if probe else _nothing()


async def _nothing() -> str:
    """It is in the process."""
    return ""


def _probe_registry(url: str, settings: Settings) -> Probe:
    from tidegate.registries import open_registry, scheme_of  # noqa: PLC0415 - as above

    async def probe() -> str:
        registry = open_registry(url, settings, node="tidegate-doctor")
        try:
            await registry.call("devices", "tidegate-doctor")
        except UpstreamError:
            return NOBODY
        finally:
            await registry.close(0)
        return ""

    return scheme_of(url), probe()


def _probe_upstream(url: str, settings: Settings) -> Probe:
    """Any answer will do, an error of the application too: what it says is its own business."""
    from tidegate.upstreams import open_upstream, scheme_of  # noqa: PLC0415 - as above

    async def probe() -> str:
        upstream = open_upstream(url, settings)
        try:
            await upstream.call("doctor", _question(scheme_of(url)))
        except UpstreamError as error:
            return "" if error.outcome in SIGNS_OF_LIFE else NOBODY
        finally:
            await upstream.close(0)
        return ""

    return scheme_of(url), probe()


def _question(scheme: str) -> Any:
    from tidegate.calls import HttpRequest, RedisRequest, RpcRequest  # noqa: PLC0415 - few commands need them

    if scheme == "grpc":
        # a method that nobody has been asked to have: one that is not there is refused by whoever is
        return RpcRequest("auth.v1.AuthService/ValidateToken", {"access_token": ""})
    return RedisRequest([("PING",)]) if scheme == "redis" else HttpRequest("GET", "/")


SIGNS_OF_LIFE = ("unimplemented", "invalid_argument", "unauthenticated", "permission_denied", "not_found", "unknown")


async def _probe_redis(url: str) -> str:
    """A real connection, logged in; '' is success. No key is touched."""
    from tidegate.buses._redis_link import LINK_ERRORS, Link, describe, parse_server  # noqa: PLC0415 - as above

    link = Link(parse_server(url), "tidegate-doctor")
    try:
        async with asyncio.timeout(PROBE_S):
            await link.open()
    except LINK_ERRORS as error:
        return NO_ANSWER if isinstance(error, TimeoutError) else f"refused: {describe(error)}"
    finally:
        await link.close()
    return ""


async def _probe_nats(url: str) -> str:
    """A real connection and a question to JetStream; '' is success. No consumer is touched."""
    import nats  # noqa: PLC0415 - takes a tenth of a second
    import nats.errors  # noqa: PLC0415

    async def silence(_: Exception) -> None:
        """The library would print it; the table says it."""

    try:
        async with asyncio.timeout(PROBE_S):
            client = await nats.connect(
                [server.strip() for server in url.split(",")],
                allow_reconnect=False,
                connect_timeout=PROBE_S,
                max_reconnect_attempts=1,
                error_cb=silence,
            )
            try:
                await client.jetstream(timeout=PROBE_S).account_info()
            finally:
                await client.close()
    except TimeoutError:
        return NO_ANSWER
    except nats.errors.NoServersError:
        return "nobody listens there"
    except (nats.errors.Error, OSError, ValueError) as error:
        return f"refused: {type(error).__name__.removesuffix('Error')}"
    return ""


async def _probe_kafka(url: str) -> str:
    """Asks for the cluster's metadata, of no topic, so that none is made."""
    from tidegate.buses.kafka import probe  # noqa: PLC0415 - as above

    try:
        await probe(url, PROBE_S)
    except BusError as error:
        return error.message
    return ""
