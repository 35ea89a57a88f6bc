"""Settings that contradict each other, keys that can't be used, secrets that everybody knows."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.unit.configured import SECRET, loaded, refusal

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
    assert "public half only" in text
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
