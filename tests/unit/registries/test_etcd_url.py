"""etcd URLs as people write them."""

import pytest
from tidegate.errors import ConfigError
from tidegate.registries import scheme_of
from tidegate.registries._etcd_url import parse


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("etcd://localhost:2379", ["localhost:2379"]),
        ("etcd://localhost", ["localhost:2379"]),
        ("etcd://a:1,b:2, c", ["a:1", "b:2", "c:2379"]),
        ("etcd://a:1,etcd://b:2,a:1", ["a:1", "b:2"]),
        ("http://a:2379,http://b:2379/", ["a:2379", "b:2379"]),
        ("a:2379,b:2379", ["a:2379", "b:2379"]),
        ("etcd://[::1]:2379,10.0.0.1", ["[::1]:2379", "10.0.0.1:2379"]),
    ],
)
def test_a_url_names_its_endpoints(url: str, endpoints: list[str]) -> None:
    assert scheme_of(url) == "etcd"
    etcd = parse(url)
    assert list(etcd.endpoints) == endpoints
    assert (etcd.user, etcd.password) == ("", "")


def test_credentials_are_for_all_endpoints_and_never_shown() -> None:
    etcd = parse("etcd://me:p%40ss%2Fw@a:1,b:2")
    assert (etcd.user, etcd.password) == ("me", "p@ss/w")
    assert etcd.endpoints == ("a:1", "b:2")
    assert "p@ss" not in f"{etcd} {etcd!r}"
    assert "me" not in f"{etcd} {etcd!r}"


@pytest.mark.parametrize(
    "url",
    [
        "etcd://",
        "etcd://,",
        "etcd://a:b",
        "etcd://a/path",
        "etcd://a?x=1",
        "etcd://a b:1",
        "etcd://a,https://b",
        "://a",
    ],
)
def test_what_cannot_be_right_is_refused_with_the_cure(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(url)
    assert "etcd://host:2379" in refused.value.cure
