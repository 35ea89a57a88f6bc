"""Keeps a background task alive: one that dies of an exception is logged, counted and started again, ever more slowly.

Rule: nothing dies silently, and nothing that dies at once is restarted in a tight loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from tidegate.gateway.faults import came_through

log = logging.getLogger("tidegate.app")

# A hiccup costs no more than a blink; a lasting fault costs a log line every half minute
PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 30.0
# Who lived so long has recovered: the next fault is a new one
HEALTHY_S = 60.0


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    count: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Until `run` returns or this is cancelled. `count` gets a label for the error metric."""
    pause = PAUSE_S_MIN
    while True:
        started = clock()
        try:
            await run()
            return
        except Exception as error:
            if clock() - started >= HEALTHY_S:
                pause = PAUSE_S_MIN
            count(f"{name}_restart")
            # not the error's text: a bus may quote a message in it
            what = type(error).__name__
            log.error("%s failed (%s) and starts again in %g s\n%s", name, what, pause, came_through(error))
        await sleep(pause)
        pause = min(2 * pause, PAUSE_S_MAX)
