"""A worker whose side is at fault, or whose work is called off while it is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from outbox.outcome import Kind, Outcome
from outbox.secrets import KeyRing
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule
from outbox.worker import Worker, WorkerConfig
from tests.engine.engine import Engine, Lease, another
from tests.engine.running import RING, Scripted, real_endpoint, until, working


def work_through(
    engine: Engine, leases: Sequence[Lease], processor: Scripted
) -> list[dict[str, Any]]:
    """Hand leases to a worker and let it end them; what it logged."""

    async def run() -> None:
        processor.gate.set()
        async with working(engine.url, processor) as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()

    with capture_logs() as logs:
        asyncio.run(run())
    return [dict(line) for line in logs]


def told(engine: Engine, lease: Lease) -> list[tuple[object, ...]]:
    query = "SELECT fact, reason, charged FROM outbox.journal WHERE delivery_id = %s ORDER BY at"
    return engine.rows(query, lease[0])


def test_a_kind_that_nobody_processes_is_our_fault_and_costs_no_attempt(engine: Engine) -> None:
    subscription = engine.subscribe(kind="pdf")
    engine.emit(1)
    [lease] = engine.leases()
    work_through(engine, [lease], Scripted())
    assert told(engine, lease) == [("attempt_failed", "no_processor", False)]
    assert engine.delivery(lease[0])["subscription_id"] == subscription


def test_a_key_that_does_not_open_is_our_fault_and_costs_no_attempt(engine: Engine) -> None:
    """Not signed, not sent; said in the log by its endpoint."""
    other = KeyRing([bytes(32)])
    with psycopg.connect(engine.url, autocommit=True) as connection:
        spec = EndpointSpec("http://127.0.0.1:9/x", "acme", Rule(("*",)))
        added = add_endpoint(connection, spec, other)
    engine.emit(1)
    [lease] = engine.leases()
    processor = Scripted()
    logs = work_through(engine, [lease], processor)
    assert processor.begun == []
    assert told(engine, lease) == [("attempt_failed", "secret_unusable", False)]
    said = [line["endpoint"] for line in logs if line["event"] == "worker.secret_unusable"]
    assert set(said) == {added.id}


def test_a_detail_that_the_database_refuses_does_not_cost_the_outcome(engine: Engine) -> None:
    real_endpoint(engine)
    engine.emit(2)
    leases = engine.leases()
    outcome = Outcome(Kind.DELIVERED, "http_200", detail={"response": "a\0b"})
    logs = work_through(engine, leases, Scripted(outcome=outcome))
    assert [told(engine, lease) for lease in leases] == [[("delivered", "http_200", True)]] * 2
    assert "worker.detail_refused" in [line["event"] for line in logs]
    assert engine.states() == {}


def test_an_endpoint_that_says_it_is_gone_is_disabled(engine: Engine) -> None:
    added = real_endpoint(engine)
    engine.emit(1)
    leases = engine.leases()
    gone = Outcome(Kind.REJECTED, "gone", disable_endpoint=True)
    logs = work_through(engine, leases, Scripted(outcome=gone))
    query = "SELECT state, state_reason FROM outbox.endpoint WHERE id = %s"
    assert engine.rows(query, added.id) == [("disabled", "gone")]
    events = [line["event"] for line in logs]
    assert "worker.endpoint_disabled" in events
    assert "worker.dead_letters" in events


@pytest.mark.parametrize("keeping", [1, 2])
def test_what_is_cancelled_while_it_runs_is_ended_at_the_next_extension(
    engine: Engine, keeping: int
) -> None:
    """Its row is gone, so nobody could settle it; the others go on."""
    real_endpoint(engine)
    engine.emit(keeping + 1)
    leases = engine.leases()
    engine.extend(leases, 2.0)
    lost = leases[0][0]

    async def run() -> None:
        processor = Scripted()
        config = WorkerConfig(lease_s=2.0, margin_s=0.1)
        async with working(engine.url, processor, config) as running:
            await running.give(leases)
            await until(lambda: len(processor.begun) == keeping + 1)
            engine.run("DELETE FROM outbox.delivery WHERE id = %s", lost)
            await until(lambda: processor.cancelled == [lost])
            processor.gate.set()
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        assert sorted(processor.ended) == sorted(lease[0] for lease in leases[1:])

    asyncio.run(run())
    assert engine.states() == {}


def test_what_is_abandoned_is_given_back_uncharged(engine: Engine) -> None:
    real_endpoint(engine)
    engine.emit(3)
    leases = engine.leases()

    async def run() -> None:
        processor = Scripted()
        async with working(engine.url, processor) as running:
            await running.give(leases)
            await until(lambda: len(processor.begun) == 3)
            running.worker.stop()
            running.worker.abandon()
            await asyncio.wait_for(running.task, 10)
        assert len(processor.cancelled) == 3

    asyncio.run(run())
    assert {fact[0][0] for fact in (told(engine, lease) for lease in leases)} == {"released"}
    assert engine.one("SELECT count(*) FROM outbox.journal WHERE charged") == 0


def test_a_worker_that_does_not_run_takes_nothing_in() -> None:
    """The lease brings it back; the broker's thread goes on."""
    worker = Worker(lambda _name: asyncio.sleep(0), {}, RING)  # type: ignore[arg-type,return-value]
    worker.accept(1, [])
    assert worker.in_flight == 0


def test_a_worker_that_cannot_settle_begins_nothing_more(engine: Engine) -> None:
    """Others would repeat what it begins; what it has not begun costs nothing."""
    real_endpoint(engine)
    engine.emit(2)
    first, second = engine.leases()
    processor = Scripted()

    async def run() -> None:
        async with working(engine.url, processor, WorkerConfig(lease_s=1.5)) as running:
            worker = running.worker
            await running.give([first])
            await until(lambda: len(processor.begun) == 1)
            with another(engine.url) as other:
                with other.transaction():
                    # Settling writes facts; taking does not.
                    other.execute("LOCK TABLE outbox.journal IN SHARE MODE")
                    processor.gate.set()
                    await until(worker._cannot_settle)
                    await running.give([second])
                    await until(lambda: bool(worker._arrived))
                    for _ in range(20):
                        await asyncio.sleep(0)
                        assert [work.delivery_id for work in processor.begun] == [first[0]]
            await until(lambda: worker.in_flight == 0)
            await running.finish()

    asyncio.run(run())
    assert len(processor.ended) == 2
    assert engine.states() == {}
