"""Kinds of backends found by the scheme of a URL, and what is said about one that is not there."""

import sys
from pathlib import Path

import pytest
from tidegate.errors import ConfigError
from tidegate.schemes import Schemes


@pytest.fixture
def schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schemes:
    package = tmp_path / "kinds_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plain.py").write_text("WHO = 'plain'")
    (package / "lacking.py").write_text("import a_library_that_nobody_has")
    (package / "_shared.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("kinds_of_a_test")]:
        monkeypatch.delitem(sys.modules, name)
    return Schemes(
        "kind",
        "kinds_of_a_test",
        [str(package)],
        same={"plains": "plain"},
        extras={"lacking": "lack"},
        bare="plain",
    )


@pytest.mark.parametrize("url", ["plain://host:1", "PLAIN:", "plains://host", "host:4222", "a:1,b:2"])
def test_a_scheme_names_its_file_and_others_are_ways_to_it(schemes: Schemes, url: str) -> None:
    assert schemes.module(url).WHO == "plain"


@pytest.mark.parametrize(
    ("url", "words"),
    [("plian://x", "Did you mean plain:"), ("", "Valid: lacking:, plain:, plains:."), ("_shared:", "")],
)
def test_one_that_is_not_there_is_told_with_the_nearest(schemes: Schemes, url: str, words: str) -> None:
    with pytest.raises(ConfigError, match="unknown kind URL scheme") as refused:
        schemes.of(url)
    assert words in str(refused.value)


def test_only_the_scheme_is_shown(schemes: Schemes) -> None:
    with pytest.raises(ConfigError) as refused:
        schemes.of("user:hunter2@host")
    assert "hunter2" not in str(refused.value)


def test_a_library_that_is_not_installed_is_told_with_the_extra_that_has_it(schemes: Schemes) -> None:
    with pytest.raises(ConfigError) as refused:
        schemes.module("lacking://host")
    cure = "Install it with: pip install 'tidegate[lack]'"
    assert str(refused.value) == f"kind lacking: needs the package a_library_that_nobody_has. {cure}"
