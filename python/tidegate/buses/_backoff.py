"""How long to wait for a server that fails, and how loudly to say so: the same for every bus."""

import logging
import random


def level_of(failures: int) -> int:
    """Loud at first and at each doubling, silent in between: a night without a server is a dozen lines."""
    return logging.WARNING if failures & (failures - 1) == 0 else logging.DEBUG


def backoff_s(failures: int, most: float) -> float:
    """Half of it random, so that nodes do not return in step."""
    longest: float = min(most, BACKOFF_FIRST_S * 2.0 ** min(failures, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


# The first pause after a failure: a server that restarts is back in 50 ms.
BACKOFF_FIRST_S = 0.05
