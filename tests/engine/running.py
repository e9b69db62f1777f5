"""A worker or a relay running in this process, with processors and a broker of the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from outbox.errors import BrokerUnavailable
from outbox.outcome import Kind, Outcome
from outbox.relay import Relay
from outbox.rhythm import RelayConfig
from outbox.secrets import KeyRing
from outbox.store.connect import HotConnection, connect_hot
from outbox.store.endpoints import AddedEndpoint, EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule
from outbox.work import Work
from outbox.worker import Worker, WorkerConfig
from tests.engine.engine import Engine, Lease

RING = KeyRing([bytes(range(32))])
WITHIN_S = 10.0
DELIVERED = Outcome(Kind.DELIVERED, "http_200")


async def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Wait for a condition of another task, thread or server."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.002)


def real_endpoint(engine: Engine, org: str | None = "acme", **fields: Any) -> AddedEndpoint:
    """An endpoint with a key that opens, subscribed to everything."""
    rule = fields.pop("rule", Rule(("*",)))
    with psycopg.connect(engine.url, autocommit=True) as connection:
        url = fields.pop("url", "http://127.0.0.1:9/x")
        return add_endpoint(connection, EndpointSpec(url, org, rule, **fields), RING)


class Hands:
    """A broker that remembers, and refuses when told to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.refuses = False
        self.refused = 0

    def send(self, _token: int, ids: Sequence[str]) -> None:
        if self.refuses:
            self.refused += 1
            raise BrokerUnavailable("the broker refuses")
        self.sent += ids

    def depth(self) -> int:
        if self.refuses:
            raise BrokerUnavailable("the broker refuses")
        return 0


@asynccontextmanager
async def relaying(url: str, hands: Hands, **config: Any) -> AsyncIterator[Relay]:
    """A relay while the body runs, without a bell."""

    async def open_connection() -> HotConnection:
        return await connect_hot(url, "relay")

    relay = Relay(open_connection, hands.send, hands.depth, RelayConfig(**config))
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await asyncio.wait_for(running, 30)


@dataclass
class Scripted:
    """A processor that remembers what it was given, and waits where the test says."""

    begun: list[Work] = field(default_factory=list)
    ended: list[UUID] = field(default_factory=list)
    cancelled: list[UUID] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome = DELIVERED

    async def __call__(self, work: Work, deadline: float) -> Outcome:
        self.begun.append(work)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(work.delivery_id)
            raise
        self.ended.append(work.delivery_id)
        return self.outcome


Processor = Callable[[Work, float], Awaitable[Outcome]]


@dataclass
class Running:
    """A running worker."""

    worker: Worker
    task: asyncio.Task[None]
    opened: list[HotConnection]
    reachable: asyncio.Event

    async def give(self, leases: Sequence[Lease]) -> None:
        """Hand leases over as a thread of the broker does."""
        tokens: dict[int, list[str]] = {}
        for delivery_id, token in leases:
            tokens.setdefault(token, []).append(delivery_id.hex)
        for token, ids in tokens.items():
            await asyncio.to_thread(self.worker.accept, token, ids)

    async def finish(self) -> None:
        """Stop and wait until everything inside is settled."""
        self.worker.stop()
        await asyncio.wait_for(self.task, WITHIN_S)


@asynccontextmanager
async def working(
    url: str, processor: Processor, config: WorkerConfig | None = None, *, kind: str = "webhook"
) -> AsyncIterator[Running]:
    """A worker while the body runs; cancelled at the end if it was not finished."""
    opened: list[HotConnection] = []
    reachable = asyncio.Event()
    reachable.set()

    async def open_connection(name: str) -> HotConnection:
        if not reachable.is_set():
            raise OSError("the database is out of reach")
        opened.append(await connect_hot(url, name))
        return opened[-1]

    processors: Mapping[str, Processor] = {kind: processor}
    worker = Worker(open_connection, processors, RING, config or WorkerConfig(), jitter=lambda: 0.0)
    task = asyncio.create_task(worker.run())
    await until(lambda: len(opened) == 2)
    try:
        yield Running(worker, task, opened, reachable)
    finally:
        task.cancel()
        await asyncio.wait([task])
        worker.stop()  # whoever waits to hand over is let go
        for connection in opened:
            await connection.raw.close()
