"""Log lines: their form, what never gets into one, and that nobody waits for them."""

import io
import json
import logging
import os
import queue
import threading

import jwt as pyjwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate.logs import Logs, redact

TOKEN = pyjwt.encode({"iss": "attchat", "user_id": "12345"}, "s" * 32, "HS256")
log = logging.getLogger("tidegate.sample")


class Written:
    """Runs the logs into a text until the block ends."""

    def __init__(self, level="info", *, production=False):
        self.stream = io.StringIO()
        self.logs = Logs(level, production=production, stream=self.stream)

    def __enter__(self):
        self.logs.start()
        return self

    def __exit__(self, *_):
        self.logs.stop()

    @property
    def text(self):
        return self.stream.getvalue()

    @property
    def objects(self):
        return [json.loads(line) for line in self.text.removesuffix("\n").split("\n")]


# --- form -------------------------------------------------------------------------------------------------------------


def test_the_console_shows_time_level_name_and_text():
    with Written() as written:
        log.warning("the bus %s is down", "nats")
    line = written.text.rstrip("\n")
    assert line.endswith(" warn  tidegate.sample: the bus nats is down")
    assert line[2] == line[5] == ":"


def test_production_writes_one_json_object_a_line():
    with Written(production=True) as written:
        log.info("first\nline %d", 1)
        log.error("second")
    first, second = written.objects
    assert (first["level"], first["logger"], first["message"]) == ("info", "tidegate.sample", "first\nline 1")
    assert second["level"] == "error"
    assert first["time"].endswith("Z")


def test_a_traceback_is_kept_in_both_forms():
    for production in (False, True):
        with Written(production=production) as written:
            try:
                raise ValueError("the cause")
            except ValueError:
                log.exception("it failed")
        assert "ValueError: the cause" in written.text
        assert "test_logs.py" in written.text
    assert "ValueError" in written.objects[0]["traceback"]


def test_a_clients_text_cannot_forge_a_line_on_the_console():
    with Written() as written:
        log.info("room %s", "a\n12:00:00.000 error tidegate: forged\x1b[31m")
    assert len(written.text.splitlines()) == 1
    assert "\x1b" not in written.text


@settings(deadline=None)
@given(st.text(max_size=50))
def test_any_text_makes_a_valid_json_line(text):
    with Written(production=True) as written:
        log.info("%s", text)
    assert len(written.objects) == 1


def test_a_wrong_format_string_costs_its_line_only():
    with Written() as written:
        log.info("%d items", "many")
        log.info("next")
    assert "unprintable log message" in written.text
    assert "next" in written.text


def test_arguments_are_as_they_were_when_it_was_said():
    members = ["a"]
    with Written() as written:
        log.info("members %s", members)
        members.append("b")
    assert "members ['a']" in written.text


# --- fields -----------------------------------------------------------------------------------------------------------


def test_fields_are_keys_of_their_own_for_machines_and_at_the_end_for_people():
    fields = {"user_id": "user_7", "sequence": 12, "ok": True}
    with Written(production=True) as machine:
        log.info("pushed", extra={"fields": fields})
    with Written() as person:
        log.info("pushed", extra={"fields": fields})
    [line] = machine.objects
    assert {key: line[key] for key in ("message", *fields)} == {"message": "pushed", **fields}
    assert person.text.endswith("tidegate.sample: pushed user_id=user_7 sequence=12 ok=True\n")


def test_a_field_never_passes_for_what_each_line_has():
    forged = {"time": "never", "level": "error", "logger": "x", "message": "forged", "traceback": "none", "msg_id": "m"}
    with Written(production=True) as written:
        log.info("true", extra={"fields": forged})
    [line] = written.objects
    assert (line["level"], line["logger"], line["message"]) == ("info", "tidegate.sample", "true")
    assert line["time"].endswith("Z")
    assert "traceback" not in line
    assert line["msg_id"] == "m"


@pytest.mark.parametrize("production", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"token": "hunter2"},
        {"access_token": 424242},
        {"note": f"Bearer {TOKEN}"},
        {"url": "redis://user:hunter2@host:6379"},
        {"peer": TOKEN},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_no_secret_survives_in_a_field(fields, production):
    with Written(production=production) as written:
        log.info("said", extra={"fields": fields})
    assert "********" in written.text
    for secret in ("hunter2", "424242", *TOKEN.split(".")):
        assert secret not in written.text


def test_a_field_cannot_forge_a_line_on_the_console():
    with Written() as written:
        log.info("said", extra={"fields": {"room": "a\n12:00:00.000 error tidegate: forged\x1b[31m"}})
    assert len(written.text.splitlines()) == 1
    assert "\x1b" not in written.text


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("fields", [{"n": 2**200}, {"n": -(2**64)}, {"n": "\ud800"}, {"n": Unprintable()}, {}, None, 7])
def test_odd_fields_make_a_valid_line(fields):
    with Written(production=True) as written:
        log.info("said", extra={"fields": fields})
    [line] = written.objects
    assert line["message"] == "said"


def test_fields_are_as_they_were_when_it_was_said():
    fields = {"n": 1}
    with Written(production=True) as written:
        log.info("said", extra={"fields": fields})
        fields["n"] = 2
    assert written.objects[0]["n"] == 1


# --- level ------------------------------------------------------------------------------------------------------------


def test_the_level_can_be_changed_while_it_runs():
    with Written("warn") as written:
        log.info("one")
        written.logs.set_level("debug")
        log.debug("two")
        written.logs.set_level("error")
        log.warning("three")
    assert "two" in written.text
    assert "one" not in written.text
    assert "three" not in written.text


def test_libraries_are_heard_when_something_is_wrong_and_not_for_every_request():
    with Written("debug") as written:
        for name in ("uvicorn.error", "nats.aio.client", "asyncio", "websockets.client"):
            logging.getLogger(name).info("chatter")
            logging.getLogger(name).error("concern of %s", name)
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("uvicorn.access").warning("GET /ws?token=x")
    assert "chatter" not in written.text
    assert "GET" not in written.text
    assert "Invalid" not in written.text
    assert written.text.count("concern of") == 4


@pytest.mark.parametrize(
    "name", ["grpc._cython.cygrpc", "aetcd.watcher", "opentelemetry.sdk.trace.export", "urllib3.connectionpool"]
)
def test_libraries_that_quote_what_failed_or_tell_each_try_are_silent(name):
    with Written("debug") as written:
        logging.getLogger(name).error("Unexpected error: %s", "content of a message")
    assert written.text == ""


def test_the_core_of_grpc_which_writes_past_us_is_told_to_be_silent_unless_somebody_asked_for_it(monkeypatch):
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    with Written():
        assert os.environ["GRPC_VERBOSITY"] == "NONE"
    monkeypatch.setenv("GRPC_VERBOSITY", "debug")
    with Written():
        assert os.environ["GRPC_VERBOSITY"] == "debug"


def test_uvicorns_own_handlers_do_not_bypass_the_queue():
    bypass = io.StringIO()
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.addHandler(logging.StreamHandler(bypass))
    uvicorn.propagate = False
    with Written() as written:
        uvicorn.warning("once")
    assert bypass.getvalue() == ""
    assert written.text.count("once") == 1


def test_stopping_leaves_logging_as_it_was():
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    with Written("debug"):
        assert root.handlers != before[0]
    assert (root.handlers[:], root.level) == before


# --- secrets ----------------------------------------------------------------------------------------------------------

LEAKS = [
    f"GET /ws?token={TOKEN}&room_id=chat:1 HTTP/1.1",
    "GET /ws?token=short&x=1",
    f"GET /ws?TOKEN%3D{TOKEN}",
    f"Authorization: Bearer {TOKEN}",
    "authorization: bearer abcdefghijkl",
    "Authorization: Basic dXNlcjpwYXNz",
    f"{{'authorization': b'Bearer {TOKEN}'}}",
    f'{{"token":"{TOKEN}"}}',
    f"(b'authorization', b'Bearer {TOKEN}')",
    f"the token {TOKEN} is bad",
    TOKEN,
    TOKEN.rsplit(".", 1)[0],
    f"prefix{TOKEN}",
    "jwt.secret_key=hunter2hunter2",
    "'password': 'hunter2hunter2'",
    "nats://user:hunter2hunter2@host:4222",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_token_survives(text):
    clean = redact(text)
    assert "********" in clean
    for secret in (*TOKEN.split("."), "hunter2", "abcdefghijkl", "dXNlcjpwYXNz", "short"):
        assert secret not in clean


@pytest.mark.parametrize("production", [False, True])
def test_tokens_are_removed_from_message_arguments_and_traceback(production):
    with Written("debug", production=production) as written:
        log.info("GET /ws?token=%s", TOKEN)
        log.info(f"header Bearer {TOKEN}")
        log.info("%r", {"authorization": f"Bearer {TOKEN}"})
        log.info("%s", ValueError(TOKEN))
        try:
            raise RuntimeError(f"bad token={TOKEN}")
        except RuntimeError:
            log.exception("failed")
        log.info("with stack", stack_info=True)
    assert "with stack" in written.text
    for part in TOKEN.split("."):
        assert part not in written.text
    assert written.text.count("********") >= 5


@pytest.mark.parametrize(
    "text",
    [
        "connection 12 joined chat:123 as user 12345",
        "token cache: 90 hits",
        "nats://localhost:4222 is ready",
        "a token was refused: expired",
        "key rotated, bearer of news",
    ],
)
def test_plain_lines_stay_as_they_are(text):
    assert redact(text) == text


def test_redacting_a_hostile_text_takes_no_time_to_speak_of():
    for hostile in ("eyJ" * 20_000, "token=" * 20_000, "//" * 30_000, "Authorization: " * 10_000, "a" * 100_000):
        assert len(redact(hostile)) <= len(hostile) * 2


# --- nobody waits -----------------------------------------------------------------------------------------------------


class Stuck(io.StringIO):
    """A terminal that takes nothing until it is let go."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.free = threading.Event()

    def write(self, text):
        self.entered.set()
        assert self.free.wait(30)
        return super().write(text)


def test_a_stuck_output_delays_nobody_and_what_it_missed_is_counted():
    stream = Stuck()
    logs = Logs("info", production=False, stream=stream, queued_max=10)
    logs.start()
    try:
        log.info("first")
        assert stream.entered.wait(30)
        for number in range(100):
            log.info("line %d", number)
        assert logs.dropped == 90
        stream.free.set()
        while "line 9" not in stream.getvalue():
            stream.entered.wait(0.01)
        log.info("afterwards")
    finally:
        stream.free.set()
        logs.stop()
    text = stream.getvalue()
    assert "line 9\n" in text
    assert "line 10\n" not in text
    assert "90 log lines were dropped" in text
    assert "afterwards" in text


def test_a_line_is_never_put_into_the_queue_by_waiting(monkeypatch):
    waits = []
    put = queue.Queue.put

    def watched(self, item, block=True, timeout=None):
        waits.append(block)
        return put(self, item, block, timeout)

    with Written():
        monkeypatch.setattr(queue.Queue, "put", watched)
        log.info("line")
        monkeypatch.undo()
    assert waits == [False]


def test_stopping_writes_what_is_queued():
    with Written() as written:
        for number in range(1000):
            log.info("line %d", number)
    assert written.text.count("line ") == 1000
