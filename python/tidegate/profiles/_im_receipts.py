"""Read receipts for users who are nowhere: Redis keeps them in the original's list (contract, section 9).

Rule: in the order in which they came, and until Redis has them; while it is away the oldest are given up for those
that come, a bounded number behind, and counted.
"""

from collections import deque
from dataclasses import dataclass

import tidegate.profiles._im_services as services
from tidegate.errors import UpstreamError
from tidegate.profile import Add, Count, Steps, Wait, Wake
from tidegate.profiles._im_pushes import Pushes

# That wait while Redis is away: minutes of them, and half of the messages that may wait before the bus is held back
OWED_MAX = 5_000
# Between two tries
PAUSE_S = 1.0
# Until another one tries: whoever does so fails on nothing else, but for a defect
PATIENCE_S = 30.0


@dataclass(slots=True, eq=False)
class Owed:
    ticket: int
    user: str
    receipt: bytes
    is_settled: bool = False


class Receipts:
    def __init__(self, tickets: Pushes) -> None:
        self._tickets = tickets
        self._owed: deque[Owed] = deque()
        self._is_paying = self._is_redis_away = False

    def keep(self, user: str, receipt: bytes) -> Steps:
        """One of those who wait pays for all, so that their order stays."""
        owed = Owed(self._tickets.ticket(), user, receipt)
        self._owed.append(owed)
        yield from self._bound()
        while not owed.is_settled:
            if self._is_paying:
                yield Wait(owed.ticket, PATIENCE_S)
            else:
                yield from self._pay()

    def _pay(self) -> Steps:
        self._is_paying = True
        try:
            while self._owed:
                yield from self._pay_oldest(self._owed[0])
        finally:
            self._is_paying = False

    def _pay_oldest(self, owed: Owed) -> Steps:
        try:
            yield services.keep_receipt(owed.user, owed.receipt)
        except UpstreamError as error:
            self._is_redis_away = True
            yield Count("redis", detail=f"read receipts wait here: {error}")
            yield from self._bound()
            yield Wait(0, PAUSE_S)
        else:
            self._is_redis_away = False
            yield Add("im_gateway_offline_queue_size")
            yield from self._settle(owed)

    def _bound(self) -> Steps:
        """While Redis takes them the bus waits instead."""
        while self._is_redis_away and len(self._owed) > OWED_MAX:
            yield Count("offline_receipt_lost", detail=f"{OWED_MAX} read receipts wait for Redis; the oldest is lost")
            yield from self._settle(self._owed[0])

    def _settle(self, owed: Owed) -> Steps:
        """It may have been given up while Redis was told of it."""
        if not owed.is_settled:
            owed.is_settled = True
            self._owed.remove(owed)
            yield Wake(owed.ticket)
