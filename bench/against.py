"""`make bench-against COMMIT=...`: is this tree slower than that commit, on this machine and today?

Even a ratio to the limit program moves when the machine does: another host under the same name changes what a system
call costs, and tidegate and the limit program make different ones. So what `make bench-quick` calls worse is checked
here: the commit is built beside this tree, and the short form of each benchmark runs on both by turns.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import gate
from rig import REPOSITORY, RigError

BUILD_S_MAX = 1800  # four minutes here; a machine with slow disks or a cold registry needs more


@contextlib.contextmanager
def built(commit: str) -> Iterator[Path]:
    """A tree of its own with everything that its benchmarks need; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tidegate-against-") as directory:
        tree = Path(directory) / "tree"
        _run("git", "worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            print(f"building {commit} (some minutes)", flush=True)
            _run("make", "--silent", "setup", ".venv/.bench", cwd=tree)
            programs = ("tidegate-limit", "tidegate-loadgen")
            packages = [option for program in programs for option in ("--package", program)]
            _run("cargo", "build", "--release", "--quiet", *packages, cwd=tree)
            yield tree
        finally:
            _run("git", "worktree", "remove", "--force", str(tree))


def _run(*command: str, cwd: Path = REPOSITORY) -> None:
    # its own target directory, whatever ours is
    environment = os.environ | {"CARGO_TARGET_DIR": "target"}
    done = subprocess.run(command, cwd=cwd, env=environment, timeout=BUILD_S_MAX, check=False)
    if done.returncode:
        raise RigError(f"`{' '.join(command)}` ended with {done.returncode}")


def by_turns(theirs: Path, passes: int) -> tuple[list[Mapping[str, float]], list[Mapping[str, float]], float]:
    """What each pass measured there and here, and the largest share of the machine that others took."""
    there: list[Mapping[str, float]] = []
    here: list[Mapping[str, float]] = []
    worst = 0.0
    parts = [part for part in gate.PARTS if (theirs / "bench" / f"{part.name}.py").exists()]
    for number in range(passes):
        print(f"pass {number + 1} of {passes}", flush=True)
        # who is second finds a warmer machine
        for tree, found in [(theirs, there), (REPOSITORY, here)][:: 1 if number % 2 == 0 else -1]:
            values, share = gate.measured(parts, tree)
            found.append(values)
            worst = max(worst, share)
    return there, here, worst


def samples_of(passes: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [values[name] for values in passes if name in values] for name in passes[0]}


def verdict(commit: str, there: Mapping[str, Sequence[float]], now: Mapping[str, float], share: float) -> int:
    held = gate.compare(now, there, share)
    gate.show(held)
    worse = [one.name for one in held if one.verdict == "worse"]
    print(f"Slower than {commit} on this machine: {'; '.join(worse)}." if worse else f"Not slower than {commit}.")
    return 1 if worse else 0


def main() -> int:
    parser = argparse.ArgumentParser("bench/against.py", description=__doc__)
    parser.add_argument("commit", help="what to compare with, for example the commit in bench/accepted.json")
    parser.add_argument("--passes", type=int, default=gate.PASSES, help="of each, by turns (default: %(default)s)")
    options = parser.parse_args()
    try:
        with built(options.commit) as theirs:
            there, here, share = by_turns(theirs, max(1, options.passes))
    except (RigError, subprocess.TimeoutExpired) as error:
        sys.exit(f"bench: {error}")
    now = {name: median(values) for name, values in samples_of(here).items()}
    return verdict(options.commit, samples_of(there), now, share)


if __name__ == "__main__":
    sys.exit(main())
