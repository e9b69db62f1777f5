"""Leases that run out, are given back, or are lengthened."""

from __future__ import annotations

from outbox.rhythm import ALL_LEASES_S, LEASES_S, Rhythm
from outbox.store.dispatch import Claim
from tests.engine.engine import LEASE_S, Engine, seconds

AFTER = seconds(LEASE_S + 1)


def test_a_lease_that_never_started_costs_nothing(engine: Engine) -> None:
    engine.subscribe()
    engine.emit()
    [(delivery, _)] = engine.leases()
    now = engine.now() + AFTER
    expired = engine.expire(now)
    assert (expired.started, expired.unstarted, expired.dead) == (0, 1, 0)
    row = engine.delivery(delivery)
    assert (row["state"], row["attempts"], row["expiries"], row["due_at"]) == (
        "scheduled",
        0,
        0,
        now,
    )
    engine.check()


def test_a_started_lease_that_ran_out_counts_apart_from_attempts(engine: Engine) -> None:
    engine.subscribe()
    engine.emit()
    [lease] = engine.leases()
    engine.take([lease])
    now = engine.now() + AFTER
    expired = engine.expire(now)
    assert (expired.started, expired.unstarted, expired.dead) == (1, 0, 0)
    row = engine.delivery(lease[0])
    assert (row["state"], row["attempts"], row["expiries"]) == ("scheduled", 0, 1)
    engine.check()


def test_started_leases_that_run_out_end_in_a_dead_letter_at_their_limit(engine: Engine) -> None:
    """A delivery that kills its worker cannot loop for ever (I4)."""
    engine.subscribe()
    engine.emit()
    [lease] = engine.leases()
    now = engine.now()
    for left in (2, 1, 0):
        assert engine.take([lease], now)
        now += AFTER
        expired = engine.expire(now, expiries_max=3)
        assert (expired.started, expired.dead) == (1, left == 0)
        if left:
            [lease] = engine.due(now=now)
    [dead] = engine.rows("SELECT id, attempts, expiries, reason FROM outbox.dead_letter")
    assert dead == (lease[0], 0, 2, "lease_expired")  # and the third, which killed it
    engine.check()


def test_what_runs_still_is_left_alone(engine: Engine) -> None:
    engine.subscribe()
    engine.emit(3)
    assert engine.leases()
    assert engine.expire(engine.now() + seconds(LEASE_S - 1)).unstarted == 0
    assert engine.states() == {"leased": 3}


def test_leases_are_taken_back_in_batches_oldest_first(engine: Engine) -> None:
    engine.subscribe()
    engine.emit(3)
    now = engine.now()
    first = engine.leases(claim=Claim(1), now=now)
    second = engine.leases(claim=Claim(1), now=now + seconds(1))
    assert engine.expire(now + AFTER + seconds(5), rows_max=1).unstarted == 1
    assert engine.delivery(first[0][0])["state"] == "scheduled"
    assert engine.delivery(second[0][0])["state"] == "leased"


def test_a_relay_looks_back_as_far_as_the_last_look_that_found_nothing() -> None:
    """What was locked, or more than a batch, is found by the next looks however long it lasts."""
    rhythm = Rhythm(0.0)
    assert rhythm.leases_since(100.0) is None
    rhythm.leases_seen(100.0, None)
    assert rhythm.leases_since(100.25) == 0.25 + LEASES_S
    assert rhythm.leases_since(130.0) == 30.0 + LEASES_S  # looks that found something
    rhythm.leases_seen(130.0, 30.0 + LEASES_S)
    assert rhythm.leases_since(130.25) == 0.25 + LEASES_S
    assert rhythm.leases_since(100.0 + ALL_LEASES_S) is None


def test_of_leases_that_ran_out_only_the_late_ones_are_taken_back_where_so_asked(
    engine: Engine,
) -> None:
    engine.subscribe()
    engine.emit()
    engine.leases()
    later = engine.now() + seconds(LEASE_S + 60)
    assert engine.expire(later, since_s=10.0).unstarted == 0
    assert engine.expire(later, since_s=90.0).unstarted == 1
