"""What comes together goes together, and nothing waits for company."""

import asyncio

from tidegate.registries._batches import IN_FLIGHT_MAX, Batches


class Carrier:
    def __init__(self) -> None:
        self.carried: list[list[int]] = []
        self.gate = asyncio.Event()

    async def carry(self, items: list[int]) -> None:
        self.carried.append(items)
        await self.gate.wait()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_in_one_turn_goes_out_together() -> None:
    carrier = Carrier()
    batches = Batches(carrier.carry, batch_max=10)
    for number in range(25):
        batches.add(number)
    await turns()
    assert [len(batch) for batch in carrier.carried] == [10, 10, 5]
    assert [number for batch in carrier.carried for number in batch] == list(range(25))
    carrier.gate.set()
    await batches.close(1)


async def test_a_lone_item_waits_for_nobody() -> None:
    carrier = Carrier()
    batches = Batches(carrier.carry, batch_max=10)
    for number in range(3):
        batches.add(number)
        await turns()
    assert carrier.carried == [[0], [1], [2]]
    carrier.gate.set()
    await batches.close(1)


async def test_no_more_than_so_many_are_out_and_the_rest_goes_as_one() -> None:
    carrier = Carrier()
    batches = Batches(carrier.carry, batch_max=10)
    for number in range(IN_FLIGHT_MAX):
        batches.add(number)
        await turns()
    for number in range(7):
        batches.add(100 + number)
        await turns()
    assert len(carrier.carried) == IN_FLIGHT_MAX
    assert len(batches) == 7
    carrier.gate.set()
    await turns(10)
    assert carrier.carried[IN_FLIGHT_MAX:] == [list(range(100, 107))]
    assert await batches.close(1) == []


async def test_at_its_end_what_waits_is_given_back_and_what_is_out_is_ended() -> None:
    carrier = Carrier()
    batches = Batches(carrier.carry, batch_max=1)
    for number in range(IN_FLIGHT_MAX + 3):
        batches.add(number)
    await turns()
    assert await batches.close(0.01) == [IN_FLIGHT_MAX, IN_FLIGHT_MAX + 1, IN_FLIGHT_MAX + 2]
    assert len(batches) == 0
