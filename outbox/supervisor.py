"""Keeps worker processes running beside a parent, and ends them with it.

A child that dies is started again after a growing pause. Children stand in sessions of their own,
so that a terminal's Ctrl-C reaches the parent alone and is passed on once; a parent that is killed
takes them along.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from outbox.waiting import wait_at_most

log = structlog.get_logger("outbox.supervisor")

PAUSE_S_MIN = 0.5
PAUSE_S_MAX = 30.0
STEADY_S = 60.0
"""A child that lived this long starts again after the shortest pause."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Supervisor:
    """`count` children running `outbox worker`, with the settings in their environment."""

    def __init__(self, count: int, environ: Mapping[str, str]) -> None:
        self._count = count
        self._environ = dict(environ)
        self._children: set[asyncio.subprocess.Process] = set()

    async def run(self, stop: asyncio.Event, grace_s: float) -> None:
        """Keep the children running until `stop` is set; then let each finish, kill the rest."""
        if self._count == 0:
            return
        keepers = [asyncio.create_task(self._keep(n, stop)) for n in range(1, self._count + 1)]
        try:
            await stop.wait()
            self._signal(signal.SIGTERM)
            await asyncio.wait(keepers, timeout=grace_s)
        finally:
            if self._children:
                log.warning("workers.killed", count=len(self._children))
            self.kill()
            await asyncio.wait(keepers, timeout=2.0)

    def kill(self) -> None:
        """End every child now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    async def _keep(self, number: int, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        pause_s = PAUSE_S_MIN
        while not stop.is_set():
            started = loop.time()
            child = await asyncio.create_subprocess_exec(
                *worker_command(), env=self._environ, start_new_session=True
            )
            self._children.add(child)
            log.info("worker.spawned", number=number, worker_pid=child.pid)
            if stop.is_set():  # set while the child was being made: nobody else tells it
                child.terminate()
            code = await child.wait()
            self._children.discard(child)
            if stop.is_set():
                return
            pause_s = PAUSE_S_MIN if loop.time() - started > STEADY_S else pause_s
            log.warning("worker.died", number=number, exit_code=code, again_in_s=pause_s)
            await wait_at_most(stop, pause_s)
            pause_s = min(PAUSE_S_MAX, pause_s * 2)


def worker_command() -> list[str]:
    """How one worker process is started. `-P` keeps the working folder off the front of the path:
    a user's own `cli.py` must not be taken for ours."""
    return [sys.executable, "-P", "-m", "cli", "worker", "--child-of", str(os.getpid())]


async def end_with_parent(parent_pid: int, stop: Callable[[], None]) -> None:
    """Call `stop` when the parent is gone. On Linux the kernel also sends SIGTERM at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    while os.getppid() == parent_pid:  # noqa: ASYNC110 (nothing tells a process that it is an orphan)
        await asyncio.sleep(1.0)
    stop()
