"""Section 2 of the contract of im-gateway: variables become settings, and what makes no sense stops the start."""

import platform
from pathlib import Path

import pytest
from tidegate.config import Loaded, load
from tidegate.errors import ConfigError
from tidegate.profiles.im_gateway import PROFILE, ImGateway


def loaded(folder: Path, **environ: str) -> Loaded:
    return load(PROFILE, environ=environ, search=(str(folder),))


def test_without_variables_the_contracts_defaults_hold(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    assert (settings.server.port, settings.grpc.port, settings.metrics.port) == (8080, 9093, 9090)
    services = settings.services
    assert services.auth_url == "grpc://localhost:9095"
    assert services.im_url == "grpc://localhost:9094"
    assert services.user_url == "grpc://localhost:9096"
    assert services.timeout == 3
    assert settings.registry.url == "etcd://localhost:2379"
    assert (settings.registry.ttl, settings.registry.renew_interval) == (90, 30)
    assert settings.redis.url == "redis://localhost:6379/0"
    kafka = settings.kafka
    assert (kafka.url, kafka.group_id) == ("kafka://localhost:9092", "im-gateway-service")
    assert (kafka.min_bytes, kafka.max_bytes, kafka.commit_interval) == (1, 10 * 1024 * 1024, 1)
    ws = settings.ws
    assert (ws.max_message_size, ws.message_rate_per_user, ws.write_timeout) == (2 * 10_240, 100, 10)
    assert (2 * ws.ping_interval, 2 * ws.ping_interval + ws.pong_timeout, ws.shutdown_grace) == (54, 60, 30)
    assert (ws.outbox_policy, ws.outbox_messages) == ("drop", 256)
    assert (ws.allowed_origins, ws.allow_empty_origin) == ((), True)
    im = settings.im
    assert (im.ack_mode, im.ack_timeout, im.dialect, im.strict_ack) == ("ack", 5, "seed", False)
    assert (im.large_group, im.devices_per_user, im.nodes) == (1000, 5, ())


def test_by_default_a_node_is_this_machine_and_its_port_of_grpc(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    assert settings.registry.node == f"{platform.node()}:9093"
    assert loaded(tmp_path, GRPC_PORT="9097").settings.registry.node == f"{platform.node()}:9097"
    pod = loaded(tmp_path, POD_IP="10.0.3.7", GRPC_PORT="9097").settings
    assert (pod.registry.node, pod.grpc.port, pod.node_id) == ("10.0.3.7:9097", 9097, "10-0-3-7-9097")
    named = loaded(tmp_path, POD_IP="10.0.3.7", GATEWAY_NODE_ID="gateway-1").settings
    assert (named.registry.node, named.node_id) == ("gateway-1", "gateway-1")


def test_topics_are_read_that_mean_something(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    means = settings.im.group_topics + settings.im.receipt_topics + settings.im.membership_topics
    assert set(means) == set(settings.kafka.topics)
    assert settings.im.receipt_topics == ("read_receipt", "read_receipt_events")
    changed = loaded(tmp_path, KAFKA_TOPIC="rooms", MEMBERSHIP_TOPICS="who, whom").settings
    assert set(changed.kafka.topics) == {"rooms", "read_receipt", "read_receipt_events", "who", "whom"}
    assert (changed.im.group_topics, changed.im.membership_topics) == (("rooms",), ("who", "whom"))
    assert changed.kafka.broadcast_topic == ""


def test_what_a_file_says_counts_where_no_variable_says_anything(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "registry:\n  node: from-file\nkafka:\n  topics: [a]\nim:\n  group_topics: [a]\n"
    )
    settings = loaded(tmp_path).settings
    assert (settings.registry.node, settings.kafka.topics, settings.im.group_topics) == ("from-file", ("a",), ("a",))


def test_every_variable_of_the_original_counts(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        AUTH_SERVICE_ADDR="auth:1",
        IM_SERVICE_ADDR="im:2",
        USER_SERVICE_ADDR="user:3",
        ETCD_ENDPOINTS="e1:2379, e2:2379",
        REDIS_ADDR="r:6379",
        REDIS_PASSWORD="p@ss/word",
        REDIS_DB="3",
        KAFKA_BROKERS="k1:9092, k2:9092",
        KAFKA_GROUP_ID="mine",
        KAFKA_MIN_BYTES="1",
        KAFKA_MAX_BYTES="2048",
        KAFKA_COMMIT_INTERVAL="5s",
        HEARTBEAT_INTERVAL="30s",
        READ_BUFFER_SIZE="2048",
        WRITE_BUFFER_SIZE="1024",
        MAX_MESSAGE_SIZE="1000",
        WRITE_WAIT="3s",
        REGISTRY_TTL="60s",
        REGISTRY_RENEW_INTERVAL="20s",
        MAX_MESSAGES_PER_SECOND="7",
        ACK_TIMEOUT="2s",
        PORT="9000",
        METRICS_PORT="9100",
        SECURITY_ALLOWED_ORIGINS="https://a.example, https://b.example",
        SECURITY_ALLOW_EMPTY_ORIGIN="false",
        SHUTDOWN_TIMEOUT="5s",
        LOG_LEVEL="debug",
        LOG_FORMAT="json",
    ).settings
    services = settings.services
    assert (services.auth_url, services.im_url, services.user_url) == ("grpc://auth:1", "grpc://im:2", "grpc://user:3")
    assert settings.registry.url == "etcd://e1:2379,e2:2379"
    assert (settings.registry.ttl, settings.registry.renew_interval) == (60, 20)
    assert settings.redis.url == "redis://:p%40ss%2Fword@r:6379/3"
    kafka = settings.kafka
    assert (kafka.url, kafka.group_id) == ("kafka://k1:9092,k2:9092", "mine")
    assert (kafka.min_bytes, kafka.max_bytes, kafka.commit_interval) == (1, 2048, 5)
    ws = settings.ws
    assert (ws.max_message_size, ws.write_timeout, ws.shutdown_grace) == (2000, 3, 5)
    assert (ws.message_rate, ws.message_burst, ws.message_rate_per_user) == (7, 14, 7)
    assert (ws.allowed_origins, ws.allow_empty_origin) == (("https://a.example", "https://b.example"), False)
    assert (settings.im.ack_timeout, settings.server.port, settings.metrics.port) == (2, 9000, 9100)
    assert (settings.log.level, settings.log.production) == ("debug", True)


def test_every_variable_of_ours_counts(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        MAX_DEVICES_PER_USER="2",
        GATEWAY_NODES="g1=10.0.0.1:9093,g2=h:1",
        ACK_MODE="queued",
        WS_DIALECT="sdk",
        STRICT_ACK="true",
        LARGE_GROUP_THRESHOLD="50",
        MAX_CONNECTIONS="5",
        AUTH_JWT_SECRET="a-secret-of-the-tests-that-is-long-enough-0123456789",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://otel:4318",
    ).settings
    im = settings.im
    assert (im.devices_per_user, im.ack_mode, im.dialect, im.strict_ack) == (2, "queued", "sdk", True)
    assert (im.large_group, im.nodes) == (50, ("g1=10.0.0.1:9093", "g2=h:1"))
    assert settings.ws.max_connections == 5
    assert settings.jwt.secret_key.get_secret_value().startswith("a-secret")
    assert (settings.otel.endpoint, settings.otel.service_name) == ("http://otel:4318", "im-gateway-service")


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ("PORT", "WEBSOCKET_PORT", "server.port"),
        ("WEBSOCKET_PORT", "SERVER_HTTP_PORT", "server.port"),
        ("GRPC_PORT", "SERVER_GRPC_PORT", "grpc.port"),
        ("METRICS_PORT", "OBSERVABILITY_METRICS_PORT", "metrics.port"),
    ],
)
def test_of_two_names_for_one_setting_the_first_counts(tmp_path: Path, first: str, second: str, key: str) -> None:
    found = loaded(tmp_path, **{first: "7001", second: "7002"})
    section, name = key.split(".")
    assert getattr(getattr(found.settings, section), name) == 7001
    assert found.sources[key] == f"environment {first}"
    assert getattr(getattr(loaded(tmp_path, **{second: "7002"}).settings, section), name) == 7002


def test_a_variable_with_tidegates_own_prefix_counts_too(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path, TIDEGATE_REGISTRY_NODE="n7", TIDEGATE_KAFKA_TOPICS="a", TIDEGATE_WS_MAX_ROOMS="3"
    ).settings
    assert (settings.registry.node, settings.kafka.topics, settings.ws.max_rooms) == ("n7", ("a",), 3)


@pytest.mark.parametrize(("origins", "settled"), [("*", ()), ("*.example.org", ("*.example.org",)), ("", ())])
def test_a_star_allows_every_origin(tmp_path: Path, origins: str, settled: tuple[str, ...]) -> None:
    assert loaded(tmp_path, SECURITY_ALLOWED_ORIGINS=origins).settings.ws.allowed_origins == settled


def test_zero_means_no_limit(tmp_path: Path) -> None:
    ws = loaded(tmp_path, MAX_CONNECTIONS="0", MAX_MESSAGES_PER_SECOND="0").settings.ws
    assert (ws.max_connections, ws.message_rate, ws.message_rate_per_user) == (1_000_000, 0, 0)


@pytest.mark.parametrize(
    ("size", "limit"), [("1000", 1000), ("2KiB", 2048), ("1MB", 1_000_000)], ids=["bytes", "binary", "decimal"]
)
def test_twice_the_largest_message_is_read_however_its_size_is_written(tmp_path: Path, size: str, limit: int) -> None:
    settings = loaded(tmp_path, MAX_MESSAGE_SIZE=size).settings
    assert settings.ws.max_message_size == 2 * limit
    assert ImGateway(settings)._message_bytes_max == limit


@pytest.mark.parametrize(
    ("period", "wait", "silent", "heard"),
    [
        ("54s", "60s", "90s", 60),
        ("20s", "90s", "30s", 30),
        ("1m", "1m30s", "2m", 90),
        ("500ms", "2500ms", "90s", 2.5),
        ("54s", "54s", "90s", 55),
        ("54s", "60s", "10s", 55),
    ],
)
def test_dead_is_who_was_not_heard_for_the_shorter_of_two_times(
    tmp_path: Path, period: str, wait: str, silent: str, heard: float
) -> None:
    found = loaded(tmp_path, PING_PERIOD=period, PONG_WAIT=wait, HEARTBEAT_TIMEOUT=silent)
    ws = found.settings.ws
    assert ws.unanswered_pings == 2
    assert 2 * ws.ping_interval + ws.pong_timeout == pytest.approx(heard)
    assert bool([warning for warning in found.warnings if "PING_PERIOD" in warning]) == (heard == 55)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PING_PERIOD", "54"),
        ("PONG_WAIT", "soon"),
        ("HEARTBEAT_TIMEOUT", "1d"),
        ("PING_PERIOD", "0s"),
        ("MAX_MESSAGE_SIZE", "big"),
        ("MAX_MESSAGE_SIZE", "0"),
        ("MAX_MESSAGE_SIZE", "-5"),
        ("MAX_MESSAGES_PER_SECOND", "1.5"),
        ("MAX_CONNECTIONS", "many"),
        ("ACK_MODE", "maybe"),
        ("ACK_TIMEOUT", "5"),
        ("WS_DIALECT", "klingon"),
        ("GATEWAY_NODES", "10.0.0.1:9093"),
        ("GATEWAY_NODE_ID", "a|b"),
        ("GATEWAY_NODE_ID", "a/b"),
        ("MAX_DEVICES_PER_USER", "0"),
        ("PORT", "tcp://10.0.0.1:8080"),
        ("KAFKA_TOPIC", "no such/topic"),
    ],
)
def test_what_makes_no_sense_stops_the_start_and_names_the_variable(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        loaded(tmp_path, **{variable: value})


def test_no_password_is_in_what_goes_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(
            tmp_path, REDIS_ADDR="r:x", REDIS_PASSWORD="s3cret-word", ETCD_ENDPOINTS="e:x", ETCD_PASSWORD="s3cret-word"
        )
    assert "s3cret-word" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["e1:2379", "http://e1:2379", "http://e1:2379/"])
def test_etcd_may_be_written_as_its_own_tools_do(tmp_path: Path, endpoint: str) -> None:
    assert loaded(tmp_path, ETCD_ENDPOINTS=endpoint).settings.registry.url == "etcd://e1:2379"
    login = loaded(tmp_path, ETCD_ENDPOINTS=endpoint, ETCD_USERNAME="me", ETCD_PASSWORD="p:w").settings
    assert login.registry.url == "etcd://me:p%3Aw@e1:2379"


def test_a_file_may_have_variables_as_sections_and_the_environment_wins(tmp_path: Path) -> None:
    lines = "port: 7000\nack:\n  mode: queued\nmax:\n  message_size: 1000\nheartbeat:\n  interval: 30s\n  pause: 1s\n"
    (tmp_path / "config.yaml").write_text(lines)
    found = loaded(tmp_path, PORT="7001")
    settings = found.settings
    assert (settings.server.port, settings.im.ack_mode, settings.ws.max_message_size) == (7001, "queued", 2000)
    assert [warning for warning in found.warnings if "HEARTBEAT_PAUSE" in warning]


# --- what the profile declares ---------------------------------------------------------------------------------------

METRICS = """active_connections kafka_consumer_lag offline_queue_size total_connections_total connection_errors_total
messages_delivered_total messages_failed_total ack_pending_total ack_success_total ack_timeouts_total ack_late_total
cross_gateway_forward_total kafka_consumer_errors_total duplicate_messages_total multi_device_deliveries_total
group_messages_delivered_total group_members_fanout_total cache_hits_total cache_misses_total rate_limited_total
ack_unknown_total breaker_state message_delivery_latency_seconds cross_gateway_forward_latency_seconds"""


def test_every_metric_of_the_contract_is_declared() -> None:
    assert {family.name for family in PROFILE.families} == {f"im_gateway_{name}" for name in METRICS.split()}
    labels = {family.name.removeprefix("im_gateway_"): family.label for family in PROFILE.families}
    assert labels["cross_gateway_forward_total"] == "kind,result,reason"
    assert labels["kafka_consumer_lag"] == labels["kafka_consumer_errors_total"] == "topic"
    assert (labels["breaker_state"], labels["cross_gateway_forward_latency_seconds"]) == ("target", "kind")


def test_paths_services_and_codes_are_the_contracts() -> None:
    assert PROFILE.ws_paths == ("/ws",)
    assert PROFILE.pages == {"/health": ("text/plain; charset=utf-8", b"OK")}
    services = [f"im_gateway_servicepb.{name}" for name in ("UimUgatewayUserviceService", "GatewayService")]
    assert list(PROFILE.services) == services
    assert PROFILE.silence_code == 4408
