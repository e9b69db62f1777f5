"""The ring turns, what is past its time goes, what is owed is carried, and nobody waits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.history import DeliveryState, Fact, FactName, fold
from outbox.lifecycle import State
from outbox.store.retention import SLOTS, RetentionConfig, Ring, Tended
from tests.retention.conftest import DAY, KEEP, T0, World, tend_at

# --- the ring ------------------------------------------------------------------------------------


def ring(current: int, *days: float | None, now: float) -> Ring:
    opened = [None if day is None else T0 + day * DAY for day in days]
    return Ring(T0 + now * DAY, current, tuple(opened + [None] * (SLOTS - len(opened))))


def test_a_slot_is_past_retention_when_its_last_row_is() -> None:
    assert ring(1, 0, 1, now=6.9).expired(6 * DAY) == []
    assert ring(1, 0, 1, now=7).expired(6 * DAY) == [0]


def test_slots_go_oldest_first_and_the_current_one_never() -> None:
    assert ring(2, 5, 6, 7, None, 1, 2, 3, 4, now=1000).expired(6 * DAY) == [4, 5, 6, 7, 0, 1]
    assert ring(0, 5, now=1000).expired(6 * DAY) == []


def test_the_ring_turns_after_a_sixth_into_a_free_slot_alone() -> None:
    assert not ring(0, 0, now=0.9).turn_due(6 * DAY)
    assert ring(0, 0, now=1).turn_due(6 * DAY)
    assert not ring(0, 7, 1, 2, 3, 4, 5, 6, now=90).turn_due(6 * DAY)
    assert ring(7, None, 1, 2, 3, 4, 5, 6, 7, now=8).turn_due(6 * DAY)


def test_everything_stays_for_the_retention_time_and_is_gone_soon_after(world: World) -> None:
    written: dict[int, int] = {}
    for day in range(25):
        world.tend(day)
        kept = {row[0] for row in world.run("SELECT id FROM outbox.event")}
        assert {written[d] for d in range(day) if day - d < 6} <= kept
        assert len(kept) <= 8
        written[day] = world.event()
    assert world.one("SELECT count(*) FROM outbox.journal") <= 9
    assert world.one("SELECT count(*) FROM outbox.ring WHERE opened_at IS NULL") >= 1


def test_a_second_call_in_the_same_minute_changes_nothing(world: World) -> None:
    assert world.tend(1) == Tended(turned_to=1)
    assert world.tend(1) == Tended()


def test_a_turn_whose_transaction_was_lost_is_mended(world: World) -> None:
    world.run("SELECT setval('outbox.ring_slot', 3, true)")
    assert world.tend(9) == Tended()
    assert world.one("SELECT opened_at FROM outbox.ring WHERE slot = 3") == T0 + 9 * DAY


def test_a_longer_retention_time_keeps_what_is_there(world: World) -> None:
    world.days(1, 7)
    first = world.event()
    patient = replace(KEEP, keep=60 * DAY)
    assert all(not tended.cleared for tended in world.days(8, 30, patient))
    assert world.one("SELECT count(*) FROM outbox.event WHERE id = %s", first) == 1


# --- what is owed --------------------------------------------------------------------------------


OLD_CASES = [
    ("scheduled", {"attempts": 2, "budget": 2, "expiries": 1, "due_at": T0 + 400 * DAY}),
    ("held", {"attempts": 1}),
    ("leased", {}),
]


@pytest.mark.parametrize(("state", "fields"), OLD_CASES)
def test_a_live_delivery_takes_its_event_along(
    world: World, state: str, fields: dict[str, Any]
) -> None:
    event = world.event()
    delivery = world.delivery(event, state, **fields)
    before = world.run("SELECT * FROM outbox.event WHERE id = %s", event)
    kept = "to_jsonb(d) - 'event_slot'"
    row = world.one(f"SELECT {kept} FROM outbox.delivery d WHERE id = %s", delivery)
    world.days(1, 7)
    assert world.one("SELECT count(*) FROM outbox.event_0") == 0
    assert world.one(f"SELECT {kept} FROM outbox.delivery d WHERE id = %s", delivery) == row
    (after,) = world.run(
        "SELECT e.* FROM outbox.delivery d JOIN outbox.event e ON e.slot = d.event_slot"
        " AND e.id = d.event_id WHERE d.id = %s",
        delivery,
    )
    assert (before[0][0], *before[0][2:]) == (after[0], *after[2:])
    assert after[1] == 6


def test_a_dead_letter_and_an_unrouted_event_are_carried_too(world: World) -> None:
    dead_event, pending_event = world.event(), world.event(routed=False)
    dead = world.dead_letter(dead_event)
    world.days(1, 7)
    assert world.run("SELECT slot, id FROM outbox.event ORDER BY id") == [
        (6, dead_event),
        (6, pending_event),
    ]
    assert world.one("SELECT event_slot FROM outbox.dead_letter WHERE id = %s", dead) == 6
    assert world.run("SELECT id, slot, org FROM outbox.pending") == [(pending_event, 6, "acme")]
    facts = world.run("SELECT event_id, detail ->> 'state' FROM outbox.journal ORDER BY 1")
    assert facts == [(dead_event, "dead"), (pending_event, "pending")]


def test_what_is_owed_for_long_is_carried_round_and_round(world: World) -> None:
    event = world.event()
    many = [world.delivery(event, "held") for _ in range(30)]
    carried = sum(tended.carried for tended in world.days(1, 40))
    assert carried >= 5 * len(many)
    assert world.one("SELECT count(DISTINCT id) FROM outbox.event") == 1
    owed = world.run("SELECT DISTINCT e.id FROM outbox.delivery d JOIN outbox.event e ON"
                     " e.slot = d.event_slot AND e.id = d.event_id")  # fmt: skip
    assert owed == [(event,)]


def folded(world: World, delivery: UUID, event: int) -> DeliveryState | None:
    """The fold of what the journal holds about a delivery, in order of time."""
    rows = world.run(
        "SELECT fact, at, attempt, charged, budget, reason, due_at, detail FROM outbox.journal"
        " WHERE delivery_id = %s OR (event_id = %s AND fact = 'routed') ORDER BY at",
        delivery,
        event,
    )
    facts = [
        Fact(
            FactName(name),
            at,
            delivery,
            attempt=attempt or 0,
            charged=bool(charged),
            budget=budget or 1,
            reason=reason,
            due_at=due_at,
            expiries=(detail or {}).get("expiries", 0),
            state=State(detail["state"]) if name == "carried" else None,
        )
        for name, at, attempt, charged, budget, reason, due_at, detail in rows
    ]
    return fold(facts)


def test_the_fold_is_the_same_before_and_after_the_old_facts_are_gone(world: World) -> None:
    """I13 across retention."""
    event = world.event()
    due = T0 + 500 * DAY
    delivery = world.delivery(event, attempts=1, due_at=due)
    world.fact("attempt_failed", event, delivery, attempt=1, charged=True, reason="x", due_at=due)
    before = folded(world, delivery, event)
    assert before == DeliveryState(delivery, State.SCHEDULED, 1, due_at=due, reason="x")
    for day in range(1, 41):
        world.tend(day)
        assert folded(world, delivery, event) == before
    world.fact("delivered", event, delivery, attempt=2, charged=True)
    after = folded(world, delivery, event)
    assert after is not None
    assert (after.state, after.attempts) == (State.DELIVERED, 2)


def test_a_fact_that_waited_for_the_carrying_comes_after_it(world: World) -> None:
    """A settle reads its clock, then waits for the row: its fact must not sort before ours."""
    event = world.event()
    delivery = world.delivery(event, "leased")
    world.days(1, 6)
    settles_at = datetime.now(UTC)
    world.tend(7)
    assert world.one("SELECT at FROM outbox.journal WHERE fact = 'carried'") < settles_at
    world.fact("delivered", event, delivery, at=settles_at, attempt=1, charged=True)
    after = folded(world, delivery, event)
    assert after is not None
    assert after.state is State.DELIVERED


def test_more_than_a_call_may_do_goes_on_in_the_next(world: World) -> None:
    for _ in range(20):
        world.delivery(world.event())
    few = replace(KEEP, rounds_max=1)
    world.days(1, 6, few)
    results = [world.tend(6.9999 + 0.0002 * i, few) for i in range(1, 6)]
    assert [r.blocked for r in results[:2]] == [0, 0]
    assert (0,) in [r.cleared for r in results]
    assert sum(r.carried for r in results) == 20


# --- nobody waits --------------------------------------------------------------------------------


def seven_days_later(world: World) -> None:
    world.run("CREATE TABLE public.orders (id int PRIMARY KEY, org text)")
    world.run("SELECT outbox.watch('public.orders', org_column => 'org')")
    world.days(1, 6)


def write_everything(url: str) -> None:
    """What an application writes, in more rounds than a cached plan needs to turn generic."""
    with psycopg.connect(url, options="-c lock_timeout=1s", autocommit=True) as application:
        for n in range(8):
            application.execute("INSERT INTO public.orders VALUES (%s, 'a')", [n])
            application.execute("SELECT outbox.emit('a.b', '1', 'acme')")
        application.execute("UPDATE public.orders SET org = 'b'")
        application.execute("DELETE FROM public.orders")
        application.execute("TRUNCATE public.orders")


def test_while_a_slot_is_emptied_captured_writes_go_on(world: World) -> None:
    """The worst moment: the lock is held, and somebody queues for it as well."""
    seven_days_later(world)
    with psycopg.connect(world.url) as emptying:
        emptying.execute(
            "LOCK TABLE ONLY outbox.event_0, outbox.journal_0 IN ACCESS EXCLUSIVE MODE"
        )
        write_everything(world.url)


def test_a_long_transaction_that_wrote_into_the_slot_holds_up_the_emptying_alone(
    world: World,
) -> None:
    with psycopg.connect(world.url) as old:
        old.execute("SELECT outbox.emit('late.one', '1', 'acme')")
        seven_days_later(world)
        assert world.tend(7).blocked == 0
        write_everything(world.url)
        assert world.tend(7.1).blocked == 0
        old.commit()
    assert world.tend(7.2).cleared == (0,)
    assert world.one("SELECT slot FROM outbox.event WHERE type = 'late.one'") == world.slot


@pytest.mark.parametrize(
    "query", ["SELECT count(*) FROM outbox.event", "LOCK outbox.journal_0 IN SHARE MODE"]
)
def test_behind_a_long_transaction_nobody_ever_queues(world: World, query: str) -> None:
    """Whoever queues for an exclusive lock stops everybody behind, the relay too."""
    seven_days_later(world)
    with psycopg.connect(world.url) as old:
        old.execute(query.encode())
        holders = asyncio.run(look_while_tending(world, T0 + 7 * DAY))
    assert holders == (0, 0)


async def look_while_tending(world: World, now: datetime) -> tuple[int | None, int]:
    """Tend, and count the locks that were waited for meanwhile."""
    tending = asyncio.create_task(tend_at(world.url, now, KEEP))
    waited = 0
    async with await psycopg.AsyncConnection.connect(world.url, autocommit=True) as watcher:
        while not tending.done():
            cursor = await watcher.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"
            )
            waited += (await cursor.fetchone() or (0,))[0]
    return (await tending).blocked, waited


def test_daemons_beside_each_other_do_the_work_once(world: World) -> None:
    for _ in range(40):
        world.delivery(world.event())
    world.days(1, 6)

    async def together() -> list[Tended]:
        at = T0 + 7 * DAY
        return list(await asyncio.gather(*(tend_at(world.url, at, KEEP) for _ in range(4))))

    first = asyncio.run(together())
    later = [world.tend(7.001 + n / 1000) for n in range(2)]
    results = [*first, *later]
    assert sum(len(r.cleared) for r in results) == 1
    assert sum(r.carried for r in results) == 40
    assert world.one("SELECT count(*) FROM outbox.journal WHERE fact = 'carried'") == 40
    assert sum(r.turned_to is not None for r in results) == 1


@pytest.mark.parametrize("table", ["delivery", "dead_letter", "pending"])
def test_a_locked_row_is_left_for_the_next_time(world: World, table: str) -> None:
    event = world.event(routed=table != "pending")
    if table == "delivery":
        world.delivery(event)
    elif table == "dead_letter":
        world.dead_letter(event)
    world.days(1, 6)
    with psycopg.connect(world.url) as settling:
        settling.execute(f"SELECT FROM outbox.{table} FOR UPDATE".encode())
        assert world.tend(7).blocked == 0
        assert world.run("SELECT id FROM outbox.event_0") == [(event,)]
    assert world.tend(7.1).cleared == (0,)
    assert world.run("SELECT id FROM outbox.event") == [(event,)]


def test_an_older_slot_that_is_blocked_keeps_the_newer_ones(world: World) -> None:
    """Facts about an event lie in its own slot and in newer ones."""
    world.delivery(world.event())
    world.days(1, 5)
    with psycopg.connect(world.url) as settling:
        settling.execute("SELECT FROM outbox.delivery FOR UPDATE")
        stuck = world.days(6, 20)
        assert {(tended.blocked, tended.cleared) for tended in stuck[1:]} == {(0, ())}
        assert [tended.turned_to for tended in stuck if tended.turned_to is not None] == [6, 7]
    assert world.tend(21).cleared == (0, 1, 2, 3, 4, 5, 6)


# --- the rest ------------------------------------------------------------------------------------


def test_dead_letters_past_their_time_are_discarded_with_a_fact(world: World) -> None:
    old, young = (world.dead_letter(world.event(), died_at=T0 + n * DAY) for n in (0, 1))
    config = replace(KEEP, keep=1000 * DAY, dead_keep=30 * DAY)
    assert world.tend(30, config).discarded == 1
    assert world.run("SELECT id FROM outbox.dead_letter") == [(young,)]
    facts = world.run("SELECT delivery_id, reason FROM outbox.journal WHERE fact = 'discarded'")
    assert facts == [(old, "retention")]


def test_keys_and_secrets_past_their_time_are_forgotten_in_batches(world: World) -> None:
    for n in range(20):
        world.run("SELECT outbox.emit('a', '1', dedupe_key => %s::text)", str(n))
    world.run("UPDATE outbox.dedupe SET expires_at = %s", T0)
    world.run("UPDATE outbox.dedupe SET expires_at = %s WHERE key = '7'", T0 + DAY)
    endpoint = world.one("INSERT INTO outbox.endpoint (org_id, url) VALUES ('a', 'b') RETURNING id")
    for expires in (None, T0, T0 + DAY):
        world.run(
            "INSERT INTO outbox.secret (endpoint_id, kind, sealed, expires_at)"
            " VALUES (%s, 'hmac', '', %s)",
            endpoint,
            expires,
        )
    assert world.tend(0.5).purged == 20
    assert world.run("SELECT key FROM outbox.dedupe") == [("7",)]
    kept = world.run("SELECT expires_at FROM outbox.secret ORDER BY 1")
    assert kept == [(T0 + DAY,), (None,)]


def test_without_a_clock_of_the_caller_the_servers_is_used(world: World) -> None:
    world.run("UPDATE outbox.ring SET opened_at = now() - interval '2 days' WHERE slot = 0")
    assert asyncio.run(tend_at(world.url, None, RetentionConfig())).turned_to == 1
    assert world.one("SELECT now() - opened_at FROM outbox.ring WHERE slot = 1") < timedelta(
        hours=1
    )
