"""Dead letters: found by what they died of, redriven with a fresh budget, discarded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from outbox.errors import UsageError
from outbox.store import endpoints
from outbox.store.dead import (
    Discarded,
    Pace,
    Redriven,
    Selection,
    dead_reasons,
    discard,
    list_dead,
    redrive,
)
from outbox.store.deliveries import show_delivery
from outbox.store.subscriptions import Rule, remove_subscription
from tests.admin.helpers import Shop

ALL = Selection()


def test_a_redriven_letter_is_due_now_with_a_fresh_budget(shop: Shop) -> None:
    shop.endpoint(rule=Rule(("*",), max_age=timedelta(hours=1)))
    [delivery_id] = shop.kill()
    assert redrive(shop.connection, ALL) == Redriven(redriven=1)
    [row] = shop.rows(
        "SELECT state, attempts, budget, expiries, due_at <= clock_timestamp(),"
        " age_limit_at - due_at FROM outbox.delivery"
    )
    assert row == ("scheduled", 0, 2, 0, True, timedelta(hours=1))
    assert shop.facts(delivery_id)[-1] == ("redriven", "http_500")
    assert shop.one("SELECT budget FROM outbox.journal WHERE fact = 'redriven'") == 2
    assert shop.attempt("delivered", "http_200") == [delivery_id]


def test_the_redriven_body_is_of_the_revision_it_was_routed_by(shop: Shop) -> None:
    added = shop.endpoint()
    shop.kill()
    endpoints.pause_endpoint(shop.connection, added.id)
    shop.connection.execute("UPDATE outbox.subscription SET revision = 7")
    redrive(shop.connection, ALL)
    assert shop.one("SELECT revision FROM outbox.delivery") == 1


def test_a_letter_can_die_and_be_redriven_again_and_again(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    for budget in range(2, 5):
        redrive(shop.connection, ALL)
        assert shop.attempt("dead") == [delivery_id]
        assert shop.one("SELECT budget FROM outbox.dead_letter") == budget


def test_a_dry_run_counts_and_changes_nothing(shop: Shop) -> None:
    shop.endpoint()
    shop.kill(3)
    assert redrive(shop.connection, ALL, dry_run=True) == Redriven(redriven=3)
    assert discard(shop.connection, ALL, "x", dry_run=True) == Discarded(discarded=3)
    assert shop.states() == {"dead": 3}


def test_what_is_past_its_expiry_needs_to_be_asked_for(shop: Shop) -> None:
    shop.endpoint()
    shop.emit(expires_at=datetime.now(UTC) + timedelta(days=1))
    shop.attempt("dead")
    shop.connection.execute("UPDATE outbox.dead_letter SET expires_at = now() - interval '1 s'")
    assert redrive(shop.connection, ALL) == Redriven(expired=1)
    assert redrive(shop.connection, ALL, ignore_expiry=True) == Redriven(redriven=1)
    assert shop.one("SELECT expires_at FROM outbox.delivery") is None
    assert len(shop.lease()) == 1


def test_an_expiry_to_come_stays_with_the_redriven_delivery(shop: Shop) -> None:
    shop.endpoint()
    moment = datetime.now(UTC) + timedelta(days=1)
    shop.emit(expires_at=moment)
    shop.attempt("dead")
    redrive(shop.connection, ALL, ignore_expiry=True)
    assert shop.one("SELECT expires_at FROM outbox.delivery") == moment


@pytest.mark.parametrize("what", ["endpoint", "subscription"])
def test_letters_of_a_removed_destination_stay_dead_but_may_be_discarded(
    shop: Shop, what: str
) -> None:
    added = shop.endpoint()
    shop.kill(2)
    if what == "endpoint":
        endpoints.remove_endpoint(shop.connection, added.id)
    else:
        remove_subscription(shop.connection, added.subscription_id)
    assert redrive(shop.connection, ALL, ignore_expiry=True) == Redriven(removed=2)
    assert shop.states() == {"dead": 2}
    assert discard(shop.connection, ALL, "gone") == Discarded(discarded=2)


def test_a_letter_of_a_paused_endpoint_waits_for_the_resume(shop: Shop) -> None:
    added = shop.endpoint()
    shop.kill()
    endpoints.pause_endpoint(shop.connection, added.id)
    assert redrive(shop.connection, ALL) == Redriven(redriven=1)
    assert shop.lease() == []
    endpoints.resume_endpoint(shop.connection, added.id)
    assert len(shop.lease()) == 1


def test_batches_of_any_size_redrive_everything_once(shop: Shop) -> None:
    shop.endpoint()
    shop.kill(7)
    assert redrive(shop.connection, ALL, rows_max=2) == Redriven(redriven=7)
    assert shop.states() == {"scheduled": 7}
    shop.attempt("dead")
    assert discard(shop.connection, ALL, "x", rows_max=3) == Discarded(discarded=7)


def test_a_selection_takes_what_meets_every_condition(shop: Shop) -> None:
    first, second = shop.endpoint("acme"), shop.endpoint("rival")
    a, b = shop.kill(2, "acme", "http_500")
    c = shop.kill(1, "acme", "timeout")[0]
    d = shop.kill(1, "rival", "timeout")[0]
    shop.emit("acme", 1, subject="orders/9")
    [e] = shop.attempt("dead", "gone")
    died_b = shop.one("SELECT died_at FROM outbox.dead_letter WHERE id = %(id)s", id=c)
    cases: list[tuple[dict[str, Any], set[object]]] = [
        ({"org": "acme"}, {a, b, c, e}),
        ({"endpoint_id": second.id}, {d}),
        ({"reason": "timeout"}, {c, d}),
        ({"reason": "timeout", "org": "acme"}, {c}),
        ({"since": died_b}, {c, d, e}),
        ({"until": died_b}, {a, b}),
        ({"patterns": ("orders.*",), "org": "rival"}, {d}),
        ({"patterns": ("users.*",)}, set()),
        ({"subject": "orders/9"}, {e}),
        ({"subject": "orders/9", "patterns": ("orders.paid",), "org": "rival"}, set()),
        ({"ids": [a, d]}, {a, d}),
        ({"ids": [a, d], "org": "rival"}, {d}),
        ({"org": "acme", "endpoint_id": second.id}, set()),
        ({"ids": []}, set()),
    ]
    for fields, expected in cases:
        selection = Selection(**fields)
        assert redrive(shop.connection, selection, dry_run=True).redriven == len(expected), fields
        if "ids" not in fields:
            assert {row["id"] for row in list_dead(shop.connection, selection)} == {
                str(delivery_id) for delivery_id in expected
            }
    assert first.id != second.id


def test_another_organizations_letters_are_neither_seen_nor_changed(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    rival = Selection(ids=[delivery_id], org="rival")
    assert redrive(shop.connection, rival) == Redriven(unknown=1)
    assert discard(shop.connection, rival, "mine") == Discarded(unknown=1)
    assert list_dead(shop.connection, Selection(org="rival")) == []
    assert dead_reasons(shop.connection, Selection(org="rival")) == []
    assert shop.states() == {"dead": 1}


def test_ids_that_are_no_dead_letters_are_counted(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    chosen = Selection(ids=[delivery_id, delivery_id, uuid4()])
    assert redrive(shop.connection, chosen) == Redriven(redriven=1, unknown=1)


def test_a_discard_is_final_and_says_why(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    assert discard(shop.connection, ALL, "customer left") == Discarded(discarded=1)
    assert shop.facts(delivery_id)[-1] == ("discarded", "customer left")
    assert redrive(shop.connection, Selection(ids=[delivery_id])) == Redriven(unknown=1)
    assert show_delivery(shop.connection, delivery_id)["state"] == "discarded"


@pytest.mark.parametrize("why", ["", "x" * 201])
def test_a_discard_without_a_reason_or_with_a_novel_is_refused(shop: Shop, why: str) -> None:
    with pytest.raises(UsageError):
        discard(shop.connection, ALL, why)


def test_reasons_are_counted_the_most_frequent_first(shop: Shop) -> None:
    added = shop.endpoint()
    shop.kill(1, reason="timeout")
    shop.kill(3, reason="http_500")
    rows = dead_reasons(shop.connection, ALL)
    counted = [(row["reason"], row["endpoint"], row["n"]) for row in rows]
    assert counted == [("http_500", added.id, 3), ("timeout", added.id, 1)]


def test_the_list_is_newest_first_and_bounded(shop: Shop) -> None:
    shop.endpoint()
    shop.kill(2)
    [last] = shop.kill(1)
    rows = list_dead(shop.connection, ALL, rows_max=2)
    assert len(rows) == 2
    assert rows[0]["id"] == str(last)
    assert rows[0]["type"] == "orders.paid"


def test_a_dead_letters_story_begins_with_its_routing(shop: Shop) -> None:
    shop.endpoint()
    [delivery_id] = shop.kill()
    shown = show_delivery(shop.connection, delivery_id)
    assert [fact["fact"] for fact in shown["journal"]] == ["routed", "dead"]
    assert (shown["state"], shown["reason"], shown["attempts"]) == ("dead", "http_500", 1)


# -- redriven ones wait, at a pace ----------------------------------------------------------------


def test_redriven_deliveries_wait_behind_fresh_ones_and_retries(shop: Shop) -> None:
    shop.endpoint()
    shop.kill(2)
    redrive(shop.connection, ALL)
    assert shop.rows("SELECT again, order_key FROM outbox.delivery") == [(True, None)] * 2
    assert shop.rows("SELECT FROM outbox.order_signal") == []


def test_an_ordered_letter_waits_for_its_turn(shop: Shop) -> None:
    added = shop.endpoint()
    [delivery_id] = shop.kill()
    shop.connection.execute("UPDATE outbox.dead_letter SET order_key = -7")
    assert redrive(shop.connection, ALL) == Redriven(redriven=1)
    [row] = shop.rows("SELECT state, held_reason, order_key, again, budget FROM outbox.delivery")
    assert row == ("held", "order", -7, True, 2)
    assert shop.facts(delivery_id)[-2:] == [("redriven", "http_500"), ("held", "order")]
    signals = shop.rows("SELECT DISTINCT subscription_id, order_key FROM outbox.order_signal")
    assert signals == [(added.subscription_id, -7)]


def test_a_redriven_letter_keeps_its_generation(shop: Shop) -> None:
    shop.endpoint()
    shop.kill()
    shop.connection.execute("UPDATE outbox.dead_letter SET generation = 3")
    redrive(shop.connection, ALL)
    assert shop.one("SELECT generation FROM outbox.delivery") == 3


def test_a_rate_is_kept_in_batches_no_larger_than_a_second_holds(shop: Shop) -> None:
    shop.endpoint()
    shop.kill(7)
    now = [100.0]
    told: list[int] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(2.0, told.append, clock=lambda: now[0], sleep=sleep)
    assert redrive(shop.connection, ALL, pace=pace) == Redriven(redriven=7)
    assert told == [2, 4, 6, 7]
    assert slept == [0.0, 1.0, 1.0, 1.0]


def test_a_selective_condition_looks_at_bounded_parts(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.dead._BATCH_LOOKED_MAX", 2)
    shop.endpoint()
    shop.kill(7)
    shop.kill(1, reason="timeout")
    shop.kill(4)
    chosen = Selection(reason="timeout")
    assert redrive(shop.connection, chosen, dry_run=True) == Redriven(redriven=1)
    assert redrive(shop.connection, chosen) == Redriven(redriven=1)
    assert discard(shop.connection, ALL, "x", rows_max=1) == Discarded(discarded=11)
