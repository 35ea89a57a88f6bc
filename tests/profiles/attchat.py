"""What the tests of attchat-gateway talk about: one agent, one customer, and short ways to open, speak and publish."""

from collections.abc import Mapping
from typing import Any

import orjson
from hypothesis import HealthCheck, settings
from tidegate.profile import (
    Action,
    Admit,
    BusMessage,
    Claims,
    Session,
    Upgrade,
    Verify,
)
from tidegate.profiles.attchat_gateway import (
    AttchatGateway,
    Rules,
)

# A busy machine is slow, not wrong; a failure prints what repeats it
ANYTHING = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
NOW = 1765506605.25  # 2025-12-12T02:30:05.25Z
UUID = "0f6e3c1a-7a0e-4a0e-9f0e-6a7d2b1c9d10"
AGENT = {"user_id": "12345", "brand_id": "brand-1", "role": "cskh", "type": "cskh"}
CUSTOMER = {"user_id": "456", "brand_id": "brand-1", "type": "customer"}
OPEN = Rules(join_policy="open")
CLAIMS = Rules(join_policy="claims")


def upgrade(query: Mapping[str, str] | None = None, **headers: str) -> Upgrade:
    return Upgrade(7, UUID, "127.0.0.1", "/ws", query if query is not None else {"token": "t"}, headers, NOW)


def opened(claims: Mapping[str, Any], query: Mapping[str, str] | None = None, rules: Rules | None = None) -> Admit:
    """What a client with these verified claims is answered."""
    steps = AttchatGateway(rules or Rules()).on_open(upgrade({"token": "t", **(query or {})}))
    assert next(steps) == Verify("t")
    actions = [steps.send(Claims(claims)), *steps]
    assert isinstance(actions[-1], Admit)
    return actions[-1]


def session(
    claims: Mapping[str, Any] = CUSTOMER, rules: Rules | None = None, query: Mapping[str, str] | None = None
) -> Session:
    return Session(7, opened(claims, query, rules).session, NOW, lambda conn: UUID)


def said(who: Session, message: object, rules: Rules | None = None) -> list[Action]:
    payload = message if isinstance(message, bytes) else orjson.dumps(message)
    return list(AttchatGateway(rules or Rules()).on_message(who, payload, True))


def event(data: object) -> list[Action]:
    raw = data if isinstance(data, bytes) else orjson.dumps(data)
    return list(AttchatGateway(Rules()).on_bus(BusMessage("CHAT", "chat.events", raw, 1, 0.0)))


def frames(admit: Admit) -> list[Any]:
    return [orjson.loads(text) for text in admit.texts]
