"""NATS URLs as people write them: what is understood, what is refused; no password leaves the parser in a text."""

import pytest
from tidegate.buses import scheme_of
from tidegate.buses._servers import Server, parse_servers
from tidegate.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("nats://localhost:4222", ["nats://localhost:4222"]),
        ("nats://localhost", ["nats://localhost:4222"]),
        ("localhost:4222", ["nats://localhost:4222"]),
        ("nats://a:4222,b:4223, nats://c", ["nats://a:4222", "nats://b:4223", "nats://c:4222"]),
        ("tls://nats.example.com:4443/", ["tls://nats.example.com:4443"]),
        ("nats://[::1]:4222", ["nats://[::1]:4222"]),
        ("wss://nats.example.com/path", ["wss://nats.example.com:443/path"]),
    ],
)
def test_right_urls_give_their_servers(url: str, addresses: list[str]) -> None:
    assert [server.address for server in parse_servers(url)] == addresses
    assert scheme_of(url) == "nats"


def test_credentials_are_decoded_and_kept_out_of_the_address() -> None:
    assert parse_servers("nats://ann:p%40ss@host") == [Server("nats://host:4222", "ann", "p@ss")]
    assert parse_servers("nats://t0ken@host") == [Server("nats://host:4222", token="t0ken")]
    assert "p@ss" not in repr(parse_servers("nats://ann:p%40ss@host,nats://t0ken@b"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        ",",
        "nats://",
        "nats://:4222",
        "nats://host:port",
        "nats://host:99999",
        "nats://ho st",
        "nats://host/path",
        "nats://host?x=1",
        "nats://a,ws://b",
        "nats://a,http://b",
        "nats://[::1",
        "nats://ann:se,cret@host",
        "nats://ann:se/cret@host",
        "nats://host\r\nPUB",
    ],
)
def test_a_malformed_url_is_refused_with_a_right_one_and_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_servers(url)
    assert "nats://host:4222" in str(refused.value)
    assert "cret" not in str(refused.value)
