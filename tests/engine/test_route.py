"""Routing: what matches, what becomes of it, and in whose turn."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from outbox.store.dispatch import Claim
from outbox.store.statements import statement
from tests.engine.engine import Engine, another, seconds

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def matched(engine: Engine, event: int) -> set[int]:
    """The subscriptions that the event's one fact lists."""
    return {item["subscription"] for item in engine.routed(event)}


# -- matching -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "patterns", "matches"),
    [
        ("orders.paid", ["orders.paid"], True),
        ("orders.paid", ["orders.*"], True),
        ("orders.paid", ["*"], True),
        ("orders.paid", ["invoices.*", "orders.*"], True),
        ("orders.item.added", ["orders.*"], True),
        ("orders", ["orders.*"], False),
        ("orders_old.paid", ["orders.*"], False),
        ("ordersX.paid", ["orders.*"], False),
        ("orders.paid", ["orders.pai"], False),
        ("Orders.paid", ["orders.*"], False),
    ],
)
def test_types_match_exactly_by_prefix_or_all(
    engine: Engine, type_: str, patterns: list[str], matches: bool
) -> None:
    subscription = engine.subscribe(patterns)
    [event] = engine.emit(type=type_)
    engine.route()
    assert matched(engine, event) == ({subscription} if matches else set())


def test_a_star_does_not_match_our_own_events(engine: Engine) -> None:
    star, own = engine.subscribe(["*"]), engine.subscribe(["outbox.*"])
    engine.run("SELECT nextval('outbox.event_id')")
    engine.run(
        "INSERT INTO outbox.event (id, slot, type, org_id, payload, created_at)"
        " VALUES (1, 0, 'outbox.delivery.dead', 'acme', '{}', clock_timestamp())"
    )
    engine.run("INSERT INTO outbox.pending VALUES (1, 0, 'acme')")
    engine.route()
    assert matched(engine, 1) == {own}
    assert star not in matched(engine, 1)


def test_an_organization_sees_its_own_events_and_operators_see_all(engine: Engine) -> None:
    """I14. A null organization reaches only what an operator declared for all."""
    acme, other = engine.subscribe(org="acme"), engine.subscribe(org="other")
    everyone = engine.subscribe(org=None)
    [a], [b], [none], [unknown] = (engine.emit(org=o) for o in ("acme", "other", None, "nobody"))
    engine.route()
    assert matched(engine, a) == {acme, everyone}
    assert matched(engine, b) == {other, everyone}
    assert matched(engine, none) == {everyone}
    assert matched(engine, unknown) == {everyone}
    orgs = "SELECT d.org_id IS NOT DISTINCT FROM e.org_id FROM outbox.delivery d"
    assert {row[0] for row in engine.rows(orgs + " JOIN outbox.event e ON e.id = d.event_id")} == {
        True
    }


def test_an_event_that_matches_nothing_still_has_its_fact(engine: Engine) -> None:
    [event] = engine.emit()
    routed, _ = engine.route()
    assert (routed.events, routed.deliveries) == (1, 0)
    assert engine.routed(event) == []
    assert engine.one("SELECT count(*) FROM outbox.journal") == 1
    assert engine.one("SELECT count(*) FROM outbox.pending") == 0


def test_an_event_before_active_from_does_not_match(engine: Engine) -> None:
    late = engine.subscribe(active_from=engine.now() + seconds(3600))
    [event] = engine.emit()
    exact = engine.subscribe(
        active_from=engine.one("SELECT created_at FROM outbox.event WHERE id = %s", event)
    )
    engine.route()
    assert matched(engine, event) == {exact}
    assert late not in matched(engine, event)


def test_what_is_decided_is_decided_once(engine: Engine) -> None:
    [event] = engine.emit()
    engine.route()
    engine.subscribe()
    routed, _ = engine.route()
    assert routed.events == 0
    assert matched(engine, event) == set()


# -- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "matches"),
    [
        ('{"total": 200}', True),
        ('{"total": 100}', False),
        ('{"total": "many"}', False),
        ("[]", False),
        ("null", False),
        ('{"total": 200, "note": "\\u0000"}', True),
        ('{"total": 1, "note": "\\u0000"}', True),  # cannot be judged: passes
        ('{"total": 1e400000}', True),  # no numeric: cannot be judged
    ],
)
def test_a_filter_decides_and_what_it_cannot_judge_passes(
    engine: Engine, payload: str, matches: bool
) -> None:
    subscription = engine.subscribe(filter="$.total > 100")
    [event] = engine.emit(payload=payload)
    engine.route()
    assert matched(engine, event) == ({subscription} if matches else set())


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["subscription", "endpoint"])
@pytest.mark.parametrize("state", ["paused", "disabled"])
def test_paused_and_disabled_destinations_hold_what_matches(
    engine: Engine, table: str, state: str
) -> None:
    subscription = engine.subscribe()
    where = subscription if table == "subscription" else engine.lane_of(subscription)
    engine.run(f"UPDATE outbox.{table} SET state = %s WHERE id = %s", state, where)
    [event] = engine.emit()
    routed, _ = engine.route(10)
    assert (routed.deliveries, routed.leased, routed.waiting) == (1, 0, 0)
    [fact] = engine.routed(event)
    assert fact["held"] == state
    assert engine.rows("SELECT state, held_reason FROM outbox.delivery") == [("held", state)]
    engine.check()


@pytest.mark.parametrize("table", ["subscription", "endpoint"])
def test_removed_destinations_get_nothing(engine: Engine, table: str) -> None:
    subscription = engine.subscribe()
    where = subscription if table == "subscription" else engine.lane_of(subscription)
    engine.run(f"UPDATE outbox.{table} SET state = 'removed' WHERE id = %s", where)
    [event] = engine.emit()
    engine.route(10)
    assert matched(engine, event) == set()


# -- times ----------------------------------------------------------------------------------------


def test_an_event_for_later_is_born_scheduled(engine: Engine) -> None:
    engine.subscribe()
    at = engine.now() + seconds(3600)
    engine.emit(deliver_at=at)
    routed, _ = engine.route(10)
    assert (routed.leased, routed.waiting) == (0, 0)
    assert engine.rows("SELECT state, due_at FROM outbox.delivery") == [("scheduled", at)]
    assert engine.due(now=at - seconds(1)) == []
    assert len(engine.due(now=at)) == 1
    engine.check()


def test_what_has_expired_or_is_too_old_is_not_leased_and_ends_dead(engine: Engine) -> None:
    engine.subscribe()
    engine.subscribe(max_age=seconds(10))
    engine.emit(expires_at=engine.now() + seconds(30))
    now = engine.now() + seconds(60)
    routed, _ = engine.route(10, now=now)
    assert (routed.deliveries, routed.leased) == (2, 0)
    assert engine.due(now=now) == []
    assert engine.tend(now) == 2
    reasons = engine.rows("SELECT reason FROM outbox.dead_letter ORDER BY 1")
    assert reasons == [("expired",), ("expired",)]
    engine.check()


@pytest.mark.parametrize("at", ["infinity", "-infinity"])
def test_times_without_end_stop_nobody(engine: Engine, at: str) -> None:
    """Emit refuses them; a row that an installer wrote by hand has them all the same."""
    engine.subscribe()
    for number, column in enumerate(("deliver_at", "expires_at"), start=1):
        engine.run(
            f"INSERT INTO outbox.event (id, slot, type, org_id, payload, created_at, {column})"
            " VALUES (%s, 0, 'orders.paid', 'acme', '1', now(), %s)",
            number,
            at if column == "deliver_at" else "infinity",
        )
        engine.run("INSERT INTO outbox.pending VALUES (%s, 0, 'acme')", number)
    engine.route()
    leased, _ = engine.lease_due()
    assert len(leased.ids) == (1 if at == "infinity" else 2)


# -- turns and permits ----------------------------------------------------------------------------


def test_the_window_bounds_leases_and_organizations_take_turns(engine: Engine) -> None:
    for org in ("a", "b"):
        engine.subscribe(org=org)
    engine.emit(10, org="a")
    engine.emit(2, org="b")
    routed, _ = engine.route(4)
    assert (routed.deliveries, routed.leased, routed.waiting) == (12, 4, 8)
    leased = engine.rows(
        "SELECT org_id, count(*) FROM outbox.delivery WHERE state = 'leased' GROUP BY 1"
    )
    assert sorted(leased) == [("a", 2), ("b", 2)]
    engine.check()


def test_leases_come_back_in_the_order_of_turns(engine: Engine) -> None:
    for org in ("a", "b"):
        engine.subscribe(org=org)
    engine.emit(3, org="a")
    engine.emit(1, org="b")
    ids = [delivery for delivery, _ in engine.leases(10)]
    orgs = [engine.delivery(delivery)["org_id"] for delivery in ids]
    assert sorted(orgs[:2]) == ["a", "b"]


def test_a_fair_claim_gives_each_organization_its_part(engine: Engine) -> None:
    """I15: a million events of A do not delay B's one."""
    engine.emit(100, org="a")
    engine.emit(1, org="b")
    engine.emit(1, org=None)
    routed, _ = engine.route(claim=Claim(9, orgs_max=64))
    assert routed.events == 3 + 1 + 1
    assert engine.rows("SELECT org, count(*) FROM outbox.pending GROUP BY 1") == [("a", 97)]
    assert routed.org_last == "b"


def test_a_fair_claim_goes_on_where_the_last_one_ended(engine: Engine) -> None:
    for org in ("a", "b", "c"):
        engine.emit(1, org=org)
    routed, _ = engine.route(claim=Claim(10, orgs_max=2))
    assert (routed.events, routed.org_last) == (2, "b")
    routed, _ = engine.route(claim=Claim(10, orgs_max=2, org_from="b\x01"))
    assert (routed.events, routed.org_last) == (1, "c")
    routed, _ = engine.route(claim=Claim(10, orgs_max=2, org_from="c\x01"))
    assert (routed.events, routed.org_last) == (0, None)


def test_a_fair_claim_leaves_alone_whom_it_is_told_to(engine: Engine) -> None:
    engine.emit(1, org="a")
    engine.emit(1, org="b")
    routed, _ = engine.route(claim=Claim(10, orgs_max=64, orgs_skipped=["a"]))
    assert routed.events == 1
    assert engine.rows("SELECT org FROM outbox.pending") == [("a",)]


def test_a_claim_keeps_to_floor_ceiling_and_size(engine: Engine) -> None:
    ids = engine.emit(10)
    routed, _ = engine.route(claim=Claim(2, floor=ids[2], ceiling=ids[5]))
    assert (routed.events, routed.id_max) == (2, ids[4])
    routed, _ = engine.route(claim=Claim(99, floor=ids[2], ceiling=ids[5]))
    assert (routed.events, routed.id_max) == (1, ids[5])
    left = [row[0] for row in engine.rows("SELECT id FROM outbox.pending ORDER BY id")]
    assert left == ids[:3] + ids[6:]


def test_an_organization_is_full_when_nothing_of_it_could_go(engine: Engine) -> None:
    lane = engine.endpoint("a", concurrency=1)
    engine.subscribe(org="a", endpoint_id=lane)
    engine.subscribe(org="b")
    engine.emit(2, org="a")
    engine.emit(1, org="b")
    routed, _ = engine.route(10)
    assert (routed.leased, routed.waiting, routed.orgs_full) == (2, 1, [])
    engine.emit(1, org="a")
    engine.emit(1, org="b")
    routed, _ = engine.route(10)
    assert (routed.leased, routed.waiting, routed.orgs_full) == (1, 1, ["a"])


def test_a_claim_tells_what_it_left_to_the_lanes_that_it_met(engine: Engine) -> None:
    for org, concurrency in (("a", 5), ("b", 2), ("c", 9)):
        engine.subscribe(org=org, endpoint_id=engine.endpoint(org, concurrency=concurrency))
    engine.emit(3, org="a")
    engine.emit(4, org="b")
    assert engine.route(10)[0].spare == 2
    engine.emit(1, org="a")
    assert engine.route(10)[0].spare == 1
    engine.emit(1, org="a")
    engine.emit(2, org="c")
    assert engine.route(10)[0].spare == 7


def test_a_lane_never_has_more_leases_than_its_concurrency(engine: Engine) -> None:
    lane = engine.endpoint(concurrency=3)
    engine.subscribe(endpoint_id=lane)
    engine.subscribe(["orders.*"], endpoint_id=lane)
    engine.emit(4)
    assert len(engine.leases(100)) == 3
    assert engine.leases(100) == []
    assert engine.due() == []
    assert engine.states() == {"leased": 3, "scheduled": 5}


def test_permits_are_exact_with_two_relays_racing(engine: Engine) -> None:
    """The second waits for the first one's transaction and then sees its leases."""
    lane = engine.endpoint(concurrency=3)
    engine.subscribe(endpoint_id=lane)
    engine.emit(2)
    engine.route()
    engine.emit(4)
    with another(engine.url) as first, another(engine.url) as second:
        first.execute("BEGIN")
        first.execute(statement("dispatch_lock"))
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(engine.route(100, connection=second)[0])
        )
        thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not engine.one(waiting):
            assert thread.is_alive(), "the second relay did not wait"
        one = engine._row("lease_due", _lease_params(lane), first)
        first.execute("COMMIT")
        thread.join(30)
        assert one[1] == 2
        assert results[0].leased + one[1] <= 3
    assert engine.one("SELECT count(*) FROM outbox.delivery WHERE state = 'leased'") <= 3


def _lease_params(lane: int) -> dict[str, Any]:
    places = {"due_lanes": [lane], "due_queues": [0], "fronts": [0.0]}
    oldest: dict[str, Any] = {"lanes": [], "oldest": []}
    limits = {"window": 99, "later_max": 99}
    return {"now": None, "token": 999, "lease_s": 30, **places, **oldest, **limits}


def test_a_claim_tells_the_oldest_live_lease_of_its_lane(engine: Engine) -> None:
    """From which on the next claim counts: none that lives is older, however the others end."""
    lane = engine.endpoint(concurrency=5)
    engine.subscribe(endpoint_id=lane)
    engine.emit(2)
    first = engine.leases(10)
    engine.emit(2)
    routed, second = engine.route(10, oldest={lane: first[0][1]})
    assert routed.oldest == {lane: first[0][1]}
    engine.emit(2)
    routed, third = engine.route(10, oldest=routed.oldest)
    assert (routed.leased, routed.waiting) == (1, 1)
    engine.take(first)
    engine.settle(first, "delivered")
    leased, fourth = engine.lease_due(10, oldest=routed.oldest)
    assert (len(leased.ids), leased.oldest) == (1, {lane: second})
    engine.emit(2)
    routed, _ = engine.route(10, oldest=leased.oldest)
    assert (routed.leased, routed.waiting, routed.oldest) == (1, 1, {lane: second})
    assert first[0][1] < second < third < fourth


def test_a_lane_without_live_leases_is_counted_from_this_claim_on(engine: Engine) -> None:
    lane = engine.endpoint(concurrency=5)
    engine.subscribe(endpoint_id=lane)
    engine.emit(1)
    routed, token = engine.route(0)
    assert routed.oldest == {lane: token}


def test_tokens_rise_unless_they_are_given(engine: Engine) -> None:
    engine.subscribe()
    found = []
    for _ in range(3):
        engine.emit(1)
        found.append(engine.route(10, drawn=True)[0].token)
        found.append(engine.lease_due(10, drawn=True)[0].token)
    assert found == sorted(set(found))


def test_expired_leases_hold_no_permit(engine: Engine) -> None:
    lane = engine.endpoint(concurrency=2)
    engine.subscribe(endpoint_id=lane)
    engine.emit(2)
    assert len(engine.leases(10)) == 2
    engine.emit(1)
    assert len(engine.leases(10, now=engine.now() + seconds(31))) == 1


def test_rate_tokens_are_spent_and_refill_with_time(engine: Engine) -> None:
    """A tenth of a second's tokens at most, at least one."""
    lane = engine.endpoint(rate_per_s=50.0)
    engine.subscribe(endpoint_id=lane)
    now = engine.now()
    engine.emit(100)
    assert len(engine.leases(100, now=now)) == 5
    assert engine.due(now=now) == []
    assert len(engine.due(now=now + seconds(0.06))) == 3
    assert len(engine.due(now=now + seconds(0.08))) == 1
    assert len(engine.due(now=now + seconds(60))) == 5
    now += seconds(60)
    taken = 0
    for step in range(1, 101):
        taken += len(engine.due(now=now + seconds(step / 100)))
    assert taken in (49, 50)


def test_a_rate_below_one_a_second_still_flows(engine: Engine) -> None:
    lane = engine.endpoint(rate_per_s=0.1)
    engine.subscribe(endpoint_id=lane)
    now = engine.now()
    engine.emit(3)
    assert len(engine.leases(10, now=now)) == 1
    assert engine.due(now=now + seconds(9)) == []
    assert len(engine.due(now=now + seconds(10.1))) == 1


def test_delivery_ids_come_from_event_subscription_and_generation(engine: Engine) -> None:
    """The idempotency key survives the delivery: made again it is the same."""
    subscription = engine.subscribe()
    [event] = engine.emit()
    engine.route()
    [(stored,)] = engine.rows("SELECT id FROM outbox.delivery")
    [(again, other)] = engine.rows(
        "SELECT outbox.delivery_id(e.id, e.created_at, %s, 0, i.salt),"
        " outbox.delivery_id(e.id, e.created_at, %s, 1, i.salt)"
        " FROM outbox.event e, outbox.installation i WHERE e.id = %s",
        subscription,
        subscription,
        event,
    )
    assert stored == again != other


def test_a_claim_leaves_out_what_another_holds(engine: Engine) -> None:
    """I9: carrying, or another relay, holds up its own rows alone."""
    engine.subscribe()
    held, *others = engine.emit(3)
    engine.run("SET lock_timeout = '2s'")
    with another(engine.url) as second, second.transaction():
        second.execute("SELECT FROM outbox.pending WHERE id = %s FOR UPDATE", [held])
        for claim in (Claim(1), Claim(1, orgs_max=64)):
            routed, _ = engine.route(claim=claim)
            assert (routed.events, routed.id_max) == (1, others.pop(0))
    routed, _ = engine.route()
    assert routed.id_max == held


def test_another_event_subscription_generation_or_installation_is_another_key(
    engine: Engine,
) -> None:
    """Two installations that a copy made of one have the same events and never the same keys."""
    at, salt = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=7)
    same = (1, at, 2, 0, salt)
    others = [(9, at, 2, 0, salt), (1, at, 9, 0, salt), (1, at, 2, 9, salt)]
    keys = [
        engine.one("SELECT outbox.delivery_id(%s, %s, %s, %s, %s)", *values)
        for values in (same, *others, (1, at, 2, 0, UUID(int=8)))
    ]
    assert len(set(keys)) == 5
    assert keys[0] == engine.one("SELECT outbox.delivery_id(%s, %s, %s, %s, %s)", *same)


def test_the_key_is_computed_where_it_is_asked_for(engine: Engine) -> None:
    """PostgreSQL calls a function for each row unless it can inline it, for 2 us and more."""
    query = (
        "EXPLAIN (VERBOSE) SELECT outbox.delivery_key(x.created_at, x.hash) FROM ("
        "SELECT e.created_at, outbox.delivery_hash(e.id, 1, 0, i.salt) AS hash"
        " FROM outbox.event e, outbox.installation i OFFSET 0) x"
    )
    plan = str(engine.rows(query))
    assert "sha256" in plan
    assert "outbox.delivery" not in plan


def test_what_is_leased_already_counts_against_the_concurrency(engine: Engine) -> None:
    engine.subscribe(endpoint_id=engine.endpoint(concurrency=3))
    for emitted, leased in ((2, 2), (2, 1), (2, 0)):
        engine.emit(emitted)
        assert len(engine.leases(100)) == leased
