"""What a gateway is connected to: made of its settings, found by its name, ended together."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from tidegate.calls import Enter, Place
from tidegate.config import Settings, load
from tidegate.errors import ConfigError, UpstreamError
from tidegate.outside import Outside, node_of, url_of
from tidegate.profile import ProfileSpec
from tidegate.profiles.attchat_gateway import PROFILE as ATTCHAT
from tidegate.profiles.echo import PROFILE as ECHO
from tidegate.profiles.im_gateway import PROFILE as IM

INSIDE = {
    "KAFKA_BROKERS": "localhost:9092",
    "GATEWAY_NODE_ID": "10.0.3.7:9093",
    "TIDEGATE_REGISTRY_URL": "memory:outside-tests",
}
# A port of this machine at which nobody listens is refused at once; nothing here calls it
NOBODY = "127.0.0.1:1"


def im_settings(**environ: str) -> Settings:
    return load(IM, environ=INSIDE | environ, search=("there-is-no-such-folder",)).settings


def spec_of(**changed: Any) -> ProfileSpec:
    """im-gateway without its bus, which wants a broker at once."""
    return replace(IM, **{"bus": None} | changed)


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    made = Outside(im_settings(), spec_of())
    yield made
    await made.close(1)


async def test_each_upstream_and_the_registry_is_found_by_its_name(outside: Outside) -> None:
    assert set(outside.asked()) == {"registry", "auth", "im", "user", "redis", "nodes"}


async def test_a_call_reaches_the_registry_under_this_nodes_name(outside: Outside) -> None:
    ask = outside.asked()["registry"]
    assert await ask("register", Enter(Place("user_7", "phone", 1, 1), 4)) is True
    assert await ask("devices", "user_7") == {"phone": "10.0.3.7:9093"}


async def test_a_profile_that_asks_nobody_has_nothing_outside() -> None:
    made = Outside(Settings(), replace(ECHO, bus=None))
    assert (made.bus, made.registry, made.upstreams, made.asked()) == (None, None, {}, {})
    assert made.why_not_ready() is None
    await made.close(1)


async def test_an_upstream_whose_url_is_empty_is_none() -> None:
    made = Outside(im_settings(), spec_of(upstreams={"nodes": "grpc:", "bus": "otel.endpoint"}, registry=None))
    assert set(made.asked()) == {"nodes"}
    await made.close(1)


@pytest.mark.parametrize(
    "changed",
    [
        {"AUTH_SERVICE_ADDR": "smoke://signals:1"},
        {"AUTH_SERVICE_ADDR": "auth:1/path"},
        {"REDIS_ADDR": "r:6379/x"},
        {"TIDEGATE_REGISTRY_URL": "smoke://signals:1"},
        {"ETCD_ENDPOINTS": "e:2379/path", "TIDEGATE_REGISTRY_URL": ""},
        {"ETCD_ENDPOINTS": "https://e:2379", "TIDEGATE_REGISTRY_URL": ""},
    ],
    ids=lambda changed: next(iter(changed)) + next(iter(changed.values()))[:5],
)
def test_a_url_that_cannot_be_right_fails_before_anything_is_connected(changed: dict[str, str]) -> None:
    settings = im_settings(**changed)
    with pytest.raises(ConfigError):
        Outside(settings, spec_of())


async def test_it_is_not_ready_while_the_registry_is_not_and_names_its_kind(outside: Outside) -> None:
    assert outside.why_not_ready() == "memory"


async def test_it_is_not_ready_while_the_bus_is_not_and_names_that_first() -> None:
    settings = load(
        ATTCHAT,
        environ={"GATEWAY_NATS_URL": "nats://" + NOBODY, "GATEWAY_JWT_SECRET_KEY": "x" * 32},
        search=("no-folder",),
    )
    made = Outside(settings.settings, ATTCHAT)
    assert made.why_not_ready() == "nats"
    await made.close(1)


class Ending:
    """Something outside that tells how it was ended."""

    def __init__(self, name: str, told: list[tuple[str, float | None]]) -> None:
        self._name = name
        self._told = told

    async def close(self, within_s: float | None = None) -> None:
        self._told.append((self._name, within_s))


async def test_everything_is_ended_and_nobody_can_be_asked_after_that(outside: Outside) -> None:
    told: list[tuple[str, float | None]] = []
    ending: Callable[[str], Any] = lambda name: Ending(name, told)  # noqa: E731 - a name for each
    made = Outside(im_settings(), spec_of())
    real = [made.registry, *made.upstreams.values()]
    made.bus, made.registry, made.tracer = ending("bus"), ending("registry"), ending("tracer")
    made.upstreams = {name: ending(name) for name in ("auth", "im")}
    await made.close(2.0)
    assert told[0] == ("bus", None)
    assert set(told[1:]) == {(name, 2.0) for name in ("registry", "tracer", "auth", "im")}
    for one in real:
        assert one is not None
        await one.close(1)
    ask = outside.asked()["registry"]
    await outside.close(1)
    with pytest.raises(UpstreamError):
        await ask("devices", "user_7")


def test_a_url_is_a_settings_or_the_one_that_stands_there() -> None:
    settings = im_settings()
    assert url_of(settings, None) == ""
    assert url_of(settings, "grpc:") == "grpc:"
    assert url_of(settings, "services.im_url") == "grpc://localhost:9094"


def test_a_node_has_the_name_that_the_registry_knows_where_there_is_one() -> None:
    settings = im_settings()
    assert node_of(settings, IM) == "10.0.3.7:9093"
    assert node_of(settings, spec_of(registry=None)) == settings.node_id == "10-0-3-7-9093"
