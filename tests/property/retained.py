"""The machine with retention: the ring turns, slots are emptied, what is owed is carried."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import rule

from outbox.store.retention import RetentionConfig, Tended, tend_retention
from tests.engine.mortal import Died
from tests.property.operators import Operated
from tests.property.snapshot import Event, Fact, Snapshot, read
from tests.property.story import agree, fold_known
from tests.property.world import World

KEEP = timedelta(seconds=60)
DEAD_KEEP = timedelta(seconds=150)
CONFIG = RetentionConfig(
    keep=KEEP, dead_keep=DEAD_KEEP, rows_max=3, lock_timeout=timedelta(milliseconds=2)
)


class RetainingWorld(World):
    """Runs the real retention, on a connection of its own."""

    def retain(self, dies: int | None = None) -> Tended:
        """Tend to retention; the daemon may die meanwhile, and what it did is seen by looking."""
        self.broken = True
        arena, before, now = self.arena, self.seen, self.now
        told = None
        with suppress(Died), arena.hot.dying(dies):
            told = arena.run(tend_retention(arena.hot, CONFIG))
        self.now += timedelta(milliseconds=1)
        after = read(arena.reader, self.now)
        done = told or seen_done(before, after)
        check(before, after, done, now)
        gone = before.dead.keys() - after.dead.keys()
        for delivery_id in gone:
            row = before.dead[delivery_id]
            assert row.died_at <= now - DEAD_KEEP, "a dead letter is given up too early"
        self.seen = after
        new = [f for p, f in after.facts.items() if p not in before.facts or f.slot in done.cleared]
        self.follow(before, after, new)
        agree(after, fold_known(after))
        self.broken = False
        return done


def seen_done(before: Snapshot, after: Snapshot) -> Tended:
    """What a daemon that died did, as far as the tables tell."""
    turned_to = None if after.clock_slot == before.clock_slot else after.clock_slot
    cleared = {fact.slot for place, fact in before.facts.items() if place not in after.facts}
    cleared |= {slot for slot, _ in before.events.keys() - after.events.keys()}
    return Tended(turned_to, tuple(sorted(cleared)))


def check(before: Snapshot, after: Snapshot, done: Tended, now: datetime) -> None:
    """I1 and I7 across retention: what is owed stays, what is young stays."""
    cleared = set(done.cleared)
    for place, fact in before.facts.items():
        if fact.slot in cleared:
            assert fact.fact == "carried" or fact.at <= now - KEEP, f"too young to go: {fact}"
        else:
            assert after.facts.get(place) == fact, f"I7: a fact changed: {fact}"
    fresh = {p: f for p, f in after.facts.items() if p not in before.facts or f.slot in cleared}
    carried = _rows(before, after, list(fresh.values()))
    _pending(before, after)
    _events(before, after, cleared, now)
    slot = before.clock_slot
    assert all(new == slot for new in carried.values()), "carried elsewhere than to the newest slot"
    assert after.clock_slot == (slot if done.turned_to is None else done.turned_to)


def _rows(before: Snapshot, after: Snapshot, fresh: list[Fact]) -> dict[UUID, int]:
    """Every delivery and dead letter is as it was, but for the slot of its event; carried ones with
    a fact that says so."""
    assert before.deliveries.keys() == after.deliveries.keys()
    assert after.dead.keys() <= before.dead.keys()
    carried = {}
    for delivery_id, was in before.rows.items():
        row = after.rows.get(delivery_id)
        told = sorted(f.fact for f in fresh if f.delivery_id == delivery_id)
        if row is None:
            assert told == ["discarded"]
            continue
        assert row == replace(was, event_slot=row.event_slot), f"changed: {was} to {row}"
        if row.event_slot != was.event_slot:
            carried[delivery_id] = row.event_slot
        assert told == ["carried"] * (row.event_slot != was.event_slot)
    return carried


def _pending(before: Snapshot, after: Snapshot) -> None:
    assert before.pending.keys() == after.pending.keys()
    for event_id, (slot, _) in after.pending.items():
        assert (slot, event_id) in after.events, "a pending event is gone"


def _events(before: Snapshot, after: Snapshot, cleared: set[int], now: datetime) -> None:
    for row in after.rows.values():
        assert (row.event_slot, row.event_id) in after.events, f"the event of {row} is gone"
    known = {event.id: event for event in before.events.values()}
    for (slot, event_id), event in after.events.items():
        assert replace(known[event_id], slot=slot) == event, "I7: an event changed"
    kept = {event_id for _, event_id in after.events}
    for (slot, event_id), event in before.events.items():
        if (slot, event_id) not in after.events:
            assert slot in cleared, "an event is gone, and its slot is not cleared"
        if event_id not in kept:
            _may_go(event, now)


def _may_go(event: Event, now: datetime) -> None:
    assert event.created_at <= now - KEEP, f"too young to go: {event}"


class Retained(Operated):
    """And retention."""

    kind = RetainingWorld
    world: RetainingWorld

    @rule(
        turns=st.integers(1, 4),
        wait_s=st.sampled_from([1, 11, 21, 61]),
        dies=st.none() | st.integers(0, 40),
    )
    def retain(self, turns: int, wait_s: int, dies: int | None) -> None:
        for _ in range(turns):
            self.world.pass_time(timedelta(seconds=wait_s))
            self.world.retain(dies)

    def faults_stop(self) -> None:
        for writer in list(self.world.open):
            self.world.end_emit(writer, commit=True)
        for _ in range(9):
            self.world.pass_time(timedelta(seconds=11))
            assert self.world.retain().blocked is None, "nobody holds a slot any more"
        super().faults_stop()
