"""Options of subscriptions: when deliveries are due and expire, who goes first, and what becomes of
events that share a key. After each test the rows are what the journal says (I13)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.errors import UsageError
from outbox.store.deliveries import cancel_deliveries, reschedule_deliveries
from outbox.store.options import Options
from outbox.store.rebuild import verify
from outbox.store.subscriptions import (
    KindSpec,
    Rule,
    add_kind,
    pause_subscription,
    resume_subscription,
    show_subscription,
)
from tests.engine.engine import Engine, Lease, seconds

SPEC = KindSpec("processor", {}, "sync.x")


@pytest.fixture(autouse=True)
def _as_the_journal_says(engine: Engine) -> Iterator[None]:
    yield
    engine.check()
    with psycopg.connect(engine.url) as connection:
        assert verify(connection).samples == {}


def subscribe(engine: Engine, org: str | None = "acme", **options: Any) -> int:
    spec = KindSpec("processor", {}, "sync.x", concurrency=options.pop("concurrency", None))
    order = options.pop("order", None)
    rule = Rule(("orders.*",), order=order, options=Options(**options))
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return add_kind(connection, spec, rule, org)


def emit(engine: Engine, *keys: Any, org: str = "acme", **options: Any) -> list[int]:
    """An event for each key, in one transaction each."""
    return [
        engine.emit(org=org, payload=json.dumps({"k": key, "n": n}), **options)[0]
        for n, key in enumerate(keys)
    ]


def event_of(engine: Engine, leases: Sequence[Lease]) -> list[int]:
    """The events of leases, in order of event."""
    query = "SELECT event_id FROM outbox.delivery WHERE id = ANY (%s) ORDER BY event_id"
    return [row[0] for row in engine.rows(query, [lease[0] for lease in leases])]


def end(engine: Engine, leases: Sequence[Lease], verdict: str = "delivered", **more: Any) -> None:
    engine.take(leases)
    assert len(engine.settle(leases, verdict, **more)) == len(leases)


def advance(engine: Engine) -> tuple[int, int, int]:
    row = engine._locked("order_advance", {"now": None, "since_s": None, "rows_max": 100})
    return row[0], row[1], row[2]


def fates(engine: Engine, event_id: int) -> list[tuple[Any, ...]]:
    [told] = engine.routed(event_id)
    return [(fact, reason) for fact, reason, _, _ in engine.facts(UUID(told["delivery"]))]


# -- when ------------------------------------------------------------------------------------------


def test_a_delay_makes_deliveries_due_that_much_later(engine: Engine) -> None:
    subscribe(engine, delay=timedelta(minutes=10))
    start = engine.now()
    engine.emit()
    engine.emit(deliver_at=start + timedelta(hours=1))
    engine.emit(deliver_at=start.replace(year=9999))
    assert engine.leases() == []
    assert len(engine.due(now=start + timedelta(minutes=11))) == 1
    assert len(engine.due(now=start + timedelta(minutes=69))) == 0
    assert len(engine.due(now=start + timedelta(minutes=71))) == 1


def test_a_time_to_live_ends_what_was_not_delivered_in_it(engine: Engine) -> None:
    """It counts from when a delivery is due; an event's own expiry holds where it is sooner."""
    subscribe(engine, delay=timedelta(minutes=10), ttl=timedelta(minutes=5))
    start = engine.now()
    engine.emit(3)
    engine.emit(expires_at=start + timedelta(minutes=11))
    engine.route()
    at = start + timedelta(minutes=12)
    assert engine.tend(at) == 1
    first = engine.due(1, now=at)
    engine.take(first, now=at)
    engine.settle(first, "retry", delay_s=600.0, now=at)
    assert engine.tend(start + timedelta(minutes=16)) == 2
    assert engine.tend(start + timedelta(minutes=23)) == 1
    rows = engine.rows("SELECT reason, attempts FROM outbox.dead_letter ORDER BY attempts")
    assert rows == [("expired", 0)] * 3 + [("expired", 1)]


def test_priority_goes_ahead_among_what_is_due(engine: Engine) -> None:
    subscribe(engine, priority="$.k", concurrency=1)
    ids = emit(engine, 0, 5, "no number", 60, 999999, -3)
    engine.route()
    order = []
    for _ in ids:
        leases = engine.due()
        order += event_of(engine, leases)
        end(engine, leases)
    assert order == [ids[4], ids[3], ids[1], ids[0], ids[2], ids[5]]


def test_priority_hurries_nothing_that_is_not_due(engine: Engine) -> None:
    subscribe(engine, priority="600")
    start = engine.now()
    engine.emit(deliver_at=start + seconds(60))
    engine.route()
    assert engine.due(now=start + seconds(59)) == []
    assert len(engine.due(now=start + seconds(61))) == 1


def test_a_waiting_delivery_is_rescheduled_and_a_running_one_is_not(engine: Engine) -> None:
    subscription = subscribe(engine)
    engine.emit(3)
    engine.route()
    [running] = engine.due(1)
    engine.take([running])
    rest = [row[0] for row in engine.rows("SELECT id FROM outbox.delivery WHERE token IS NULL")]
    nobody = UUID(int=9)
    with psycopg.connect(engine.url, autocommit=True) as connection:
        done = reschedule_deliveries(
            connection, [*rest, running[0], nobody], wait=timedelta(hours=1)
        )
        assert (sorted(done.rescheduled), done.running, done.ended, done.unknown) == (
            sorted(rest), [running[0]], [], [nobody],
        )  # fmt: skip
        assert engine.due() == []
        assert engine.facts(running[0]) == []
        assert reschedule_deliveries(connection, rest[:1], "rival", wait=seconds(0)).unknown
        at = engine.now() + timedelta(minutes=1)
        assert reschedule_deliveries(connection, rest[:1], at=at).rescheduled == rest[:1]
        assert [lease[0] for lease in engine.due(now=at)] == rest[:1]
        pause_subscription(connection, subscription)
        assert reschedule_deliveries(connection, rest[1:], wait=seconds(0)).rescheduled == rest[1:]
        resume_subscription(connection, subscription)
    assert [lease[0] for lease in engine.due()] == rest[1:]
    assert ("rescheduled", None, False, 0) in engine.facts(rest[0])


# -- at once by key --------------------------------------------------------------------------------


def test_of_a_key_only_so_many_are_under_way(engine: Engine) -> None:
    """The others wait for their turn in order, and hide nobody of another key."""
    subscribe(engine, turn_key="$.k", turns=2)
    ids = emit(engine, "a", "a", "a", "a", "b", None)
    engine.route()
    assert engine.states() == {"scheduled": 4, "held": 2}
    first = engine.due()
    assert event_of(engine, first) == [ids[0], ids[1], ids[4], ids[5]]
    end(engine, first[:1])
    end(engine, first[1:2], "retry", delay_s=3600.0)
    assert advance(engine)[1] == 1
    assert event_of(engine, engine.due()) == [ids[2]]
    assert advance(engine)[1] == 0
    assert engine.states()["held"] == 1, "one that waits for its retry keeps its turn"


@pytest.mark.parametrize("end_by", ["dead", "cancel"])
def test_however_one_of_a_key_ends_the_next_has_its_turn(engine: Engine, end_by: str) -> None:
    subscribe(engine, turn_key="subject", turns=1)
    for _ in range(2):
        engine.emit(subject="orders/1")
    engine.route()
    leases = engine.due()
    assert len(leases) == 1
    if end_by == "dead":
        end(engine, leases, "dead")
    else:
        with psycopg.connect(engine.url, autocommit=True) as connection:
            cancel_deliveries(connection, [leases[0][0]])
    engine.emit(subject="orders/1")
    engine.route()
    assert engine.due() == [], "who came earlier goes first"
    assert advance(engine)[1] == 1
    assert len(engine.due()) == 1


def test_keys_of_two_organizations_never_meet(engine: Engine) -> None:
    subscribe(engine, None, turn_key="$.k", turns=1)
    subscribe(engine, None, once_key="$.k", once_for=timedelta(days=1))
    for org in ("acme", "rival"):
        emit(engine, "a", org=org)
    engine.route()
    assert len(engine.due()) == 4


# -- once ------------------------------------------------------------------------------------------


def test_of_a_key_the_first_is_delivered_and_the_others_are_told_of(engine: Engine) -> None:
    """In one batch and in later ones, until its life is over; retries and dead letters count."""
    subscribe(engine, once_key="$.k", once_for=timedelta(hours=1))
    first, second, other, none, none_too = emit(engine, "a", "a", "b", None, None)
    leases = engine.leases()
    assert event_of(engine, leases) == [first, other, none, none_too]
    assert fates(engine, second) == [("cancelled", "duplicate")]
    end(engine, leases, "dead")
    [third] = emit(engine, "a")
    assert engine.leases() == []
    assert fates(engine, third) == [("cancelled", "duplicate")]
    [fourth] = emit(engine, "a")
    later = engine.now() + timedelta(hours=2)
    assert event_of(engine, engine.leases(now=later)) == [fourth]
    hashed = engine.rows("SELECT key::text FROM outbox.key_use")
    assert len(hashed) == 2


def test_what_is_dropped_takes_no_turn(engine: Engine) -> None:
    """An ordered subscription goes on behind a duplicate."""
    subscribe(engine, order="block", once_key="$.n", once_for=timedelta(hours=1))
    emit(engine, "a", ordering_key="k")
    emit(engine, "a", ordering_key="k")
    emit(engine, "x", "y", ordering_key="k")
    engine.route()
    assert engine.states() == {"scheduled": 1, "held": 1}
    end(engine, engine.due())
    advance(engine)
    assert len(engine.due()) == 1


# -- debounce --------------------------------------------------------------------------------------

WINDOW = timedelta(seconds=30)


def test_of_a_key_the_latest_is_delivered_when_it_rests(engine: Engine) -> None:
    subscribe(engine, debounce=WINDOW, debounce_key="$.k", debounce_max=timedelta(seconds=70))
    start = engine.now()
    first, second, other = emit(engine, "a", "a", "b")
    engine.route(now=start)
    assert fates(engine, first) == [("cancelled", "debounced")]
    [third] = emit(engine, "a")
    engine.route(now=start + seconds(20))
    assert fates(engine, second) == [("cancelled", "debounced")]
    assert event_of(engine, engine.due(now=start + seconds(31))) == [other]
    assert engine.due(now=start + seconds(49)) == []
    [fourth] = emit(engine, "a")
    engine.route(now=start + seconds(45))
    assert fates(engine, third) == [("cancelled", "debounced")]
    [fifth] = emit(engine, "a")
    engine.route(now=start + seconds(65))
    assert fates(engine, fourth) == [("cancelled", "debounced")]
    assert engine.due(now=start + seconds(69)) == []
    leases = engine.due(now=start + seconds(71))
    assert event_of(engine, leases) == [fifth], "at most so long after the first"
    [sixth] = emit(engine, "a")
    engine.route(now=start + seconds(72))
    assert event_of(engine, engine.due(now=start + seconds(101))) == []
    assert event_of(engine, engine.due(now=start + seconds(103))) == [sixth], "a new burst"


def test_while_it_is_paused_only_the_latest_is_kept(engine: Engine) -> None:
    subscription = subscribe(engine, debounce=WINDOW, debounce_key="$.k")
    with psycopg.connect(engine.url, autocommit=True) as connection:
        pause_subscription(connection, subscription)
    start = engine.now()
    emit(engine, "a")
    engine.route(now=start)
    emit(engine, "a")
    engine.route(now=start + timedelta(hours=1))
    assert engine.states() == {"held": 1}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"turns": 2},
        {"once_key": "subject"},
        {"debounce": WINDOW},
        {"debounce": WINDOW, "debounce_key": "type", "debounce_max": seconds(1)},
        {"debounce": WINDOW, "debounce_key": "type", "turn_key": "type"},
        {"delay": timedelta()},
        {"tags": ("a b",)},
        {"turn_key": "customer"},
        {"turn_key": "$.a["},
        {"priority": "high"},
        {"order": "skip", "turn_key": "type"},
    ],
)
def test_what_cannot_be_is_refused(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        subscribe(engine, **options)
    assert engine.rows("SELECT 1 FROM outbox.subscription") == []


def test_the_options_are_shown(engine: Engine) -> None:
    subscription = subscribe(
        engine, delay=seconds(1), tags=("a", "b"), debounce=WINDOW, debounce_key="$.k"
    )
    with psycopg.connect(engine.url, autocommit=True) as connection:
        shown = show_subscription(connection, subscription)
    assert (shown["delay_s"], shown["tags"], shown["debounce_key"]) == (1.0, ["a", "b"], "$.k")
    assert (shown["debounce_s"], shown["debounce_max_s"]) == (30.0, 300.0)
    assert (shown["once_key"], shown["concurrency_key"], shown["order"]) == (None, None, None)
