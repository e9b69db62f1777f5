"""The worker's loop against a real database: what it takes it ends, whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import pytest

from outbox.outcome import Outcome
from outbox.store.attempts import Attempts, Settlement, Taken
from outbox.work import Work
from outbox.worker import WorkerConfig
from tests.engine.engine import LEASE_S, Engine, Lease, another
from tests.engine.running import DELIVERED, Scripted, real_endpoint, until, working


def test_what_is_taken_is_delivered_and_settled(engine: Engine) -> None:
    real_endpoint(engine)
    engine.emit(300)
    leases = engine.leases()

    async def run() -> None:
        processor = Scripted()
        processor.gate.set()
        async with working(engine.url, processor) as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        assert sorted(processor.ended) == sorted(lease[0] for lease in leases)

    asyncio.run(run())
    assert engine.states() == {}
    engine.check()


def test_what_comes_close_behind_another_gathers_into_few_batches(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is taken at once, the others together; half a batch waits for nobody."""
    real_endpoint(engine)
    engine.emit(26)
    leases = engine.leases()
    taken, settled = [], []
    take, settle = Attempts.take, Attempts.settle_delivered

    async def count_taken(self: Attempts, some: Sequence[tuple[str, int]]) -> list[Taken]:
        taken.append(len(some))
        return await take(self, some)

    async def count_settled(self: Attempts, some: Sequence[Settlement]) -> int:
        settled.append(len(some))
        return await settle(self, some)

    monkeypatch.setattr(Attempts, "take", count_taken)
    monkeypatch.setattr(Attempts, "settle_delivered", count_settled)

    async def run() -> None:
        processor = Scripted()
        processor.gate.set()
        config = WorkerConfig(gather_s=1.0, take_max=20, settle_max=60)
        async with working(engine.url, processor, config) as running:
            await running.give(leases[:1])
            await until(lambda: taken == [1] and running.worker.in_flight == 0)
            for lease in leases[1:16]:
                await running.give([lease])
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()

    asyncio.run(run())
    assert taken[0] == settled[0] == 1
    assert sum(taken) == sum(settled) == 16
    assert len(taken) <= 4
    assert max(taken) >= 10
    assert len(settled) <= 4


def test_a_connection_lost_between_take_and_endpoints_frees_the_budget(engine: Engine) -> None:
    """The taken deliveries come back by their leases; the room they took comes back at once."""
    real_endpoint(engine)
    engine.emit(5)
    leases = engine.leases()

    async def run() -> None:
        processor = Scripted()
        processor.gate.set()
        async with working(engine.url, processor) as running:
            with another(engine.url) as second, second.transaction():
                second.execute("LOCK TABLE outbox.secret IN ACCESS EXCLUSIVE MODE")
                await running.give(leases)
                blocked = (
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                    " AND wait_event_type = 'Lock'"
                )
                await until(lambda: bool(engine.rows(blocked)))
                engine.run("SELECT pg_terminate_backend(pid) FROM (" + blocked + ") x")
            await until(lambda: len(running.opened) == 3)
            await until(lambda: running.worker.in_flight == 0, 5)
            await running.finish()

    asyncio.run(run())


def test_what_a_lost_connection_left_behind_is_taken_by_the_next(engine: Engine) -> None:
    """Without another arrival and long before the lease is a third over."""
    real_endpoint(engine)
    engine.emit(1)
    leases = engine.leases()

    async def run() -> None:
        processor = Scripted()
        processor.gate.set()
        async with working(engine.url, processor) as running:
            for connection in running.opened:
                pid = connection.raw.info.backend_pid
                engine.run("SELECT pg_terminate_backend(%s, 5000)", pid)
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0, 5)
            await running.finish()
        assert processor.ended == [leases[0][0]]

    asyncio.run(run())
    assert engine.states() == {}


def test_leases_are_lengthened_also_while_more_keeps_coming(engine: Engine) -> None:
    """A worker that is never idle must not forget what runs: it would be tried twice."""
    real_endpoint(engine)
    engine.emit(1)
    [long_one] = engine.leases()
    engine.extend([long_one], 2.0)
    # Leases that nobody holds any more: they keep the worker taking and leave no trace.
    void = [(UUID(int=n), 1) for n in range(50)]

    async def run() -> None:
        processor = Scripted()
        config = WorkerConfig(lease_s=2.0, margin_s=0.1)
        async with working(engine.url, processor, config) as running:
            await running.give([long_one])
            await until(lambda: len(processor.begun) == 1)
            first = engine.delivery(long_one[0])["lease_until"]

            async def feed() -> None:
                while True:
                    await running.give(void)

            feeding = [asyncio.create_task(feed()) for _ in range(4)]
            try:
                await until(lambda: engine.now() > first or _lease_until(engine, long_one) > first)
                assert _lease_until(engine, long_one) > first
            finally:
                for task in feeding:
                    task.cancel()
                await asyncio.wait(feeding)
            processor.gate.set()
            await running.finish()

    asyncio.run(run())
    assert [fact[0] for fact in engine.facts(long_one[0])] == ["delivered"]


def test_an_attempt_ends_with_the_lease_that_nobody_could_extend(engine: Engine) -> None:
    """Cut off from the database, a worker must not go on where another may begin."""
    real_endpoint(engine)
    engine.emit(3)
    leases = engine.leases()
    engine.extend(leases, 1.5)

    async def run() -> None:
        processor = Scripted()
        async with working(
            engine.url, processor, WorkerConfig(lease_s=1.5, margin_s=0.1)
        ) as running:
            await running.give(leases)
            await until(lambda: len(processor.begun) == 3)
            running.reachable.clear()
            engine.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'outbox worker%' AND datname = current_database()"
            )
            await until(lambda: len(processor.cancelled) == 3)
            running.reachable.set()
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        assert processor.ended == []

    asyncio.run(run())
    assert engine.one("SELECT count(*) FROM outbox.journal WHERE charged") == 0
    assert engine.states() in ({"scheduled": 3}, {"leased": 3})
    engine.check()


def test_the_lease_does_not_cut_an_attempt_short(engine: Engine) -> None:
    """The endpoint's timeout does; the lease is lengthened meanwhile."""
    real_endpoint(engine)
    engine.emit()
    leases = engine.leases()
    engine.extend(leases, 1.0)

    async def run() -> None:
        left: list[float] = []

        async def attempt(_work: Work, deadline: float) -> Outcome:
            left.append(deadline - asyncio.get_running_loop().time())
            return DELIVERED

        async with working(engine.url, attempt, WorkerConfig(lease_s=1.0, margin_s=0.1)) as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        assert left[0] > 300, "the longest timeout of an endpoint is five minutes"

    asyncio.run(run())


def _lease_until(engine: Engine, lease: Lease) -> datetime:
    value: datetime = engine.delivery(lease[0])["lease_until"]
    return value


def test_nothing_begins_at_the_end_of_its_lease(engine: Engine) -> None:
    """I2: a worker that stood still gives back what it could not finish in time, uncharged."""
    real_endpoint(engine)
    engine.emit(3)
    leases = engine.leases()

    async def run() -> None:
        processor = Scripted()
        processor.gate.set()
        # The leases end in 30 s: that is less than the margin.
        config = WorkerConfig(lease_s=8 * LEASE_S, margin_s=2 * LEASE_S)
        async with working(engine.url, processor, config) as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        assert processor.begun == []

    asyncio.run(run())
    assert engine.states() == {"scheduled": 3}
    assert engine.facts(leases[0][0]) == [("released", "shutdown", False, 0)]
    engine.check()


def test_an_outcome_outlives_the_connection_it_was_to_be_settled_on(engine: Engine) -> None:
    """Otherwise what was delivered would be delivered again."""
    real_endpoint(engine)
    engine.emit(1)
    [lease] = engine.leases()
    blocked = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )

    async def run() -> None:
        processor = Scripted()
        async with working(engine.url, processor) as running:
            await running.give([lease])
            await until(lambda: len(processor.begun) == 1)
            with another(engine.url) as second, second.transaction():
                second.execute("SELECT FROM outbox.delivery FOR UPDATE")
                processor.gate.set()
                await until(lambda: bool(engine.rows(blocked)))
                engine.run("SELECT pg_terminate_backend(pid) FROM (" + blocked + ") x")
                await until(lambda: len(running.opened) == 3)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()

    asyncio.run(run())
    assert engine.facts(lease[0]) == [("delivered", "http_200", True, 1)]
    assert engine.states() == {}
