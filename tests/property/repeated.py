"""The machine with replays (I12) and redactions.

A replay is carried out batch by batch; any process may do the next one, none twice. What each batch
may change follows here from what the replay was asked for and how far its position moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from outbox.errors import NotFound, UsageError
from outbox.lifecycle import State
from outbox.store.dispatch import Claim
from outbox.store.redaction import redact
from outbox.store.replay import (
    Choice,
    Made,
    abort_replay,
    create_replay,
    pause_replay,
    resume_replay,
    show_replay,
)
from outbox.store.replaying import replay_once
from tests.engine.mortal import Died
from tests.property.machine import some
from tests.property.model import Spec, Sub, delivery_id
from tests.property.operators import Operated, deaths, orgs, pick
from tests.property.snapshot import Dead, Delivery, Event, Snapshot
from tests.property.world import Connection, World


@dataclass(frozen=True)
class Asked:
    """A replay as it was asked for first."""

    mode: str
    choice: Choice
    ceiling: int


class RepeatedWorld(World):
    """Knows what a batch of a replay must do."""

    def batch(
        self, name: str, asked: Asked, events_max: int, dies: int | None = None
    ) -> str | None:
        """Carry a replay on; returns its state, None where it does not run or its daemon died."""
        was = show_replay(self.arena.reader, name)
        state = None
        with suppress(Died), self.arena.hot.dying(dies):
            state = self.arena.run(replay_once(self.arena.hot, name, events_max=events_max)).state
        now = show_replay(self.arena.reader, name)
        if was["state"] != "running":
            assert state is None
        self.look(lambda before, _: self.repeated(before, name, asked, was, now))
        return state

    def repeated(
        self,
        before: Snapshot,
        name: str,
        asked: Asked,
        was: dict[str, Any],
        now: dict[str, Any],
    ) -> Spec:
        spec = Spec()
        for event in {e.id: e for e in before.events.values()}.values():
            passed = was["position"] < event.id <= min(now["position"], asked.ceiling)
            if passed and event.id not in before.pending and self.asked_for(event, asked.choice):
                self.repeat_event(spec, before, event, name, asked)
        return spec

    def asked_for(self, event: Event, choice: Choice) -> bool:
        if choice.events and event.id not in choice.events:
            return False
        if event.payload == '{"redacted":true}':
            return False
        family = not choice.patterns or event.type.startswith("orders.")
        return family and choice.org in (None, event.org_id)

    def repeat_event(
        self, spec: Spec, before: Snapshot, event: Event, name: str, asked: Asked
    ) -> None:
        known = self.known(event)
        for sub in self.model.subs.values():
            if asked.choice.subscription_id not in (None, sub.id) or sub.removed:
                continue
            ids = known.get(sub.id, [])
            if asked.mode == "backfill":
                if not ids and sub.matches(replace(event, created_at=sub.active_from)):
                    self.born(spec, event, sub, 0, 1, name)
            elif ids and asked.mode == "re-emit":
                self.re_emit(spec, before, event, sub, ids, name, asked.choice)
            elif ids:
                self.redeliver(spec, before, event, sub, ids[0], name, asked.choice)

    def known(self, event: Event) -> dict[int, list[UUID]]:
        """The deliveries of an event by subscription, in order of generation."""
        found: dict[int, list[UUID]] = {}
        generations = self.model.generations
        for row_id, (event_id, sub_id) in self.model.matched.items():
            if event_id == event.id:
                found.setdefault(sub_id, []).append(row_id)
        return {s: sorted(ids, key=lambda i: generations.get(i, 0)) for s, ids in found.items()}

    def redeliver(
        self,
        spec: Spec,
        before: Snapshot,
        event: Event,
        sub: Sub,
        row_id: UUID,
        name: str,
        choice: Choice,
    ) -> None:
        row = before.rows.get(row_id)
        if isinstance(row, Delivery):
            if row.state == "scheduled" and row.due_at > self.now and not choice.missed:
                told = ("replayed", False, row.attempts, row.budget, name, self.now)
                spec.change(row, replace(row, due_at=self.now), told)
        elif isinstance(row, Dead):
            if self.lives(row.expires_at, choice):
                self.born(spec, event, sub, 0, row.budget + 1, name, row)
        elif (
            self.model.ended[row_id] == State.DELIVERED
            and not choice.missed
            and self.lives(event.expires_at, choice)
        ):
            self.born(spec, event, sub, 0, self.folded[row_id].budget + 1, name)

    def lives(self, expires_at: datetime | None, choice: Choice) -> bool:
        return expires_at is None or expires_at > self.now or choice.ignore_expiry

    def re_emit(
        self,
        spec: Spec,
        before: Snapshot,
        event: Event,
        sub: Sub,
        ids: list[UUID],
        name: str,
        choice: Choice,
    ) -> None:
        dead = [row for i in ids if (row := before.dead.get(i)) is not None]
        if any(i in before.deliveries for i in ids) or (choice.missed and not dead):
            return
        if any(self.model.ended.get(i) in (State.CANCELLED, State.DISCARDED) for i in ids):
            return
        expiries = [row.expires_at for row in dead] + [event.expires_at] * (len(ids) - len(dead))
        ends = min((at for at in expiries if at is not None), default=None)
        if self.lives(ends, choice):
            generation = 1 + max(self.model.generations.get(i, 0) for i in ids)
            self.born(spec, event, sub, generation, 1, name, expires_at=ends)

    def born(
        self,
        spec: Spec,
        event: Event,
        sub: Sub,
        generation: int,
        budget: int,
        name: str,
        dead: Dead | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        """A delivery that lives again, or for the first time under a new key."""
        ends = dead.expires_at if dead else expires_at or event.expires_at
        why = sub.stopped
        row = Delivery(
            id=delivery_id(event, sub.id, generation),
            event_id=event.id,
            event_slot=event.slot,
            subscription_id=sub.id,
            revision=dead.revision if dead else sub.revision,
            generation=generation,
            lane=sub.lane.id,
            org_id=event.org_id,
            order_key=None,
            again=True,
            state="held" if why else "scheduled",
            due_at=self.now,
            expires_at=ends if ends is not None and ends > self.now else None,
            age_limit_at=None if sub.max_age is None else self.now + sub.max_age,
            budget=budget,
            held_at=self.now if why else None,
            held_reason=why,
        )
        fact = "redriven" if dead else "replayed"
        spec.rows[row.id] = [row]
        spec.told[row.id] = [(fact, False, 0, budget, name, self.now)]
        if why:
            spec.told[row.id].append(("held", False, 0, budget, why, None))
        spec.must.add(row.id)
        self.model.matched[row.id] = (event.id, sub.id)
        self.model.generations[row.id] = generation


class Repeated(Operated):
    """And replays, and erasure."""

    kind = RepeatedWorld
    world: RepeatedWorld

    def configure(self, concurrency: int, rate: float | None, delays: tuple[float, ...]) -> None:
        super().configure(concurrency, rate, delays)
        self.replays: dict[str, Asked] = {}

    @rule(
        name=st.sampled_from(["r1", "r2", "r3", "r4"]),
        mode=st.sampled_from(["redeliver", "redeliver", "re-emit", "backfill"]),
        org=orgs,
        which=some,
        one=st.booleans(),
        family=st.booleans(),
        named=st.booleans(),
        missed=st.booleans(),
        ignore=st.booleans(),
        dies=deaths,
    )
    def replay(
        self,
        name: str,
        mode: str,
        org: str | None,
        which: int,
        one: bool,
        family: bool,
        named: bool,
        missed: bool,
        ignore: bool,
        dies: int | None,
    ) -> None:
        """I12: a replay with the same id is the same replay, or refused."""
        world = self.world
        subs = [s for s in world.model.subs.values() if org in (None, s.org) or s.org is None]
        sub = pick(subs, which) if subs and (one or mode == "backfill") else None
        if mode == "backfill" and (sub is None or sub.state == "removed"):
            return
        events = sorted({i for _, i in world.seen.events}) if named else []
        choice = Choice(
            events=(pick(events, which),) if events else (),
            patterns=("orders.*",) if family else (),
            org=org,
            subscription_id=sub.id if sub else None,
            missed=missed and sub is not None and mode != "backfill",
            ignore_expiry=ignore,
        )
        self.ask(name, mode, choice, dies)

    def ask(self, name: str, mode: str, choice: Choice, dies: int | None) -> None:
        world = self.world
        known = self.replays.get(name)

        def act(connection: Connection) -> Made | None:
            try:
                return create_replay(connection, choice, why="test", mode=mode, replay_id=name)
            except UsageError:
                return None

        def spec(_: Snapshot, __: Snapshot, made: Made | None) -> Spec:
            if dies is not None and made is None:
                with suppress(NotFound):
                    ceiling = show_replay(world.arena.reader, name)["ceiling"]
                    self.replays.setdefault(name, Asked(mode, choice, ceiling))
            elif known is None:
                assert made is not None
                assert made.new
                self.replays[name] = Asked(mode, choice, made.replay["ceiling"])
            else:
                same = (known.mode, known.choice) == (mode, choice)
                assert (made is not None) == same
                assert made is None or not made.new, "I12"
            return Spec()

        world.call(act, spec, dies=dies)

    @precondition(lambda self: self.replays)
    @rule(
        which=some,
        events_max=st.sampled_from([1, 2, 1000]),
        batches=st.integers(1, 3),
        dies=deaths,
    )
    def carry_on(self, which: int, events_max: int, batches: int, dies: int | None) -> None:
        name = pick(sorted(self.replays), which)
        for _ in range(batches):
            self.world.batch(name, self.replays[name], events_max, dies)

    @precondition(lambda self: self.replays)
    @rule(which=some, to=st.sampled_from(["pause", "resume", "resume", "abort"]), dies=deaths)
    def move_replay(self, which: int, to: str, dies: int | None) -> None:
        name = pick(sorted(self.replays), which)
        moves = {"pause": pause_replay, "resume": resume_replay, "abort": abort_replay}
        link = self.world.arena.links[0]
        with suppress(UsageError, Died), link.dying(dies):
            moves[to](link, name)
        self.world.look(lambda *_: Spec())

    @precondition(lambda self: self.world.seen.events)
    @rule(which=some, count=st.integers(1, 2), dies=st.none() | st.integers(0, 16))
    def redact(self, which: int, count: int, dies: int | None) -> None:
        """Erasure is a fact; what is owed of the event ends, and nothing of it is kept."""
        world = self.world
        committed = sorted({i for _, i in world.seen.events})
        chosen = committed[which % len(committed) :][:count]

        def spec(before: Snapshot, after: Snapshot, done: object) -> Spec:
            erased = {f.event_id for f in after.facts.values() if f.fact == "redacted"}
            ids = chosen if done is not None or erased.issuperset(chosen) else []
            for (_slot, event_id), event in after.events.items():
                assert event_id not in ids or event.payload == '{"redacted":true}'
            self.forget_keys(chosen, whole=done is not None)
            already = {f.event_id for f in before.facts.values() if f.fact == "redacted"}
            found = Spec(redacted=set(ids) - already, claimed=before.pending.keys() & set(ids))
            for row in before.rows.values():
                if row.event_id in ids:
                    fact = "discarded" if isinstance(row, Dead) else "cancelled"
                    told = (fact, False, row.attempts, row.budget, "redacted", None)
                    found.change(row, None, told)
            return found

        world.call(lambda c: redact(c, chosen, "on request"), spec, dies=dies)

    def forget_keys(self, events: Sequence[int], *, whole: bool) -> None:
        """A key may name a person. Keys go first, so that a redaction that died finds the events
        again by what they hold."""
        known = self.world.arena.reader.execute("SELECT event_id FROM outbox.dedupe").fetchall()
        left = {row[0] for row in known}
        for key, (event_id, _until) in list(self.world.model.dedupe.items()):
            if event_id in events and (whole or event_id not in left):
                del self.world.model.dedupe[key]

    def faults_stop(self) -> None:
        """A backfill waits until what its subscription may be given anyway is routed."""
        for writer in list(self.world.open):
            self.world.end_emit(writer, commit=True)
        self.world.route(Claim(1000), 0)
        for name in sorted(self.replays):
            with suppress(UsageError):
                resume_replay(self.world.arena.links[0], name)
            for _ in range(50):
                if self.world.batch(name, self.replays[name], 1000) in (None, "done"):
                    break
            shown = show_replay(self.world.arena.reader, name)
            assert shown["state"] in ("done", "aborted"), f"I11: a replay does not end: {shown}"
        super().faults_stop()
