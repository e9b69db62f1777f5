"""Two sessions at once: whichever comes second sees what the first did, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest

from outbox.store import endpoints as store
from outbox.store.dead import Redriven, Selection, discard, redrive
from outbox.store.deliveries import Aligned, cancel_deliveries
from outbox.store.dispatch import Dispatch
from outbox.store.statements import statement
from outbox.store.subscriptions import Rule, pause_subscription
from tests.admin.helpers import Behind, Connection, Shop, settlements
from tests.admin.storm import Storm, deadlocks, described, equal, left


@contextmanager
def open_transaction(url: str) -> Iterator[Connection]:
    """A session that holds its locks until it leaves the block, where it commits."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1")  # begins it: a block of its own inside would not commit
        yield connection


def settle_in(
    connection: Connection,
    leases: list[tuple[UUID, int]],
    verdict: str,
    *,
    delay_s: float = 3600.0,
) -> set[UUID]:
    ended = settlements(leases, verdict, "http_500")
    parameters = {
        "now": None,
        "ids": [s.id for s in ended],
        "tokens": [s.token for s in ended],
        "verdicts": [s.verdict for s in ended],
        "charged": [s.charged for s in ended],
        "reasons": [s.reason for s in ended],
        "delays_s": [delay_s for _ in ended],
        "details": [None for _ in ended],
        "effects": [None for _ in ended],
    }
    return {row[0] for row in connection.execute(statement("settle"), parameters)}


def started(shop: Shop, n: int = 1) -> list[tuple[UUID, int]]:
    shop.emit(n=n)
    leases = shop.route(n)
    assert len(shop.take(leases)) == n
    return leases


@pytest.mark.parametrize(
    ("verdict", "left", "cancelled"),
    [("delivered", {}, 0), ("retry", {}, 1), ("dead", {"dead": 1}, 0)],
)
def test_settle_first_then_remove(
    shop: Shop, verdict: str, left: dict[str, int], cancelled: int
) -> None:
    added = shop.endpoint()
    leases = started(shop)
    with open_transaction(shop.url) as worker:
        assert len(settle_in(worker, leases, verdict)) == 1
        operator = Behind(shop.url, lambda c: store.remove_endpoint(c, added.id))
        operator.until_it_waits(shop.connection)
    assert operator.join().deliveries == Aligned(cancelled=cancelled)
    assert shop.states() == left


def test_remove_first_then_settle(shop: Shop) -> None:
    added = shop.endpoint()
    leases = started(shop)
    with open_transaction(shop.url) as operator:
        cancelled = {"ids": [leases[0][0]], "org_id": None, "reason": "removed"}
        operator.execute(statement("cancel_ids"), cancelled)
        worker = Behind(shop.url, lambda c: settle_in(c, leases, "delivered"))
        worker.until_it_waits(shop.connection)
    assert worker.join() == set()
    assert shop.facts(leases[0][0]) == [("cancelled", "removed")]
    store.remove_endpoint(shop.connection, added.id)


@pytest.mark.parametrize("verdict", ["delivered", "retry", "dead", "release"])
def test_cancel_waits_for_a_settle_and_then_sees_its_result(shop: Shop, verdict: str) -> None:
    shop.endpoint()
    leases = started(shop)
    [(delivery_id, _)] = leases
    with open_transaction(shop.url) as worker:
        settle_in(worker, leases, verdict)
        operator = Behind(shop.url, lambda c: cancel_deliveries(c, [delivery_id]))
        operator.until_it_waits(shop.connection)
    done = operator.join()
    live_after_settle = verdict in {"retry", "release"}
    assert (done.cancelled == [delivery_id]) is live_after_settle
    assert (done.ended == [delivery_id]) is not live_after_settle
    assert shop.states() == ({"dead": 1} if verdict == "dead" else {})


def test_a_retry_settled_after_the_pause_is_held_when_due_and_not_sent(shop: Shop) -> None:
    added = shop.endpoint()
    leases = started(shop)
    with open_transaction(shop.url) as worker:
        settle_in(worker, leases, "retry", delay_s=0.0)
        # A pause does not wait for started attempts: nothing of theirs is its to change.
        assert store.pause_endpoint(shop.connection, added.id).deliveries == Aligned()
    assert shop.lease() == []
    shop.hot(lambda c: Dispatch(c, 30).tend(100))
    assert shop.states() == {"held": 1}
    assert store.resume_endpoint(shop.connection, added.id).deliveries == Aligned(released=1)


def test_a_take_behind_the_pause_starts_nothing(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit()
    leases = shop.route(1)
    with open_transaction(shop.url) as operator:
        operator.execute(statement("dispatch_lock"))
        operator.execute("UPDATE outbox.endpoint SET state = 'paused'")
        sweep = {
            "lane": added.id,
            "after_at": "-infinity",
            "after_id": UUID(int=0),
            "rows_max": 10,
        }
        row = operator.execute(statement("sweep_leased"), sweep).fetchone()
        assert row is not None
        assert row[1] == 1
        take = {"now": None, "ids": [i for i, _ in leases], "tokens": [t for _, t in leases]}
        worker = Behind(shop.url, lambda c: c.execute(statement("take"), take).fetchall())
        worker.until_it_waits(shop.connection)
    assert worker.join() == []
    assert shop.states() == {"held": 1}


def test_a_pause_behind_a_take_leaves_the_started_attempt_alone(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit()
    leases = shop.route(1)
    with open_transaction(shop.url) as worker:
        take = {"now": None, "ids": [i for i, _ in leases], "tokens": [t for _, t in leases]}
        assert len(worker.execute(statement("take"), take).fetchall()) == 1
        operator = Behind(shop.url, lambda c: store.pause_endpoint(c, added.id))
        operator.until_it_waits(shop.connection)
    assert operator.join().deliveries == Aligned()
    assert shop.settle(leases, "delivered") == {leases[0][0]}


def test_a_configuration_change_waits_for_the_routing_under_way(shop: Shop) -> None:
    """Otherwise an event could be routed against a subscription that is no longer so."""
    added = shop.endpoint()
    shop.emit(n=2)
    with open_transaction(shop.url) as relay:
        relay.execute(statement("dispatch_lock"))
        operators = [
            Behind(shop.url, lambda c: store.pause_endpoint(c, added.id)),
            Behind(shop.url, lambda c: pause_subscription(c, added.subscription_id)),
        ]
        for operator in operators:
            operator.until_it_waits(shop.connection)
    for operator in operators:
        assert operator.join().state == "paused"
    shop.route(10)
    assert shop.states() == {"held": 2}


def test_a_pause_overtaken_by_a_resume_holds_nothing_for_ever(shop: Shop) -> None:
    """Each batch looks at the state itself: the late batches of a pause find it active."""
    added = shop.endpoint()
    shop.emit(n=3)
    shop.route()
    with open_transaction(shop.url) as other:
        other.execute(statement("dispatch_lock"))
        pausing = Behind(shop.url, lambda c: store.pause_endpoint(c, added.id))
        pausing.until_it_waits(shop.connection)
        resuming = Behind(shop.url, lambda c: store.resume_endpoint(c, added.id))
        resuming.until_it_waits(shop.connection)
    pausing.join()
    resuming.join()
    store.resume_endpoint(shop.connection, added.id)
    assert shop.states() == {"scheduled": 3}


def test_two_redrives_of_one_letter_are_one(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    with open_transaction(shop.url) as first:
        done = redrive(first, Selection(ids=[delivery_id]))
        # The outer transaction is still open: the letter is locked.
        assert done == Redriven(redriven=1)
        second = Behind(shop.url, lambda c: redrive(c, Selection(ids=[delivery_id])))
        second.until_it_waits(shop.connection)
    assert second.join() == Redriven(unknown=1)
    assert [fact for fact, _ in shop.facts(delivery_id)] == ["dead", "redriven"]


def test_a_discard_behind_a_redrive_finds_nothing(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    with open_transaction(shop.url) as first:
        redrive(first, Selection(ids=[delivery_id]))
        second = Behind(shop.url, lambda c: discard(c, Selection(ids=[delivery_id]), "no use"))
        second.until_it_waits(shop.connection)
    assert second.join().discarded == 0
    assert shop.states() == {"scheduled": 1}


def test_a_redrive_waits_for_the_settle_that_makes_the_letter(shop: Shop) -> None:
    """Before the settle commits there is no letter; after it there is, and never both."""
    shop.endpoint()
    leases = started(shop)
    chosen = Selection(ids=[leases[0][0]])
    with open_transaction(shop.url) as worker:
        settle_in(worker, leases, "dead")
        assert redrive(shop.connection, chosen) == Redriven(unknown=1)
    assert redrive(shop.connection, chosen) == Redriven(redriven=1)
    assert shop.states() == {"scheduled": 1}


def test_a_late_settle_of_the_budget_before_changes_nothing(shop: Shop) -> None:
    shop.endpoint(rule=Rule(("*",)))
    leases = started(shop)
    assert len(shop.settle(leases, "dead")) == 1
    redrive(shop.connection, Selection(org="acme"))
    assert shop.settle(leases, "delivered") == set()
    again = shop.lease()
    assert shop.settle(leases, "delivered") == set()
    shop.take(again)
    assert shop.settle(again, "delivered") == {again[0][0]}


def test_everybody_at_once_meets_no_deadlock_and_loses_nothing(database: str, seed: int) -> None:
    """Settle, cancel, pause, redrive, discard, replay, redact, rebuild and retention beside two
    relays and two workers, over ordered and unordered subscriptions: one order of locks."""
    storm = Storm(database, seed)
    storm.rage(rounds=16)
    assert storm.failed == []
    assert deadlocks(database) == 0
    assert left(database) == {}
    assert storm.books.unaccounted() == set()
    report = equal(database)
    assert report.equal, described(report)
    did = storm.books
    assert all(did.ended[how] for how in ("delivered", "cancelled", "discarded"))
    assert did.done["cleared"] > 0
    assert did.redacted
