"""What `make bench-against` decides, on made-up figures: who measures when, and what is called slower."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import against
import gate

FANOUT = "fanout | a room, alone | server CPU a delivery"


def test_both_trees_measure_in_each_pass_and_take_turns_in_being_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[Path] = []

    def measured(parts: Sequence[gate.Part], tree: Path) -> tuple[dict[str, float], float]:
        assert [part.name for part in parts] == ["fanout"], "the other tree has no other driver"
        order.append(tree)
        return {FANOUT: float(len(order))}, 0.01 * len(order)

    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "fanout.py").touch()
    monkeypatch.setattr(gate, "measured", measured)
    there, here, share = against.by_turns(tmp_path, 2)
    assert order == [tmp_path, gate.REPOSITORY, gate.REPOSITORY, tmp_path]
    assert (there, here, share) == ([{FANOUT: 1.0}, {FANOUT: 4.0}], [{FANOUT: 2.0}, {FANOUT: 3.0}], 0.04)
    assert against.samples_of(there) == {FANOUT: [1.0, 4.0]}


def test_slower_is_what_exceeds_the_other_commit_by_more_than_noise(capsys: pytest.CaptureFixture[str]) -> None:
    there = {FANOUT: [1.0, 1.0, 1.1]}
    assert against.verdict("abc", there, {FANOUT: 1.1}, 0.0) == 0
    assert "Not slower than abc." in capsys.readouterr().out
    assert against.verdict("abc", there, {FANOUT: 1.3}, 0.0) == 1
    assert f"Slower than abc on this machine: {FANOUT}." in capsys.readouterr().out


def test_a_commit_that_is_none_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["against.py", "no-such-commit"])
    with pytest.raises(SystemExit, match="git worktree add"):
        against.main()
