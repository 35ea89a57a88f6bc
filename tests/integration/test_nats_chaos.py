"""What NATS may do to a gateway (crash, freeze, cut, lose its disk, refuse): the bus comes out of it with nothing lost,
repeated or out of order, and says truthfully whether it is ready.

Rule: real servers, real signals, cuts at any byte; a random one prints its seed.
"""

import asyncio
import contextlib
import datetime
import json
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import tidegate.buses._feed
import tidegate.buses.nats
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from tidegate.buses import open_bus
from tidegate.errors import BusError

from tests.buses import Gateway, Nats, NatsBackend, Settings, consuming, numbered, until
from tests.servers import NatsServer, free_port


@contextlib.asynccontextmanager
async def backend_on(server: NatsServer, **settings: Any) -> AsyncIterator[NatsBackend]:
    backend = NatsBackend(server, **settings)
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
async def backend(nats_server: NatsServer) -> AsyncIterator[NatsBackend]:
    async with backend_on(nats_server) as made:
        yield made


@pytest.fixture
async def calm(calm_nats_server: NatsServer) -> AsyncIterator[NatsBackend]:
    async with backend_on(calm_nats_server) as made:
        yield made


@pytest.fixture
def seed() -> int:
    value = secrets.randbelow(2**32)
    print(f"seed {value}")
    return value


async def in_thread(*steps: Callable[[], None]) -> None:
    for step in steps:
        await asyncio.to_thread(step)


# --- the server goes and comes back ----------------------------------------------------------------------------------


async def test_kill_9_and_restart_in_traffic_loses_repeats_and_reorders_nothing(
    backend: NatsBackend, seed: int
) -> None:
    chance = random.Random(seed)
    server, gateway, count = backend.server, Gateway(), 1_500
    kills = set(chance.sample(range(50, count - 50), 3))
    async with consuming(backend.bus("one"), gateway):
        for number, item in enumerate(numbered(count)):
            await backend.keep(item)
            if number in kills:
                await in_thread(server.kill, server.start)
        await gateway.has(count)
    assert gateway.payloads == numbered(count)


async def test_a_kill_in_the_middle_of_a_burst_loses_repeats_and_reorders_nothing(
    backend: NatsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken connection itself is noticed, not its silence; what it swallowed comes before the ack wait is over."""
    monkeypatch.setattr(tidegate.buses._feed, "SILENCE_MAX_S", 1_000)
    gateway = Gateway()
    async with consuming(backend.bus("one"), gateway):
        await backend.publish(numbered(1))
        await gateway.has(1)
    await backend.publish(numbered(30_000, start=1))
    bus = backend.bus("one")
    async with consuming(bus, gateway):
        await gateway.has(5_000)
        await in_thread(backend.server.kill, backend.server.start)
        await gateway.has(30_001)
        assert bus.stats()["reconnects"] >= 1
    assert gateway.payloads == numbered(30_001)


async def test_a_lost_connection_never_cancels_or_repeats_a_hand_over_under_way(backend: NatsBackend) -> None:
    gateway = Gateway()
    bus = backend.bus("one")
    async with consuming(bus, gateway):
        gateway.gate.clear()
        await backend.publish(numbered(3_000))
        await gateway.until(lambda: gateway.entered > 0)
        await in_thread(backend.server.kill)
        await until(lambda: not bus.is_ready())
        await in_thread(backend.server.start)
        await until(lambda: bus.stats()["reconnects"] > 0)
        gateway.gate.set()
        await gateway.has(3_000)
        assert gateway.payloads == numbered(3_000)
        await until(bus.is_ready)


async def test_nats_absent_at_the_start_is_not_ready_and_waited_for(backend: NatsBackend) -> None:
    await in_thread(backend.server.kill)
    gateway, bus = Gateway(), backend.bus("one")
    run = asyncio.create_task(bus.run(gateway.deliver, gateway.receive))
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(run), 0.5)
        assert not bus.is_ready()
        await in_thread(backend.server.start)
        await until(bus.is_ready)
        await backend.publish(numbered(10))
        await gateway.has(10)
    finally:
        run.cancel()
        await asyncio.wait([run])
    assert gateway.payloads == numbered(10)


async def test_a_frozen_server_shows_as_not_ready_and_loses_nothing(backend: NatsBackend) -> None:
    gateway, bus = Gateway(), backend.bus("one")
    async with consuming(bus, gateway):
        await backend.publish(numbered(10))
        await gateway.has(10)
        backend.server.freeze()
        await until(lambda: not bus.is_ready())
        backend.server.thaw()
        await backend.publish(numbered(10, start=10))
        await gateway.has(20)
        await until(bus.is_ready)
    assert gateway.payloads == numbered(20)


async def test_connections_cut_at_any_byte_lose_repeat_and_reorder_nothing(backend: NatsBackend, seed: int) -> None:
    chance = random.Random(seed)
    gateway, count = Gateway(), 20_000
    async with Cutter(backend.server.port) as cutter:
        bus = open_bus(f"nats://127.0.0.1:{cutter.port}", Settings(backend.settings), node_id="one")
        async with consuming(bus, gateway):
            for start in range(0, count, 1_000):
                cutter.cut_after(chance.randrange(1, 60_000))
                await backend.publish(numbered(1_000, start=start))
            await gateway.until(lambda: len(gateway.messages) >= count or not cutter.armed)
            cutter.cut_after(None)
            await gateway.has(count)
        assert cutter.cuts > 0
    assert gateway.payloads == numbered(count)


# --- the server forgets ----------------------------------------------------------------------------------------------


async def test_a_server_that_lost_its_disk_is_followed_from_its_first_message(backend: NatsBackend) -> None:
    gateway, bus = Gateway(), backend.bus("one")
    async with consuming(bus, gateway):
        await backend.publish(numbered(100))
        await gateway.has(100)
        await in_thread(backend.server.kill, backend.server.wipe, backend.server.start)
        for item in numbered(300, start=100):
            await backend.keep(item)  # until there is a stream again, nobody confirms
        await gateway.has(400)
    assert gateway.payloads == numbered(400)
    assert gateway.messages[100].sequence == 1


async def test_a_stream_removed_and_made_again_is_followed_from_its_first_message(calm: NatsBackend) -> None:
    gateway, bus = Gateway(), calm.bus("one")
    async with consuming(bus, gateway):
        await calm.publish(numbered(100))
        await gateway.has(100)
        await (await calm.client()).jsm().delete_stream(calm.stream)
        for item in numbered(100, start=100):
            await calm.keep(item)
        await gateway.has(200)
    assert gateway.payloads == numbered(200)


async def test_a_consumer_removed_under_a_running_gateway_is_made_again_where_it_was(calm: NatsBackend) -> None:
    gateway, bus = Gateway(), calm.bus("one")
    async with consuming(bus, gateway):
        for start in range(0, 300, 100):
            await calm.publish(numbered(100, start=start))
            await gateway.has(start + 100)
            manager = (await calm.client()).jsm()
            await manager.delete_consumer(calm.stream, f"gateway-{calm.settings.client_id}-one")
        await calm.publish(numbered(100, start=300))
        await gateway.has(400)
    assert gateway.payloads == numbered(400)


# --- streams and consumers as others made them -----------------------------------------------------------------------


async def test_a_stream_that_others_made_is_taken_whole_whatever_its_subjects(calm: NatsBackend) -> None:
    await (await calm.client()).jsm().add_stream(name=calm.stream, subjects=[f"{calm.stream.lower()}.>"])
    gateway = Gateway()
    async with consuming(calm.bus("one"), gateway):
        await calm.publish(numbered(5))
        await gateway.has(5)
    assert gateway.messages[0].subject == calm.subject


async def test_a_missing_stream_gets_both_spellings_and_file_storage(calm: NatsBackend) -> None:
    async with consuming(calm.bus("one"), Gateway()):
        config = (await (await calm.client()).jsm().stream_info(calm.stream)).config
    assert set(config.subjects or ()) == {f"{calm.stream}.>", f"{calm.stream.lower()}.>"}
    assert (config.storage, config.retention) == ("file", "limits")


async def test_streams_that_operators_own_are_waited_for_and_read_from_their_first_message(
    calm_nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend_on(calm_nats_server, ensure_streams=False) as backend:
        gateway, bus = Gateway(), backend.bus("one")
        run = asyncio.create_task(bus.run(gateway.deliver, gateway.receive))
        await until(lambda: "nats.ensure_streams" in caplog.text)
        assert not bus.is_ready()
        await (await backend.client()).jsm().add_stream(name=backend.stream, subjects=[f"{backend.stream.lower()}.>"])
        await backend.publish(numbered(10))
        await gateway.has(10)
        run.cancel()
        await asyncio.wait([run])
    assert gateway.payloads == numbered(10)


async def test_the_consumer_is_what_the_contract_says(calm: NatsBackend) -> None:
    manager = (await calm.client()).jsm()
    await manager.add_stream(name=calm.stream, subjects=[f"{calm.stream}.>"])
    async with consuming(calm.bus("web.1 a"), Gateway()):
        info = await manager.consumer_info(calm.stream, f"gateway-{calm.settings.client_id}-web_1_a")
    assert info.config.ack_policy == AckPolicy.EXPLICIT
    assert info.config.deliver_policy == DeliverPolicy.NEW
    assert info.config.inactive_threshold == 300
    assert not info.config.filter_subject


@pytest.mark.parametrize(
    "left",
    [
        {"ack_policy": AckPolicy.NONE},
        {"filter_subject": "CHAT.none"},
        {"deliver_subject": "somewhere", "ack_policy": AckPolicy.EXPLICIT},
        {"max_ack_pending": 7, "inactive_threshold": 20.0},
    ],
    ids=lambda left: next(iter(left)),
)
async def test_a_consumer_left_by_another_version_is_replaced_from_its_floor(
    calm: NatsBackend, left: dict[str, Any]
) -> None:
    manager = (await calm.client()).jsm()
    subjects = [f"{calm.stream.lower()}.>", "CHAT.none"] if "filter_subject" in left else [f"{calm.stream.lower()}.>"]
    await manager.add_stream(name=calm.stream, subjects=subjects)
    name = f"gateway-{calm.settings.client_id}-one"
    await manager.add_consumer(calm.stream, ConsumerConfig(durable_name=name, **left))
    await calm.publish(numbered(10))
    gateway = Gateway()
    async with consuming(calm.bus("one"), gateway):
        await gateway.has(10)
    await manager.delete_stream(calm.stream)
    assert gateway.payloads == numbered(10)


async def test_a_message_as_large_as_the_server_allows_is_delivered(servers_wanted: None) -> None:
    server = NatsServer(config="max_payload: 8MB\n")
    server.start()
    gateway, large = Gateway(), secrets.token_bytes(7 * 1024 * 1024)
    try:
        async with backend_on(server) as backend, consuming(backend.bus("one"), gateway):
            await backend.publish([b"before", large, large, large, b"after"])
            await gateway.has(5)
    finally:
        server.remove()
    assert gateway.payloads == [b"before", large, large, large, b"after"]


async def test_lag_tells_what_waits_behind_a_slow_hand_over(calm: NatsBackend) -> None:
    gateway, bus = Gateway(), calm.bus("one")
    gateway.gate.clear()
    async with consuming(bus, gateway):
        await calm.publish(numbered(10_000))
        await until(lambda: bus.stats()["lag"] >= 8_000)
        await calm.publish(numbered(10_000, start=10_000))
        await until(lambda: bus.stats()["lag"] >= 18_000)
        gateway.gate.set()
        await gateway.has(20_000)
        await until(lambda: bus.stats()["lag"] == 0)


# --- shared mode -----------------------------------------------------------------------------------------------------


async def test_nodes_that_share_a_consumer_get_each_message_once_between_them(calm_nats_server: NatsServer) -> None:
    one, two = Gateway(), Gateway()
    async with (
        backend_on(calm_nats_server, consumer_mode="shared") as backend,
        consuming(backend.bus("one"), one),
        consuming(backend.bus("two"), two),
    ):
        await backend.publish(numbered(20_000))
        await until(lambda: len(one.messages) + len(two.messages) >= 20_000)
    assert sorted(one.payloads + two.payloads) == sorted(numbered(20_000))
    assert one.messages and two.messages


async def test_what_a_sharing_node_leaves_behind_the_others_get_at_once(calm_nats_server: NatsServer) -> None:
    """Within the test's patience, which is about the ack wait: it is handed back, not waited for."""
    one, two = Gateway(), Gateway()
    one.gate.clear()
    async with backend_on(calm_nats_server, consumer_mode="shared") as backend:
        async with consuming(backend.bus("one"), one):
            await backend.publish(numbered(5_000))
            await one.until(lambda: one.entered > 0)
        async with consuming(backend.bus("two"), two):
            async with asyncio.timeout(20):
                await two.has(5_000)
    assert sorted(two.payloads) == sorted(numbered(5_000))


async def test_a_shared_consumer_of_the_wrong_kind_is_left_alone_and_its_cure_logged(
    calm_nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend_on(calm_nats_server, consumer_mode="shared") as backend:
        manager = (await backend.client()).jsm()
        await manager.add_stream(name=backend.stream, subjects=[f"{backend.stream.lower()}.>"])
        name = f"gateway-{backend.settings.client_id}"
        await manager.add_consumer(backend.stream, ConsumerConfig(durable_name=name, ack_policy=AckPolicy.NONE))
        bus = backend.bus("one")
        run = asyncio.create_task(bus.run(Gateway().deliver, Gateway().receive))
        await until(lambda: f"nats consumer rm {backend.stream} {name}" in caplog.text)
        assert not bus.is_ready()
        run.cancel()
        await asyncio.wait([run])
        assert (await manager.consumer_info(backend.stream, name)).config.ack_policy == AckPolicy.NONE


# --- the server refuses ----------------------------------------------------------------------------------------------


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
    calm: NatsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = calm.bus("one")
    with pytest.raises(BusError, match="no stream takes the subject"):
        await bus.publish("nobody.listens.here", b"x")
    with pytest.raises(BusError, match="cannot carry"):
        await bus.publish("two words", b"x")
    with pytest.raises(BusError, match="max_payload"):
        await bus.publish(calm.subject, bytes(2 * 1024 * 1024))
    await bus.close()
    monkeypatch.setattr(tidegate.buses.nats, "PUBLISH_TIMEOUT_S", 0.3)
    absent = open_bus(f"nats://127.0.0.1:{free_port()}", Settings(calm.settings), node_id="one")
    with pytest.raises(BusError, match="not confirmed"):
        await absent.publish(calm.subject, b"x")
    await absent.close()


async def test_a_publish_survives_a_restart_of_the_server_and_is_kept_once(backend: NatsBackend) -> None:
    gateway, bus = Gateway(), backend.bus("one")
    async with consuming(bus, gateway):
        for item in numbered(50):
            await bus.publish(backend.subject, item)
        await in_thread(backend.server.kill)
        late = asyncio.create_task(bus.publish(backend.subject, b"late"))
        await in_thread(backend.server.start)
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


class Cutter:
    """A relay to the server that cuts the connection after so many bytes from it, then waits to be armed again."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._left: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0

    @property
    def armed(self) -> bool:
        return self._left is not None

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut_after(self, count: int | None) -> None:
        self._left = count

    async def __aenter__(self) -> "Cutter":
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        upstream, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [asyncio.create_task(self._down(upstream, writer)), asyncio.create_task(self._up(reader, to_server))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, to_server):
                end.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            to_server.write(data)
            await to_server.drain()

    async def _down(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await upstream.read(65536):
            if self._left is not None and self._left < len(data):
                writer.write(data[: self._left])
                self._left = None
                self.cuts += 1
                await writer.drain()
                return
            if self._left is not None:
                self._left -= len(data)
            writer.write(data)
            await writer.drain()
