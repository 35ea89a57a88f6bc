"""The services that stand beside im-gateway in tests do what they are told, and answer as the original's do.

Rule: what other tests build on is proved here alone, with no gateway in between.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tidegate.protos import auth_pb2, user_pb2

from tests.gateways import SECRET
from tests.gateways import token as signed_token
from tests.im_backends import ask
from tests.im_services import ImService, ImServices

CALL_S_MAX = 20  # milliseconds on a quiet machine
DEVICE = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture(scope="module")
def processes(servers_wanted: None) -> Iterator[ImServices]:
    with ImServices().running() as services:
        yield services


@pytest.fixture
def services(processes: ImServices) -> ImServices:
    processes.renew()
    return processes


async def status_of(asked: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await asked
    return str(failed.value.code().name)


async def until_nothing_is_inside(service: ImService) -> None:
    async with asyncio.timeout(CALL_S_MAX):
        while service.inside():  # noqa: ASYNC110 - another process's state can only be asked
            await asyncio.sleep(0.01)


# --- all three --------------------------------------------------------------------------------------------------------


async def test_a_request_is_shown_with_its_fields_metadata_and_deadline(services: ImServices) -> None:
    await ask(services.im, "RoutePrivateMessage", msg_id="m1", sender_id="user_1", recipient_id="user_2", deadline=3)
    (seen,) = services.im.requests("RoutePrivateMessage")
    assert seen["fields"]["msg_id"] == "m1"
    assert seen["fields"]["client_timestamp"] is None
    assert seen["fields"]["message_type"] == "MESSAGE_TYPE_UNSPECIFIED"
    assert seen["metadata"]["x-test"] == "yes"
    assert 0 < seen["deadline"] < 3.5  # on the wire a deadline is rounded up
    assert services.im.requests("RouteGroupMessage") == []
    assert services.auth.count() == 0


async def test_without_recording_requests_are_only_counted(services: ImServices) -> None:
    services.auth.tell(recording=False)
    for _ in range(3):
        await ask(services.auth, "ValidateToken", access_token=f"user_1/{DEVICE}")
    assert services.auth.requests() == []
    assert services.auth.count("ValidateToken") == services.auth.count() == 3


async def test_a_held_call_ends_at_its_deadline_and_a_released_one_is_answered(services: ImServices) -> None:
    services.auth.tell(hold=["ValidateToken"])
    held = ask(services.auth, "ValidateToken", access_token=f"user_1/{DEVICE}", deadline=0.2)
    assert await status_of(held) == "DEADLINE_EXCEEDED"
    await until_nothing_is_inside(services.auth)
    waiting = [
        asyncio.ensure_future(ask(services.auth, "ValidateToken", access_token=f"user_{number}/{DEVICE}"))
        for number in range(5)
    ]
    async with asyncio.timeout(CALL_S_MAX):
        while services.auth.inside() < 5:  # noqa: ASYNC110 - another process's state can only be asked
            await asyncio.sleep(0.01)
    services.auth.tell(hold=[])
    assert {answer.user_id for answer in await asyncio.gather(*waiting)} == {f"user_{number}" for number in range(5)}
    assert services.auth.together() == 5


async def test_a_slow_call_takes_its_time(services: ImServices) -> None:
    services.user.tell(slow={"all": 0.3}, groups={"group_1": ["user_1"]})
    began = time.monotonic()
    await ask(services.user, "GetGroupMembers", group_id="group_1")
    assert time.monotonic() - began >= 0.3


async def test_it_misbehaves_as_it_is_told_and_stops_when_it_is_reset(services: ImServices) -> None:
    async def asked() -> Any:
        return await ask(services.auth, "ValidateToken", access_token=f"user_1/{DEVICE}")

    services.auth.tell(status={"ValidateToken": "UNAVAILABLE"})
    assert await status_of(asked()) == "UNAVAILABLE"
    services.auth.tell(status={}, lie={"ValidateToken": "garbage"})
    assert await asked() is None  # what grpc makes of bytes that are no message
    services.auth.tell(lie={"ValidateToken": "too_large"})
    assert await status_of(asked()) == "RESOURCE_EXHAUSTED"
    services.auth.tell(lie={"ValidateToken": "nobody"})
    assert ((await asked()).valid, (await asked()).user_id) == (True, "")
    services.auth.tell(lie={}, refuse={"all": ["AUTH_ERROR_CODE_INTERNAL_ERROR", "no"]})
    assert (await asked()).error_code == auth_pb2.AUTH_ERROR_CODE_INTERNAL_ERROR
    services.auth.reset()
    assert (await asked()).valid


async def test_a_name_that_means_nothing_is_refused(services: ImServices) -> None:
    with pytest.raises(AssertionError, match="recordings"):
        services.auth.tell(recordings=False)


async def test_a_killed_service_is_not_there_and_behaves_as_before_when_it_is_back(services: ImServices) -> None:
    services.user.tell(groups={"group_1": ["user_2", "user_1"]})
    services.user.kill()
    assert await status_of(ask(services.user, "GetGroupMembers", group_id="group_1", deadline=2)) == "UNAVAILABLE"
    services.user.start()
    answer = await ask(services.user, "GetGroupMembers", group_id="group_1")
    assert [member.user_id for member in answer.members] == ["user_1", "user_2"]
    assert services.user.count() == 1


# --- auth -------------------------------------------------------------------------------------------------------------


async def test_a_token_names_its_user_and_device_or_is_refused_with_a_code(services: ImServices) -> None:
    answer = await ask(services.auth, "ValidateToken", access_token=f"user_7/{DEVICE}")
    assert (answer.valid, answer.user_id, answer.device_id, answer.error_code) == (True, "user_7", DEVICE, 0)
    for token, code in (
        ("", auth_pb2.AUTH_ERROR_CODE_INVALID_TOKEN),
        ("bad token", auth_pb2.AUTH_ERROR_CODE_INVALID_SIGNATURE),
        ("user_7", auth_pb2.AUTH_ERROR_CODE_MISSING_CLAIMS),
    ):
        answer = await ask(services.auth, "ValidateToken", access_token=token)
        assert (answer.valid, answer.user_id, answer.error_code) == (False, "", code)
        assert answer.error_message


async def test_with_a_secret_only_tokens_signed_with_it_are_valid(services: ImServices) -> None:
    services.auth.tell(secret=SECRET)
    expires = int(time.time()) + 60
    good = signed_token(user_id="user_7", device_id=DEVICE, exp=expires)
    answer = await ask(services.auth, "ValidateToken", access_token=good)
    assert (answer.valid, answer.user_id, answer.device_id) == (True, "user_7", DEVICE)
    assert answer.expires_at.seconds == expires
    for token, code in (
        (signed_token(user_id="user_7"), auth_pb2.AUTH_ERROR_CODE_MISSING_CLAIMS),
        (signed_token(user_id="user_7", device_id=DEVICE, exp=1), auth_pb2.AUTH_ERROR_CODE_TOKEN_EXPIRED),
        (signed_token(SECRET[::-1], user_id="user_7"), auth_pb2.AUTH_ERROR_CODE_INVALID_SIGNATURE),
        (f"user_7/{DEVICE}", auth_pb2.AUTH_ERROR_CODE_MALFORMED_TOKEN),
    ):
        answer = await ask(services.auth, "ValidateToken", access_token=token)
        assert (answer.valid, answer.error_code) == (False, code)


# --- user -------------------------------------------------------------------------------------------------------------


async def members(service: ImService, group: str, limit: int) -> tuple[list[str], int]:
    """All members, and the pages it took."""
    found: list[str] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        answer = await ask(service, "GetGroupMembers", group_id=group, limit=limit, cursor=cursor)
        assert len(answer.members) <= limit
        assert answer.has_more == bool(answer.next_cursor)
        found += [member.user_id for member in answer.members]
        cursor, pages = answer.next_cursor, pages + 1
    assert answer.total_count == len(found)
    return found, pages


async def test_every_member_is_on_exactly_one_page(services: ImServices) -> None:
    listed = sorted(f"user_{number}" for number in range(25))
    services.user.tell(groups={"group_1": listed[::-1], "group_2": ["user_1"]}, large={"group_big": 2500})
    assert await members(services.user, "group_1", limit=10) == (listed, 3)
    assert await members(services.user, "group_1", limit=5) == (listed, 5)
    assert await members(services.user, "group_2", limit=1) == (["user_1"], 1)
    assert await members(services.user, "group_big", limit=1000) == ([f"user_{number}" for number in range(2500)], 3)


async def test_a_page_has_no_more_members_than_the_service_gives(services: ImServices) -> None:
    services.user.tell(large={"group_big": 5000})
    assert len((await ask(services.user, "GetGroupMembers", group_id="group_big", limit=9999)).members) == 1000
    assert len((await ask(services.user, "GetGroupMembers", group_id="group_big")).members) == 100
    services.user.tell(page_max=7)
    assert len((await ask(services.user, "GetGroupMembers", group_id="group_big", limit=1000)).members) == 7


async def test_an_unknown_group_is_an_error_or_empty(services: ImServices) -> None:
    answer = await ask(services.user, "GetGroupMembers", group_id="group_1")
    assert answer.error_code == user_pb2.USER_ERROR_CODE_GROUP_NOT_FOUND
    services.user.tell(unknown_group="empty")
    answer = await ask(services.user, "GetGroupMembers", group_id="group_1")
    assert (answer.error_code, len(answer.members), answer.next_cursor) == (0, 0, "")


async def test_membership_is_what_the_groups_say(services: ImServices) -> None:
    services.user.tell(groups={"group_1": ["user_1"]}, large={"group_big": 10})
    for user, group, expected in (
        ("user_1", "group_1", True),
        ("user_2", "group_1", False),
        ("user_9", "group_big", True),
        ("user_10", "group_big", False),
        ("bob", "group_big", False),
    ):
        answer = await ask(services.user, "ValidateGroupMembership", user_id=user, group_id=group)
        assert (answer.is_member, answer.member.user_id) == (expected, user if expected else "")
