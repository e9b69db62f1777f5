"""pgqueuer: `load` or `work`. asyncpg, uvloop, large batches."""

from __future__ import annotations

import sys

import asyncpg
import uvloop
from pgqueuer.db import AsyncpgDriver
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from bench.peers.adapters.job import AsyncSender, Order, Stamps, body

BATCH = 250
CHUNK = 1000


async def load(order: Order) -> None:
    """Make the tables and enqueue everything."""
    queries = Queries(AsyncpgDriver(await asyncpg.connect(order.database_url)))
    await queries.install()
    for first in range(1, order.jobs + 1, CHUNK):
        numbers = range(first, min(first + CHUNK, order.jobs + 1))
        payloads = [f"{number} {body(number)}".encode() for number in numbers]
        await queries.enqueue(["job"] * len(numbers), payloads, [0] * len(numbers))


async def work(order: Order) -> None:
    """Perform jobs until ended."""
    manager = QueueManager(Queries(AsyncpgDriver(await asyncpg.connect(order.database_url))))
    stamps, sender = Stamps(order.stamps), AsyncSender(order.post_url)

    async def post(job: object) -> None:
        number, _, data = job.payload.partition(b" ")  # type: ignore[attr-defined]
        await sender.send(int(number), data)
        stamps.done()

    async def noop(_job: object) -> None:
        stamps.done()

    manager.entrypoint("job")(post if order.kind == "webhook" else noop)
    await manager.run(batch_size=BATCH, max_concurrent_tasks=2 * BATCH)


if __name__ == "__main__":
    uvloop.run({"load": load, "work": work}[sys.argv[1]](Order.read()))
