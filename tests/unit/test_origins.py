"""Which pages may connect: exact origins and names below one; in doubt, none."""

import re

import pytest
from tidegate.origins import ORIGIN_PATTERN, Origins


@pytest.mark.parametrize("origin", ["", "https://app.example.com"])
def test_programs_and_exact_matches_pass(origin: str) -> None:
    assert Origins(["https://app.example.com"]).allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",
        "https://APP.example.com",
        "https://app.example.com:444",
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "null",
        "https://app.example.com/",
        "https://[",
    ],
)
def test_anything_else_is_refused(origin: str) -> None:
    assert not Origins(["https://app.example.com"]).allows(origin)


def test_without_a_list_every_page_may() -> None:
    assert Origins([]).allows("https://anything.example")


@pytest.mark.parametrize(
    ("entry", "origin", "allowed"),
    [
        ("*.example.com", "https://a.example.com", True),
        ("*.example.com", "http://a.b.example.com:8080", True),
        ("*.example.com", "https://example.com", False),
        ("*.example.com", "https://notexample.com", False),
        ("*.example.com", "https://a.example.com.evil.example", False),
        ("*.example.com", "https://[::1", False),
        ("https://*.example.com", "https://a.example.com", True),
        ("https://*.example.com", "http://a.example.com", False),
    ],
)
def test_a_wildcard_is_for_all_names_below(entry: str, origin: str, allowed: bool) -> None:
    assert re.fullmatch(ORIGIN_PATTERN, entry)
    assert Origins([entry]).allows(origin) is allowed
