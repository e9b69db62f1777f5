"""Waiting for an event with a bound, in a way that loses no cancellation.

Before Python 3.12 `asyncio.wait_for` returns normally where a task is cancelled in the very moment
in which the event is set: the task then runs on for ever.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Return when `event` is set or `seconds` have passed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
