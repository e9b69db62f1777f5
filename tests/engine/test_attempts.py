"""Take, settle, extend, release: fenced by the token, facts and projections together."""

from __future__ import annotations

from threading import Thread
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.store.statements import statement
from tests.engine.engine import LEASE_S, Engine, Lease, another, seconds

AFTER = seconds(LEASE_S + 1)


@pytest.fixture
def lease(engine: Engine) -> Lease:
    """One leased delivery of organization acme."""
    engine.subscribe(retry="5s,10s")
    engine.emit(subject="orders/1", headers='{"outbox-hops": "2"}', payload='{"a" : 1.50}')
    [made] = engine.leases()
    return made


def stale(lease: Lease) -> Lease:
    return lease[0], lease[1] + 1_000_000


def image(engine: Engine) -> list[tuple[object, ...]]:
    """Everything that a statement could have changed."""
    return [
        *engine.rows("SELECT d::text FROM outbox.delivery d"),
        *engine.rows("SELECT d::text FROM outbox.dead_letter d"),
        *engine.rows("SELECT count(*) FROM outbox.journal"),
    ]


# -- take -----------------------------------------------------------------------------------------


def test_take_returns_what_the_attempt_needs(engine: Engine, lease: Lease) -> None:
    [row] = engine.take([lease])
    event = engine.one("SELECT id FROM outbox.event")
    assert row[:2] == lease
    assert LEASE_S - 5 < row[2] <= LEASE_S
    assert row[3:6] == (1, event, "orders.paid")
    assert row[7:11] == ('{"a" : 1.50}', '{"outbox-hops": "2"}', "acme", "orders/1")
    assert row[12:15] == ("webhook", 1, "5s,10s")
    assert engine.delivery(lease[0])["started_at"] is not None


def test_a_lease_is_started_once(engine: Engine, lease: Lease) -> None:
    """I2: a message that the broker repeats starts nothing."""
    assert len(engine.take([lease, lease])) == 1
    assert engine.take([lease]) == []


def test_two_workers_with_the_same_message_start_it_once(engine: Engine, lease: Lease) -> None:
    with another(engine.url) as second:
        params = {"now": None, "ids": [lease[0]], "tokens": [lease[1]]}
        with engine.connection.transaction():
            assert len(engine.take([lease])) == 1
            second.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                engine._rows("take", params, second)
        assert engine._rows("take", params, second) == []


@pytest.mark.parametrize("table", ["subscription", "endpoint"])
@pytest.mark.parametrize("state", ["paused", "disabled", "removed"])
def test_nothing_starts_for_a_destination_that_rests(
    engine: Engine, lease: Lease, table: str, state: str
) -> None:
    engine.run(f"UPDATE outbox.{table} SET state = %s", state)
    before = image(engine)
    assert engine.take([lease]) == []
    assert image(engine) == before


def test_nothing_starts_after_its_lease_or_with_a_stale_token(engine: Engine, lease: Lease) -> None:
    before = image(engine)
    assert engine.take([lease], engine.now() + AFTER) == []
    assert engine.take([stale(lease)]) == []
    assert engine.take([(UUID(int=1), lease[1])]) == []
    assert image(engine) == before


def test_the_body_format_is_that_of_the_revision_it_was_routed_under(
    engine: Engine, lease: Lease
) -> None:
    """The same bytes on every attempt, whatever the subscription says by now."""
    engine.run(
        "INSERT INTO outbox.subscription_revision (subscription_id, revision, config)"
        " SELECT id, 1, '{\"body_format\": 1}' FROM outbox.subscription"
    )
    engine.run("UPDATE outbox.subscription SET body_format = 2, revision = 2, retry = '7s'")
    [row] = engine.take([lease])
    assert row[13:15] == (1, "7s")


# -- settle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["delivered", "plain"])
def test_delivered_ends_it_with_a_fact_and_no_row(
    engine: Engine, lease: Lease, verdict: str
) -> None:
    engine.take([lease])
    more: dict[str, Any] = {"reason": "http_200", "detail": '{"status": 200}'}
    assert engine.settle([lease], verdict, **more) == {lease[0]}
    assert engine.states() == {}
    assert engine.facts(lease[0]) == [("delivered", "http_200", True, 1)]
    engine.check()


def test_a_retry_is_charged_and_due_after_its_delay(engine: Engine, lease: Lease) -> None:
    engine.take([lease])
    now = engine.now()
    engine.settle([lease], "retry", reason="http_500", delay_s=5.25, now=now)
    row = engine.delivery(lease[0])
    assert (row["state"], row["attempts"], row["token"], row["started_at"]) == (
        "scheduled",
        1,
        None,
        None,
    )
    assert row["due_at"] == now + seconds(5.25)
    assert engine.facts(lease[0]) == [("attempt_failed", "http_500", True, 1)]
    assert engine.due(now=now + seconds(5.2)) == []
    [again] = engine.due(now=now + seconds(5.25))
    assert engine.take([again], now + seconds(6))[0][3] == 2
    engine.check()


def test_our_own_fault_charges_nothing(engine: Engine, lease: Lease) -> None:
    """I4."""
    engine.take([lease])
    engine.settle([lease], "retry", charged=False, reason="processor_error", delay_s=30.0)
    assert engine.delivery(lease[0])["attempts"] == 0
    assert engine.facts(lease[0]) == [("attempt_failed", "processor_error", False, 0)]
    engine.check()


def test_dead_goes_to_the_dead_letters_with_its_reason(engine: Engine, lease: Lease) -> None:
    engine.take([lease])
    engine.settle([lease], "dead", reason="http_410", detail='{"status": 410}')
    query = "SELECT id, org_id, attempts, budget, reason, detail FROM outbox.dead_letter"
    assert engine.rows(query) == [(lease[0], "acme", 1, 1, "http_410", {"status": 410})]
    assert engine.states() == {"dead": 1}
    engine.check()


def test_a_release_is_due_at_once_and_free(engine: Engine, lease: Lease) -> None:
    engine.take([lease])
    engine.settle([lease], "release", charged=False, reason="shutdown")
    assert engine.delivery(lease[0])["attempts"] == 0
    assert len(engine.due()) == 1
    assert engine.facts(lease[0]) == [("released", "shutdown", False, 0)]
    engine.check()


@pytest.mark.parametrize("verdict", ["delivered", "plain", "retry", "dead", "release"])
def test_a_stale_token_changes_nothing(engine: Engine, lease: Lease, verdict: str) -> None:
    """I3."""
    engine.take([lease])
    before = image(engine)
    assert engine.settle([stale(lease)], verdict) == set()
    assert engine.extend([stale(lease)], 99.0) == set()
    engine.release([stale(lease)])
    assert image(engine) == before


@pytest.mark.parametrize("verdict", ["delivered", "plain", "retry", "dead", "release"])
def test_what_was_leased_again_belongs_to_the_new_token(
    engine: Engine, lease: Lease, verdict: str
) -> None:
    engine.take([lease])
    now = engine.now() + AFTER
    engine.expire(now)
    [new] = engine.due(now=now)
    before = image(engine)
    assert engine.settle([lease], verdict, now=now) == set()
    assert engine.take([lease], now) == []
    assert engine.extend([lease], 99.0, now) == set()
    assert image(engine) == before
    engine.take([new], now)
    last = "plain" if verdict == "plain" else "delivered"
    assert engine.settle([new], last, now=now) == {new[0]}
    assert engine.settle([new], last, now=now) == set()
    engine.check()


@pytest.mark.parametrize("verdict", ["delivered", "plain"])
def test_what_never_started_cannot_be_settled(engine: Engine, lease: Lease, verdict: str) -> None:
    before = image(engine)
    assert engine.settle([lease], verdict) == set()
    assert image(engine) == before


def test_a_late_settle_still_counts_while_nobody_took_the_lease_back(
    engine: Engine, lease: Lease
) -> None:
    engine.take([lease])
    assert engine.settle([lease], "delivered", now=engine.now() + AFTER) == {lease[0]}


def test_facts_and_projection_appear_together(engine: Engine, lease: Lease) -> None:
    engine.take([lease])
    with another(engine.url) as reader:
        look = (
            "SELECT (SELECT count(*) FROM outbox.delivery),"
            " (SELECT count(*) FROM outbox.journal WHERE fact = 'delivered')"
        )
        with engine.connection.transaction():
            engine.settle([lease], "delivered")
            assert reader.execute(look).fetchone() == (1, 0)
        assert reader.execute(look).fetchone() == (0, 1)


def test_one_batch_may_end_in_every_way(engine: Engine) -> None:
    engine.subscribe()
    engine.emit(5)
    leases = engine.leases()
    engine.take(leases)
    params = {
        "now": None,
        "ids": [lease[0] for lease in leases],
        "tokens": [leases[0][1]] * 4 + [0],
        "verdicts": ["delivered", "retry", "dead", "release", "delivered"],
        "charged": [True, True, True, False, True],
        "reasons": ["a", "b", "c", "d", "e"],
        "delays_s": [None, 60.0, None, None, None],
        "details": ['{"n": 1}', None, '{"n": 3}', None, None],
        "effects": [None] * 5,
    }
    settled = {row[0] for row in engine._rows("settle", params)}
    assert settled == {lease[0] for lease in leases[:4]}
    assert engine.states() == {"scheduled": 2, "dead": 1, "leased": 1}
    engine.check()


def test_a_detail_that_cannot_be_kept_fails_the_batch_whole(engine: Engine, lease: Lease) -> None:
    """The worker then settles without details; nothing is half-done in between."""
    engine.take([lease])
    before = image(engine)
    with pytest.raises(psycopg.DataError):
        engine.settle([lease], "delivered", detail='{"response": "\\u0000"}')
    assert image(engine) == before


# -- extend and release ---------------------------------------------------------------------------


def test_a_running_attempt_is_extended_by_the_servers_clock(engine: Engine, lease: Lease) -> None:
    """I10: whatever the worker's clock says."""
    engine.take([lease])
    now = engine.now() + seconds(20)
    assert engine.extend([lease], LEASE_S, now) == {lease[0]}
    assert engine.delivery(lease[0])["lease_until"] == now + seconds(LEASE_S)
    assert engine.expire(now + seconds(LEASE_S - 1)).started == 0


def test_an_expired_lease_is_not_revived(engine: Engine, lease: Lease) -> None:
    engine.take([lease])
    assert engine.extend([lease], LEASE_S, engine.now() + AFTER) == set()


def test_an_unstarted_lease_is_given_back_free_of_charge(engine: Engine, lease: Lease) -> None:
    engine.release([lease])
    row = engine.delivery(lease[0])
    assert (row["state"], row["attempts"], row["expiries"]) == ("scheduled", 0, 0)
    assert engine.take([lease]) == [], "the message that still carries it is void"
    assert len(engine.due()) == 1
    engine.check()


def test_a_started_lease_is_not_given_back(engine: Engine, lease: Lease) -> None:
    engine.take([lease])
    engine.release([lease])
    assert engine.states() == {"leased": 1}


def test_a_stale_release_gives_nothing_back(engine: Engine, lease: Lease) -> None:
    """I3: also while the lease has not started."""
    before = image(engine)
    engine.release([stale(lease)])
    assert image(engine) == before
    assert len(engine.take([lease])) == 1


def test_a_cancel_that_waited_is_told_after_what_happened_meanwhile(engine: Engine) -> None:
    """It locks row by row: while it waits for the first, the second is settled."""
    engine.subscribe()
    engine.emit(2)
    leases = sorted(engine.leases())
    engine.take(leases)
    params = {"ids": [lease[0] for lease in leases], "org_id": None, "reason": "operator"}
    with another(engine.url) as first, another(engine.url) as cancelling:
        with first.transaction():
            first.execute("SELECT FROM outbox.delivery WHERE id = %s FOR UPDATE", [leases[0][0]])
            thread = Thread(target=lambda: cancelling.execute(statement("cancel_ids"), params))
            thread.start()
            while not engine.rows("SELECT FROM pg_locks WHERE NOT granted"):
                pass
            engine.settle(leases[1:], "retry", delay_s=0.0)
        thread.join(30)
    assert [fact[0] for fact in engine.facts(leases[1][0])] == ["attempt_failed", "cancelled"]
    engine.check()
