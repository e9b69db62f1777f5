"""Leasing what is due: fair over lanes, within permits, fresh work before retries."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest

from tests.engine.engine import Engine, seconds


def lanes(engine: Engine, count: int, each: int, **fields: object) -> list[int]:
    """So many lanes with so many scheduled deliveries each."""
    made = []
    for number in range(count):
        org = f"org{number}"
        made.append(engine.endpoint(org, **fields))
        engine.subscribe(org=org, endpoint_id=made[-1])
        engine.emit(each, org=org)
    engine.route(0)
    return made


def leased_by_lane(engine: Engine) -> dict[int, int]:
    query = "SELECT lane, count(*) FROM outbox.delivery WHERE state = 'leased' GROUP BY 1"
    return {row[0]: row[1] for row in engine.rows(query)}


def failed(engine: Engine, count: int, concurrency: int) -> datetime:
    """So many deliveries of one lane whose first attempt failed; the time they are due again."""
    [lane] = lanes(engine, 1, count)
    now = engine.now()
    engine.run("UPDATE outbox.endpoint SET concurrency = 100000")
    leases = engine.due(now=now)
    assert len(engine.take(leases, now)) == count
    engine.settle(leases, "retry", delay_s=0.0, now=now)
    engine.run("UPDATE outbox.endpoint SET concurrency = %s WHERE id = %s", concurrency, lane)
    return now


def test_lanes_take_turns_within_the_window(engine: Engine) -> None:
    made = lanes(engine, 3, 10)
    assert len(engine.due(6)) == 6
    assert leased_by_lane(engine) == dict.fromkeys(made, 2)


@pytest.mark.parametrize("attempts", [0, 1])
def test_more_lanes_than_the_window_take_turns_by_lot(engine: Engine, attempts: int) -> None:
    """Also beside fresh work, where few that are not fresh may go: none waits for ever."""
    lanes(engine, 30, 10)
    engine.run("UPDATE outbox.delivery SET attempts = %s", attempts)
    served: set[int] = set()
    for _ in range(10):
        engine.due(6) if attempts == 0 else engine.lease_due(later_max=6)
        served |= leased_by_lane(engine).keys()
        engine.run("DELETE FROM outbox.delivery WHERE state = 'leased'")
    assert len(served) > 12, "at first the same six were served ten times"


def test_a_walk_over_many_lanes_goes_on_where_it_ended(engine: Engine) -> None:
    made = lanes(engine, 5, 1)
    seen: list[int] = []
    while found := engine.walk(seen[-1] if seen else 0, lanes_max=2):
        assert len(found) <= 2
        seen += [lane for lane, _, _ in found]
    assert seen == made


def test_a_cut_walk_tells_all_queues_of_the_lanes_that_it_tells(engine: Engine) -> None:
    """Each queue has its own lanes: of what lies behind the last, some is missing."""
    made = lanes(engine, 4, 1)
    engine.run("UPDATE outbox.delivery SET attempts = 1 WHERE lane = ANY (%s)", made[1:3])
    assert [found[:2] for found in engine.walk(lanes_max=2)] == [(made[0], 0), (made[1], 1)]
    assert [found[:2] for found in engine.walk(made[1])] == [(made[3], 0), (made[2], 1)]


def test_it_tells_whether_something_was_due_that_is_no_first_attempt(engine: Engine) -> None:
    [lane] = lanes(engine, 1, 2, concurrency=2)
    now = engine.now()
    found, token = engine.lease_due(1, now=now)
    assert not found.later
    leases = [(UUID(each), token) for each in found.ids]
    engine.take(leases, now)
    engine.settle(leases, "retry", delay_s=5.0, now=now)
    assert not engine.lease_due(now=now + seconds(4))[0].later
    assert engine.lease_due(now=now + seconds(6), later_max=0)[0].later
    assert leased_by_lane(engine) == {lane: 1}
    engine.run("UPDATE outbox.endpoint SET concurrency = 1")
    assert not engine.lease_due(now=now + seconds(6), later_max=0)[0].later, "it has no permit"


def test_permits_of_a_lane_hold(engine: Engine) -> None:
    [lane] = lanes(engine, 1, 10, concurrency=4)
    first = engine.due()
    assert len(first) == 4
    assert engine.due() == []
    engine.take(first)
    engine.settle(first[:3], "delivered")
    assert len(engine.due()) == 3
    assert leased_by_lane(engine) == {lane: 4}


def test_first_attempts_go_before_retries(engine: Engine) -> None:
    """I15: they flow while a storm of retries of any size rages."""
    now = failed(engine, 20, concurrency=8)
    engine.emit(3, org="org0")
    engine.route(0, now=now)
    leases = engine.due(8, now=now + seconds(1))
    attempts = sorted(engine.delivery(delivery)["attempts"] for delivery, _ in leases)
    assert attempts == [0, 0, 0, 1, 1, 1, 1, 1]


def test_retries_leave_a_quarter_of_the_permits_free(engine: Engine) -> None:
    now = failed(engine, 20, concurrency=8)
    assert len(engine.due(now=now + seconds(1))) == 6
    assert engine.due(now=now + seconds(1)) == []
    engine.emit(5, org="org0")
    assert len(engine.leases(now=now + seconds(1))) == 2


def test_a_lane_with_one_permit_retries_too(engine: Engine) -> None:
    now = failed(engine, 3, concurrency=1)
    assert len(engine.due(now=now + seconds(1))) == 1


def test_the_next_due_time_is_told(engine: Engine) -> None:
    now = engine.now()
    for org, wait_s in (("a", 50), ("b", 20)):
        engine.subscribe(org=org)
        engine.emit(org=org, deliver_at=now + seconds(wait_s))
    engine.route(0)
    leased, _ = engine.lease_due(now=now)
    assert leased.ids == []
    assert leased.next_due_s is not None
    assert round(leased.next_due_s, 3) == 20
    leased, _ = engine.lease_due(now=now + seconds(20))
    assert len(leased.ids) == 1


def test_nothing_scheduled_has_no_next_due_time(engine: Engine) -> None:
    leased, _ = engine.lease_due()
    assert (leased.ids, leased.next_due_s, leased.idle) == ([], None, 0)


def test_what_must_not_be_tried_is_seen_and_left(engine: Engine) -> None:
    """Expired, too old, paused: counted as idle, so that the relay tends them at once."""
    now = engine.now()
    engine.subscribe(org="old", max_age=seconds(10))
    engine.subscribe(org="expired")
    paused = engine.subscribe(org="paused")
    resting = engine.subscribe(org="resting")
    for org in ("old", "paused", "resting"):
        engine.emit(org=org)
    engine.emit(org="expired", expires_at=now + seconds(10))
    engine.route(0)
    engine.run("UPDATE outbox.subscription SET state = 'paused' WHERE id = %s", paused)
    engine.run("UPDATE outbox.endpoint SET state = 'paused' WHERE id = %s", engine.lane_of(resting))
    leased, _ = engine.lease_due(now=now + seconds(20))
    assert (leased.ids, leased.idle) == ([], 4)
    assert engine.tend(now + seconds(20)) == 4
    assert engine.states() == {"dead": 2, "held": 2}
    assert engine.lease_due(now=now + seconds(20))[0].idle == 0
    engine.check()


def test_tending_cancels_what_goes_to_the_removed_and_ends_held_past_their_expiry(
    engine: Engine,
) -> None:
    now = engine.now()
    removed = engine.subscribe(org="removed")
    paused = engine.subscribe(org="paused", state="paused", max_age=seconds(10))
    engine.emit(org="removed")
    engine.emit(org="paused", expires_at=now + seconds(100))
    engine.route(0)
    engine.run("UPDATE outbox.subscription SET state = 'removed' WHERE id = %s", removed)
    assert engine.tend(now + seconds(50)) == 1, "the maximum age stands still while held"
    assert engine.states() == {"held": 1}
    assert engine.tend(now + seconds(100)) == 1
    assert engine.rows("SELECT subscription_id, reason FROM outbox.dead_letter") == [
        (paused, "expired")
    ]
    told = engine.rows("SELECT fact FROM outbox.journal WHERE fact <> 'routed' ORDER BY 1")
    assert told == [("cancelled",), ("expired",)]
    engine.check()


def test_tending_works_in_batches_and_leaves_the_fit_alone(engine: Engine) -> None:
    lanes(engine, 1, 10)
    subscription = engine.one("SELECT id FROM outbox.subscription")
    assert engine.tend() == 0
    engine.run("UPDATE outbox.subscription SET state = 'paused' WHERE id = %s", subscription)
    assert [engine.tend(rows_max=4) for _ in range(4)] == [4, 4, 2, 0]
    engine.check()


def test_first_attempts_of_every_lane_go_before_retries_of_any(engine: Engine) -> None:
    made = lanes(engine, 2, 2)
    now = engine.now()
    leases = engine.due(now=now)
    assert len(engine.take(leases, now)) == 4
    engine.settle(leases, "retry", delay_s=0.0, now=now)
    for org in ("org0", "org1"):
        engine.emit(1, org=org)
    engine.route(0, now=now)
    found = [engine.delivery(delivery) for delivery, _ in engine.due(2, now=now + seconds(1))]
    assert sorted(row["lane"] for row in found) == made
    assert [row["attempts"] for row in found] == [0, 0]


def test_each_delivery_waits_for_its_own_due_time(engine: Engine) -> None:
    """I5: another one of its lane that is due does not take it along."""
    lanes(engine, 1, 4)
    now = engine.now()
    leases = engine.due(now=now)
    engine.take(leases, now)
    for lease, delay_s in zip(leases, (0.0, 60.0, 60.0, 60.0), strict=True):
        engine.settle([lease], "retry", delay_s=delay_s, now=now)
    assert [delivery for delivery, _ in engine.due(now=now + seconds(1))] == [leases[0][0]]
    assert len(engine.due(now=now + seconds(60))) == 3
