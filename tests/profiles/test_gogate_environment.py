"""Section 2 of the contract: the original's variables become settings, and what makes no sense counts as absent."""

from pathlib import Path

import pytest
from tidegate.config import Loaded, load
from tidegate.errors import ConfigError
from tidegate.profiles.gogate import PROFILE

KEY = {"INTERNAL_API_KEY": "k"}


def loaded(folder: Path, **environ: str) -> Loaded:
    return load(PROFILE, environ=KEY | environ, search=(str(folder),))


def test_without_variables_the_contracts_defaults_hold(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    assert (settings.server.port, settings.backend.url) == (8080, "http://localhost:8000")
    ws = settings.ws
    assert (ws.max_message_size, ws.message_rate, ws.message_burst, ws.message_rate_per_user) == (512_000, 20, 40, 50)
    assert (ws.ping_interval, ws.pong_timeout, ws.unanswered_pings, ws.write_timeout) == (54, 6, 1, 10)
    assert (ws.auth_timeout, ws.shutdown_grace, ws.max_connections_per_user) == (10, 30, 0)
    assert (settings.metrics.shared, settings.redis.url) == (True, "")
    assert (settings.backend.body_style, settings.backend.members_cache_ttl) == ("camel", 2.0)


def test_every_variable_of_the_original_counts(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        PORT="9000",
        BACKEND_API_URL="http://backend:8000/",
        MAX_MESSAGE_SIZE="1000",
        READ_BUFFER_SIZE="2048",
        PING_PERIOD="20",
        PONG_WAIT="25",
        WRITE_WAIT="3",
        ALLOWED_ORIGINS="https://a.example, *.b.example",
        RATE_LIMIT_PER_CONNECTION="7",
        RATE_LIMIT_PER_USER="0",
        MAX_CONNECTIONS="5",
        MAX_CONNECTIONS_PER_USER="2",
        AUTH_TIMEOUT="0",
        BACKEND_TIMEOUT="4",
        BACKEND_BODY_STYLE="Snake",
        MEMBERS_CACHE_TTL_MS="0",
        REDIS_URL="redis://r:6379/1",
        NODE_ID="n7",
        SHUTDOWN_TIMEOUT="5",
        LOG_LEVEL="debug",
        LOG_FORMAT="json",
        METRICS_PORT="9100",
    ).settings
    ws = settings.ws
    assert (settings.server.port, settings.backend.url) == (9000, "http://backend:8000/")
    assert (ws.max_message_size, ws.ping_interval, ws.pong_timeout, ws.write_timeout) == (1000, 20, 5, 3)
    assert ws.allowed_origins == ("https://a.example", "*.b.example")
    assert (ws.message_rate, ws.message_burst, ws.message_rate_per_user) == (7, 14, 0)
    assert (ws.max_connections, ws.max_connections_per_user, ws.auth_timeout) == (5, 2, 0)
    assert (settings.backend.timeout, settings.backend.body_style, settings.backend.members_cache_ttl) == (
        4,
        "snake",
        0,
    )
    assert (settings.redis.url, settings.node_id, ws.shutdown_grace) == ("redis://r:6379/1", "n7", 5)
    assert (settings.log.level, settings.log.production) == ("debug", True)
    assert (settings.metrics.shared, settings.metrics.port) == (False, 9100)


@pytest.mark.parametrize("value", ["", "  ", "abc", "-5", "1.5", "99999999999999999999", "0x10", "٣"])
def test_an_empty_or_unreadable_value_falls_back_and_only_the_unreadable_one_is_told(
    tmp_path: Path, value: str
) -> None:
    found = loaded(tmp_path, PORT=value, PING_PERIOD=value, MAX_CONNECTIONS=value)
    assert (found.settings.server.port, found.settings.ws.ping_interval) == (8080, 54)
    told = [warning for warning in found.warnings if "the default counts" in warning]
    assert len(told) == (3 if value.strip() else 0)


def test_zero_connections_means_as_many_as_one_process_holds(tmp_path: Path) -> None:
    assert loaded(tmp_path, MAX_CONNECTIONS="0").settings.ws.max_connections == 1_000_000


def test_a_pong_wait_below_the_period_is_told_and_becomes_possible(tmp_path: Path) -> None:
    found = loaded(tmp_path, PING_PERIOD="60", PONG_WAIT="30")
    assert (found.settings.ws.ping_interval, found.settings.ws.pong_timeout) == (60, 1)
    assert any("PONG_WAIT" in warning for warning in found.warnings)


def test_a_dotenv_file_counts_where_the_environment_says_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('PORT=7000\nBACKEND_API_URL="http://from-file:1"\n# comment\nNODE_ID=\n')
    settings = loaded(tmp_path, PORT="7001").settings
    assert (settings.server.port, settings.backend.url) == (7001, "http://from-file:1")


def test_other_profiles_read_no_dotenv_file(tmp_path: Path) -> None:
    from tidegate.profiles.echo import PROFILE as ECHO

    (tmp_path / ".env").write_text("GATEWAY_SERVER_PORT=7000\n")
    assert load(ECHO, environ={}, search=(str(tmp_path),)).settings.server.port == 8086


def test_a_start_without_the_internal_key_fails_and_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INTERNAL_API_KEY"):
        load(PROFILE, environ={}, search=(str(tmp_path),))


def test_the_built_in_backend_needs_no_key(tmp_path: Path) -> None:
    settings = load(PROFILE, environ={"BACKEND_API_URL": "memory:"}, search=(str(tmp_path),)).settings
    assert settings.backend.url == "memory:"


def test_settings_without_a_variable_of_their_own_have_tidegates(tmp_path: Path) -> None:
    assert loaded(tmp_path, TIDEGATE_WS_MAX_ROOMS="3").settings.ws.max_rooms == 3


@pytest.mark.parametrize("origin", ["*", "https://*", "example.com", "*example.com"])
def test_an_origin_that_could_not_match_stops_the_start(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigError, match=r"ws\.allowed_origins"):
        loaded(tmp_path, ALLOWED_ORIGINS=origin)
