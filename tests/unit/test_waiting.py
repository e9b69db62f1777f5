"""A cancellation is never swallowed."""

from __future__ import annotations

import asyncio

from outbox.waiting import wait_at_most


def test_a_task_that_is_cancelled_as_its_event_is_set_ends() -> None:
    async def scene() -> bool:
        event = asyncio.Event()
        task = asyncio.create_task(wait_at_most(event, 60))
        await asyncio.sleep(0)
        event.set()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(scene())


def test_it_returns_when_the_time_is_over() -> None:
    asyncio.run(wait_at_most(asyncio.Event(), 0.001))
