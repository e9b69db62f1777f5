"""A tiny process that outlives its parent just long enough to clean up after it.

It owns one promise: when the process that started it is gone, however it ended (SIGKILL included),
the server it was told about ends too and the temporary folder is removed. It is run by path, with
the standard library alone: `python -I -S guardian.py PARENT_PID FOLDER`. On standard input it
reads lines `PID SIGNAL`, each replacing the one before; `0 0` means that no server runs.

PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the server ends, exists on
Linux only, and removes no folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time

STDIN = 0
GRACE_S = 5.0


def process_handle(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where there is no such thing.

    A pidfd also keeps a recycled process id from being taken for the server (Linux 5.3).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


class Watched:
    """The server to end, as told on standard input."""

    def __init__(self) -> None:
        self.pid = 0
        self.signal = signal.SIGKILL
        self.handle: int | None = None

    def replace(self, line: bytes) -> None:
        pid, number = line.split()
        if self.handle is not None:
            os.close(self.handle)
        self.pid, self.signal = int(pid), signal.Signals(int(number) or signal.SIGKILL)
        self.handle = process_handle(self.pid) if self.pid else None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "linux" and self.handle is not None:
                signal.pidfd_send_signal(self.handle, number)
            else:
                os.kill(self.pid, number)

    def gone(self, within_s: float) -> bool:
        if self.handle is not None:
            return bool(select.select([self.handle], [], [], within_s)[0])
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False

    def end(self) -> None:
        if not self.pid:
            return
        self.send(self.signal)
        if not self.gone(GRACE_S):
            self.send(signal.SIGKILL)
            self.gone(GRACE_S)


def watch(parent_pid: int, watched: Watched) -> None:
    """Return when the parent is gone: its end of the pipe is closed, or the process has ended.

    The pipe alone is not enough, since children the parent forked may hold it open. What the parent
    wrote is read to the end also when it was gone before this process had come up.
    """
    parent = process_handle(parent_pid)
    parent_lives = os.getppid() == parent_pid
    sources = [STDIN] if parent is None else [STDIN, parent]
    pending = b""
    os.set_blocking(STDIN, False)
    while True:
        ready = select.select(sources, [], [], None if parent_lives else 0)[0]
        if STDIN not in ready:
            return
        chunk = os.read(STDIN, 4096)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            watched.replace(line)


def main(parent_pid: int, folder: str) -> None:
    """Wait for the parent's end, end the server, remove the folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched = Watched()
    watch(parent_pid, watched)
    watched.end()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
