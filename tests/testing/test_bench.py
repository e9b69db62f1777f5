"""The bench moves the real engine by hand, and leaves nothing of one test to the next."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from outbox.outcome import Kind, Outcome
from outbox.testing import Bench, Databases, Started, Work
from outbox.testing.databases import empty


async def refused(work: Work, deadline: float) -> Outcome:
    return Outcome(Kind.RETRY, "http_500")


async def accepted(work: Work, deadline: float) -> Outcome:
    return Outcome(Kind.DELIVERED, "http_200")


def rows(url: str) -> dict[str, int]:
    """How many rows each table of the schema has."""
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'outbox'::regnamespace"
            " AND relkind IN ('r', 'p') ORDER BY 1"
        ).fetchall()
        counts = {}
        for (name,) in names:
            query = f"SELECT count(*) FROM outbox.{name}"
            [(counts[name],)] = connection.execute(query.encode()).fetchall()
        return counts


def test_a_budget_is_used_up_in_its_time_and_a_redrive_gives_another(outbox_bench: Bench) -> None:
    outbox_bench.emit("orders.paid", {"n": 1}, subject="orders/1", headers={"x": "y"})
    began = outbox_bench.clock()
    waits: list[float] = []
    tried: list[tuple[Started, Outcome]] = []
    for _ in range(3):
        tried += outbox_bench.round(refused)
        waits.append((outbox_bench.clock() - began).total_seconds())
        assert outbox_bench.round(refused) == []
        outbox_bench.wait()
    started = tried[-1][0]
    assert len(tried) == 3
    assert [round(wait) for wait in waits] == [0, 5, 15]
    assert (started.work.subject, started.work.headers) == ("orders/1", {"x": "y"})
    [dead] = outbox_bench.standing().values()
    assert (dead.id, dead.state, dead.attempts) == (started.id, "dead", 3)
    assert outbox_bench.redrive() == 1
    assert [outcome.reason for _, outcome in outbox_bench.round(accepted)] == ["http_200"]
    assert outbox_bench.standing() == {}
    facts = [fact["fact"] for fact in outbox_bench.story(started.id)["journal"]]
    assert sorted(facts) == sorted(
        ["routed", "attempt_failed", "attempt_failed", "dead", "redriven", "delivered"]
    )


def test_a_stale_settle_changes_nothing(outbox_bench: Bench) -> None:
    outbox_bench.emit("orders.paid", 1)
    outbox_bench.route()
    outbox_bench.broker.repeat()
    [started] = outbox_bench.take(outbox_bench.broker.deliver())
    assert outbox_bench.take(outbox_bench.broker.deliver()) == []
    outbox_bench.clock.advance(outbox_bench.lease)
    assert outbox_bench.expire() == 1
    assert outbox_bench.settle(started, Outcome(Kind.DELIVERED, "late")) is None
    [one] = outbox_bench.standing().values()
    assert one.state == "scheduled"


def test_what_the_broker_loses_comes_back_uncharged(outbox_bench: Bench) -> None:
    outbox_bench.emit("orders.paid", 1)
    outbox_bench.route()
    outbox_bench.broker.lose()
    outbox_bench.clock.advance(outbox_bench.lease)
    [(started, _)] = outbox_bench.round(accepted)
    assert started.work.attempt == 1


def test_an_attempt_is_cut_at_the_await_that_is_named(outbox_bench: Bench) -> None:
    outbox_bench.emit("orders.paid", 1)
    outbox_bench.route()
    [started] = outbox_bench.take(outbox_bench.broker.deliver())
    steps: list[int] = []

    async def in_steps(work: Work, deadline: float) -> Outcome:
        for step in range(3):
            steps.append(step)
            await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
        return Outcome(Kind.DELIVERED, "done")

    for cut_at in range(3):
        steps.clear()
        assert outbox_bench.perform(started.work, in_steps, cut_at=cut_at) is None
        assert steps == list(range(cut_at + 1))
    outcome = outbox_bench.perform(started.work, in_steps, cut_at=3)
    assert outcome == Outcome(Kind.DELIVERED, "done")


def test_an_exception_becomes_internal_and_a_failed_assertion_fails(outbox_bench: Bench) -> None:
    outbox_bench.emit("orders.paid", 1)
    outbox_bench.route()
    [started] = outbox_bench.take(outbox_bench.broker.deliver())

    async def breaks(work: Work, deadline: float) -> Outcome:
        raise KeyError("column")

    outcome = outbox_bench.perform(started.work, breaks)
    assert outcome is not None
    assert outcome.kind is Kind.INTERNAL

    async def asserts(work: Work, deadline: float) -> Outcome:
        raise AssertionError("what the test says")

    with pytest.raises(AssertionError, match="what the test says"):
        outbox_bench.perform(started.work, asserts)


def test_an_emptied_database_is_as_it_was_migrated(outbox_databases: Databases) -> None:
    with outbox_databases.fresh() as url:
        fresh = rows(url)
        with Bench(url) as bench:
            bench.emit("orders.paid", 1)
            bench.emit("orders.paid", 2)
            for _ in range(3):
                bench.round(refused)
                bench.wait()
            bench.emit("orders.paid", 3)
            assert rows(url) != fresh
        with psycopg.connect(url, autocommit=True) as connection:
            empty(connection)
        assert rows(url) == fresh
