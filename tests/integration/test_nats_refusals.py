"""What NATS may refuse (JetStream, a password, TLS, a message): the log or the error says the cure, and no secret."""

import asyncio
import datetime
import json
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import tidegate.buses._feed
import tidegate.buses.nats
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tidegate.buses import open_bus
from tidegate.errors import BusError

from tests.buses import Gateway, Nats, NatsBackend, Settings, backend_on, consuming, numbered, until
from tests.servers import NatsServer, free_port


async def test_without_jetstream_the_log_says_the_cure_and_it_is_tried_again(
    servers_wanted: None, caplog: pytest.LogCaptureFixture
) -> None:
    plain = NatsServer(jetstream=False)
    plain.start()
    full = NatsServer(port=plain.port)
    gateway = Gateway()
    try:
        async with backend_on(full) as backend:
            bus = backend.bus("one")
            run = asyncio.create_task(bus.run(gateway.deliver, gateway.receive))
            await until(lambda: "start nats-server with -js" in caplog.text)
            assert not bus.is_ready()
            await in_thread(plain.kill, full.start)
            await until(bus.is_ready)
            await backend.publish(numbered(3))
            await gateway.has(3)
            run.cancel()
            await asyncio.wait([run])
    finally:
        plain.remove()
        full.remove()


async def test_a_wrong_password_is_retried_and_shows_in_no_log(
    servers_wanted: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = NatsServer(config='authorization { user: "ann", password: "hunter/2" }\n')
    server.start()
    settings = Settings(Nats([f"CHAT{secrets.token_hex(4)}"]))
    try:
        wrong = open_bus(f"nats://ann:swordfish@127.0.0.1:{server.port}", settings, node_id="one")
        run = asyncio.create_task(wrong.run(Gateway().deliver, Gateway().receive))
        await until(lambda: "Authorization Violation" in caplog.text)
        assert not wrong.is_ready()
        run.cancel()
        await asyncio.wait([run])
        right = open_bus(f"nats://ann:hunter%2F2@127.0.0.1:{server.port}", settings, node_id="one")
        async with consuming(right, Gateway()):
            assert right.is_ready()
    finally:
        server.remove()
    assert "swordfish" not in caplog.text
    assert "hunter" not in caplog.text


async def test_tls_asked_for_is_never_given_up_and_no_password_goes_out_in_plain_text() -> None:
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.10.0", "max_payload": 1024, "headers": True, "auth_required": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        heard.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = open_bus(f"tls://ann:hunter2@127.0.0.1:{port}", Settings(Nats(["CHAT"])), node_id="one")
    run = asyncio.create_task(bus.run(Gateway().deliver, Gateway().receive))
    await until(lambda: len(heard) >= 2)
    assert not bus.is_ready()
    run.cancel()
    await asyncio.wait([run])
    server.close()
    await server.wait_closed()
    assert b"".join(heard) == b""


async def test_tls_works_against_a_server_that_asks_for_it(
    servers_wanted: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = NatsServer(
        config=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\nauthorization {{ user: ann, password: x }}\n'
    )
    server.start()
    gateway = Gateway()
    settings = Settings(Nats(["CHAT"]))
    bus = open_bus(f"tls://ann:x@localhost:{server.port}", settings, node_id="one")
    try:
        async with consuming(bus, gateway):
            await bus.publish("chat.events", b"sealed")
            await gateway.has(1)
    finally:
        server.remove()


async def test_a_limit_of_attempts_ends_the_run_with_the_cure() -> None:
    settings = Settings(Nats(["CHAT"], max_reconnects=2, reconnect_wait=0.01))
    bus = open_bus(f"nats://127.0.0.1:{free_port()}", settings, node_id="one")
    with pytest.raises(BusError, match=r"nats\.max_reconnects"):
        await bus.run(Gateway().deliver, Gateway().receive)


async def test_a_publish_nobody_confirms_is_an_error_with_the_cure(
    calm_nats: NatsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = calm_nats.bus("one")
    with pytest.raises(BusError, match="no stream takes the subject"):
        await bus.publish("nobody.listens.here", b"x")
    with pytest.raises(BusError, match="cannot carry"):
        await bus.publish("two words", b"x")
    with pytest.raises(BusError, match="max_payload"):
        await bus.publish(calm_nats.subject, bytes(2 * 1024 * 1024))
    await bus.close()
    monkeypatch.setattr(tidegate.buses.nats, "PUBLISH_TIMEOUT_S", 0.3)
    absent = open_bus(f"nats://127.0.0.1:{free_port()}", Settings(calm_nats.settings), node_id="one")
    with pytest.raises(BusError, match="not confirmed"):
        await absent.publish(calm_nats.subject, b"x")
    await absent.close()


async def test_a_publish_survives_a_restart_of_the_server_and_is_kept_once(own_nats: NatsBackend) -> None:
    gateway, bus = Gateway(), own_nats.bus("one")
    async with consuming(bus, gateway):
        for item in numbered(50):
            await bus.publish(own_nats.subject, item)
        await in_thread(own_nats.server.kill)
        late = asyncio.create_task(bus.publish(own_nats.subject, b"late"))
        await in_thread(own_nats.server.start)
        await late
        await gateway.has(51)
    assert gateway.payloads == [*numbered(50), b"late"]


def self_signed(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = directory / "certificate.pem", directory / "key.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pem, key_pem


async def in_thread(*steps: Callable[[], None]) -> None:
    for step in steps:
        await asyncio.to_thread(step)
