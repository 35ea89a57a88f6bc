"""What a hostile client can do, done: the process stays, memory stays bounded, an innocent client is served meanwhile.

How long the innocent one waits is measured by `bench/attacks.py`, which runs the same attacks.
"""

import pytest

from tests.gateways import Gateway
from tests.wire.attacks import ATTACKS, BYSTANDER, CROWD, OUTBOX_BYTES, Attack
from tests.wire.client import Raw, frame

# What all attackers of one attack together may make the process grow by, besides what it owes them by its settings
MEMORY_MAX = (40 << 20) + CROWD * OUTBOX_BYTES


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_costs_the_attacker_only(strict: Gateway, attack: Attack) -> None:
    before = strict.memory_bytes()
    with Raw(strict.port) as innocent:
        innocent.open()
        for step in attack(strict.port):
            innocent.send(frame(BYSTANDER))
            assert innocent.read().payload == BYSTANDER, step
            assert strict.memory_bytes() - before < MEMORY_MAX, step
    assert strict.is_alive()
    assert "Traceback" not in strict.log_text()
    assert "panicked" not in strict.log_text()
