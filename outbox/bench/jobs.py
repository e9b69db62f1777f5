"""The processor that does nothing, by which what the way to it costs is measured."""

from __future__ import annotations

from outbox.processing import Context, Event, processor


@processor("bench.noop", concurrency=10_000)
async def noop(_event: Event, _ctx: Context) -> None:
    """Nothing."""
