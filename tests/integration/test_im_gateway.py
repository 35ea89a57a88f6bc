"""im-gateway as a real process among real servers: what clients send and what they are told (sections 4 and 5).

With checks 1, 4 and 5 of section 14 of its contract. Rule: a frame is compared whole, so that a field
too many fails as well as one that is missing.
"""

import asyncio
import time
import uuid
from collections.abc import Iterator

import orjson
import pytest

from tests.im import ALWAYS, Device, Node, device
from tests.im_backends import Pusher
from tests.im_services import ImServices
from tests.im_world import Counted, World, devices, fresh, gateways_time, ids

pytestmark = pytest.mark.timeout(150)  # the first test starts all servers, Kafka with two JVMs


@pytest.fixture(scope="module")
def process(calm_world: World) -> Iterator[Node]:
    with calm_world.node() as started:
        yield started


@pytest.fixture
def node(process: Node, im_services: ImServices) -> Node:
    """One for all tests here, with services as new."""
    return process


# --- section 14 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deadline", "at_least"), [(20, 4), (1, 0)])
async def test_a_push_to_two_devices_of_which_one_acks_names_the_other_in_time(
    node: Node, deadline: float, at_least: float
) -> None:
    """14.1: within ACK_TIMEOUT, or within the caller's time if that is less."""
    user, (silent, acking) = fresh(), ids(2)
    async with Pusher(node.grpc_address) as pusher, devices(node, user, silent, acking) as (first, second):
        began = time.monotonic()
        push = asyncio.create_task(pusher.push(user, deadline=deadline))
        await second.receives()
        await first.hears("message")
        answer = await push
        took = time.monotonic() - began
    assert (answer.success, answer.delivered_count, list(answer.failed_devices)) == (True, 1, [silent])
    assert answer.error_message == ""
    print(f"{took:.2f} s with a deadline of {deadline} s")
    assert at_least < took < deadline


async def test_the_101st_message_of_a_user_in_a_second_is_refused_and_the_sockets_live(node: Node) -> None:
    """14.4; the limit is the user's, whichever device it is."""
    user, counted = fresh(), Counted(node)
    async with devices(node, user, *ids(2)) as (first, second), device(node, fresh()) as other:
        await first.sends("user_x", "counts as well")
        for _ in range(99):
            await first.send_msg("bob", "x")
        for _ in range(99):
            assert (await first.error())[0] == "INVALID_RECIPIENT"
        for sender in (second, first):
            msg_id = await sender.send_msg("user_x", "x")
            error = await sender.hears("error")
            gateways_time(error)
            assert error == {
                "type": "error",
                "msg_id": msg_id,
                "sender": "",
                "content": "",
                "sequence_number": 0,
                "error_code": "RATE_LIMIT_EXCEEDED",
                "error_message": "Too many messages",
            }
        await other.sends("user_x", "another user's limit")
        await first.heartbeat()
        await second.heartbeat()
        assert counted("rate_limited_total") == 2
        await sends_again(first)


@pytest.mark.parametrize(
    ("dialect", "alive", "more"), [("seed", "heartbeat", set()), ("sdk", "heartbeat_response", {"code", "message"})]
)
async def test_each_message_of_a_flood_is_answered_and_what_is_limited_never_reaches_the_im_service(
    node: Node, im_services: ImServices, dialect: str, alive: str, more: set[str]
) -> None:
    counted = Counted(node)
    async with device(node, fresh(), query={"dialect": dialect}) as one:
        if dialect == "sdk":
            await one.hears("auth_response")
        for _ in range(400):
            await one.send_msg("user_1", "x")
        heard = [orjson.loads(await one.raw()) for _ in range(400)]
        await one.say("heartbeat")
        await one.hears(alive)
    limited = [frame for frame in heard if frame.get("error_code") == "RATE_LIMIT_EXCEEDED"]
    acks = [frame for frame in heard if frame["type"] == "ack"]
    assert len(limited) + len(acks) == 400
    assert 100 <= len(acks) < 400
    for frame in limited:
        assert frame.keys() == ALWAYS | {"error_code", "error_message"} | more
        gateways_time(frame, 1000 if dialect == "sdk" else 1)
    assert im_services.im.count() == len(acks)
    assert counted("rate_limited_total") == len(limited)


async def sends_again(sender: Device) -> None:
    """Once the second is over."""
    async with asyncio.timeout(20):
        while True:
            await sender.send_msg("user_x", "x")
            frame = orjson.loads(await sender.raw())
            if frame["type"] == "ack":
                return
            assert frame["error_code"] == "RATE_LIMIT_EXCEEDED"
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("recipient", ["bob", "", "USER_1", "users_1", "xgroup_1"])
async def test_a_recipient_that_is_neither_user_nor_group_is_an_error(
    node: Node, im_services: ImServices, recipient: str
) -> None:
    """14.5"""
    async with device(node, fresh()) as sender:
        msg_id = await sender.send_msg(recipient, "x")
        error = await sender.hears("error")
        assert (error["error_code"], error["msg_id"]) == ("INVALID_RECIPIENT", msg_id)
        await sender.sends("user_1", "the socket lives")
    assert im_services.im.count() == 1


# --- what clients send ------------------------------------------------------------------------------------------------


async def test_a_message_to_a_user_is_routed_with_all_it_had(node: Node, im_services: ImServices) -> None:
    user = fresh()
    async with device(node, user) as sender:
        said = {"timestamp": 1767225600, "extra": {"reply_to": "m0", "number": 5}, "sender_id": "user_somebody_else"}
        ack = await sender.sends("user_123", "Hello \u00e9\U0001f600", **said)
    (request,) = im_services.im.requests()
    assert request["method"] == "RoutePrivateMessage"
    assert request["fields"] == {
        "msg_id": ack["msg_id"],
        "sender_id": user,
        "recipient_id": "user_123",
        "content": "Hello \u00e9\U0001f600",
        "message_type": "MESSAGE_TYPE_TEXT",
        "metadata": {"reply_to": "m0"},
        "client_timestamp": 1767225600.0,
    }
    assert 0 < request["deadline"] < 3.5
    gateways_time(ack)
    assert ack == {"type": "ack", "msg_id": ack["msg_id"], "sender": "", "content": "", "sequence_number": 1}


async def test_a_message_to_a_group_is_routed_by_the_whole_name(node: Node, im_services: ImServices) -> None:
    user, group = fresh(), fresh("group")
    async with device(node, user) as sender:
        for number in (1, 2):
            assert (await sender.sends(group, "hi", timestamp=1767225600123))["sequence_number"] == number
    fields = [request["fields"] for request in im_services.im.requests("RouteGroupMessage")]
    assert [(one["group_id"], one["sender_id"], one["client_timestamp"]) for one in fields] == [
        (group, user, 1767225600.123)
    ] * 2


@pytest.mark.parametrize(("kind", "method"), [("user", "RoutePrivateMessage"), ("group", "RouteGroupMessage")])
async def test_the_sdks_way_to_name_a_recipient_needs_no_prefix(
    node: Node, im_services: ImServices, kind: str, method: str
) -> None:
    async with device(node, fresh()) as sender:
        await sender.say("send_msg", msg_id="m1", recipient_id="bob", recipient_type=kind, content="x")
        assert (await sender.hears("ack"))["msg_id"] == "m1"
    (request,) = im_services.im.requests(method)
    assert request["fields"]["group_id" if kind == "group" else "recipient_id"] == "bob"


async def test_a_heartbeat_is_answered_by_the_time_alone(node: Node) -> None:
    async with device(node, fresh()) as one:
        for _ in range(2):
            answer = await one.heartbeat()
            gateways_time(answer)
            assert answer == {"type": "heartbeat"}
        await one.socket.send(b'{"type":"heartbeat"}')
        await one.hears("heartbeat")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no json", "INVALID_MESSAGE"),
        ("", "INVALID_MESSAGE"),
        ("[]", "INVALID_MESSAGE"),
        ('{"type":7}', "INVALID_MESSAGE"),
        ('{"type":"send_msg","content":{"a":1}}', "INVALID_MESSAGE"),
        ("{}", "UNKNOWN_MESSAGE_TYPE"),
        ('{"type":"dance","msg_id":"m7"}', "UNKNOWN_MESSAGE_TYPE"),
    ],
)
async def test_what_cannot_be_understood_is_an_error_and_the_socket_lives(node: Node, text: str, code: str) -> None:
    async with device(node, fresh()) as one:
        await one.socket.send(text)
        error = await one.hears("error")
        assert (error["error_code"], error.keys()) == (code, ALWAYS | {"error_code", "error_message"})
        assert error["msg_id"] == ("m7" if "m7" in text else "")
        await one.heartbeat()


async def test_an_ack_of_nothing_is_passed_over_and_counted(node: Node) -> None:
    counted = Counted(node)
    async with device(node, fresh()) as one:
        await one.ack("never-sent")
        await one.heartbeat()
    assert counted("ack_unknown_total") == 1


async def test_too_large_a_message_is_an_error_and_a_frame_twice_that_ends_the_connection(
    node: Node, im_services: ImServices
) -> None:
    async with device(node, fresh()) as one:
        msg_id = await one.send_msg("user_1", "x" * 10_240)
        error = await one.hears("error")
        assert (error["error_code"], error["msg_id"]) == ("MESSAGE_TOO_LARGE", msg_id)
        await one.send_msg("user_1", "x" * 10_000)
        await one.hears("ack")
        await one.socket.send("x" * 20_480)
        assert (await one.error())[0] == "MESSAGE_TOO_LARGE"
        await one.socket.send("x" * 20_481)
        assert (await one.ends())[1] == 1009
    assert im_services.im.count() == 1


async def test_what_the_im_service_objects_to_has_its_code_and_its_text(node: Node, im_services: ImServices) -> None:
    async with device(node, fresh()) as sender:
        for recipient, method in (("user_1", "RoutePrivateMessage"), ("group_1", "RouteGroupMessage")):
            im_services.im.tell(refuse={method: ["IM_ERROR_CODE_SENSITIVE_CONTENT", "not that word"]})
            msg_id = await sender.send_msg(recipient, "x")
            error = await sender.hears("error")
            assert error["msg_id"] == msg_id
            assert (error["error_code"], error["error_message"]) == (
                "IM_ERROR_CODE_SENSITIVE_CONTENT",
                "not that word",
            )


async def test_an_im_service_that_fails_is_a_routing_error_then_unavailable_and_soon_asked_again(
    node: Node, im_services: ImServices
) -> None:
    async with device(node, fresh()) as sender:
        im_services.im.tell(status={"all": "UNAVAILABLE"})
        codes = []
        for _ in range(5):
            await sender.send_msg("user_1", "x")
            codes.append((await sender.error())[0])
        assert codes[0] == "ROUTING_ERROR"
        assert codes[-1] == "SERVICE_UNAVAILABLE"
        target = 'breaker_state{target="im"}'
        assert node.metrics()[f"im_gateway_{target}"] == 1
        assert im_services.im.count() <= 4, "an open circuit spares the service"
        im_services.im.tell(status={})
        async with asyncio.timeout(20):
            while (await routed(sender)) != "ack":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert node.metrics()[f"im_gateway_{target}"] == 0


async def routed(sender: Device) -> str:
    await sender.send_msg("user_1", "x")
    return str(orjson.loads(await sender.raw())["type"])


async def takes(one: Device, content: str) -> None:
    """A message, acked as it comes, and the ack of its own, in whichever order."""
    kinds = []
    for _ in range(2):
        frame = orjson.loads(await one.raw())
        kinds.append(frame["type"])
        if frame["type"] == "message":
            assert frame["content"] == content
            await one.ack(frame["msg_id"])
    assert sorted(kinds) == ["ack", "message"]


async def test_two_users_whose_messages_wait_for_each_others_acks_both_get_them(
    node: Node, im_services: ImServices, calm_world: World
) -> None:
    """An ack overtakes the sender's own message, which the IM service holds until the other has acked."""
    im_services.im.tell(mode="push", etcd=calm_world.etcd.url.replace("etcd:", "http:"))
    names = fresh(), fresh()
    async with device(node, names[0]) as a, device(node, names[1]) as b:
        await a.send_msg(b.user, "from a")
        await b.send_msg(a.user, "from b")
        await asyncio.gather(takes(a, "from b"), takes(b, "from a"))
    assert [(push["success"], push["delivered_count"]) for push in im_services.im.pushes()] == [(True, 1)] * 2
    assert im_services.im.offline() == []


async def test_messages_of_one_client_are_routed_one_after_the_other_in_their_order(
    node: Node, im_services: ImServices
) -> None:
    im_services.im.tell(slow={"all": 0.01})
    async with device(node, fresh()) as sender:
        sent = [await sender.send_msg("user_1", str(number)) for number in range(30)]
        assert [(await sender.hears("ack"))["msg_id"] for _ in sent] == sent
    assert im_services.im.together() == 1
    assert [one["fields"]["msg_id"] for one in im_services.im.requests()] == sent


# --- the dialect of the SDK -------------------------------------------------------------------------------------------


async def test_the_sdks_dialect_has_its_frames_fields_and_milliseconds(node: Node) -> None:
    user, name, sender = fresh(), str(uuid.uuid4()), fresh()
    async with Pusher(node.grpc_address) as pusher, device(node, user, name, query={"dialect": "sdk"}) as one:
        hello = await one.hears("auth_response")
        gateways_time(hello, 1000)
        assert hello == {"type": "auth_response", "success": True, "user_id": user, "device_id": name}
        await one.say("heartbeat")
        answer = await one.hears("heartbeat_response")
        gateways_time(answer, 1000)
        assert answer == {"type": "heartbeat_response"}
        ack = await one.sends("user_1", "x")
        gateways_time(ack, 1000)
        assert (ack["status"], ack.keys()) == ("delivered", (ALWAYS | {"status"}) - {"timestamp"})
        await one.send_msg("bob", "x")
        error = await one.hears("error")
        gateways_time(error, 1000)
        assert error["code"] == error["error_code"] == "INVALID_RECIPIENT"
        assert error["message"] == error["error_message"]
        push = asyncio.create_task(pusher.push(user, "hi", msg_id="m1", sender_id=sender, timestamp=5))
        assert await one.hears("message") == {
            "type": "message",
            "msg_id": "m1",
            "sender": sender,
            "content": "hi",
            "timestamp": 5,
            "sequence_number": 0,
            "sender_id": sender,
            "recipient_id": user,
            "recipient_type": "user",
        }
        await one.say("ack", msg_id="m1", status="read")
        assert (await push).delivered_count == 1


async def test_in_the_sdks_dialect_a_message_that_waits_for_its_recipient_is_pending(
    node: Node, im_services: ImServices, calm_world: World
) -> None:
    im_services.im.tell(mode="push", etcd=calm_world.etcd.url.replace("etcd:", "http:"))
    async with device(node, fresh(), query={"dialect": "sdk"}) as one:
        await one.hears("auth_response")
        assert (await one.sends(fresh(), "nobody is there"))["status"] == "pending"


async def test_a_replaced_device_is_told_in_its_own_dialect(node: Node) -> None:
    user, name = fresh(), str(uuid.uuid4())
    async with device(node, user, name, query={"dialect": "sdk"}) as first, device(node, user, name) as second:
        frames, code = await first.ends()
        assert [frame["type"] for frame in frames] == ["auth_response", "close"]
        gateways_time(frames[1], 1000)
        assert code == 4409
        await second.heartbeat()
