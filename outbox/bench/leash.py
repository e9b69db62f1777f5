"""Runs one program that ends when the input of this process is closed.

So a bench that is killed leaves none of its programs behind: `python -P -m outbox.bench.leash
PROGRAM ARGUMENT...`. The program `outbox` runs in this very process, so that what this process uses
is what it uses.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

STDIN = 0
GRACE_S = 3.0


def _await_closed_input() -> None:
    with suppress(OSError):
        while os.read(STDIN, 4096):
            pass


def _end_with_input() -> None:
    _await_closed_input()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def main(argv: list[str]) -> int:
    """Run the program to its end; returns its exit code."""
    if argv[0] == "outbox":
        threading.Thread(target=_end_with_input, daemon=True).start()
        sys.argv = argv
        runpy.run_module("cli", run_name="__main__", alter_sys=True)
        return 0
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as program:

        def end_with_input() -> None:
            _await_closed_input()
            program.terminate()

        threading.Thread(target=end_with_input, daemon=True).start()
        return program.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
