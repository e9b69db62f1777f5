"""Processors that the tests perform, at the top of a module as those must be that run apart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import outbox

GATE = threading.Event()
SEEN: list[Any] = []


@outbox.processor("job.tells", timeout="1m", concurrency=3, retry="1s,2s")
async def tells(event: outbox.Event, ctx: outbox.Context) -> None:
    """Tell what it is given."""
    SEEN.append((event, ctx))
    ctx.metadata["step"] = 1
    ctx.progress(40, "copying")
    try:
        while not GATE.is_set():
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        SEEN.append("cancelled")
        raise
    ctx.emit("job.done", {"of": event.id}, subject=event.subject)


@outbox.processor("job.thread", timeout="1m")
def thread(_event: outbox.Event, ctx: outbox.Context) -> None:
    SEEN.append(ctx)
    try:
        while not GATE.wait(0.005):
            ctx.heartbeat()
    except outbox.Cancelled:
        SEEN.append("cancelled")
        raise


@outbox.processor("job.deaf", timeout="1m")
def deaf(_event: outbox.Event, _ctx: outbox.Context) -> None:
    """Hears nothing until the gate opens."""
    GATE.wait()
    SEEN.append("ended")


@outbox.processor("job.stubborn")
async def stubborn(_event: outbox.Event, _ctx: outbox.Context) -> None:
    """Swallows its cancellation."""
    while not GATE.is_set():
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            SEEN.append("swallowed")


@outbox.processor("job.apart", isolated=True)
def apart(event: outbox.Event, ctx: outbox.Context) -> outbox.Outcome | None:
    """Do in a process what the payload asks for."""
    task = event.data
    print("what it prints goes to stderr")  # noqa: T201
    match task["do"]:
        case "loop":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(task["path"]).write_text(f"{os.getpid()} {child.pid}")
            while True:
                time.sleep(0.01)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise outbox.Throttled("slow down", reason="busy", after=7)
        case "wait":
            ctx.metadata["pid"] = os.getpid()
            ctx.progress(50, "half")
            while True:
                ctx.heartbeat()
                time.sleep(0.005)
    ctx.emit("job.done", {"pid": os.getpid(), "config": ctx.config}, headers={"x": "y"})
    return outbox.Outcome(outbox.Kind.DELIVERED, "apart", detail={"attempt": ctx.attempt})
