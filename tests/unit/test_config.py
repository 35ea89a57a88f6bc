"""Settings: where they come from, which wins, and what is said about a wrong one."""

import tempfile
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tidegate.config import describe, load, settings_schema, settings_table
from tidegate.config.settings import DEFINITIONS, Settings
from tidegate.config.sources import file_layer
from tidegate.errors import ConfigError
from tidegate.profile import ProfileSpec

SECRET = "s3cr3t-" * 6


def spec(**changes):
    values = {
        "name": "sample",
        "summary": "",
        "ws_paths": ("/ws",),
        "headers": (),
        "env_prefix": "GATEWAY_",
        "env_names": {"LOG_LEVEL": "log.level", "APP_ENV": "log.production", "GATEWAY_NODE_ID": "node_id"},
        "defaults": {},
        "bus": "nats.url",
        "needs_token": True,
        "metrics": None,
        "build": lambda settings: None,
    }
    return ProfileSpec(**(values | changes))


def loaded(file="", *, env=None, overrides=None, folder=None, **changes):
    """With a secret, unless `env` says otherwise."""
    environ = {"GATEWAY_JWT_SECRET_KEY": SECRET} | (env or {})
    path = None
    if file:
        path = folder / "config.yaml"
        path.write_bytes(file if isinstance(file, bytes) else file.encode())
    return load(spec(**changes), config_file=path, overrides=overrides or {}, environ=environ, search=())


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        loaded(*args, **kwargs)
    assert SECRET not in str(caught.value)
    return str(caught.value)


# --- defaults and sources ---------------------------------------------------------------------------------------------


def test_the_defaults_are_the_contracts():
    settings = loaded().settings
    assert (settings.server.port, settings.metrics.port, settings.metrics.enabled) == (8086, 9090, True)
    assert (settings.server.read_timeout, settings.server.write_timeout) == (10.0, 10.0)
    assert settings.jwt.allowed_issuers == ("attchat",)
    assert settings.jwt.validate_exp
    assert settings.nats.url == "nats://localhost:4222"
    assert (settings.nats.cluster_id, settings.nats.client_id) == ("attchat", "gateway")
    assert (settings.nats.reconnect_wait, settings.nats.max_reconnects) == (2.0, -1)
    assert settings.nats.streams == ("CHAT", "NOTIFY")
    assert (settings.nats.consumer_mode, settings.nats.publish_unknown, settings.nats.ensure_streams) == (
        "per-node",
        False,
        True,
    )
    ws = settings.ws
    assert (ws.max_connections, ws.max_message_size) == (10_000, 65_536)
    assert (ws.ping_interval, ws.pong_timeout, ws.write_timeout, ws.shutdown_grace) == (30.0, 10.0, 10.0, 30.0)
    assert (ws.read_buffer_size, ws.write_buffer_size, ws.enable_compression) == (4096, 4096, False)
    assert (ws.outbox_bytes, ws.outbox_policy, ws.outbox_messages) == (1 << 20, "close", 256)
    assert ws.allowed_origins == ()
    assert (settings.rooms.join_policy, settings.rooms.typing_requires_join) == ("member-prefix", False)
    assert (settings.log.level, settings.log.production) == ("info", False)


def test_the_limits_are_the_security_checklists():
    ws = loaded().settings.ws
    assert (ws.max_fragments, ws.message_rate, ws.message_burst, ws.max_rooms) == (1024, 100, 200, 1000)
    assert (ws.handshake_timeout, ws.max_header_size, ws.max_headers, ws.close_timeout) == (10.0, 16384, 100, 5.0)


def test_the_originals_own_file_is_understood(tmp_path):
    file = """
server:
  port: "8086"
  read_timeout: "10s"
jwt:
  validate_exp: true
  allowed_issuers:
    - "attchat"
nats:
  url: "nats://localhost:4222"
  streams: ["CHAT", "NOTIFY"]
ws:
  max_connections: 10000
  ping_interval: "30s"
  max_message_size: 65536
"""
    result = loaded(file, folder=tmp_path)
    assert result.settings == loaded().settings
    assert result.sources["server.port"] == "config.yaml"
    assert result.file == tmp_path / "config.yaml"


def test_each_source_beats_the_next(tmp_path):
    file = "ws: {max_rooms: 3, max_headers: 33, max_fragments: 333}"
    profile = {"ws.max_rooms": 4, "ws.max_headers": 44, "ws.max_fragments": 444, "ws.message_burst": 4444}
    env = {"GATEWAY_WS_MAX_ROOMS": "2", "GATEWAY_WS_MAX_HEADERS": "22"}
    result = loaded(file, env=env, overrides={"ws.max_rooms": 1}, folder=tmp_path, defaults=profile)
    ws, sources = result.settings.ws, result.sources
    assert (ws.max_rooms, sources["ws.max_rooms"]) == (1, "command line --ws-max-rooms")
    assert (ws.max_headers, sources["ws.max_headers"]) == (22, "environment GATEWAY_WS_MAX_HEADERS")
    assert (ws.max_fragments, sources["ws.max_fragments"]) == (333, "config.yaml")
    assert (ws.message_burst, sources["ws.message_burst"]) == (4444, "profile sample")
    assert (ws.message_rate, sources["ws.message_rate"]) == (100, "default")


def test_options_that_were_not_given_change_nothing():
    result = loaded(overrides={"server.port": None, "server.host": None, "nats.streams": ()})
    assert set(result.sources.values()) == {"default", "environment GATEWAY_JWT_SECRET_KEY"}


def test_the_ports_option_is_named_as_on_the_command_line():
    assert loaded(overrides={"server.port": 1}).sources["server.port"] == "command line --port"


def test_variables_without_the_prefix_set_log_level_and_production():
    settings = loaded(env={"LOG_LEVEL": "WARNING", "APP_ENV": "production", "GATEWAY_NODE_ID": "node-7"}).settings
    assert (settings.log.level, settings.log.production, settings.node_id) == ("warn", True, "node-7")
    assert not loaded(env={"APP_ENV": "staging"}).settings.log.production


def test_a_prefixed_variable_beats_a_common_one():
    result = loaded(env={"LOG_LEVEL": "debug", "GATEWAY_LOG_LEVEL": "error"})
    assert (result.settings.log.level, result.sources["log.level"]) == ("error", "environment GATEWAY_LOG_LEVEL")


def test_a_profile_without_a_prefix_reads_its_own_names_only():
    env = {"PORT": "1234", "GATEWAY_SERVER_PORT": "99", "JWT_SECRET": SECRET}
    names = {"PORT": "server.port", "JWT_SECRET": "jwt.secret_key"}
    assert loaded(env=env, env_prefix="", env_names=names).settings.server.port == 1234


def test_blank_variables_count_as_not_set():
    result = loaded(env={"GATEWAY_SERVER_PORT": " ", "GATEWAY_JWT_ALLOWED_ISSUERS": ""})
    assert result.settings.jwt.allowed_issuers == ("attchat",)
    assert result.sources["server.port"] == "default"


def test_lists_in_variables_take_commas_and_blanks_and_a_lone_comma_empties():
    env = {"GATEWAY_NATS_STREAMS": " CHAT, NOTIFY EMAIL ", "GATEWAY_JWT_ALLOWED_ISSUERS": ","}
    settings = loaded(env=env).settings
    assert settings.nats.streams == ("CHAT", "NOTIFY", "EMAIL")
    assert settings.jwt.allowed_issuers == ()


def test_a_file_is_searched_in_the_folder_and_then_in_its_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"GATEWAY_JWT_SECRET_KEY": SECRET}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("server: {port: 2}")
    assert load(spec(), environ=environ).settings.server.port == 2
    (tmp_path / "config.yaml").write_text("server: {port: 1}")
    assert load(spec(), environ=environ).settings.server.port == 1


def test_nothing_is_read_from_the_process_by_the_way(monkeypatch):
    monkeypatch.setenv("SERVER", '{"port": 1}')
    monkeypatch.setenv("GATEWAY_SERVER_PORT", "2")
    monkeypatch.setenv("NODE_ID", "elsewhere")
    settings = loaded().settings
    assert settings.server.port == 8086
    assert settings.node_id != "elsewhere"


def test_settings_cannot_be_changed():
    settings = loaded().settings
    with pytest.raises(ValueError, match="frozen"):
        settings.ws.max_rooms = 1
    with pytest.raises(ValueError, match="frozen"):
        settings.ws = settings.ws


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "null", "ws:\n", "server:\n  port:\n", "\ufeffserver: {port: 8086}"]
)
def test_empty_files_and_sections_leave_the_defaults(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    path = tmp_path / "config.yaml"
    assert load(spec(), config_file=path, environ={"GATEWAY_JWT_SECRET_KEY": SECRET}).settings == loaded().settings


def test_anchors_and_merges_of_yaml_work(tmp_path):
    file = "server: &a {read_timeout: 3s}\nws: {pong_timeout: 4s}\nmetrics: {port: 1}\n"
    assert loaded(file, folder=tmp_path).settings.server.read_timeout == 3.0
    file = "x: &a {port: 5}\nserver:\n  <<: *a\n"
    assert "x.port" in refusal(file, folder=tmp_path)


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


# --- contradictions ---------------------------------------------------------------------------------------------------


def test_the_outbox_of_all_must_hold_the_outbox_of_one():
    text = refusal(env={"GATEWAY_WS_OUTBOX_TOTAL": "512KiB"})
    assert "ws.outbox_total = 512KiB" in text
    assert "1MiB" in text


def test_tls_needs_both_files(tmp_path):
    path = tmp_path / "cert.pem"
    path.write_text("x")
    assert "server.tls_key" in refusal(env={"GATEWAY_SERVER_TLS_CERT": str(path)})
    assert "server.tls_cert" in refusal(env={"GATEWAY_SERVER_TLS_KEY": str(path)})
    env = {"GATEWAY_SERVER_TLS_CERT": str(path), "GATEWAY_SERVER_TLS_KEY": str(path)}
    assert loaded(env=env).settings.server.tls_key == str(path)


@pytest.mark.parametrize("key", ["SERVER_TLS_CERT", "SERVER_TLS_KEY", "JWT_PUBLIC_KEY_FILE"])
def test_a_file_that_is_not_there_is_named(key, tmp_path):
    missing = str(tmp_path / "missing.pem")
    text = refusal(env={f"GATEWAY_{key}": missing})
    assert f"{missing}: can't read it (No such file or directory)" in text


def test_an_empty_key_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "empty.pem").write_text("")
    assert "0 bytes" in refusal(env={"GATEWAY_JWT_PUBLIC_KEY_FILE": str(tmp_path / "empty.pem")})
    assert "directory" in refusal(env={"GATEWAY_JWT_PUBLIC_KEY_FILE": str(tmp_path)})


def test_main_and_metrics_port_must_differ():
    assert "metrics.port" in refusal(env={"GATEWAY_METRICS_PORT": "8086"})
    assert loaded(env={"GATEWAY_METRICS_PORT": "8086", "GATEWAY_METRICS_ENABLED": "false"}).settings
    assert loaded(env={"GATEWAY_METRICS_PORT": "0", "GATEWAY_SERVER_PORT": "0"}).settings


def test_proxy_protocol_needs_to_know_whom_to_trust():
    assert "ws.proxy_trusted" in refusal(env={"GATEWAY_WS_PROXY_PROTOCOL": "true"})
    env = {"GATEWAY_WS_PROXY_PROTOCOL": "true", "GATEWAY_WS_PROXY_TRUSTED": "10.0.0.0/8 ::1"}
    assert loaded(env=env).settings.ws.proxy_trusted == ("10.0.0.0/8", "::1")


def test_a_url_of_a_bus_that_the_profile_does_not_have_is_not_looked_at():
    assert loaded(env={"GATEWAY_NATS_URL": "whatever"}, bus=None).settings.nats.url == "whatever"


@pytest.mark.parametrize(
    "url", ["memory:", "nats://a", "nats://a:1,nats://b:2", "tls://u:p@h:4222", "nats://[::1]:4222"]
)
def test_good_bus_urls_pass(url):
    assert loaded(env={"GATEWAY_NATS_URL": url}).settings.nats.url == url


# --- keys and secrets -------------------------------------------------------------------------------------------------


def test_a_missing_secret_says_which_variable_to_set():
    text = refusal(env={"GATEWAY_JWT_SECRET_KEY": ""})
    assert "GATEWAY_JWT_SECRET_KEY" in text
    assert "openssl rand -hex 32" in text
    assert loaded(env={"GATEWAY_JWT_SECRET_KEY": ""}, needs_token=False).settings


def test_the_originals_fallback_secret_is_refused(tmp_path):
    assert "everybody knows" in refusal(
        "jwt: {secret_key: change-me-in-production}", folder=tmp_path, env={"GATEWAY_JWT_SECRET_KEY": ""}
    )


def test_a_short_secret_is_a_warning_that_does_not_show_it():
    warnings = loaded(env={"GATEWAY_JWT_SECRET_KEY": "your-secret-key"}).warnings
    assert len(warnings) == 1
    assert "32 bytes" in warnings[0]
    assert "your-secret-key" not in warnings[0]


def test_a_secrets_blanks_are_part_of_it():
    secret = f" {SECRET} "
    assert loaded(env={"GATEWAY_JWT_SECRET_KEY": secret}).settings.jwt.secret_key.get_secret_value() == secret


def test_a_private_key_is_refused_and_not_shown():
    text = refusal(env={"GATEWAY_JWT_PUBLIC_KEY": "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----"})
    assert "private key" in text
    assert "MIIabc" not in text


def test_a_public_key_as_secret_is_refused():
    pem = (
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    assert "jwt.public_key" in refusal(env={"GATEWAY_JWT_SECRET_KEY": pem.decode()})


def test_an_algorithm_without_a_key_is_refused():
    assert "RS256 has no key that fits" in refusal(env={"GATEWAY_JWT_ALGORITHMS": "HS256,RS256"})


def test_a_public_key_alone_is_enough():
    pem = (
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    assert loaded(env={"GATEWAY_JWT_SECRET_KEY": "", "GATEWAY_JWT_PUBLIC_KEY": pem.decode()}).settings.jwt.public_key


def test_damaged_keys_are_refused():
    for text in (
        "nonsense",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----",
    ):
        assert "jwt.public_key" in refusal(env={"GATEWAY_JWT_PUBLIC_KEY": text})


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


# --- describing -------------------------------------------------------------------------------------------------------


def test_print_config_shows_everything_but_secrets():
    env = {"GATEWAY_PUBLISH_KEY": "publish-key-0123456789", "GATEWAY_NATS_URL": "nats://user:hunter2@host:4222"}
    result = loaded(env=env, defaults={"ws.max_message_size": 16 << 20})
    rows = {row.key: row for row in describe(result)}
    assert list(rows) == list(DEFINITIONS)
    assert (rows["jwt.secret_key"].value, rows["publish.key"].value) == ("********", "********")
    assert rows["nats.url"].value == "nats://********@host:4222"
    assert rows["ws.ping_interval"].value == "30s"
    assert (rows["ws.max_message_size"].value, rows["ws.max_message_size"].source) == ("16MiB", "profile sample")
    assert rows["nats.streams"].value == "CHAT, NOTIFY"
    everything = repr(rows) + repr(result.settings)
    assert SECRET not in everything
    assert "publish-key-0123456789" not in everything
    assert "hunter2" not in repr(rows)


def test_every_setting_has_a_unit_and_a_reason():
    rows = describe(loaded())
    assert [row.key for row in rows if not row.unit or len(row.reason) < 5] == []


def test_the_readmes_table_has_every_setting_with_its_variable():
    table = settings_table()
    for key in DEFINITIONS:
        assert f"| `{key}` |" in table
    assert "`GATEWAY_WS_PING_INTERVAL` | `30s`" in table
    assert "`LOG_LEVEL` | `info`" in table
    assert table.count("\n") == len(DEFINITIONS) + 2


def test_the_schema_knows_the_sections_and_their_bounds():
    schema = settings_schema()
    assert schema["properties"].keys() >= {
        "server",
        "jwt",
        "nats",
        "metrics",
        "ws",
        "rooms",
        "publish",
        "log",
        "node_id",
    }
    assert schema["$defs"]["Server"]["properties"]["port"]["maximum"] == 65535
    assert schema["$defs"]["Ws"]["properties"]["ping_interval"]["default"] == "30s"
