"""`tidegate bench` without measuring: its verdicts on made-up figures, what it refuses, and what it says at the end."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from tidegate.bench import preflight
from tidegate.bench.figures import Figure
from tidegate.bench.nats_run import address
from tidegate.bench.report import Row, Summary, show
from tidegate.bench.run import Usage
from tidegate.bench.verdict import CONNECTION_BYTES, Verdict, judge
from tidegate.cli import main
from tidegate.doctor import Check
from tidegate.errors import ConfigError

from tests.unit.test_doctor import GOOD

BOUND = {"generator_bound": True, "machine_full": False}


def figure(name: str, case: str = "a case", **servers: float | list[float]) -> Figure:
    found = Figure(case, name, "us")
    for server, values in servers.items():
        for value in values if isinstance(values, list) else [values]:
            found.add(server, value)
    return found


def verdict(row: str, found: Figure) -> Verdict:
    judged = judge(row, found)
    assert judged is not None
    return judged


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_price_is_good_up_to_its_goal_and_worse_beyond_it() -> None:
    name = "server CPU a delivery"
    assert verdict("fanout", figure(name, tidegate=5.0, limit=4.0)) == Verdict(
        "good", "1.25 x the kernel's own price", "at most 1.25"
    )
    assert verdict("fanout", figure(name, tidegate=5.1, limit=4.0)).judgement == "worse"


def test_a_rate_is_good_from_its_goal_on() -> None:
    assert verdict("handshakes", figure("handshakes", tidegate=70.0, limit=100.0)).judgement == "good"
    below = verdict("handshakes", figure("handshakes", tidegate=69.0, limit=100.0))
    assert (below.judgement, below.found) == ("worse", "0.69 x the kernel's own rate")


def test_one_disturbed_run_of_three_changes_no_verdict() -> None:
    found = figure("server CPU a delivery", tidegate=[4.0, 40.0, 4.0], limit=[4.0, 4.0, 1.0])
    assert verdict("fanout", found).judgement == "good"


def test_the_memory_of_a_large_crowd_is_held_to_the_bytes_of_a_connection_alone() -> None:
    def judged(case: str, value: float) -> str:
        return verdict("connections", figure("user memory a connection", case, tidegate=value)).judgement

    assert judged("1,000,000", CONNECTION_BYTES) == "good"
    assert judged("1,000,000", CONNECTION_BYTES + 20) == "worse"
    assert judged("10,000", CONNECTION_BYTES + 400) == "good"  # what the first clients cost once is a share of each


def test_what_the_generator_limited_is_not_judged() -> None:
    found = Figure("HS256", "handshakes", "1/s")
    for server in ("tidegate", "limit"):
        found.add(server, 10.0, BOUND)
    assert verdict("handshakes", found).judgement == "not judged"


def test_a_figure_without_a_goal_has_no_verdict() -> None:
    assert judge("fanout", figure("deliveries", tidegate=1.0, limit=9.0)) is None


# --- what is said at the end ------------------------------------------------------------------------------------------

FAST = figure("server CPU a delivery", tidegate=4.0, limit=4.0)
SLOW = figure("server CPU a delivery", tidegate=9.0, limit=4.0)


def said(*rows: Row, limits: tuple[Check, ...] = (), other: float = 0.0) -> tuple[bool, str]:
    summary, out = Summary(rows, limits, other), io.StringIO()
    show(summary, Console(file=out, width=80))
    return summary.is_fine, out.getvalue()


def test_all_is_fine_when_nothing_was_lost_and_every_goal_is_reached() -> None:
    is_fine, text = said(Row("fanout", [FAST]))
    assert is_fine
    assert "1.00 x the kernel's own price" in text


def test_a_figure_worse_than_its_goal_is_named_with_it() -> None:
    is_fine, text = said(Row("fanout", [SLOW, FAST]))
    assert not is_fine
    assert "2.25 x the kernel's own price; goal: at most 1.25" in text
    assert "1 of 2 figures" in text


def test_what_was_lost_is_told_whatever_the_other_figures_are() -> None:
    is_fine, text = said(Row("connections", lost="limit: 9 of 10 stand"), Row("fanout", [FAST]))
    assert not is_fine
    assert "limit: 9 of 10 stand" in text


def test_a_quick_run_judges_no_figure() -> None:
    is_fine, text = said(Row("fanout", [SLOW], is_quick=True))
    assert is_fine
    assert "leave --quick out" in text


def test_a_busy_machine_is_said_before_anybody_quotes_its_figures() -> None:
    assert "quiet machine" in said(Row("fanout", [FAST]), other=0.2)[1]
    assert "quiet machine" not in said(Row("fanout", [FAST]), other=0.01)[1]


def test_what_limits_the_machine_comes_with_its_cure() -> None:
    text = said(Row("fanout", [FAST]), limits=(Check("backlog", "128", "4,096", "warn", "sudo sysctl it"),))[1]
    assert "limited by backlog: 128. sudo sysctl it" in text


# --- what can't run here ----------------------------------------------------------------------------------------------

TOO_SMALL = {
    "descriptors": {"descriptors": 32},
    "fs.file-max": {"files": 1_000},
    "nf_conntrack_max": {"conntrack": (0, 5_000)},
    "memory": {"memory": 100 << 20},
}


def test_a_good_machine_has_no_limits_worth_telling() -> None:
    assert preflight.check(GOOD, 10_000) == []


@pytest.mark.parametrize("name", TOO_SMALL)
def test_a_machine_too_small_is_refused_with_the_cure_before_anything_starts(name: str) -> None:
    changed: Mapping[str, object] = TOO_SMALL[name]
    checks = preflight.check(replace(GOOD, **changed), 10_000)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as refused:
        preflight.refuse_what_fails(checks)
    assert refused.value.exit_code == 2
    assert "--connections" in refused.value.cure


def test_a_short_backlog_slows_down_and_refuses_nothing() -> None:
    checks = preflight.check(replace(GOOD, backlog=128), 10_000)
    preflight.refuse_what_fails(checks)
    assert [check.name for check in checks] == ["net.core.somaxconn"]


MISTAKES = {
    "no such row": ["conections"],
    "a crowd of none": ["--connections", "0"],
    "no run": ["--runs", "0"],
    "tls": ["latency", "--nats", "tls://127.0.0.1:4222"],
    "credentials": ["latency", "--nats", "nats://somebody:secret@127.0.0.1"],
    "a cluster": ["latency", "--nats", "nats://127.0.0.1:4222,nats://127.0.0.1:4223"],
    "a file nowhere": ["--json", "no/such/directory/file.json"],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_exit_code_2_and_starts_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("something was started"))
    done = CliRunner().invoke(main, ["bench", *MISTAKES[name]])
    assert done.exit_code == 2, done.output
    assert "secret" not in done.output


def test_a_server_is_its_host_and_port() -> None:
    assert address("nats://bus.example:4333") == ("bus.example", 4333)
    assert address("nats://bus.example") == ("bus.example", 4222)


# --- the machine meanwhile --------------------------------------------------------------------------------------------


def test_the_share_of_others_is_what_was_busy_and_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before, after = Usage(wall=100.0, busy=50.0, ours=10.0), Usage(wall=110.0, busy=62.0, ours=20.0)
    assert after.other_share(before) == pytest.approx(0.1)  # 2 of 20 seconds of two cores


def test_the_machine_has_been_busy_before_this_test() -> None:
    assert Usage.now().busy > 0
