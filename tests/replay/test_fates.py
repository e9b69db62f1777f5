"""What a redelivery makes of each pair, and what it leaves alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from outbox.store.connect import connect
from outbox.store.deliveries import cancel_deliveries
from outbox.store.endpoints import pause_endpoint, resume_endpoint
from outbox.store.replay import Choice
from outbox.store.statements import statement
from outbox.store.subscriptions import Rule
from tests.admin.helpers import Behind
from tests.replay.helpers import Past

UNTOUCHED = ("already_due", "leased", "held", "cancelled", "discarded", "expired", "removed",
             "redacted")  # fmt: skip


def test_each_pair_meets_its_fate_and_the_dry_run_said_so(past: Past) -> None:
    fates = past.every_fate()
    expected = dict.fromkeys(fates, 1)
    assert past.counted() == expected
    assert past.counted(judge_max=0) == expected
    before = {fate: past.live(fates[fate]) for fate in UNTOUCHED}
    told = {fate: past.facts_of(fates[fate]) for fate in UNTOUCHED}
    replay = past.replay()
    assert past.counts(replay) == expected
    assert {fate: past.live(fates[fate]) for fate in UNTOUCHED} == before
    assert {fate: past.facts_of(fates[fate]) for fate in UNTOUCHED} == told


def test_a_replay_alters_no_fact_of_the_past(past: Past) -> None:
    """I12."""
    past.every_fate()
    before = past.journal()
    past.replay()
    assert past.journal() > before


def test_a_delivered_one_starts_again_under_its_key_with_a_fresh_budget(past: Past) -> None:
    past.endpoint(rule=Rule(("*",), max_age=timedelta(hours=1)))
    [delivery_id] = past.deliver()
    replay = past.replay()
    row = past.live(delivery_id)
    kept = ("state", "attempts", "budget", "expiries", "generation", "again")
    assert [row[name] for name in kept] == ["scheduled", 0, 2, 0, 0, True]
    assert past.one("SELECT age_limit_at - due_at FROM outbox.delivery") == timedelta(hours=1)
    assert past.facts_of(delivery_id)[-1] == ("replayed", replay, 2, 0, False)
    assert past.one("SELECT detail FROM outbox.journal WHERE fact = 'replayed'") == {
        "replay": replay,
        "generation": 0,
    }
    assert past.attempt("delivered") == [delivery_id]
    past.replay()
    assert past.live(delivery_id)["budget"] == 3


def test_a_dead_one_is_redriven_and_keeps_its_history(past: Past) -> None:
    past.endpoint()
    [delivery_id] = past.kill()
    replay = past.replay()
    assert past.facts(delivery_id)[0] == ("dead", "http_500")
    assert past.facts_of(delivery_id)[-1] == ("redriven", replay, 2, 0, False)
    assert past.states() == {"scheduled": 1}
    assert past.live(delivery_id)["again"]


def test_a_resend_takes_the_place_of_a_pending_retry(past: Past) -> None:
    past.endpoint()
    past.emit()
    [delivery_id] = past.attempt("retry")
    assert past.lease() == []
    replay = past.replay()
    row = past.live(delivery_id)
    # Still a retry, in the queue of retries: the budget goes on.
    assert (row["attempts"], row["budget"], row["again"]) == (1, 1, False)
    assert past.facts_of(delivery_id)[-1] == ("replayed", replay, 1, 1, False)
    assert [lease[0] for lease in past.lease()] == [delivery_id]
    assert past.rows("SELECT count(*) FROM outbox.delivery") == [(1,)]


@pytest.mark.parametrize("end", ["delivered", "dead"])
def test_what_is_past_its_expiry_goes_out_only_when_asked_for_and_then_without_one(
    past: Past, end: str
) -> None:
    past.endpoint()
    [event] = past.emit(expires_at="2100-01-01")
    [delivery_id] = past.attempt(end)
    later = datetime(2101, 1, 1, tzinfo=UTC)
    first = past.make()
    past.carry_out(first, now=later)
    assert past.counts(first) == {"expired": 1}
    second = past.make(Choice(events=(event,), ignore_expiry=True))
    past.carry_out(second, now=later)
    assert past.counts(second) == {"redelivered" if end == "delivered" else "redriven": 1}
    assert past.live(delivery_id)["expires_at"] is None


def test_a_paused_destination_gets_its_replay_when_it_is_resumed(past: Past) -> None:
    endpoint = past.endpoint().id
    [delivery_id] = past.deliver()
    pause_endpoint(past.connection, endpoint)
    past.replay()
    assert past.live(delivery_id)["held_reason"] == "paused"
    assert [fact for fact, _ in past.facts(delivery_id)][-2:] == ["replayed", "held"]
    resume_endpoint(past.connection, endpoint)
    assert past.attempt("delivered") == [delivery_id]


@pytest.mark.parametrize("end", ["delivered", "dead"])
def test_an_ordered_one_waits_for_its_turn(past: Past, end: str) -> None:
    past.endpoint(rule=Rule(("*",), order="skip"))
    [event] = past.emit(ordering_key="a")
    past.route()
    past.advance()
    [delivery_id] = past.attempt(end)
    past.connection.execute("DELETE FROM outbox.order_signal")
    past.replay()
    row = past.live(delivery_id)
    assert (row["state"], row["held_reason"]) == ("held", "order")
    assert row["order_key"] == past.one("SELECT outbox.order_key('acme', 'a', NULL, '1')")
    assert past.one("SELECT count(*) FROM outbox.order_signal") > 0
    past.advance()
    assert past.attempt("delivered") == [delivery_id]
    assert past.rows("SELECT DISTINCT event_id FROM outbox.journal") == [(event,)]


def test_fresh_deliveries_go_before_replayed_ones(past: Past) -> None:
    past.endpoint(concurrency=2)
    again = past.deliver(2)
    past.replay()
    events = past.emit(n=2)
    past.route()
    fresh = past.ids_of(events)
    assert {lease[0] for lease in past.lease()} == set(fresh)
    assert {past.live(delivery_id)["state"] for delivery_id in again} == {"scheduled"}


def test_who_settles_while_the_replay_waits_is_not_sent_again(past: Past) -> None:
    """A leased one is left alone, also where it is delivered under the replay's eyes."""
    past.endpoint()
    past.emit()
    leases = past.route(1)
    past.take(leases)
    replay = past.make()
    with connect(past.url, autocommit=True) as other:
        with other.transaction():
            settle = {
                "now": None, "ids": [leases[0][0]], "tokens": [leases[0][1]],
                "verdicts": ["delivered"], "charged": [True], "reasons": ["http_200"],
                "delays_s": [None], "details": [None], "effects": [None],
            }  # fmt: skip
            other.execute(statement("settle"), settle)
            replaying = Behind(past.url, lambda _: past.carry_out(replay))
            past.until_waits()
        replaying.join()
    assert past.counts(replay) == {"busy": 1}
    assert past.states() == {}


def test_cancelling_while_a_replay_waits_leaves_it_cancelled(past: Past) -> None:
    past.endpoint()
    delivery_id = past.scheduled(deliver_at="2100-01-01")
    replay = past.make()
    with connect(past.url, autocommit=True) as other:
        with other.transaction():
            cancel_deliveries(other, [delivery_id], reason="a test")
            replaying = Behind(past.url, lambda _: past.carry_out(replay))
            past.until_waits()
        replaying.join()
    assert past.counts(replay) == {"busy": 1}
    assert past.states() == {}
