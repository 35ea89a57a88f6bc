"""The commands of `tidegate` as processes, the way a person or a script runs them: output, exit codes, real servers.

Rule: what is printed is compared where scripts read it; elsewhere only that the message names the fault and its cure.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import tidegate

from tests.buses import until
from tests.gateways import SECRET, Gateway, running
from tests.integration.client import Chat
from tests.servers import NatsServer, free_port

RUN_S_MAX = 30  # a command takes half a second; this is for a machine that does everything at once
PUBLISH_KEY = "a-publish-key-of-the-tests-0123456789"
# What a test does not set must not come from whoever runs it
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "LOG_", "APP_", "TIDEG"))
}
ENVIRONMENT = CLEAN | {"GATEWAY_JWT_SECRET_KEY": SECRET, "COLUMNS": "200"}
COMMAND = [sys.executable, "-m", "tidegate.cli"]


def run(
    *arguments: str, stdin: str = "", directory: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
        cwd=directory,
        env=ENVIRONMENT | environment,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running("attchat-gateway", PUBLISH_KEY=PUBLISH_KEY) as started:
        yield started


@pytest.fixture(scope="module")
def on_nats(calm_nats_server: NatsServer) -> Iterator[Gateway]:
    with running("attchat-gateway", NATS_URL=calm_nats_server.url, NATS_STREAMS="CHAT") as started:
        asyncio.run(until(lambda: started.get("/ready")[0] == 200))
        yield started


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


# --- exit codes -------------------------------------------------------------------------------------------------------


def documented_codes() -> set[int]:
    return {int(code) for code in re.findall(r"^ +(\d+) {2,}\S", run("--help").stdout, re.MULTILINE)}


MISTAKES = {
    "no such command": (["sirve"], 2, "sirve"),
    "no such option": (["serve", "--prt", "1"], 2, "--port"),
    "no such profile": (["serve", "--profile", "attchat"], 2, "attchat-gateway"),
    "no such setting": (["serve", "--set", "ws.max_roms=1"], 2, "ws.max_rooms"),
    "an impossible value": (["serve", "--set", "ws.ping_interval=30"], 2, "30s"),
    "no configuration file": (["serve", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
    "a memory bus from outside": (["publish", "chat:1", "x", "--bus", "memory:"], 2, "--url"),
    "a message without a room": (["publish"], 2, "tidegate publish chat:1 hello"),
    "a token for nobody": (["token", "--user-id", ""], 2, "--user-id"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_exits_with_its_documented_code_and_says_the_cure(name: str) -> None:
    arguments, code, cure = MISTAKES[name]
    done = run(*arguments, GATEWAY_NATS_URL="memory:")
    assert (done.returncode, done.stdout) == (code, ""), done
    assert cure in done.stderr
    assert SECRET not in done.stderr


def test_the_help_documents_every_exit_code_there_is() -> None:
    assert documented_codes() == {0, 1, 2, 3, 130, 143}


def test_a_port_in_use_is_exit_code_3_for_both_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options in (["--port", port, "--metrics-port", "0"], ["--port", "0", "--metrics-port", port]):
            done = run("serve", "--bus", "memory:", "--host", "127.0.0.1", *options, GATEWAY_METRICS_HOST="127.0.0.1")
            assert done.returncode == 3, done
            assert f"port {port} is in use" in done.stderr


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"tidegate {tidegate.__version__}\n"


# --- serve --print-config, token, demo --------------------------------------------------------------------------------


def test_print_config_names_the_source_of_each_setting_and_masks_secrets(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("ws:\n  max_rooms: 7\n  ping_interval: 5s\n")
    options = ["--print-config", "--port", "1234", "--set", "ws.ping_interval=6s"]
    done = run("serve", *options, directory=tmp_path, GATEWAY_PUBLISH_KEY=PUBLISH_KEY, GATEWAY_WS_OUTBOX_BYTES="2MiB")
    assert done.returncode == 0
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    shown = {key: [part.strip() for part in rows[key].split("#")] for key in rows}
    assert shown["server.port"][0] == "1234"
    assert "command line" in shown["server.port"][1]
    assert shown["ws.ping_interval"][0] == "6s"
    assert "--set" in shown["ws.ping_interval"][1] or "command line" in shown["ws.ping_interval"][1]
    assert shown["ws.max_rooms"][0] == "7"
    assert "config.yaml" in shown["ws.max_rooms"][1]
    assert shown["ws.outbox_bytes"] == ["2MiB", "environment GATEWAY_WS_OUTBOX_BYTES"]
    assert shown["ws.pong_timeout"][1] == "default"
    assert shown["jwt.secret_key"] == ["********", "environment GATEWAY_JWT_SECRET_KEY"]
    assert shown["publish.key"][0] == "********"
    assert SECRET not in done.stdout + done.stderr
    assert PUBLISH_KEY not in done.stdout + done.stderr


async def test_a_minted_token_is_one_line_that_the_gateway_admits(gateway: Gateway) -> None:
    options = ["--user-id", "77", "--brand", "b1", "--type", "cskh", "--room", "vip:1", "--expires", "10m"]
    done = await asyncio.to_thread(run, "token", *options)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    claims = jwt.decode(done.stdout.strip(), SECRET, ["HS256"], options={"require": ["exp", "iat"]})
    assert claims["exp"] - claims["iat"] == 600
    async with Chat(f"{gateway.url}?token={done.stdout.strip()}") as chat:
        who = chat.hello["payload"]
        assert (who["user_id"], who["brand_id"], who["user_type"]) == ("77", "b1", "cskh")
        await chat.join("vip:1")  # only who has the room in its token may


def test_demo_once_ends_with_one_line_and_0() -> None:
    done = run("demo", "--once", "--messages", "300", "--port", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"ok: 300 messages, .* each in order and once; .*\n", done.stdout), done.stdout


# --- publish ----------------------------------------------------------------------------------------------------------


async def publish(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(run, "publish", *arguments, **environment)


async def test_what_is_published_over_nats_reaches_a_connected_client(
    on_nats: Gateway, calm_nats_server: NatsServer
) -> None:
    async with Chat(on_nats.authenticated(user_id="u7")) as chat:
        await chat.join("chat:cli")
        event = json.dumps({"type": "order", "payload": {"n": 3}})
        for arguments in (["chat:cli", "xin chào"], ["chat:cli", '{"n":2}'], ["chat:cli", "--json", event]):
            done = await publish(*arguments, "--bus", calm_nats_server.url)
            assert (done.returncode, done.stdout) == (0, "published\n"), done
        done = await publish("--user", "u7", "only you", GATEWAY_NATS_URL=calm_nats_server.url)
        assert done.returncode == 0, done
        came = [await chat.receive() for _ in range(4)]
        assert [(one["type"], one["payload"]) for one in came] == [
            ("message", {"text": "xin chào"}),
            ("message", {"n": 2}),
            ("order", {"n": 3}),
            ("message", {"text": "only you"}),
        ]
        assert [one.get("room") for one in came] == ["chat:cli"] * 3 + [None]
        assert all(one["timestamp"] for one in came)


async def test_a_bus_that_is_not_there_fails_with_the_cure(nobody: str) -> None:
    done = await publish("chat:1", "x", "--bus", f"nats://{nobody}")
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("tidegate: ")
    assert "Is " in done.stderr or "Check" in done.stderr or "start" in done.stderr, done.stderr


async def test_what_is_published_through_the_gateway_reaches_a_client_of_its_memory_bus(gateway: Gateway) -> None:
    url = f"http://127.0.0.1:{gateway.port}"
    async with Chat(gateway.authenticated()) as chat:
        await chat.join("chat:http")
        done = await publish("chat:http", "hello", "--url", url, "--key", PUBLISH_KEY)
        assert (done.returncode, done.stdout) == (0, "published\n"), done
        assert (await chat.receive())["payload"] == {"text": "hello"}
        done = await publish("chat:http", "hello", "--url", url, "--key", "wrong")
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "401" in done.stderr
        assert "--key" in done.stderr
        await chat.nothing_came()


async def test_a_gateway_that_is_not_there_fails_with_the_cure(nobody: str) -> None:
    done = await publish("chat:1", "x", "--url", f"http://{nobody}", "--key", PUBLISH_KEY)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "Is the gateway running" in done.stderr
    assert PUBLISH_KEY not in done.stderr


# --- connect ----------------------------------------------------------------------------------------------------------


def test_piped_lines_are_sent_and_their_answers_printed(gateway: Gateway) -> None:
    done = run("connect", gateway.url, "--mint", "42", stdin='/join chat:9\n/nonsense\n{"type":"ping"}')
    assert done.returncode == 0, done
    frames = [json.loads(line.split(" < ", 1)[1]) for line in done.stdout.splitlines() if " < " in line]
    assert [one["type"] for one in frames] == ["connected", "joined", "pong"]
    assert frames[0]["payload"]["user_id"] == "42"
    assert "/nonsense" in done.stdout


@contextlib.contextmanager
def connected(gateway: Gateway, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`tidegate connect` whose input stays open, once it has joined `chat:live`."""
    command = [*COMMAND, "connect", gateway.url, "--mint", "42", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT) as process:
        try:
            type_line(process, "/join chat:live")
            printed(process, '"joined"')
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def type_line(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def printed(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if text in line)


def test_a_message_is_printed_when_it_comes_and_quit_ends_it(gateway: Gateway) -> None:
    with connected(gateway) as process:
        run("publish", "chat:live", "\x1b[2Jhi", "--url", f"http://127.0.0.1:{gateway.port}", "--key", PUBLISH_KEY)
        line = printed(process, '"message"')
        assert "\x1b" not in line
        type_line(process, "/quit")
        assert process.wait(RUN_S_MAX) == 0


def test_ctrl_c_ends_a_client_with_130(gateway: Gateway) -> None:
    with connected(gateway) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(RUN_S_MAX) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_gateway_that_drains_ends_its_clients_with_0() -> None:
    with running("attchat-gateway", WS_SHUTDOWN_GRACE="1s") as gateway, connected(gateway) as process:
        gateway.signal(signal.SIGTERM)
        assert process.wait(RUN_S_MAX) == 0
        assert gateway.wait() == 0


def test_a_client_that_is_refused_fails_and_says_why(gateway: Gateway, nobody: str) -> None:
    done = run("connect", gateway.url, "--token", "bad")
    assert done.returncode == 1
    assert "AUTH_FAILED" in done.stdout
    assert "1008" in done.stderr
    done = run("connect", f"ws://{nobody}/ws", "--mint")
    assert done.returncode == 1
    assert "Is the gateway running" in done.stderr


# --- doctor -----------------------------------------------------------------------------------------------------------

# Little enough for any machine, and ports that are free: what is left to judge is the bus
MODEST = ["--set", "ws.max_connections=100", "--set", "server.port=0", "--set", "metrics.port=0"]


def verdicts(text: str) -> dict[str, str]:
    rows = re.findall(r"^(ok|warn|fail)\s+(\S.*?)\s{2,}", text, re.MULTILINE)
    return {name: verdict for verdict, name in rows}


def test_the_doctor_passes_a_machine_with_its_bus_up(calm_nats_server: NatsServer) -> None:
    done = run("doctor", *MODEST, GATEWAY_NATS_URL=calm_nats_server.url)
    assert verdicts(done.stdout)["bus"] == "ok", done.stdout
    assert "fail" not in verdicts(done.stdout).values(), done.stdout
    assert done.returncode == 0


def test_the_doctor_fails_with_the_cure_when_the_bus_is_down(nobody: str) -> None:
    done = run("doctor", *MODEST, GATEWAY_NATS_URL=f"nats://{nobody}")
    assert done.returncode == 1
    assert [name for name, verdict in verdicts(done.stdout).items() if verdict == "fail"] == ["bus"]
    assert "bus: start it or correct its URL" in done.stdout
    assert SECRET not in done.stdout


def test_the_doctor_names_a_fault_in_the_configuration_and_looks_at_the_machine_all_the_same() -> None:
    done = run("doctor", "--set", "ws.max_roms=1")
    assert done.returncode == 1
    assert verdicts(done.stdout)["configuration"] == "fail"
    assert "descriptors" in verdicts(done.stdout)
    assert "ws.max_rooms" in done.stdout
