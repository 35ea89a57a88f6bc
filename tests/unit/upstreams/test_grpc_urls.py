"""Which services' URLs are understood, what a method's name leads to, and what is told without the library."""

import builtins
import sys
from typing import Any

import pytest
from tidegate.errors import ConfigError
from tidegate.protos.methods import method_named
from tidegate.upstreams import open_upstream, scheme_of
from tidegate.upstreams.grpc import ADDRESS, checked_url

from tests.upstreams import Settings


@pytest.mark.parametrize(
    ("url", "address", "tls"),
    [
        ("grpc://localhost:9095", "localhost:9095", False),
        (" grpc://10.0.0.1:1/ ", "10.0.0.1:1", False),
        ("GRPCS://im.chat.svc.cluster.local:443", "im.chat.svc.cluster.local:443", True),
        ("grpc://[::1]:9095", "[::1]:9095", False),
        ("grpc:", "", False),
        ("grpc://", "", False),
    ],
)
def test_a_url_is_an_address_and_none_is_many(url: str, address: str, tls: bool):
    assert checked_url(url) == (address, tls)


@pytest.mark.parametrize(
    "url",
    [
        "grpcs:",
        "grpcs://",
        "grpc://host",
        "grpc://host:0",
        "grpc://host:port",
        "grpc://host:99999",
        "grpc://:9095",
        "grpc://host:9095/path",
        "grpc://host:9095?query=1",
        "grpc://user:hunter2@host:9095",
        "grpc://a:1,b:2",
        "grpc:host:9095",
        "grpc://ho st:1",
    ],
)
def test_a_url_that_cannot_be_right_is_refused_without_showing_it(url: str):
    with pytest.raises(ConfigError) as refused:
        open_upstream(url, Settings())
    assert "hunter2" not in str(refused.value) + repr(refused.value)
    assert "grpc://host:port" in str(refused.value)


def test_the_name_that_the_profile_knows_it_by_is_in_the_refusal():
    with pytest.raises(ConfigError, match="the URL of im is no gRPC address"):
        open_upstream("grpc://host", Settings(), "im")


@pytest.mark.parametrize("address", ["host:1", "10.0.0.1:65535", "[fe80::1]:9"])
def test_an_address_is_a_host_and_a_port(address: str):
    assert ADDRESS.fullmatch(address)


def test_schemes_with_tls_are_the_same_upstream():
    assert scheme_of("grpc:") == scheme_of("grpcs://h:1") == "grpc"
    assert scheme_of("redis://h") == scheme_of("rediss://h") == "redis"


def test_without_the_library_the_cure_is_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_grpc(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "grpc":
            raise ModuleNotFoundError("No module named 'grpc'", name="grpc")
        return real(name, *args, **options)

    for name in ("grpc", "_grpc_target"):
        monkeypatch.delitem(sys.modules, f"tidegate.upstreams.{name}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_grpc)
    with pytest.raises(ConfigError, match=r"pip install 'tidegate\[grpc\]'"):
        open_upstream("grpc://host:1", Settings())


@pytest.mark.parametrize(
    "name",
    [
        "auth.v1.AuthService/ValidateToken",
        "im.v1.IMService/RouteGroupMessage",
        "user.v1.UserService/GetGroupMembers",
        "user.v1.UserService/ValidateGroupMembership",
        "im_gateway_servicepb.UimUgatewayUserviceService/PushMessage",
        "im_gateway_servicepb.GatewayService/PushReadReceipt",
    ],
)
def test_each_method_of_the_contracts_is_found(name: str):
    method = method_named(name)
    assert method.path == f"/{name}"
    assert method.response.FromString(b"") == method.response()
    assert method.request.DESCRIPTOR.name.endswith("Request")


@pytest.mark.parametrize("name", ["", "/", "im.v1.IMService", "im.v1.IMService/", "/im.v1.IMService/RouteGroupMessage"])
def test_a_name_that_is_none_is_told_plainly(name: str):
    with pytest.raises(LookupError, match=r"no \.proto file"):
        method_named(name)
