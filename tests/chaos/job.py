"""A processor of the user's for the fault matrix: it lasts long enough to be watched."""

from __future__ import annotations

import asyncio

import outbox


@outbox.processor("job.chaos")
async def job(event: outbox.Event, ctx: outbox.Context) -> None:
    ctx.progress(1, "working")
    await asyncio.sleep(1.5)
    ctx.emit("chaos.done", {"of": event.id, "mark": "job"})
