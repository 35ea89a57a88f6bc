"""Which backend URLs are understood, and that a refusal shows no password."""

import pytest
from tidegate.errors import ConfigError
from tidegate.upstreams import open_upstream, scheme_of
from tidegate.upstreams.http import checked_url


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("HTTPS://api.example.org/chat/", "https://api.example.org/chat"),
        ("http://[::1]:80/a/b//", "http://[::1]:80/a/b"),
        (" http://10.0.0.1 ", "http://10.0.0.1"),
    ],
)
def test_a_url_keeps_its_path_and_loses_its_trailing_slash(url: str, base: str):
    assert checked_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:",
        "http:///path",
        "http://host:0",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host/a b",
        "http://host/\r\nX: y",
        "http://host/ünquoted",
        "http://host?query=1",
        "http://host#fragment",
        "http://user@host",
        "http://user:hunter2@host",
        "http://:hunter2@host",
    ],
)
def test_a_url_that_cannot_be_right_is_refused_without_showing_it(url: str):
    with pytest.raises(ConfigError) as refused:
        checked_url(url)
    assert "hunter2" not in str(refused.value) + repr(refused.value)
    assert "backend.url" in str(refused.value)


def test_both_schemes_of_http_are_one_upstream():
    assert scheme_of("http://host") == scheme_of("https://host") == scheme_of("HTTP://host") == "http"
    assert scheme_of("memory:") == "memory"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("htps://user:hunter2@host", "Did you mean http"),
        ("localhost:8000", "Valid: "),
        ("", "memory:"),
        ("://", "http:"),
    ],
)
def test_an_unknown_scheme_names_the_valid_ones(url: str, words: str):
    with pytest.raises(ConfigError) as refused:
        open_upstream(url, None)  # type: ignore[arg-type]  # nothing reads it before the URL is understood
    assert words in str(refused.value)
    assert "hunter2" not in str(refused.value)
