"""SIGTERM and SIGINT ask the process to drain, a second one to end at once; SIGHUP asks it to read its files again.

Rule: installed before anything that can wait, so that no signal finds Python's default for it.
"""

import asyncio
import signal
from collections.abc import Callable

from tidegate.errors import INTERRUPTED, TERMINATED

EXIT_CODES = {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}


class Signals:
    def __init__(self, on_hangup: Callable[[], None]) -> None:
        self._on_hangup = on_hangup
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        self.exit_code = 0  # of the one who insisted

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in EXIT_CODES:
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def remove(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (*EXIT_CODES, signal.SIGHUP):
            loop.remove_signal_handler(number)

    def _stop(self, number: signal.Signals) -> None:
        if not self.asked.is_set():
            self.asked.set()
            return
        self.exit_code = EXIT_CODES[number]
        self.insisted.set()
        # should even the end hang, a third one is the kernel's to carry out
        asyncio.get_running_loop().remove_signal_handler(number)
