"""The demo: its tally finds every kind of fault, and the whole thing runs, checks itself and ends well."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from tidegate.config.settings import Jwt
from tidegate.demo.crowd import LINES, Crowd, publish_steadily
from tidegate.demo.dialects import DIALECTS, Attchat, Dialect, Gogate, ImGateway
from tidegate.demo.tally import LATENCIES_MAX, Latencies, Tally
from tidegate.demo.view import Invitation, Rates, line
from websockets.asyncio.client import ClientConnection, connect

from tests.im_backends import Pusher
from tests.servers import free_port

MEMBERS = Attchat().members
ROOMS = {"a": ("An", "Binh"), "b": ("An",)}
START_S_MAX = 20


def tally_of_one_message() -> Tally:
    tally = Tally(ROOMS)
    assert tally.send("a") == 1
    return tally


def test_a_tally_is_complete_when_every_member_got_every_message() -> None:
    tally = tally_of_one_message()
    tally.receive("An", "a", 1, 0.001)
    assert not tally.is_complete()
    tally.receive("Binh", "a", 1, 0.003)
    assert (tally.arrived, tally.expected, tally.is_complete()) == (2, 2, True)
    assert tally.summary().startswith("ok: 1 messages, 2 deliveries")
    assert "p99 3.00 ms" in tally.summary()


@pytest.mark.parametrize(
    ("client", "room", "number"),
    [("An", "a", 2), ("An", "a", 0), ("An", "b", 1), ("Binh", "b", 1), ("nobody", "a", 1), ("An", "nowhere", 1)],
)
def test_what_was_not_sent_to_somebody_is_a_fault(client: str, room: str, number: int) -> None:
    tally = tally_of_one_message()
    for member in ROOMS["a"]:
        tally.receive(member, "a", 1, 0.0)
    tally.receive(client, room, number, 0.0)
    assert (tally.strays, tally.is_complete()) == (1, False)
    assert tally.summary().startswith("failed")


def test_twice_and_out_of_order_are_faults_too() -> None:
    tally = tally_of_one_message()
    tally.send("a")
    tally.receive("An", "a", 1, 0.0)
    tally.receive("An", "a", 1, 0.0)
    assert tally.strays == 1
    tally.receive("Binh", "a", 2, 0.0)
    tally.receive("Binh", "a", 1, 0.0)
    assert tally.strays == 2
    assert "deliveries missing" in tally.summary()


def test_latencies_keep_the_last_ones_and_know_their_quantiles() -> None:
    latencies = Latencies()
    assert latencies.quantiles_ms(0.5, 0.99) == [0.0, 0.0]
    for _ in range(LATENCIES_MAX):
        latencies.add(1.0)
    for number in range(LATENCIES_MAX):
        latencies.add(number / 1000)
    assert latencies.quantiles_ms(0.0, 0.5, 0.99) == [0.0, LATENCIES_MAX * 0.5, LATENCIES_MAX * 0.99]


def test_rates_are_of_the_time_between_two_looks() -> None:
    tally, rates = tally_of_one_message(), Rates(at=10.0)
    rates.look(tally, 10.5)
    assert rates.sent_rate == 2.0
    rates.look(tally, 11.0)
    assert (rates.sent_rate, "1 messages (0/s)" in line(tally, rates, 6)) == (0.0, True)


async def test_the_publisher_sends_as_many_as_were_asked_for_to_all_rooms_in_turn() -> None:
    published: list[bytes] = []

    async def publish(_room: str, event: bytes) -> None:
        published.append(event)

    tally = Tally(MEMBERS)
    await publish_steadily(publish, Attchat(), tally, rate=100_000, messages=len(MEMBERS) * 5)
    assert len(published) == len(MEMBERS) * 5
    assert set(tally.sent.values()) == {5}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "message"},
        {"type": "message", "payload": "text"},
        {"type": "message", "room": "chat:lobby", "payload": {"number": "x", "text": 5}},
        {"type": "message", "room": "chat:lobby", "payload": {"number": 1}},
        {"type": "message", "room": "elsewhere", "payload": {"number": 1, "sent_at": 0.0}},
    ],
)
def test_what_others_publish_is_not_counted(event: dict[str, object]) -> None:
    tally = Tally(MEMBERS)
    Crowd(Attchat(), lambda name: "", tally)._note("An", event, 0.0)
    assert (tally.arrived, tally.strays) == (0, 0)


@pytest.mark.parametrize("dialect", [make() for make in DIALECTS.values()], ids=list(DIALECTS))
def test_a_dialect_hears_what_it_says(dialect: Dialect) -> None:
    room = next(iter(dialect.members))
    frame = orjson.loads(dialect.message(room, 7, 1.25, "a #1 @2"))
    if "event" in frame:  # what the gateway makes of it
        frame["event"] = "new_message"
    if frame["type" if "type" in frame else "event"] == "send_msg":
        frame |= {"type": "message", "group_id": frame["recipient"]}
    assert dialect.heard(frame) == (room, 7, 1.25, "a #1 @2")


def test_what_a_person_types_is_heard_and_has_no_number() -> None:
    heard = Gogate().heard({"event": "new_message", "data": {"text": "hello #x"}})
    assert heard is not None
    assert (heard.number, heard.text) == (0, "hello #x")


def test_clients_ack_what_is_pushed_to_them_alone() -> None:
    pushed = {"type": "message", "msg_id": "m1", "content": "hello, you alone"}
    answer = ImGateway().answer(pushed)
    assert answer is not None
    assert orjson.loads(answer) == {"type": "ack", "msg_id": "m1"}
    for frame in (pushed | {"group_id": "group_1"}, {"type": "ack", "msg_id": "m1"}):
        assert ImGateway().answer(frame) is None
    assert Attchat().answer({"type": "message"}) is None


def test_every_room_sees_all_lines() -> None:
    heard = {(number % len(MEMBERS), number % len(LINES)) for number in range(len(MEMBERS) * len(LINES))}
    assert len(heard) == len(MEMBERS) * len(LINES)


def test_the_invitation_holds_three_commands_on_a_line_each() -> None:
    jwt = Jwt(secret_key="k" * 32)
    text = Attchat().invitation(Invitation("http://127.0.0.1:1", "http://127.0.0.1:2", "KEY", jwt))
    for command in (r"connect 'ws://127\.0\.0\.1:1/ws\S*' --token \S+", r"publish .* --key KEY", r"curl \S+:1/stats"):
        assert re.search(rf"^  .*{command.replace('curl ', 'curl -s ')}", text, re.M), command


# --- the whole, as a process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "deliveries"), [("attchat-gateway", "1,400"), ("gogate", "2,400"), ("im-gateway", "2,400")]
)
def test_once_checks_every_message_and_prints_one_line(profile: str, deliveries: str) -> None:
    arguments = command("--profile", profile, "--once", "--messages", "400")
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(rf"ok: 400 messages, {deliveries} deliveries, .* p50 [\d.]+ ms, p99 [\d.]+ ms\n", ended.stdout)


WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(("rbloom", "grpc", "google.protobuf", "aetcd", "confluent_kafka", "opentelemetry"))
from tidegate.cli import main
main()
"""


@pytest.mark.parametrize("profile", DIALECTS)
def test_without_the_extras_all_demos_run_but_one_which_says_what_to_install(profile: str) -> None:
    arguments = [sys.executable, "-c", WITHOUT_EXTRAS, "demo", "--profile", profile, "--port", "0"]
    ended = subprocess.run(
        [*arguments, "--once", "--messages", "4"], capture_output=True, text=True, timeout=30, check=False
    )
    if profile != "im-gateway":
        assert ended.returncode == 0, ended.stderr
        return
    assert ended.returncode == 2, ended.stderr
    assert "pip install 'tidegate[im]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tidegate.cli", "demo", "--port", "0", *arguments]


@contextmanager
def live_demo(log: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, str]]]:
    """Running, with the addresses that it printed."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(*arguments), stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
    try:
        yield process, invitation(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(5)


PRINTED = {
    "stats": r"curl -s (\S+/stats)",
    "metrics": r"(http\S+/metrics)",
    "key": r"--key (\S+)",
    "door": r"connect (ws://\S+) --token",
    "token": r"--token (user_\S+)",
    "grpc": r" (127\.0\.0\.1:\d+) im_gateway_servicepb",
}


def invitation(process: "subprocess.Popen[bytes]", log: Path) -> dict[str, str]:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text()
        if "deliveries" in text:
            found = {name: re.search(pattern, text) for name, pattern in PRINTED.items()}
            return {name: match[1] for name, match in found.items() if match}
        time.sleep(0.02)  # another process prints
    raise AssertionError(f"the demo did not start:\n{log.read_text()}")


def test_live_serves_what_it_invites_to_and_ends_well_on_ctrl_c(tmp_path: Path) -> None:
    with live_demo(tmp_path / "log") as (process, addresses):
        for name, holds in (("stats", b'"current_connections":6'), ("metrics", b"gateway_connections_current 6")):
            with urllib.request.urlopen(addresses[name], timeout=5) as answer:
                assert holds in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0, (tmp_path / "log").read_text()


async def test_who_connects_to_the_demo_of_im_gateway_talks_to_all_and_to_one_and_is_pushed_to(tmp_path: Path) -> None:
    with live_demo(tmp_path / "log", "--profile", "im-gateway") as (_, printed):
        door = f"{printed['door']}?dialect=sdk&token={printed['token']}"
        async with asyncio.timeout(START_S_MAX), connect(door) as me:
            for recipient in ("group_1", "user_An"):
                said = {"type": "send_msg", "msg_id": recipient, "recipient": recipient, "content": "from outside"}
                await me.send(orjson.dumps(said).decode())
            all_of_it = {"type": "message", "sender": "user_you", "recipient_id": "group_1", "content": "from outside"}
            one_of_it = {"type": "ack", "msg_id": "user_An", "status": "delivered"}
            await hears(me, {"type": "ack", "msg_id": "group_1"}, all_of_it, one_of_it)
            async with Pusher(printed["grpc"]) as pusher:
                pushing = asyncio.ensure_future(pusher.push("user_you", "to you", msg_id="m1"))
                await hears(me, {"type": "message", "content": "to you"})
                await me.send('{"type":"ack","msg_id":"m1"}')
                assert (await pushing).delivered_count == 1


async def hears(client: ClientConnection, *wanted: dict[str, str]) -> None:
    """Frames like these, in any order; others talk here too."""
    missing = list(wanted)
    while missing:
        frame = orjson.loads(await client.recv())
        missing = [one for one in missing if not one.items() <= frame.items()]


def test_a_port_in_use_is_said_with_the_cure_and_exit_code_3() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        arguments = [*command(), "--port", str(port)]
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 3
    assert f"port {port} is in use" in ended.stderr
    assert "Traceback" not in ended.stderr
