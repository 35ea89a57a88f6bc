"""Style and layering as tests: what can be checked by a machine is not left to memory.

Each failure says what to do instead. The limits come from docs/ARCHITECTURE.md, "Kept by machines".
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "tidegate"
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
VOCABULARY = {"config", "errors", "profile", "calls", "counters", "engine", "origins", "protos", "rates", "schemes"}
# a layer may import itself, those below it, and the vocabulary
LAYERS = [
    {"cli", "__main__"},
    {"demo", "doctor", "connect", "publish", "tokens", "bench"},
    {"app", "outside", "signals", "supervise"},
    {"gateway", "auth", "api", "metrics", "logs", "tracing", "chat"},
    {"profiles", "buses", "registries", "upstreams"},
    {"_core"},
]


def tracked(*suffixes: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listing.splitlines() if name.endswith(suffixes) and (ROOT / name).is_file()]


def modules() -> list[Path]:
    return [path for path in tracked(".py") if path.is_relative_to(PACKAGE)]


def layer_of(name: str) -> int:
    for depth, names in enumerate(LAYERS):
        if name in names:
            return depth
    return -1


def imported(path: Path) -> set[str]:
    """Names directly below `tidegate` that the file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tidegate":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tidegate.")}
    return found


def own_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward_only(path: Path) -> None:
    own = own_name(path)
    known = VOCABULARY | {"__init__", "__version__"}
    if own in known:
        upward = {name for name in imported(path) if name not in known | {"_core"}}
        assert not upward, f"{path.name} is vocabulary for all: it must not import {sorted(upward)}"
        return
    depth = layer_of(own)
    assert depth >= 0, f"{path.name} has no layer: name it in tests/test_tidy.py and docs/ARCHITECTURE.md"
    for name in imported(path) - known:
        assert layer_of(name) >= depth, (
            f"{path.name} imports {name}, which is above it: pass what it needs as an argument"
        )


@pytest.mark.parametrize("path", sorted((PACKAGE / "profiles").glob("*[a-z].py")), ids=lambda p: p.stem)
def test_a_profile_imports_only_vocabulary_the_standard_library_and_what_only_computes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top = name.split(".")[0]
            # libraries that only compute
            allowed = top in sys.stdlib_module_names or top in ("orjson", "rbloom")
            allowed = allowed or (top == "tidegate" and name.split(".")[1] in VOCABULARY)
            allowed = allowed or name.startswith(f"tidegate.profiles._{path.stem.lstrip('_').split('_')[0]}_")
            allowed = allowed or name == "tidegate.profiles._environment"  # which all share
            assert allowed, f"{path.name} imports {name}: a profile decides, gateway.py acts"
            assert top not in {"asyncio", "socket", "time", "threading"}, (
                f"{path.name} imports {top}: time and I/O come from outside"
            )


@pytest.mark.parametrize("path", tracked(".py", ".rs", ".pyi"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_opens_with_why_it_exists_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= FILE_LINES_MAX, f"{path.name} has {lines} lines: split it by concept, not by size"
    if not text.strip():
        return
    opening = '"""' if path.suffix in {".py", ".pyi"} else "//!"
    first = next(line for line in text.splitlines() if line.strip() and not line.startswith(("#!", "#![")))
    assert first.startswith(opening), f"{path.name} must open with a sentence that says why it exists"


@pytest.mark.parametrize("path", tracked(".py"), ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, (
                f"{path.name}:{node.lineno} {node.name} has {length} lines: name its steps"
            )


@pytest.mark.parametrize(
    "path", tracked(".py", ".rs", ".md", ".toml", ".yaml", ".yml", "Makefile", "Dockerfile"), ids=str
)
def test_nothing_is_left_unfinished_or_tied_to_one_machine(path: Path) -> None:
    if path == Path(__file__):
        return
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|unimplemented!|todo!)\b")
    machine = re.compile(r"(?<![\w.$}])/(work|farm|root)/\w")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        assert not unfinished.search(line) or "TODO list" in line, f"{path.name}:{number}: finish it or delete it"
        assert not machine.search(line), f"{path.name}:{number}: a path of one machine"


def test_weak_names_are_not_used_for_files() -> None:
    weak = {"utils", "helper", "helpers", "common", "manager", "handler", "handlers", "misc", "base"}
    named = [path for path in tracked(".py", ".rs") if path.stem in weak]
    assert not named, f"name these by what they are for: {named}"


def test_every_relative_link_in_the_documents_leads_somewhere() -> None:
    for path in tracked(".md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


def test_every_make_verb_and_command_of_the_readme_exists() -> None:
    from tidegate.cli import main

    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\s*make ([a-z-]+)", readme, re.M)) <= verbs
    commands = set(re.findall(r"^\s*(?:\.venv/bin/)?tidegate ([a-z]+)", readme, re.M))
    assert commands
    assert commands <= set(main.commands)  # type: ignore[attr-defined]


def test_python_and_rust_carry_one_version() -> None:
    import tidegate

    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert tidegate.__version__ == workspace


def test_the_readme_says_what_the_code_says() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import readme

    text = readme.README.read_text()
    assert text == readme.rendered(text), "the README drifted from the code: run `make format`"
