"""What the auth service and the user service of `tests/im_app.py` answer: whose a token is, and who is in a group.

Rule: as the original's, texts and codes included; nothing is remembered from one question to the next.
"""

import bisect
from typing import Any

import jwt
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tidegate.protos import auth_pb2, user_pb2

from tests.im_app import Answer, Role

PAGE_DEFAULT = 100  # the original's, if a request names no limit

# --- auth -------------------------------------------------------------------------------------------------------------


class Auth(Role):
    """`user_7/DEVICE` is user_7 on that device, until a secret is told: then tokens are signed with it."""

    def answers(self) -> dict[str, Answer]:
        return {"ValidateToken": self.validate}

    async def validate(self, request: auth_pb2.ValidateTokenRequest) -> Message:
        token, secret = request.access_token, self._state.behaviour["secret"]
        if not token:
            return refusal("INVALID_TOKEN", "Token is required")
        if token.startswith("bad"):
            return refusal("INVALID_SIGNATURE", "Token signature is invalid")
        if secret:
            return signed(token, secret)
        user, _, device = token.partition("/")
        return named(user, device)


def signed(token: str, secret: str) -> Message:
    try:
        claims = jwt.decode(token, secret, algorithms=["HS256"])
    except jwt.ExpiredSignatureError:
        return refusal("TOKEN_EXPIRED", "Token has expired")
    except jwt.InvalidSignatureError:
        return refusal("INVALID_SIGNATURE", "Token signature is invalid")
    except jwt.DecodeError:
        return refusal("MALFORMED_TOKEN", "Token is malformed")
    except jwt.InvalidTokenError:
        return refusal("INVALID_TOKEN", "Invalid token")
    return named(claims.get("user_id", ""), claims.get("device_id", ""), claims.get("exp"))


def named(user: str, device: str, expires: int | None = None) -> Message:
    for what, value in (("user_id", user), ("device_id", device)):
        if not value:
            return refusal("MISSING_CLAIMS", f"Missing {what} in token")
    expires_at = None if expires is None else Timestamp(seconds=expires)
    return auth_pb2.ValidateTokenResponse(valid=True, user_id=user, device_id=device, expires_at=expires_at)


def refusal(code: str, text: str) -> Message:
    return auth_pb2.ValidateTokenResponse(valid=False, error_code=f"AUTH_ERROR_CODE_{code}", error_message=text)


# --- user -------------------------------------------------------------------------------------------------------------


class User(Role):
    """Members by page, in the order of their ids; a cursor is the last id of the page before, as in the original."""

    def answers(self) -> dict[str, Answer]:
        return {"GetGroupMembers": self.members, "ValidateGroupMembership": self.validate}

    async def members(self, request: user_pb2.GetGroupMembersRequest) -> Message:
        group, answer = request.group_id, user_pb2.GetGroupMembersResponse()
        limit = min(request.limit if request.limit > 0 else PAGE_DEFAULT, self._state.behaviour["page_max"])
        if group in self._state.behaviour["large"]:
            total = self._state.behaviour["large"][group]
            start = int(request.cursor.removeprefix("user_")) + 1 if request.cursor else 0
            page = [f"user_{number}" for number in range(start, min(start + limit, total))]
        elif group in self._state.behaviour["groups"]:
            listed = self._state.behaviour["groups"][group]
            total, start = len(listed), bisect.bisect_right(listed, request.cursor)
            page = listed[start : start + limit]
        else:
            return self._unknown(answer, group)
        answer.members.extend(member(user, group) for user in page)
        answer.total_count, answer.has_more = total, start + len(page) < total
        answer.next_cursor = page[-1] if answer.has_more else ""
        return answer

    async def validate(self, request: user_pb2.ValidateGroupMembershipRequest) -> Message:
        user, group, answer = request.user_id, request.group_id, user_pb2.ValidateGroupMembershipResponse()
        if group in self._state.behaviour["large"]:
            number = user.removeprefix("user_")
            answer.is_member = number.isdecimal() and int(number) < self._state.behaviour["large"][group]
        elif group in self._state.behaviour["groups"]:
            answer.is_member = user in self._state.behaviour["groups"][group]
        else:
            return self._unknown(answer, group)
        if answer.is_member:
            answer.member.CopyFrom(member(user, group))
        return answer

    def _unknown(self, answer: Any, group: str) -> Message:
        """The original knows no groups, only members: it answers an empty list."""
        if not group:
            answer.error_code, answer.error_message = "USER_ERROR_CODE_INVALID_REQUEST", "group_id is required"
        elif self._state.behaviour["unknown_group"] == "error":
            answer.error_code, answer.error_message = "USER_ERROR_CODE_GROUP_NOT_FOUND", f"Group {group} not found"
        return answer  # type: ignore[no-any-return]


def member(user: str, group: str) -> user_pb2.GroupMember:
    return user_pb2.GroupMember(user_id=user, group_id=group, role=user_pb2.GROUP_ROLE_MEMBER)
