"""Destinations that fail: circuits and their probes, warnings, disabling."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from outbox.health import Health, LaneHealth
from outbox.outcome import Kind
from outbox.store.endpoints import resume_endpoint
from outbox.store.statements import statement
from tests.engine.engine import Engine, seconds


def report(
    engine: Engine, lane: int, now: datetime, *, failed: int = 0, down: int = 0, ok: bool = False
) -> list[int]:
    """Report one lane as a worker does; the lanes whose circuits are open."""
    params = {
        "now": now,
        "lanes": [lane],
        "delivered": [ok],
        "failures": [failed],
        "down": [down],
        "open_failures": 20,
        "open_after_s": 30.0,
        "probe_s_min": 2.0,
        "probe_s_max": 30.0,
    }
    return [row[0] for row in engine._rows("lane_report", params)]


def broken(engine: Engine, lane: int, now: datetime) -> datetime:
    """Open the circuit of a lane; the time at which it opened."""
    assert report(engine, lane, now, failed=19, down=19) == []
    opened_at = now + seconds(30)
    assert report(engine, lane, opened_at, failed=1, down=1) == [lane]
    return opened_at


def probe_at(engine: Engine, lane: int) -> Any:
    return engine.one("SELECT min(probe_at) FROM outbox.lane_health WHERE lane = %s", lane)


@pytest.fixture
def lane(engine: Engine) -> int:
    """The lane of one endpoint that gets everything."""
    return engine.lane_of(engine.subscribe())


def test_a_lane_that_delivers_has_no_row(engine: Engine, lane: int) -> None:
    report(engine, lane, engine.now(), ok=True)
    report(engine, lane, engine.now(), failed=3, down=3)
    report(engine, lane, engine.now(), failed=1, down=1, ok=True)
    assert engine.one("SELECT count(*) FROM outbox.lane_health") == 0


def test_a_circuit_opens_after_many_failures_and_some_time(engine: Engine, lane: int) -> None:
    now = engine.now()
    assert report(engine, lane, now, failed=500, down=500) == []
    assert report(engine, lane, now + seconds(29), failed=1, down=1) == []
    assert report(engine, lane, now + seconds(30), failed=1, down=1) == [lane]
    few = engine.lane_of(engine.subscribe())
    report(engine, few, now, failed=1, down=1)
    assert report(engine, few, now + seconds(300), failed=1, down=1) == []


def test_an_answer_starts_the_count_anew(engine: Engine, lane: int) -> None:
    """429 and 4xx are failures of the delivery, but the destination is there."""
    now = engine.now()
    report(engine, lane, now, failed=100, down=100)
    report(engine, lane, now + seconds(10), failed=1, down=0)
    assert report(engine, lane, now + seconds(31), failed=100, down=100) == []
    assert engine.one("SELECT failing_since FROM outbox.lane_health") == now


def test_an_open_circuit_lets_one_probe_through_at_a_time(engine: Engine, lane: int) -> None:
    now = broken(engine, lane, engine.now())
    engine.emit(5)
    routed, _ = engine.route(100, now=now)
    assert (routed.leased, routed.waiting) == (0, 0)
    assert engine.due(now=now + seconds(1.9)) == []
    leased, _ = engine.lease_due(now=now + seconds(1))
    assert leased.next_due_s == pytest.approx(1.0)
    assert not leased.blocked
    [probe] = engine.due(now=now + seconds(2))
    assert engine.due(now=now + seconds(20)) == []  # while it is under way
    engine.take([probe], now + seconds(2))
    engine.settle([probe], "retry", delay_s=0.0, now=now + seconds(3))
    report(engine, lane, now + seconds(3), failed=1, down=1)
    assert probe_at(engine, lane) == now + seconds(3 + 4)
    assert len(engine.due(now=now + seconds(7))) == 1


def test_probes_grow_rarer_up_to_a_bound_and_late_failures_move_none(
    engine: Engine, lane: int
) -> None:
    now = broken(engine, lane, engine.now())
    report(engine, lane, now + seconds(1), failed=9, down=9)
    assert probe_at(engine, lane) == now + seconds(2)
    engine.emit(1)
    engine.route(0, now=now)
    gaps = []
    for _ in range(6):
        now = probe_at(engine, lane)
        [lease] = engine.due(now=now)
        engine.take([lease], now)
        engine.settle([lease], "retry", delay_s=0.0, now=now)
        report(engine, lane, now, failed=1, down=1)
        gaps.append((probe_at(engine, lane) - now).total_seconds())
    assert gaps == [4, 8, 16, 30, 30, 30]


def test_a_probe_that_is_delivered_closes_the_circuit(engine: Engine, lane: int) -> None:
    now = broken(engine, lane, engine.now())
    engine.emit(5)
    engine.route(100, now=now)
    [probe] = engine.due(now=now + seconds(2))
    report(engine, lane, now + seconds(2), ok=True)
    assert len(engine.due(now=now + seconds(2))) == 4
    assert engine.delivery(probe[0])["attempts"] == 0


def test_a_probe_that_nobody_reports_is_followed_by_another(engine: Engine, lane: int) -> None:
    now = broken(engine, lane, engine.now())
    engine.emit(1)
    engine.route(0, now=now)
    assert len(engine.due(now=now + seconds(2))) == 1
    engine.expire(now + seconds(60))
    assert len(engine.due(now=now + seconds(60))) == 1


def test_an_endpoint_without_a_circuit_is_never_probed(engine: Engine, lane: int) -> None:
    engine.run("UPDATE outbox.endpoint SET circuit = false")
    now = engine.now()
    report(engine, lane, now, failed=99, down=99)
    assert report(engine, lane, now + seconds(99), failed=99, down=99) == []


def tend(engine: Engine) -> list[tuple[int, int]]:
    rows = engine.connection.execute(statement("tend_health"), {"now": None}).fetchall()
    return [(row[0], row[2]) for row in rows]


def own_events(engine: Engine) -> list[tuple[str, int | None]]:
    """Type and percent of the events that Outbox itself wrote."""
    query = (
        "SELECT type, (payload ->> 'percent')::int FROM outbox.event"
        " WHERE type LIKE 'outbox.%%' AND org_id = 'acme' AND subject = 'endpoints/' || %s"
        " ORDER BY id"
    )
    return engine.rows(query, str(engine.one("SELECT min(id) FROM outbox.endpoint")))


def test_warnings_come_at_50_70_and_90_percent_and_once_each(engine: Engine, lane: int) -> None:
    now = engine.now()
    report(engine, lane, now, failed=1, down=1)
    for days in (2.4, 2.5, 2.6, 3.5, 4.5, 4.9, 5.0, 6.0):
        report(engine, lane, now + timedelta(days=days), failed=1, down=1)
        tend(engine)
    assert own_events(engine) == [
        ("outbox.endpoint.failing", 50),
        ("outbox.endpoint.failing", 70),
        ("outbox.endpoint.failing", 90),
        ("outbox.endpoint.disabled", 100),
    ]
    assert engine.rows("SELECT state, state_reason FROM outbox.endpoint") == [
        ("disabled", "failing")
    ]


def test_time_without_traffic_is_no_failure(engine: Engine, lane: int) -> None:
    report(engine, lane, engine.now() - timedelta(days=30), failed=1, down=1)
    assert tend(engine) == []


def test_an_endpoint_may_be_kept_for_ever(engine: Engine, lane: int) -> None:
    engine.run("UPDATE outbox.endpoint SET disable_after = NULL")
    report(engine, lane, engine.now() - timedelta(days=30), failed=1, down=1)
    report(engine, lane, engine.now(), failed=1, down=1)
    assert tend(engine) == []


def test_what_a_disabled_endpoint_missed_is_recorded_and_comes_when_it_is_back(
    engine: Engine, lane: int
) -> None:
    now = engine.now()
    report(engine, lane, now - timedelta(days=6), failed=1, down=1)
    report(engine, lane, now, failed=1, down=1)
    assert tend(engine) == [(lane, 100)]
    engine.emit(3)
    engine.route(100)
    assert engine.states() == {"held": 3}
    with psycopg.connect(engine.url, autocommit=True) as connection:
        resume_endpoint(connection, lane)
    assert len(engine.due()) == 3
    assert engine.one("SELECT count(*) FROM outbox.lane_health") == 0
    engine.check()


def test_the_warnings_match_only_who_asks_for_them(engine: Engine, lane: int) -> None:
    engine.subscribe(("outbox.endpoint.*",))
    report(engine, lane, engine.now() - timedelta(days=3), failed=1, down=1)
    report(engine, lane, engine.now(), failed=1, down=1)
    tend(engine)
    assert engine.route(100)[0].deliveries == 1


def test_a_report_counts_what_the_outcomes_say() -> None:
    health = Health()
    for kind in Kind:
        health.note(7, kind, "orders.paid")
    assert health.take() == {7: LaneHealth(delivered=True, answered=True, failures=4, down=2)}
    assert health.take() == {}


def test_failures_of_our_own_events_are_not_held_against_a_lane() -> None:
    health = Health()
    health.note(7, Kind.RETRY, "outbox.endpoint.failing")
    assert health.lanes == {}
    health.note(7, Kind.DELIVERED, "outbox.endpoint.failing")
    assert health.take()[7].delivered
