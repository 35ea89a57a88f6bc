"""`tidegate bench` as an operator runs it, with a tiny crowd: real gateways, limit programs and load generators.

Rule: only that it measures, loses nothing and leaves nothing behind; how fast it is, a test can't know.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path

import nats

from tests.integration.test_cli import COMMAND, ENVIRONMENT, run
from tests.servers import NatsServer

BENCH_S_MAX = 50  # it takes ten seconds; this is for a machine that does everything at once


def bench(file: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """Figures by row. What the operator has set for a gateway must not reach the one that is measured."""
    done = run("bench", "--quick", "--json", str(file), *arguments, GATEWAY_WS_MAX_CONNECTIONS="1")
    assert done.returncode == 0, done
    assert "nothing was lost" in done.stdout
    return {row["row"]: row["figures"] for row in json.loads(file.read_text())["rows"]}


async def streams(server: NatsServer) -> list[str | None]:
    client = await nats.connect(server.url)
    try:
        return [stream.config.name for stream in await client.jetstream().streams_info()]
    finally:
        await client.close()


def test_every_row_is_measured_on_both_servers_with_nothing_but_the_package(tmp_path: Path) -> None:
    rows = bench(tmp_path / "figures.json", "--connections", "200", "--members", "50")
    assert list(rows) == ["connections", "handshakes", "fanout", "latency over HTTP"]
    for figures in rows.values():
        assert figures
        for figure in figures:
            assert set(figure["runs"]) == {"tidegate", "limit"}, figure


def test_latency_over_nats_takes_streams_of_its_own_and_removes_them(
    calm_nats_server: NatsServer, tmp_path: Path
) -> None:
    rows = bench(tmp_path / "figures.json", "latency", "--nats", calm_nats_server.url)
    assert list(rows) == ["latency over NATS"]
    assert "TIDEGATE_BENCH" not in str(asyncio.run(streams(calm_nats_server)))


def test_an_interrupted_benchmark_leaves_no_process_behind() -> None:
    with subprocess.Popen(
        [*COMMAND, "bench", "connections", "--connections", "500"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + BENCH_S_MAX
        while not (started := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.01)  # the only way to learn that another process has started one
        process.send_signal(signal.SIGINT)
        assert process.wait(BENCH_S_MAX) == 130
    assert not [child for child in started if is_running(child)]


def is_running(process: str) -> bool:
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False
