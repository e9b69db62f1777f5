"""procrastinate: `load` or `work`. psycopg, uvloop, many jobs at once in one worker."""

from __future__ import annotations

import sys

import uvloop
from procrastinate import App, PsycopgConnector

from bench.peers.adapters.job import AsyncSender, Order, Stamps, body

CONCURRENCY = 32
CHUNK = 1000


def make_app(order: Order) -> App:
    """The application, not opened yet."""
    return App(connector=PsycopgConnector(conninfo=order.database_url, min_size=4, max_size=20))


async def load(order: Order) -> None:
    """Make the tables and defer everything."""
    app = make_app(order)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        job = app.configure_task("job")
        for first in range(1, order.jobs + 1, CHUNK):
            numbers = range(first, min(first + CHUNK, order.jobs + 1))
            await job.batch_defer_async(*({"number": n, "body": body(n)} for n in numbers))


async def work(order: Order) -> None:
    """Perform jobs until ended."""
    app = make_app(order)
    stamps, sender = Stamps(order.stamps), AsyncSender(order.post_url)

    async def post(number: int, body: str) -> None:
        await sender.send(number, body.encode())
        stamps.done()

    async def noop(number: int, body: str) -> None:  # noqa: ARG001 (arguments are passed by name)
        stamps.done()

    app.task(name="job")(post if order.kind == "webhook" else noop)
    async with app.open_async():
        await app.run_worker_async(
            concurrency=CONCURRENCY, install_signal_handlers=False, delete_jobs="successful"
        )


if __name__ == "__main__":
    uvloop.run({"load": load, "work": work}[sys.argv[1]](Order.read()))
