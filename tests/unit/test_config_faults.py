"""What is said about a wrong value, an unknown name and a file that is no configuration."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate.config import load
from tidegate.config.settings import DEFINITIONS, Settings
from tidegate.config.sources import file_layer
from tidegate.errors import ConfigError

from tests.unit.configured import SECRET, loaded, refusal, spec

# --- wrong values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("server.port", "70000", "from 0 to 65535"),
        ("server.port", "-1", "from 0 to 65535"),
        ("server.port", "http", "whole number"),
        ("server.port", "80.5", "whole number"),
        ("ws.ping_interval", "0s", "at least 1ms"),
        ("ws.ping_interval", "30", "write 30s"),
        ("ws.ping_interval", "often", "1m30s"),
        ("ws.shutdown_grace", "-1s", "at least 0s"),
        ("ws.max_message_size", "64KB/s", "64KiB"),
        ("ws.max_message_size", "2GiB", "to 1GiB"),
        ("ws.outbox_policy", "wait", "one of close, drop"),
        ("rooms.join_policy", "anybody", "one of member-prefix, open, claims"),
        ("nats.consumer_mode", "own", "one of per-node, shared"),
        ("nats.streams", "CHAT.events", "stream's name"),
        ("nats.streams", ",", "list"),
        ("nats.client_id", "a.b", "letters, digits"),
        ("node_id", "a b", "letters, digits"),
        ("publish.subject", "chat.>", "subject"),
        ("jwt.validate_exp", "perhaps", "true or false"),
        ("jwt.leeway", "2m", "to 1m"),
        ("jwt.algorithms", "none", "HS256"),
        ("jwt.algorithms", "hs256", "HS256"),
        ("ws.proxy_trusted", "10.0.0.0/99", "network"),
        ("ws.allowed_origins", "example.com", "https://example.com"),
        ("ws.allowed_origins", "https://example.com/", "without a path"),
        ("ws.allowed_origins", "null", "https://example.com"),
        ("log.level", "loud", "debug, info, warn, error"),
        ("nats.url", "localhost", "nats://host:4222"),
        ("nats.url", "nats://", "nats://host:4222"),
        ("nats.url", "nats://a:4222,nats://b:99999", "nats://host:4222"),
        ("nats.url", "nats://[::1", "nats://host:4222"),
    ],
)
def test_a_wrong_value_is_named_with_its_source_and_what_is_allowed(key, value, said):
    name = "GATEWAY_" + key.upper().replace(".", "_")
    text = refusal(env={name: value})
    assert key in text
    assert said in text
    assert value.split(",")[-1] in text or value == ","


@pytest.mark.parametrize("yaml_value", ["70000", "true", "8086.5", "[8086]", "{a: 1}", "2026-11-21"])
def test_a_port_of_another_type_is_refused(yaml_value, tmp_path):
    assert "server.port" in refusal(f"server: {{port: {yaml_value}}}", folder=tmp_path)


@pytest.mark.parametrize("yaml_value", ["12", "no", "1.5", "[a]"])
def test_a_text_that_yaml_takes_for_something_else_asks_for_quotes(yaml_value, tmp_path):
    assert "quotes" in refusal(f"nats: {{client_id: {yaml_value}}}", folder=tmp_path)


def test_all_faults_are_listed_at_once_each_with_its_line(tmp_path):
    file = "server:\n  port: 70000\n  prot: 1\nws:\n  ping_interval: 0s\n  max_room: 5\nnats: {streams: 5}\n"
    text = refusal(file, env={"GATEWAY_METRICS_PORT": "x"}, folder=tmp_path)
    assert text.startswith("6 settings are wrong:")
    assert "server.port = 70000 (config.yaml line 2)" in text
    assert "server.prot = 1 (config.yaml line 3): there is no such setting; did you mean server.port?" in text
    assert "ws.ping_interval = 0s (config.yaml line 5)" in text
    assert "did you mean ws.max_rooms?" in text
    assert "nats.streams = 5 (config.yaml line 7)" in text
    assert "metrics.port = x (environment GATEWAY_METRICS_PORT)" in text


def test_a_list_of_faults_has_an_end(tmp_path):
    text = refusal("\n".join(f"k{number}: 1" for number in range(5000)), folder=tmp_path)
    assert "and 4980 more" in text
    assert len(text) < 5000


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("server.prot", "server.port"),
        ("ws.max_conections", "ws.max_connections"),
        ("jwt.secretkey", "jwt.secret_key"),
        ("port", "server.port"),
        ("join_policy", "rooms.join_policy"),
        ("websocket.ping_interval", "ws.ping_interval"),
    ],
)
def test_an_unknown_key_gets_the_nearest_valid_name(written, meant, tmp_path):
    section, _, key = written.rpartition(".")
    file = f"{section}:\n  {key}: 1" if section else f"{key}: 1"
    assert meant in refusal(file, folder=tmp_path).split("did you mean")[1]


def test_an_unknown_key_on_the_command_line_or_in_a_profile_is_refused_too():
    assert "ws.nonsense" in refusal(overrides={"ws.nonsense": 1})
    assert "ws.nonsense" in refusal(defaults={"ws.nonsense": 1})


def test_a_key_written_twice_is_refused(tmp_path):
    assert "already in line 2" in refusal("server:\n  port: 1\n  port: 2\n", folder=tmp_path)


def test_a_section_that_is_no_mapping_is_refused(tmp_path):
    assert "it is a section" in refusal("ws: 5", folder=tmp_path)


def test_a_variable_nobody_knows_is_only_a_warning_with_the_nearest_name():
    result = loaded(env={"GATEWAY_WS_PING_INTERVALL": "1s", "UNRELATED": "x"})
    assert len(result.warnings) == 1
    assert "GATEWAY_WS_PING_INTERVALL" in result.warnings[0]
    assert "did you mean GATEWAY_WS_PING_INTERVAL?" in result.warnings[0]


def test_what_kubernetes_puts_into_every_pod_is_not_even_warned_about():
    env = {"GATEWAY_SERVICE_HOST": "10.0.0.1", "GATEWAY_SERVICE_PORT_WS": "1", "GATEWAY_PORT": "tcp://10.0.0.1:1"}
    assert loaded(env=env | {"GATEWAY_PORT_8086_TCP_ADDR": "10.0.0.1"}).warnings == ()


def test_a_kubernetes_service_that_hits_a_setting_is_explained():
    assert "enableServiceLinks" in refusal(env={"GATEWAY_SERVER_PORT": "tcp://10.0.0.1:8086"})


# --- files that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"server:\n\tport: 1\n", "not YAML: line 2"),
        (b"server: [", "not YAML"),
        (b"a: b: c", "not YAML"),
        (b"- a\n- b\n", "is no mapping"),
        (b"just words", "is no mapping"),
        (b"\x00", "not YAML"),
        (b"a: 1\n---\nb: 2\n", "not YAML"),
        (b"x" * (256 * 1024 + 1), "larger than"),
        (b"server: {port: !!python/object/apply:os.getcwd []}", "can't be read"),
        (b"server: {port: !!int x}", "can't be read"),
        (b"&a server: *b", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(content, said, tmp_path):
    assert said in refusal(content, folder=tmp_path)


def test_a_fault_in_yaml_does_not_show_the_line(tmp_path):
    assert "hunter2" not in refusal(b"jwt:\n  secret_key: hunter2: x\n", folder=tmp_path)


def test_nesting_without_end_is_refused(tmp_path):
    text = refusal(b"server: {port: " + b"[" * 50_000, folder=tmp_path)
    assert "nested" in text or "YAML" in text
    refusal(b"a: &a\n  b: *a\n", folder=tmp_path)


def test_a_file_that_is_missing_or_fails_to_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load(spec(), config_file=tmp_path / "none.yaml", environ={})
    with pytest.raises(ConfigError, match="can't read /proc/self/mem"):
        load(spec(), config_file=Path("/proc/self/mem"), environ={})


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_in_a_file_do_more_than_refuse_it(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(data)
        try:
            file_layer(path)
        except ConfigError as error:
            assert str(path) in str(error)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(DEFINITIONS)), leaves, max_size=6))
def test_no_value_of_any_setting_does_more_than_refuse_it(values):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            result = load(spec(), config_file=path, environ={"GATEWAY_JWT_SECRET_KEY": SECRET})
        except ConfigError as error:
            assert any(key in str(error) for key in values)
        else:
            assert isinstance(result.settings, Settings)
