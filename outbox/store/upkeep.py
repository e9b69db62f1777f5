"""The small statements a daemon sends beside its loops: signs of life, and whether work is left.

`upkeep` owns the connection of such a periodic task: it opens it when needed, opens it again when
it breaks, and says so once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import psycopg
import structlog

from outbox.errors import OutboxError
from outbox.store.connect import HotConnection, describe
from outbox.store.statements import migrations

log = structlog.get_logger("outbox.upkeep")


@dataclass(frozen=True, slots=True)
class Node:
    """A running relay or worker, as `outbox.node` shows it. `kind` is `relay` or `worker`."""

    id: UUID
    kind: str
    host: str
    pid: int


async def beat(connection: HotConnection, node: Node) -> None:
    """Say that this node is alive."""
    await connection.send(
        "node_beat",
        {
            "id": node.id,
            "kind": node.kind,
            "host": node.host,
            "pid": node.pid,
            "level": migrations()[-1].version,
        },
    )


async def leave(connection: HotConnection, node: Node) -> None:
    """Say that this node ended in order; it no longer counts as alive."""
    await connection.send("node_leave", {"id": node.id})


async def owed_now(connection: HotConnection) -> bool:
    """Whether anything is pending, leased or due at this moment."""
    row = await (await connection.send("owed_now")).fetchone()
    return bool(row is not None and row[0])


async def tend_health(connection: HotConnection) -> list[tuple[int, int]]:
    """Warn of endpoints that fail, and disable them when their time is over; returns endpoint and
    percent of that time for each that is new."""
    cursor = await connection.run("tend_health", {"now": None}, lock="config_lock")
    return [(row[0], row[2]) for row in await cursor.fetchall()]


async def upkeep(
    name: str,
    open_connection: Callable[[], Awaitable[HotConnection]],
    every_s: float,
    body: Callable[[HotConnection], Awaitable[None]],
) -> None:
    """Run `body` every `every_s` seconds until cancelled, whatever happens to the database."""
    failing = False
    while True:
        try:
            connection = await open_connection()
            try:
                while True:
                    await body(connection)
                    failing = False
                    await asyncio.sleep(every_s)
            finally:
                await connection.raw.close()
        except (psycopg.Error, OutboxError, OSError) as error:
            if not failing:
                text = describe(error) if isinstance(error, psycopg.Error) else str(error)
                log.warning("upkeep.failed", task=name, error=text)
            failing = True
        await asyncio.sleep(every_s)
