"""What `make bench-quick` decides, on made-up figures: which of them are worse than accepted, and what it says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import gate

FANOUT = "fanout | a room, alone | server CPU a delivery"
MEMORY = "connections | 20,000 | user memory a connection"
QUIET = 0.0
ACCEPTED = {"date": "2026-11-21", "commit": "abc"}


def verdict(now: float | None, *samples: float, name: str = FANOUT, share: float = QUIET) -> str:
    measured = {} if now is None else {name: now}
    (held,) = gate.compare(measured, {name: samples} if samples else {}, share)
    return held.verdict


def test_a_figure_is_worse_only_beyond_its_floor() -> None:
    assert verdict(1.0 + gate.CPU, 1.0, 1.0, 1.0) == "good"
    assert verdict(1.01 + gate.CPU, 1.0, 1.0, 1.0) == "worse"


def test_a_figure_that_the_accepted_passes_spread_may_vary_as_much() -> None:
    assert verdict(1.35, 0.8, 1.0, 1.2) == "good"
    assert verdict(1.45, 0.8, 1.0, 1.2) == "worse"


def test_on_a_busy_machine_twice_the_noise_is_allowed_for() -> None:
    assert verdict(1.0 + 2 * gate.CPU, 1.0, share=0.5) == "good"
    assert verdict(1.1 + 2 * gate.CPU, 1.0, share=0.5) == "worse"


def test_each_kind_of_figure_has_its_own_floor() -> None:
    assert verdict(1.1, 1.0) == "good"
    assert verdict(1.1, 1.0, name=MEMORY) == "worse"
    assert verdict(1.4, 1.0, name=FANOUT.replace("alone", "burst of 25")) == "good"


def test_a_figure_that_became_cheaper_by_more_than_noise_is_worth_accepting() -> None:
    assert verdict(0.5, 1.0, 1.0) == "better"


def test_what_was_never_accepted_or_is_measured_no_more_passes_unseen_by_nobody() -> None:
    assert verdict(1.0) == "not accepted yet"
    assert verdict(None, 1.0) == "not measured"
    for now, accepted in (({FANOUT: 1.0}, {}), ({}, {FANOUT: [1.0]}), ({}, {"gone | a case | a figure": [1.0]})):
        assert gate.conclude(gate.compare(now, accepted, QUIET), ACCEPTED, QUIET) == 2


def test_the_exit_code_says_whether_anything_is_worse(capsys: pytest.CaptureFixture[str]) -> None:
    accepted = {FANOUT: [1.0], MEMORY: [500.0]}
    assert gate.conclude(gate.compare({FANOUT: 1.0, MEMORY: 500.0}, accepted, QUIET), ACCEPTED, QUIET) == 0
    assert gate.conclude(gate.compare({FANOUT: 1.0, MEMORY: 900.0}, accepted, QUIET), ACCEPTED, QUIET) == 1
    assert f"{MEMORY}: was 500, is 900, allowed 525" in capsys.readouterr().out


def test_what_seems_worse_once_and_not_again_is_not_worse() -> None:
    assert gate.least({FANOUT: 9.0, MEMORY: 500.0}, {FANOUT: 1.0}) == {FANOUT: 1.0, MEMORY: 500.0}


def test_a_figure_is_named_by_its_driver_case_and_what_it_is() -> None:
    part = gate.Part("fanout", (), (gate.Watched("server CPU a delivery", gate.CPU),))
    figures: list[dict[str, Any]] = [
        {"case": "a room, alone", "figure": "server CPU a delivery", "ratio": 1.5, "tidegate_median": 3.0},
        {"case": "a case", "figure": "deliveries", "ratio": 0.9, "tidegate_median": 9.0},
        {"case": "generator-bound", "figure": "server CPU a delivery", "ratio": None, "tidegate_median": None},
    ]
    assert gate.values_of(part, figures) == {FANOUT: 1.5}


def test_every_part_is_a_driver_and_holds_something() -> None:
    for part in gate.PARTS:
        assert (gate.REPOSITORY / "bench" / f"{part.name}.py").is_file(), part.name
        assert part.watched, part.name


def test_what_is_accepted_is_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "accepted.json"
    monkeypatch.setattr(gate, "REPOSITORY", tmp_path)
    monkeypatch.setattr(gate, "ACCEPTED", file)
    monkeypatch.setattr(gate, "measured", lambda *_: ({FANOUT: 1.0}, QUIET))
    assert gate.check() == 2
    assert gate.accept(on_a_busy_machine=False) == 0
    assert json.loads(file.read_text())["figures"] == {FANOUT: [1.0] * gate.PASSES}
    assert gate.check() == 0
    assert "make bench-accept" in capsys.readouterr().out


def test_a_busy_machine_accepts_nothing_unless_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gate, "REPOSITORY", tmp_path)
    monkeypatch.setattr(gate, "ACCEPTED", tmp_path / "accepted.json")
    monkeypatch.setattr(gate, "measured", lambda *_: ({FANOUT: 1.0}, 0.5))
    with pytest.raises(gate.RigError, match="--on-a-busy-machine"):
        gate.accept(on_a_busy_machine=False)
    assert not gate.ACCEPTED.exists()
    gate.accept(on_a_busy_machine=True)
    assert json.loads(gate.ACCEPTED.read_text())["is_quiet"] is False
