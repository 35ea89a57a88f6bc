"""The command line: what it understands, what it says, and how it ends."""

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from click.testing import CliRunner, Result
from tidegate import connect, publish
from tidegate.cli import main
from tidegate.errors import ConfigError, TidegateError
from websockets.asyncio.server import ServerConnection, serve

SECRET = "0123456789abcdef0123456789abcdef"
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----"""


@pytest.fixture(autouse=True)
def no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("GATEWAY_", "TIDEGATE_", "LOG_", "APP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env={f"GATEWAY_{name}": value for name, value in environ.items()})


# --- as a program -----------------------------------------------------------------------------------------------------


def test_help_teaches_with_an_example_for_each_command_and_the_exit_codes() -> None:
    assert "130" in run("--help").output
    for command in main.commands:
        assert f"tidegate {command}" in run(command, "--help").output, command


def test_help_imports_nothing_that_is_slow() -> None:
    heavy = "{'pydantic', 'rich', 'websockets', 'uvicorn', 'jwt', 'cryptography', 'nats', 'orjson', 'tidegate._core'}"
    script = f"""
import sys
from tidegate.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
loaded = {heavy} & set(sys.modules)
sys.exit(f"imported {{loaded}}" if loaded else 0)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--profile", "ech"], "Did you mean echo?"),
        (["serve", "--profile", "echo", "--set", "ws.max_room=1"], "ws.max_rooms"),
        (["serve", "--profile", "echo", "--set", "ws.max_rooms"], "--set ws.max_rooms=10"),
        (["serve", "--profile", "echo", "--port", "many"], "server.port = many"),
        (["serve", "--profile", "echo", "--bus", "memory:"], "has no bus"),
        (["serve", "--profile", "echo", "--config", "none.yaml"], "none.yaml"),
        (["serve"], "openssl rand -hex 32"),
        (["serv"], "serve"),
        (["token", "--expires", "soon"], "GATEWAY_JWT_SECRET_KEY"),
        (["publish", "chat:1"], "tidegate publish chat:1 hello"),
    ],
)
def test_a_mistake_is_one_message_with_the_cure_and_exit_code_2(arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert said in ended.output
    assert "Traceback" not in ended.output


def test_print_config_shows_where_each_setting_comes_from_and_no_secret() -> None:
    ended = run("serve", "--port", "1234", "--print-config", JWT_SECRET_KEY=SECRET, WS_MAX_ROOMS="7")
    assert ended.exit_code == 0
    lines = {line.split()[0]: line for line in ended.output.splitlines()}
    assert "1234" in lines["server.port"]
    assert "command line" in lines["server.port"]
    assert "7 " in lines["ws.max_rooms"]
    assert "GATEWAY_WS_MAX_ROOMS" in lines["ws.max_rooms"]
    assert "default" in lines["ws.ping_interval"]
    assert SECRET not in ended.output


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tidegate.connect.run", interrupted)
    assert run("connect").exit_code == 130


# --- token ------------------------------------------------------------------------------------------------------------


def minted(*arguments: str, **environ: str) -> dict[str, Any]:
    ended = run("token", *arguments, JWT_SECRET_KEY=SECRET, **environ)
    assert ended.exit_code == 0, ended.output
    claims: dict[str, Any] = jwt.decode(ended.output.strip(), SECRET, algorithms=["HS256"], issuer="attchat")
    return claims


def test_a_token_carries_what_was_asked_for_and_ends() -> None:
    asked = [
        "--user-id",
        "7",
        "--brand",
        "b1",
        "--type",
        "cskh",
        "--room",
        "vip:1",
        "--room",
        "vip:2",
        "--expires",
        "10m",
    ]
    claims = minted(*asked)
    assert claims.pop("exp") - claims.pop("iat") == 600
    assert claims == {"user_id": "7", "brand_id": "b1", "type": "cskh", "rooms": ["vip:1", "vip:2"], "iss": "attchat"}


def test_claims_that_were_not_asked_for_are_left_out() -> None:
    assert set(minted()) == {"user_id", "iat", "exp", "iss"}


def test_with_a_public_key_only_no_token_is_minted_and_it_says_why() -> None:
    ended = run("token", JWT_PUBLIC_KEY=PUBLIC_KEY)
    assert ended.exit_code == 2
    assert "can only verify" in ended.output


@pytest.mark.parametrize("expires", ["soon", "0s", "-1h", "10"])
def test_a_lifetime_that_cannot_be_is_refused(expires: str) -> None:
    ended = run("token", f"--expires={expires}", JWT_SECRET_KEY=SECRET)
    assert ended.exit_code == 2
    assert "--expires" in ended.output


# --- publish ----------------------------------------------------------------------------------------------------------


def test_a_text_becomes_a_chat_message_and_an_object_keeps_what_it_says() -> None:
    text = orjson.loads(publish.event_of("chat:1", "hi", None))
    assert text.pop("timestamp")
    assert text == {"type": "message", "payload": {"text": "hi"}, "room": "chat:1"}
    assert orjson.loads(publish.event_of("chat:1", '{"text":"hi","n":1}', None))["payload"] == {"text": "hi", "n": 1}
    assert orjson.loads(publish.event_of("chat:1", "[1]", None))["payload"] == {"text": "[1]"}
    given = orjson.loads(publish.event_of(None, None, '{"type":"x","room":"r","timestamp":"t"}'))
    assert given == {"type": "x", "room": "r", "timestamp": "t"}
    assert orjson.loads(publish.event_of("7", "hi", None, to_user=True))["user_id"] == "7"


@pytest.mark.parametrize(
    ("target", "text", "json_text"),
    [
        ("r", None, None),
        ("r", "a", "{}"),
        (None, None, "{}"),
        ("r", None, "nope"),
        ("r", None, "[1]"),
        (None, "a", None),
    ],
)
def test_an_event_without_content_or_target_is_refused(
    target: str | None, text: str | None, json_text: str | None
) -> None:
    with pytest.raises(ConfigError):
        publish.event_of(target, text, json_text)


def test_a_text_that_is_no_unicode_is_refused_with_a_message() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        publish.event_of("chat:1", b"\xff".decode(errors="surrogateescape"), None)


def test_a_memory_bus_of_another_process_is_not_pretended_to_be_reached() -> None:
    ended = run("publish", "chat:1", "hi", JWT_SECRET_KEY=SECRET, NATS_URL="memory:")
    assert ended.exit_code == 2
    assert "--url" in ended.output


class Api(BaseHTTPRequestHandler):
    """A gateway's `/api/publish` as the command sees it."""

    seen: list[tuple[str, str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(202 if self.headers["Authorization"] == "Bearer right" else 401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the test's output is the command's."""


@pytest.fixture
def api() -> Iterator[str]:
    Api.seen = []
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_publishing_through_a_gateway_sends_the_event_with_the_key(api: str) -> None:
    ended = run("publish", "chat:1", "hi", "--url", api, "--key", "right")
    assert ended.exit_code == 0, ended.output
    ((path, key, body),) = Api.seen
    assert (path, key, orjson.loads(body)["room"]) == ("/api/publish", "Bearer right", "chat:1")


def test_a_wrong_key_and_a_gateway_that_is_not_there_fail_with_the_cure(api: str) -> None:
    refused = run("publish", "chat:1", "hi", "--url", api, "--key", "wrong")
    assert refused.exit_code == 1
    assert "publish.key" in refused.output
    assert "wrong" not in refused.output
    unreachable = run("publish", "chat:1", "hi", "--url", "http://127.0.0.1:1")
    assert unreachable.exit_code == 1
    assert "running" in unreachable.output
    assert run("publish", "chat:1", "hi", "--url", "ftp://x").exit_code == 2


# --- connect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        ("/ping", '{"type":"ping"}'),
        ("/join chat:1", '{"type":"join","room":"chat:1"}'),
        ("/leave  chat:1 ", '{"type":"leave","room":"chat:1"}'),
        ("/typing chat:1", '{"type":"typing","room":"chat:1"}'),
        ('{"type":"x"}', '{"type":"x"}'),
        ("//ping", "/ping"),
        ("", None),
        ("   ", None),
    ],
)
def test_a_typed_line_means_one_frame(line: str, frame: str | None) -> None:
    assert connect.frame_of(line) == frame


@pytest.mark.parametrize("line", ["/jion chat:1", "/join", "/ping now", "/"])
def test_a_command_that_does_not_exist_is_answered_with_those_that_do(line: str) -> None:
    with pytest.raises(ConfigError, match="/typing"):
        connect.frame_of(line)


@pytest.mark.parametrize(
    ("url", "token", "opened"),
    [
        ("localhost:8086", None, "ws://localhost:8086/ws"),
        ("localhost:8086", "t", "ws://localhost:8086/ws?token=t"),
        ("ws://h/ws?token=old&room_id=chat%3A1", "new", "ws://h/ws?room_id=chat%3A1&token=new"),
        ("https://h/other", None, "wss://h/other"),
        ("ws://h/ws?tags=&tz=UTC", None, "ws://h/ws?tags=&tz=UTC"),
    ],
)
def test_the_url_is_completed_and_the_token_put_into_it(url: str, token: str | None, opened: str) -> None:
    assert connect.with_token(url, token) == opened


@pytest.mark.parametrize(("arguments", "user"), [(["--mint", "12345"], "12345"), (["ws://h/ws", "--mint"], "1")])
def test_minting_puts_a_token_of_that_user_into_the_url(
    arguments: list[str], user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opening(url: str) -> tuple[int, str]:
        opened.append(url)
        return 1000, ""

    monkeypatch.setattr("tidegate.connect.run", opening)
    assert run("connect", *arguments, JWT_SECRET_KEY=SECRET).exit_code == 0
    claims = jwt.decode(opened[0].partition("token=")[2], SECRET, algorithms=["HS256"], issuer="attchat")
    assert claims["user_id"] == user


def test_a_url_behind_mint_is_not_taken_for_a_user() -> None:
    ended = run("connect", "--mint", "ws://h/ws", JWT_SECRET_KEY=SECRET)
    assert ended.exit_code == 2
    assert "before --mint" in ended.output


async def typed(*lines: str) -> AsyncIterator[str]:
    for line in lines:
        yield line


async def talk(*lines: str) -> tuple[list[tuple[str, str]], tuple[int, str]]:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)
            if message == "bye":
                await connection.close(4001, "as you wish")

    shown: list[tuple[str, str]] = []
    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        url = f"ws://127.0.0.1:{port}/ws"
        end = await connect.converse(url, typed(*lines), lambda way, text: shown.append((way, text)), linger_s=0.05)
    return shown, end


async def test_lines_are_sent_frames_are_shown_and_the_end_is_told() -> None:
    shown, end = await talk("/ping", "", "/nonsense", "bye")
    ways = [way for way, _ in shown]
    assert ways[0] == "*"
    assert ("<", '{"type":"ping"}') in shown
    assert "!" in ways
    assert end == (4001, "as you wish")


async def test_quit_and_the_end_of_the_input_close_normally() -> None:
    assert (await talk("/quit", "never sent"))[1][0] == 1000
    assert (await talk("/ping"))[1][0] == 1000


async def test_nobody_there_is_an_error_with_a_cure() -> None:
    with pytest.raises(TidegateError, match="running"):
        await connect.converse("ws://127.0.0.1:1/ws", typed(), lambda way, text: None)
    with pytest.raises(ConfigError):
        await connect.converse("nonsense://", typed(), lambda way, text: None)


def test_piped_lines_arrive_whole_and_the_last_one_without_a_newline_too() -> None:
    reader, writer = os.pipe()
    os.write(writer, "/ping\nchào".encode())
    os.close(writer)
    lines: list[str | None] = []
    connect._read_lines(reader, lines.append)
    os.close(reader)
    assert lines == ["/ping", "chào", None]


def test_a_frame_cannot_command_the_terminal() -> None:
    assert connect.printable("a\x1b[2Jb\r") == "a\\x1b[2Jb\\r"


def test_a_close_that_was_not_normal_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.connect.run", lambda url: (1008, "AUTH_FAILED"))
    ended = run("connect")
    assert ended.exit_code == 1
    assert "AUTH_FAILED" in ended.output
