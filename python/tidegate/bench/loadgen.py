"""The load generator as a process: `python -m tidegate.bench.loadgen` runs what the compiled module has of it.

Rule: nothing of Python runs while it does; signals end it as they end any program.
"""

import signal
import sys

from tidegate._core import run_loadgen

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would wait for the interpreter, which has nothing to do
    try:
        run_loadgen(sys.argv[1:])
    except RuntimeError as error:
        sys.exit(f"tidegate-loadgen: {error}")
