"""Ordered subscriptions: one after another by key, and what follows a failure (I8)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.errors import SchemaMismatch
from outbox.store.connect import connect
from outbox.store.dispatch import Claim
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.statements import statement
from outbox.store.subscriptions import (
    Rule,
    add_subscription,
    pause_subscription,
    resume_subscription,
)
from tests.engine.engine import Engine, another, seconds
from tests.engine.running import RING


def ordered(engine: Engine, mode: str = "block", **fields: Any) -> int:
    return engine.subscribe(order_mode=mode, **fields)


def keyed(engine: Engine, count: int, key: str = "a", **options: Any) -> list[int]:
    """Emit and route so many events of one key; their ids."""
    events = engine.emit(count, ordering_key=key, **options)
    engine.route(1000)
    return events


def advance(engine: Engine, now: Any = None, since_s: float | None = None) -> tuple[int, ...]:
    params = {"now": now, "since_s": since_s, "rows_max": 100}
    return engine._locked("order_advance", params)[:3]


def standing(engine: Engine) -> dict[int, str]:
    """The state of every delivery by event; what is held, by its reason."""
    rows = engine.rows(
        "SELECT event_id, coalesce(held_reason, state) FROM outbox.delivery"
        " UNION ALL SELECT event_id, 'dead ' || reason FROM outbox.dead_letter ORDER BY 1"
    )
    return dict(rows)


def attempt(engine: Engine, verdict: str, **options: Any) -> list[int]:
    """Lease and take what is due, and settle all of it alike; the events tried, in order."""
    leases = engine.due()
    tried = sorted(row[4] for row in engine.take(leases))
    engine.settle(leases, verdict, **options)
    return tried


def test_the_first_of_a_key_goes_and_the_others_wait_their_turn(engine: Engine) -> None:
    ordered(engine)
    a1, a2 = keyed(engine, 2, "a")
    [b1] = keyed(engine, 1, "b")
    assert standing(engine) == {a1: "scheduled", a2: "order", b1: "scheduled"}
    assert [item["held"] for item in engine.routed(a2)] == ["order"]
    assert attempt(engine, "delivered") == [a1, b1]
    assert standing(engine) == {a2: "order"}
    assert advance(engine) == (2, 1, 0)
    assert attempt(engine, "delivered") == [a2]
    engine.check()


def test_nothing_is_leased_at_routing_and_unordered_deliveries_are(engine: Engine) -> None:
    ordered(engine)
    engine.emit(1, ordering_key="a")
    engine.emit(1)
    routed, _ = engine.route(1000)
    assert (routed.deliveries, routed.leased, routed.waiting) == (2, 1, 0)
    [(key, state)] = engine.rows(
        "SELECT order_key, state FROM outbox.delivery WHERE state = 'leased'"
    )
    assert (key, state) == (None, "leased")


def test_a_retry_keeps_its_turn(engine: Engine) -> None:
    ordered(engine)
    first, second = keyed(engine, 2)
    assert attempt(engine, "retry", delay_s=0.0) == [first]
    assert advance(engine) == (0, 0, 0)
    assert attempt(engine, "delivered") == [first]
    advance(engine)
    assert attempt(engine, "delivered") == [second]


def test_a_lease_that_ran_out_keeps_its_turn(engine: Engine) -> None:
    ordered(engine)
    first, _ = keyed(engine, 2)
    now = engine.now()
    engine.take(engine.due(now=now), now)
    later = now + seconds(31)
    engine.expire(later)
    advance(engine, later)
    assert [row[4] for row in engine.take(engine.due(now=later), later)] == [first]


def test_the_captured_row_is_the_key_and_an_emitted_subject_is_none(engine: Engine) -> None:
    """The lock of a row makes the order of ids that of commits; a subject promises nothing."""
    ordered(engine, org=None)
    engine.run("CREATE TABLE public.orders (id int PRIMARY KEY, org text, n int)")
    engine.run("SELECT outbox.watch('public.orders', org_column => 'org')")
    engine.run("INSERT INTO public.orders VALUES (1, 'acme', 0), (2, 'acme', 0)")
    engine.run("UPDATE public.orders SET n = 1")
    engine.emit(2, subject="orders/1")
    engine.route(1000)
    assert sorted(standing(engine).values()) == [
        "leased",
        "leased",
        "order",
        "order",
        "scheduled",
        "scheduled",
    ]


def test_keys_of_two_organizations_never_meet(engine: Engine) -> None:
    ordered(engine, org=None)
    [one] = keyed(engine, 1, "a", org="acme")
    [two] = keyed(engine, 1, "a", org="globex")
    assert standing(engine) == {one: "scheduled", two: "scheduled"}


def test_block_waits_until_the_dead_letter_is_delivered_after_all(engine: Engine) -> None:
    ordered(engine, "block")
    first, second = keyed(engine, 2)
    assert attempt(engine, "dead", reason="http_500") == [first]
    advance(engine)
    [third] = keyed(engine, 1)
    advance(engine)
    blocked = {first: "dead http_500", second: "order", third: "order"}
    assert standing(engine) == blocked
    redrive(engine)
    advance(engine)
    assert standing(engine) == {first: "scheduled", second: "order", third: "order"}
    assert attempt(engine, "delivered") == [first]
    advance(engine)
    assert attempt(engine, "delivered") == [second]
    advance(engine)
    assert attempt(engine, "delivered") == [third]
    engine.check()


@pytest.mark.parametrize(("mode", "then"), [("block", "order"), ("park", "dead parked")])
def test_what_is_routed_behind_a_dead_letter_of_its_key_does_not_go(
    engine: Engine, mode: str, then: str
) -> None:
    """Though nothing of the key lives."""
    ordered(engine, mode)
    [first] = keyed(engine, 1)
    attempt(engine, "dead", reason="http_500")
    [second] = keyed(engine, 1)
    assert standing(engine) == {first: "dead http_500", second: "order"}
    advance(engine)
    assert standing(engine) == {first: "dead http_500", second: then}


def test_block_ends_when_the_dead_letter_is_discarded(engine: Engine) -> None:
    ordered(engine, "block")
    _, second = keyed(engine, 2)
    attempt(engine, "dead")
    advance(engine)
    engine.run("DELETE FROM outbox.dead_letter")
    assert advance(engine) == (1, 1, 0)
    assert standing(engine) == {second: "scheduled"}


def test_park_sends_what_follows_into_the_dead_letters(engine: Engine) -> None:
    ordered(engine, "park")
    first, second, third = keyed(engine, 3)
    attempt(engine, "dead", reason="http_500")
    assert advance(engine) == (1, 0, 2)
    [fourth] = keyed(engine, 1)
    advance(engine)
    parked = dict.fromkeys((second, third, fourth), "dead parked")
    assert standing(engine) == {first: "dead http_500", **parked}
    engine.check()


def test_a_redriven_key_goes_in_order_again(engine: Engine) -> None:
    ordered(engine, "park")
    events = keyed(engine, 3)
    attempt(engine, "dead")
    advance(engine)
    redrive(engine)
    done = []
    for _ in events:
        advance(engine)
        done += attempt(engine, "delivered")
    assert done == events
    engine.check()


def test_skip_goes_on(engine: Engine) -> None:
    ordered(engine, "skip")
    first, second = keyed(engine, 2)
    attempt(engine, "dead")
    advance(engine)
    assert standing(engine) == {first: "dead x", second: "scheduled"}


def test_what_expired_bars_nobody(engine: Engine) -> None:
    ordered(engine, "block")
    now = engine.now()
    first, second = keyed(engine, 2, expires_at=now + seconds(60))
    [third] = keyed(engine, 1)
    engine.tend(now + seconds(61))
    advance(engine, now + seconds(61))
    expired = dict.fromkeys((first, second), "dead expired")
    assert standing(engine) == {**expired, third: "scheduled"}


def test_an_event_waits_for_earlier_ones_that_are_not_routed(engine: Engine) -> None:
    """A late commit below the floor has to be swept first."""
    ordered(engine)
    first, second = engine.emit(2, ordering_key="a")
    engine.route(1000, claim=Claim(10, floor=first))
    assert standing(engine) == {second: "order"}
    assert advance(engine) == (1, 0, 0)
    assert standing(engine) == {second: "order"}
    engine.route(1000)
    later = engine.now() + seconds(1)
    advance(engine, later)
    assert standing(engine) == {first: "scheduled", second: "order"}
    assert attempt(engine, "delivered") == [first]
    advance(engine, later)
    assert standing(engine) == {second: "scheduled"}


def test_the_turn_comes_though_a_row_was_locked_when_it_came(engine: Engine) -> None:
    ordered(engine)
    _, second = keyed(engine, 2)
    attempt(engine, "delivered")
    with another(engine.url) as other, other.transaction():
        other.execute(
            "SELECT FROM outbox.delivery WHERE event_id = %s FOR UPDATE", [second]
        ).fetchall()
        assert advance(engine) == (1, 0, 0)
    assert advance(engine, engine.now() + seconds(1)) == (1, 1, 0)


def test_a_signal_gives_nobody_a_turn_while_an_earlier_one_lives(engine: Engine) -> None:
    """Whoever signals may be wrong: a mended row, a key that is routed in pieces."""
    ordered(engine)
    first, second = keyed(engine, 2)
    engine.take(engine.due())
    engine.run(
        "INSERT INTO outbox.order_signal (subscription_id, order_key)"
        " SELECT subscription_id, order_key FROM outbox.delivery WHERE event_id = %s",
        first,
    )
    assert advance(engine) == (1, 0, 0)
    assert standing(engine) == {first: "leased", second: "order"}


def test_a_cancelled_delivery_gives_its_turn_away(engine: Engine) -> None:
    ordered(engine)
    first, second = keyed(engine, 2)
    [head] = engine.rows("SELECT id FROM outbox.delivery WHERE event_id = %s", first)[0]
    cancel(engine, head)
    advance(engine)
    assert standing(engine) == {second: "scheduled"}


def test_a_pause_keeps_the_order(engine: Engine) -> None:
    subscription = ordered(engine)
    first, second = keyed(engine, 2)
    with psycopg.connect(engine.url, autocommit=True) as connection:
        pause_subscription(connection, subscription)
        [third] = keyed(engine, 1)
        assert standing(engine) == {first: "paused", second: "order", third: "order"}
        resume_subscription(connection, subscription)
    assert standing(engine) == {first: "scheduled", second: "order", third: "order"}
    engine.check()


def test_the_maximum_age_stands_still_while_a_delivery_waits_for_its_turn(engine: Engine) -> None:
    ordered(engine, max_age=seconds(60))
    keyed(engine, 2)
    attempt(engine, "delivered")
    limit = "SELECT age_limit_at - held_at FROM outbox.delivery"
    left = engine.one(limit)
    later = engine.now() + seconds(500)
    advance(engine, later)
    query = "SELECT age_limit_at - %s::timestamptz FROM outbox.delivery"
    assert engine.one(query, later) == left


def test_old_signals_are_found_without_a_look_back(engine: Engine) -> None:
    """The quick look reads seconds; what committed late is found by the full one."""
    ordered(engine)
    keyed(engine, 2)
    attempt(engine, "delivered")
    engine.run("UPDATE outbox.order_signal SET at = at - interval '1 min'")
    assert advance(engine, since_s=5.0) == (0, 0, 0)
    assert advance(engine) == (1, 1, 0)


def test_the_first_ordered_subscription_keeps_older_programs_out(engine: Engine) -> None:
    compatible = "SELECT compatible_from FROM outbox.migration WHERE version = 10"
    with connect(engine.url, autocommit=True) as connection:
        added = add_endpoint(
            connection, EndpointSpec("https://a.example/", "acme", Rule(("*",))), RING
        )
        assert engine.one(compatible) == 9
        node = "INSERT INTO outbox.node (id, kind, host, pid, level, started_at, polled_at) VALUES"
        engine.run(f"{node} (gen_random_uuid(), 'relay', 'old', 7, 9, now(), now())")
        rule = Rule(("*",), order="block")
        with pytest.raises(SchemaMismatch, match="upgrade relay 7 on old"):
            add_subscription(connection, added.id, rule)
        assert engine.one(compatible) == 9
        engine.run("UPDATE outbox.node SET level = 10")
        add_subscription(connection, added.id, rule)
    assert engine.one(compatible) == 10
    assert engine.one("SELECT count(*) FROM outbox.subscription WHERE order_mode = 'block'") == 1


def redrive(engine: Engine) -> None:
    """Redrive every dead letter."""
    from outbox.store.dead import Selection, redrive

    with psycopg.connect(engine.url, autocommit=True) as connection:
        redrive(connection, Selection())


def cancel(engine: Engine, delivery: UUID) -> None:
    engine.connection.execute(
        statement("cancel_ids"), {"ids": [delivery], "org_id": None, "reason": "operator"}
    )
