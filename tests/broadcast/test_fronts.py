"""Where broadcasts begin that wait, as a daemon knows it between its walks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from outbox.store.broadcasts import MARGIN_S, Broadcasts
from outbox.store.connect import connect_hot
from tests.broadcast.conftest import Station
from tests.engine.engine import another, seconds

T = TypeVar("T")
READ = (
    "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE indexrelname = 'delivery_due'"
)


class Times:
    """The server's clock, and one by which a walk takes 0.1 s: the next comes 20 looks later."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.ticks = itertools.count()

    def clock(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return next(self.ticks) * 0.1

    def let_walk(self) -> None:
        for _ in range(25):
            next(self.ticks)


def with_store(
    station: Station, body: Callable[[Broadcasts, Times], Awaitable[T]]
) -> tuple[T, Times]:
    """Run with the statements over a hot connection, by clocks of ours."""

    async def run() -> tuple[T, Times]:
        connection = await connect_hot(station.url, "test")
        times = Times(station.now())
        try:
            store = Broadcasts(connection, times.clock, times.monotonic)
            await store.prepare()
            return await body(store, times), times
        finally:
            await connection.raw.close()

    return asyncio.run(run())


def test_what_is_committed_later_than_it_says_is_found_without_a_walk(station: Station) -> None:
    """A relay dates what it routes by its beginning, and a broadcaster may look before it commits.
    What lies further back is found by the next walk."""
    station.subscribe_broadcast()

    async def body(store: Broadcasts, times: Times) -> list[int]:
        found = []
        for late_s in (0.0, MARGIN_S - 0.1, MARGIN_S + 0.1):
            station.emit()
            station.route(now=times.now - seconds(late_s))
            found.append((await store.send(10, (await store.due()).sql)).sent)
            times.now += seconds(5)
            assert (await store.due()).sql == []
        times.let_walk()
        found.append((await store.send(10, (await store.due()).sql)).sent)
        return found

    assert with_store(station, body)[0] == [1, 1, 0, 1]
    assert station.states() == {}


def test_a_lane_that_nobody_knew_is_found_by_the_next_walk(station: Station) -> None:
    station.subscribe_broadcast()

    async def body(store: Broadcasts, times: Times) -> list[int]:
        assert (await store.due()).sql == []
        station.emit()
        station.route(now=times.now)
        due = await store.due()
        assert due.next_due_s is not None
        assert 0 < due.next_due_s <= 2.0, "it walks as soon as it may: somebody rang"
        times.let_walk()
        return [len(due.sql), len((await store.due()).sql)]

    assert with_store(station, body)[0] == [0, 1]


def test_it_is_told_when_the_next_is_due_and_when_a_window_ends(station: Station) -> None:
    station.subscribe_broadcast(coalesce_s=3.0)

    async def body(store: Broadcasts, times: Times) -> list[float | None]:
        station.emit(deliver_at=times.now + seconds(60))
        station.route(now=times.now)
        told = []
        for _ in range(2):  # by a walk, and by what is known, until the next walk
            due = await store.due()
            assert due.sql == []
            told.append(None if due.next_due_s is None else round(due.next_due_s, 1))
        return told

    assert with_store(station, body)[0] == [63.0, 1.7]


def test_broadcasts_cost_the_same_while_somebody_holds_a_snapshot(station: Station) -> None:
    """What was sent stays in the index, before the front of its lane."""
    station.subscribe_broadcast()

    async def body(store: Broadcasts, times: Times) -> list[int]:
        flush = "SELECT pg_stat_force_next_flush()"
        cost = []
        with another(station.url) as holder:
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM outbox.subscription")
            for _ in range(8):  # the first time by a walk
                times.now += seconds(5)
                station.emit(300)
                station.route(now=times.now)
                station.run(flush)
                before = station.one(READ)
                assert (await store.send(1000, (await store.due()).sql)).sent == 300
                times.ticks = itertools.count(2)
                await store._connection.raw.execute(flush)
                cost.append(station.one(READ) - before)
        return cost

    cost = with_store(station, body)[0]
    assert max(cost[1:]) <= 1.2 * min(cost[1:]), cost


def test_programs_of_the_level_before_claim_wherever_something_waits(station: Station) -> None:
    """They name no places."""
    subscription = station.subscribe_broadcast()
    station.emit(3)
    station.route()
    first = "SELECT min(id::text)::uuid FROM outbox.delivery"
    station.run(f"UPDATE outbox.delivery SET attempts = 1 WHERE id = ({first})")
    claim = "SELECT count(*), min(lane) FROM outbox.broadcast_claim(clock_timestamp(), %s, 10)"
    assert station.rows(claim, "sql") == [(3, -subscription)]
    assert station.rows(claim, "http") == [(0, None)]
