"""Settings: where they come from, which source wins, and how they are shown."""

import pytest
from tidegate.config import describe, load, settings_schema, settings_table
from tidegate.config.settings import DEFINITIONS

from tests.unit.configured import SECRET, loaded, refusal, spec

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
