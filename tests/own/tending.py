"""One round of the daemon's retention."""

from __future__ import annotations

import asyncio

from outbox.store.connect import connect_hot
from outbox.store.retention import RetentionConfig, tend_retention


def tend(url: str) -> None:
    async def run() -> None:
        connection = await connect_hot(url, "retention")
        await tend_retention(connection, RetentionConfig())
        await connection.raw.close()

    asyncio.run(run())
