"""A user's processor in a real worker: progress, cancel, what it emits, the time it may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

import outbox
from outbox.errors import UsageError
from outbox.processing import UserProcessor
from outbox.store.deliveries import cancel_deliveries, show_delivery
from outbox.store.subscriptions import KindSpec, Rule, add_kind
from outbox.worker import WorkerConfig
from tests.engine.engine import Engine
from tests.engine.running import Running, until, working
from tests.own import jobs
from tests.own.tending import tend


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    jobs.GATE.clear()
    jobs.SEEN.clear()
    yield
    jobs.GATE.set()


def subscribe(engine: Engine, processor: UserProcessor, **limits: Any) -> int:
    spec = KindSpec("processor", {}, processor.name, **limits)
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return add_kind(connection, spec, Rule(("orders.*",)), "acme")


def shown(engine: Engine, delivery: UUID) -> dict[str, Any]:
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return show_delivery(connection, delivery)


@asynccontextmanager
async def running(engine: Engine, processor: UserProcessor) -> AsyncIterator[tuple[Running, UUID]]:
    """A worker that has begun the one delivery of the database. It extends leases so rarely that
    nothing in a test comes of that."""
    engine.emit(subject="orders/1")
    leases = engine.leases()
    async with working(
        engine.url, processor.perform, WorkerConfig(lease_s=90.0), kind=processor.name
    ) as worker:
        await worker.give(leases)
        await until(lambda: worker.worker.in_flight == 1)
        yield worker, leases[0][0]


async def settled(worker: Running) -> None:
    await until(lambda: worker.worker.in_flight == 0)
    await worker.finish()


def test_progress_and_metadata_are_seen_while_it_runs_and_gone_with_the_delivery(
    engine: Engine,
) -> None:
    subscribe(engine, jobs.tells)

    async def run() -> None:
        async with running(engine, jobs.tells) as (worker, delivery):
            await until(lambda: shown(engine, delivery)["progress"] is not None)
            told = shown(engine, delivery)
            assert (told["state"], told["kind"]) == ("leased", "job.tells")
            assert told["progress"].pop("at")
            assert told["progress"] == {"percent": 40, "note": "copying", "metadata": {"step": 1}}
            jobs.GATE.set()
            await until(lambda: worker.worker.in_flight == 0)
            assert shown(engine, delivery)["progress"] is None
            await until(lambda: engine.rows("SELECT 1 FROM outbox.progress") == [])
            await worker.finish()

    asyncio.run(run())
    assert engine.rows("SELECT type, subject FROM outbox.event WHERE type LIKE 'job.%%'") == [
        ("job.done", "orders/1")
    ]
    engine.check()


@pytest.mark.parametrize("processor", [jobs.tells, jobs.thread], ids=["async", "thread"])
def test_a_cancel_stops_the_attempt_long_before_its_lease_ends(
    engine: Engine, processor: UserProcessor
) -> None:
    """The lease is half a minute; whoever asks looks about once a second."""
    subscribe(engine, processor)

    async def run() -> UUID:
        async with running(engine, processor) as (worker, delivery):
            await until(lambda: bool(jobs.SEEN))
            with psycopg.connect(engine.url, autocommit=True) as connection:
                assert cancel_deliveries(connection, [delivery]).cancelled == [delivery]
            await until(lambda: jobs.SEEN[-1] == "cancelled")
            await settled(worker)
            assert worker.worker.stale == 1
            return delivery

    delivery = asyncio.run(run())
    assert [fact[0] for fact in engine.facts(delivery)] == ["cancelled"]


def test_its_longest_time_ends_a_thread_that_does_not(engine: Engine) -> None:
    """The attempt is settled without it."""
    subscribe(engine, jobs.deaf, timeout=timedelta(milliseconds=50))

    async def run() -> UUID:
        async with running(engine, jobs.deaf) as (worker, delivery):
            await settled(worker)
            return delivery

    delivery = asyncio.run(run())
    assert engine.facts(delivery) == [("attempt_failed", "timeout", True, 1)]
    assert jobs.SEEN == []


def test_what_a_killed_worker_told_is_no_row_for_ever(engine: Engine) -> None:
    """Retention takes what has no delivery."""
    engine.run(
        "INSERT INTO outbox.progress (delivery_id, percent, at)"
        " VALUES (gen_random_uuid(), 1, clock_timestamp())"
    )
    tend(engine.url)
    assert engine.rows("SELECT 1 FROM outbox.progress") == []


def test_many_events_are_emitted_in_one_statement(engine: Engine) -> None:
    events = [
        outbox.Emit("a.b", {"n": n}, org="acme", ordering_key=f"k{n % 3}", headers={"x": "y"})
        for n in range(10)
    ]
    again = outbox.Emit("a.b", {}, org="acme", dedupe_key="once")
    with psycopg.connect(engine.url) as connection:
        ids = outbox.emit_many(connection, [*events, again, again])
    found = engine.rows("SELECT id, payload ->> 'n', ordering_key FROM outbox.event ORDER BY id")
    by_id = {row[0]: row for row in found}
    assert [by_id[i][1] for i in ids[:10]] == [str(n) for n in range(10)]
    assert ids[10] == ids[11]
    for key in ("k0", "k1", "k2"):
        of_key = [i for i, event in zip(ids, events, strict=False) if event.ordering_key == key]
        assert of_key == sorted(of_key)
    with psycopg.connect(engine.url) as connection, pytest.raises(UsageError):
        outbox.emit_many(connection, [events[0], outbox.Emit("no type", 1)])
    with psycopg.connect(engine.url) as connection:
        assert outbox.emit_many(connection, []) == []
