"""The life of an im-gateway process: begun without its services, renewed leases, metrics, logs, a drain, SIGTERM.

Sections 1, 2, 8, 11 and 12 of its contract, and settings that make a node another one. Rule: a node that a test ends
or that waits for servers is its own.
"""

import asyncio
import contextlib
import json
import signal
import ssl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import orjson
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # comes without types
from websockets.asyncio.client import connect
from websockets.typing import Origin

from tests.certificates import Certificate
from tests.etcd_server import EtcdServer
from tests.gateways import stop
from tests.im import Device, Node, await_ready, device, refused
from tests.im_backends import ANEW, Pusher, Records, below, registered
from tests.im_services import ImServices
from tests.im_traffic import becomes
from tests.im_world import World, devices, fresh, gateways_time, ids, outcome
from tests.kafka_server import KafkaServer
from tests.wire.client import CLOSE, PING, PONG, TEXT, Raw, frame

pytestmark = pytest.mark.timeout(150)  # the first test starts all servers, Kafka with two JVMs

STOP_S_MAX = 30
TALK_EVERY_S = 0.2  # well within the second that a ping's answer may take
SECRET = "a-secret-of-the-tests-that-is-long-enough-0123456789"
# Section 12. What has labels may be missing until it has a value
PLAIN_METRICS = """
active_connections offline_queue_size total_connections_total connection_errors_total messages_delivered_total
messages_failed_total ack_pending_total ack_success_total ack_timeouts_total ack_late_total duplicate_messages_total
multi_device_deliveries_total group_messages_delivered_total group_members_fanout_total cache_hits_total
cache_misses_total rate_limited_total ack_unknown_total message_delivery_latency_seconds_count
message_delivery_latency_seconds_sum
"""
GAUGES = ("active_connections", "kafka_consumer_lag", "offline_queue_size", "breaker_state")
HISTOGRAMS = ("message_delivery_latency_seconds", "cross_gateway_forward_latency_seconds")


@contextlib.contextmanager
def ending(node: Node) -> Iterator[Node]:
    """A node that the test may end itself."""
    try:
        yield node
    finally:
        if node.is_alive():
            stop(node)


async def health(node: Node) -> int:
    """Of gRPC."""
    async with grpc.aio.insecure_channel(node.grpc_address, options=ANEW) as channel:
        asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        return int((await asked).status)


# --- the beginning ----------------------------------------------------------------------------------------------------


async def test_a_node_that_begins_before_etcd_and_kafka_lives_says_so_and_heals(
    calm_world: World, im_services: ImServices
) -> None:
    etcd, kafka, door = EtcdServer(), KafkaServer(), (fresh(), str(uuid.uuid4()))
    world = World(im_services, etcd, kafka, calm_world.redis)
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.remove)
        stack.callback(kafka.remove)
        node = stack.enter_context(ending(world.starting()))
        await becomes(lambda: node.get("/health") == (200, "OK"))
        status, said = node.get("/ready")
        assert (status, said["status"]) == (503, "not_ready")
        assert said["reason"] in ("etcd", "kafka")
        assert await refused(node.door(*door)) == 503
        assert await health(node) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert node.metrics()["im_gateway_active_connections"] == 0
        await asyncio.to_thread(etcd.start)
        async with asyncio.timeout(STOP_S_MAX):
            while await connects(node, *door) != 101:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert node.get("/ready")[1]["reason"] == "kafka", "clients are served; a balancer sends none"
        await asyncio.to_thread(kafka.start)
        await asyncio.to_thread(await_ready, node)
        assert await health(node) == health_pb2.HealthCheckResponse.SERVING
        group = fresh("group")
        im_services.user.tell(groups={group: [door[0]]})
        async with device(node, *door) as one:
            await Records(kafka.url).group_message(group, "user_7", "a topic that nobody knew")
            assert (await one.hears("message"))["content"] == "a topic that nobody knew"


async def connects(node: Node, user: str, name: str) -> int:
    """The HTTP status of an attempt."""
    with contextlib.suppress(AssertionError):
        return await refused(node.door(user, name))
    return 101


async def test_without_redis_clients_pushes_and_groups_go_on(calm_world: World, im_services: ImServices) -> None:
    group, user = fresh("group"), fresh()
    im_services.user.tell(groups={group: [user]})
    with calm_world.node(REDIS_ADDR="127.0.0.1:1") as node:
        async with device(node, user) as one, Pusher(node.grpc_address) as pusher:
            push = asyncio.create_task(pusher.push(user))
            await one.receives()
            assert outcome(await push) == (True, 1, [])
            await calm_world.records().group_message(group, "user_7", "x")
            assert (await one.hears("message"))["content"] == "x"


# --- the registry -----------------------------------------------------------------------------------------------------


async def test_places_outlive_the_ttl_while_their_node_lives_and_not_when_it_is_killed(
    calm_world: World, im_services: ImServices
) -> None:
    """14.3: renewed past REGISTRY_TTL, which is three seconds here instead of ninety."""
    user, (name,) = fresh(), ids(1)
    with ending(calm_world.starting(REGISTRY_TTL="3s", REGISTRY_RENEW_INTERVAL="1s")) as node:
        await_ready(node)
        async with device(node, user, name) as one:
            places = await registered(calm_world.etcd.url, user)
            until = time.monotonic() + 6
            while time.monotonic() < until:
                assert await registered(calm_world.etcd.url, user) == places
                assert node.grpc_address in await below(calm_world.etcd.url, "/registry/gateways/")
                await asyncio.sleep(0.2)
            await one.heartbeat()
            node.kill()
            async with asyncio.timeout(STOP_S_MAX):
                while await registered(calm_world.etcd.url, user):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                while node.grpc_address in await below(calm_world.etcd.url, "/registry/gateways/"):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_sigterm_says_goodbye_closes_1001_and_leaves_nothing_in_the_registry(
    calm_world: World, im_services: ImServices
) -> None:
    user, names = fresh(), ids(3)
    with ending(calm_world.starting()) as node:
        await_ready(node)
        async with devices(node, user, *names) as three, device(node, fresh(), query={"dialect": "sdk"}) as sdk:
            assert set(await registered(calm_world.etcd.url, user)) == set(names)
            node.signal(signal.SIGTERM)
            for one in three:
                (goodbye,), code = await one.ends()
                gateways_time(goodbye)
                assert goodbye == {
                    "type": "close",
                    "msg_id": "",
                    "sender": "",
                    "content": "",
                    "sequence_number": 0,
                    "error_code": "SERVER_SHUTDOWN",
                    "error_message": "Server is shutting down",
                }
                assert code == 1001
            (_, goodbye), code = await sdk.ends()
            gateways_time(goodbye, 1000)
            assert (goodbye["error_code"], code) == ("SERVER_SHUTDOWN", 1001)
        assert await asyncio.to_thread(node.wait, STOP_S_MAX) == 0
        assert await registered(calm_world.etcd.url, user) == {}
        assert node.grpc_address not in await below(calm_world.etcd.url, "/registry/gateways/")


async def test_while_a_node_drains_it_takes_nobody_in_and_whoever_waits_for_an_answer_gets_it(
    calm_world: World, im_services: ImServices
) -> None:
    user, sender = fresh(), fresh()
    im_services.im.tell(hold=["RoutePrivateMessage"])
    with ending(calm_world.starting()) as node:
        await_ready(node)
        async with device(node, user) as one, device(node, sender) as other, Pusher(node.grpc_address) as pusher:
            msg_id = await other.send_msg("user_1", "last words")
            push = asyncio.create_task(pusher.push(user))
            message = await one.hears("message")
            await becomes(lambda: im_services.im.inside() == 1)
            node.signal(signal.SIGTERM)
            await becomes(lambda: node.get("/ready") == (503, {"status": "not_ready", "reason": "draining"}))
            assert node.get("/health") == (200, "OK")
            assert await refused(node.door(fresh(), str(uuid.uuid4()))) == 503
            await one.ack(message["msg_id"])
            assert outcome(await push) == (True, 1, [])
            im_services.im.tell(hold=[])
            assert (await other.hears("ack"))["msg_id"] == msg_id
            for each in (one, other):
                frames, code = await each.ends()
                assert ([gone["error_code"] for gone in frames], code) == (["SERVER_SHUTDOWN"], 1001)
        assert await asyncio.to_thread(node.wait, STOP_S_MAX) == 0


# --- what a node tells ------------------------------------------------------------------------------------------------


async def test_every_metric_of_the_contract_is_there_from_the_start(calm_world: World, im_services: ImServices) -> None:
    with calm_world.node() as node:
        first, types = node.metrics(), node.metric_types()
        named = {f"im_gateway_{name}" for name in PLAIN_METRICS.split()}
        assert not named - first.keys()
        for topic in ("group_msg", "read_receipt", "membership_change"):
            assert f'im_gateway_kafka_consumer_lag{{topic="{topic}"}}' in first
        for target in ("auth", "im", "user", "redis"):
            assert first[f'im_gateway_breaker_state{{target="{target}"}}'] == 0
        assert {types[f"im_gateway_{name}"] for name in GAUGES} == {"gauge"}
        assert {types[f"im_gateway_{name}"] for name in HISTOGRAMS} == {"histogram"}
        # whose names end in _total are declared without it, as the format has it, or with it
        declared = {name.removesuffix("_total") for name, kind in types.items() if kind == "counter"}
        counters = {name.removesuffix("_total") for name in named if name.endswith("_total")}
        labelled = {"im_gateway_cross_gateway_forward", "im_gateway_kafka_consumer_errors"}
        assert not (counters | labelled) - declared
        assert node.get("/metrics")[0] == 404, "they have a port of their own"
        assert node.get("/health") == (200, "OK")
        assert node.get("/ready") == (200, {"status": "ready"})
        assert node.get("/ws")[0] in (400, 426)
        assert node.get("/stats")[0] == 404


async def test_lines_have_ids_as_json_and_no_token_and_no_content(calm_world: World, im_services: ImServices) -> None:
    user, name, sealed = fresh(), str(uuid.uuid4()), "sealed-content-4711"
    group = fresh("group")
    im_services.user.tell(groups={group: [user]})
    with calm_world.node(LOG_LEVEL="debug", LOG_FORMAT="json") as node:
        async with device(node, user, name) as one, Pusher(node.grpc_address) as pusher:
            push = asyncio.create_task(pusher.push(user, sealed, msg_id="m1"))
            await one.receives()
            await push
            await one.sends("user_1", sealed)
            await one.socket.send(f'{{"type":"{sealed}"}}')
            assert (await one.error())[0] == "UNKNOWN_MESSAGE_TYPE"
            await calm_world.records().group_message(group, user, sealed)
            await one.hears("message")
            await calm_world.records().put("group_msg", (group, f'{{"group_id":{{"{sealed}":1}}}}'.encode()))
            im_services.im.tell(status={"all": "INTERNAL"})
            await one.send_msg("user_1", sealed)
            assert (await one.error())[0] == "ROUTING_ERROR"
            assert await refused(f"{node.url}?token=bad-token-{sealed}") == 401
            await becomes(lambda: "bad_record" in node.log_text() or "was skipped" in node.log_text())
    log = node.log_text()
    assert f"{user}/{name}" not in log
    assert "bad-token" not in log
    assert sealed not in log
    lines = [json.loads(line) for line in log.splitlines()]
    connected = next(line for line in lines if line["message"] == "connected")
    assert (connected["user"], connected["device"]) == (user, name)
    pushed = next(line for line in lines if line["message"] == "pushed")
    assert (pushed["user"], pushed["msg_id"], pushed["delivered"]) == (user, "m1", 1)
    assert any(line["message"] == "disconnected" and line["user"] == user for line in lines)


# --- settings that make a node another one ----------------------------------------------------------------------------


def signed(user: str, name: str, secret: str = SECRET, **claims: Any) -> str:
    body = {"user_id": user, "device_id": name, "exp": int(time.time()) + 600} | claims
    return jwt.encode(body, secret, algorithm="HS256")


async def test_a_strict_node_checks_origins_and_tokens_itself_and_has_places_for_so_many(
    calm_world: World, im_services: ImServices
) -> None:
    strict = {
        "SECURITY_ALLOWED_ORIGINS": "https://a.example",
        "SECURITY_ALLOW_EMPTY_ORIGIN": "false",
        "AUTH_JWT_SECRET": SECRET,
        "MAX_CONNECTIONS": "2",
        "MAX_DEVICES_PER_USER": "1",
        "STRICT_ACK": "true",
        "WS_DIALECT": "sdk",
    }
    user, names, origin = fresh(), ids(2), Origin("https://a.example")
    with calm_world.node(**strict) as node:
        door = f"{node.url}?token={signed(user, names[0])}"
        for other_origin in (None, "https://b.example", "https://a.example.evil.example"):
            assert await refused(door, origin=other_origin) == 403
        bad = (signed(user, names[0], "x" * 40), signed(user, names[0], exp=1), signed("", names[0]), "user_7/x")
        for token in bad:
            assert await refused(f"{node.url}?token={token}", origin=origin) == 401
        assert await refused(f"{node.url}?token={signed(user, 'phone')}", origin=origin) == 400
        async with connect(door, compression=None, origin=origin) as socket:
            one = Device(socket, user, names[0])
            assert (await one.hears("auth_response"))["user_id"] == user
            await one.ack("nothing")
            assert (await one.error())[0] == "ACK_NOT_FOUND"
            assert await refused(f"{node.url}?token={signed(user, names[1])}", origin=origin) == 429
            other = f"{node.url}?token={signed(fresh(), names[0])}"
            async with connect(f"{other}&dialect=seed", compression=None, origin=origin) as second:
                await Device(second, "", "").heartbeat()
                full = f"{node.url}?token={signed(fresh(), names[1])}"
                assert await refused(full, origin=origin) == 503
    assert im_services.auth.count() == 0


def test_who_is_silent_is_closed_4408_and_who_answers_pings_or_talks_is_not(
    calm_world: World, im_services: ImServices
) -> None:
    users = [fresh() for _ in range(3)]
    with calm_world.node(PING_PERIOD="1s", PONG_WAIT="2s") as node, contextlib.ExitStack() as stack:
        silent, pongs, talks = (stack.enter_context(Raw(node.port)) for _ in users)
        for raw, user in zip((silent, pongs, talks), users, strict=True):
            raw.open(f"/ws?token={user}/{uuid.uuid4()}")
        pongs.socket.settimeout(TALK_EVERY_S)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                pongs.send(frame(pongs.read().payload, PONG))
            talks.send(frame(b'{"type":"heartbeat"}'))
        pongs.socket.settimeout(STOP_S_MAX)
        while (last_word := silent.read()).opcode != TEXT:
            assert last_word.opcode == PING
        said = orjson.loads(last_word.payload)
        gateways_time(said)
        assert (said["type"], said["error_code"]) == ("close", "HEARTBEAT_TIMEOUT")
        assert silent.read_close() == 4408
        for raw in (pongs, talks):
            raw.send(frame(b'{"type":"heartbeat"}'))
            while (heard := raw.read()).opcode != TEXT:
                assert heard.opcode != CLOSE


async def test_who_takes_nothing_for_write_wait_is_closed_1013_and_learns_it_if_it_goes_on(
    calm_world: World, im_services: ImServices
) -> None:
    user = fresh()
    with calm_world.node(WRITE_WAIT="4s", ACK_MODE="queued") as node, Raw(node.port, receive_buffer=8192) as stalled:
        stalled.open(f"/ws?token={user}/{uuid.uuid4()}")
        async with Pusher(node.grpc_address) as pusher:
            queued = 0
            while (await pusher.push(user, "x" * 300_000)).success:
                queued += 1
        await becomes(lambda: node.refused("write_timeout") == 1)
        heard = [await asyncio.to_thread(stalled.read)]
        while heard[-1].opcode != CLOSE:
            heard.append(await asyncio.to_thread(stalled.read))
        assert heard[-1].close_code == 1013
        assert 1 <= len(heard) - 1 < queued, "what was begun is whole, what was not is dropped"


async def test_both_tls_files_make_the_port_wss(calm_world: World, im_services: ImServices, tmp_path: Path) -> None:
    certificate = Certificate(tmp_path, "im")
    files = {"TIDEGATE_SERVER_TLS_CERT": str(certificate.file), "TIDEGATE_SERVER_TLS_KEY": str(certificate.key_file)}
    user = fresh()
    with ending(calm_world.starting(**files)) as node:
        await becomes(lambda: "serves on port" in node.log_text())
        trusted: ssl.SSLContext = certificate.trusted()
        url = node.door(user, str(uuid.uuid4())).replace("ws:", "wss:")
        async with asyncio.timeout(STOP_S_MAX):
            while True:
                # until etcd has taken the node in
                with contextlib.suppress(Exception):
                    async with connect(url, ssl=trusted, compression=None) as socket:
                        one = Device(socket, user, "")
                        await one.sends("user_1", "sealed")
                        return
                await asyncio.sleep(0.1)
