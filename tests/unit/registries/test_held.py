"""What a node keeps of each place: nothing is lost in one int, and it is small."""

import gc
import random
import tracemalloc
import uuid

from tidegate.registries._held import CONN_BITS, LEASE_BITS, REVISION_BITS, SINCE_BITS, Held, Hold


def test_every_field_comes_back_as_it_was(seed: int) -> None:
    rng = random.Random(seed)
    held = Held()
    limits = (CONN_BITS, SINCE_BITS, LEASE_BITS, REVISION_BITS)
    holds = [Hold(0, 0, 0, 0), Hold(*((1 << bits) - 1 for bits in limits))]
    holds += [Hold(*(rng.getrandbits(bits) for bits in limits)) for _ in range(500)]
    for number, hold in enumerate(holds):
        held.set(str(number), hold)
    assert [held.get(str(number)) for number in range(len(holds))] == holds
    assert held.pop("1") == holds[1]
    assert held.get("1") is held.pop("1") is None
    assert len(held) == len(holds) - 1


def test_going_through_it_sees_every_key_once_though_it_changes_meanwhile() -> None:
    held = Held()
    for number in range(1_000):
        held.set(str(number), Hold(number, 0, 0, 0))
    seen = []
    for keys in held.slices(64):
        seen += keys
        held.pop(keys[0])
        held.set(f"new {keys[0]}", Hold(0, 0, 0, 0))
    assert seen == [str(number) for number in range(1_000)]


def test_a_place_takes_few_bytes() -> None:
    count = 20_000
    gc.collect()
    tracemalloc.start()
    try:
        held = Held()
        for conn in range(count):
            held.set(f"user_{conn}/{uuid.UUID(int=conn)}", Hold(conn << 32, 1767225600, conn // 1_000, 10**9 + conn))
        each = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    print(f"{each:.0f} bytes a place, with its key")
    assert each < 260
