"""Worker processes beside a parent: started again when they die, ended with it in any case."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from outbox import supervisor
from outbox.supervisor import Supervisor, end_with_parent

HEEDS = "import time; time.sleep(99)"
STUBBORN = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(os.environ["READY"]).touch()
time.sleep(99)
"""
DIES = "raise SystemExit(3)"

Body = Callable[[Supervisor], Awaitable[None]]
Log = MutableMapping[str, Any]


class Children:
    """The programs that children run, one after another, the last one for good."""

    def __init__(self, *programs: str) -> None:
        self._programs = programs
        self.started = 0

    def command(self) -> list[str]:
        self.started += 1
        program = self._programs[min(self.started, len(self._programs)) - 1]
        return [sys.executable, "-S", "-c", program]


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.01)


def alive(one: Supervisor) -> int:
    return len(one._children)


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Log]]:
    """Supervise children while a body runs; what was logged."""
    monkeypatch.setattr(supervisor, "PAUSE_S_MIN", 0.01)

    def run(children: Children, body: Body, *, count: int = 1, grace_s: float = 60) -> list[Log]:
        monkeypatch.setattr(supervisor, "worker_command", children.command)

        async def main() -> None:
            stop = asyncio.Event()
            one = Supervisor(count, {"READY": str(tmp_path / "ready")})
            running = asyncio.create_task(one.run(stop, grace_s))
            await body(one)
            stop.set()
            await running
            assert alive(one) == 0

        with capture_logs() as logs:
            asyncio.run(main())
        return logs

    return run


def test_children_end_when_told_to(supervise: Callable[..., list[Log]]) -> None:
    async def body(one: Supervisor) -> None:
        await until(lambda: alive(one) == 3)

    logs = supervise(Children(HEEDS), body, count=3)
    assert [line["event"] for line in logs] == ["worker.spawned"] * 3


def test_a_child_that_does_not_end_in_time_is_killed(
    supervise: Callable[..., list[Log]], tmp_path: Path
) -> None:
    async def body(_one: Supervisor) -> None:
        await until((tmp_path / "ready").exists)

    logs = supervise(Children(STUBBORN), body, grace_s=0.05)
    assert [line["event"] for line in logs] == ["worker.spawned", "workers.killed"]


def test_a_child_that_dies_is_started_again_after_a_growing_pause(
    supervise: Callable[..., list[Log]],
) -> None:
    children = Children(DIES, DIES, HEEDS)

    async def body(one: Supervisor) -> None:
        await until(lambda: children.started == 3 and alive(one) == 1)

    died = [line for line in supervise(children, body) if line["event"] == "worker.died"]
    assert [(line["exit_code"], line["again_in_s"]) for line in died] == [(3, 0.01), (3, 0.02)]


def test_a_child_that_is_being_made_when_all_is_to_end_ends_too(
    supervise: Callable[..., list[Log]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes too late to be told with the others."""
    children = Children(HEEDS)
    make, let_go = asyncio.create_subprocess_exec, asyncio.Event()

    async def made_late(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        await let_go.wait()
        return await make(*args, **options)

    async def body(_one: Supervisor) -> None:
        await until(lambda: children.started == 1)
        asyncio.get_running_loop().call_later(0.05, let_go.set)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", made_late)
    logs = supervise(children, body)
    assert [line["event"] for line in logs] == ["worker.spawned"]


def test_an_orphan_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = asyncio.Event()

    class NoKernel:
        def prctl(self, *_args: int) -> int:
            return 0

    monkeypatch.setattr("outbox.supervisor.ctypes.CDLL", lambda _name: NoKernel())
    asyncio.run(end_with_parent(os.getpid(), stopped.set))
    assert stopped.is_set()
