"""The machine with operators: who pauses, resumes, removes, cancels, redrives, discards, rotates.

Every operation runs through the store as the command line does. Some name the organization they act
for, and some name the wrong one (I14): these must find nothing and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from outbox.errors import NotFound
from outbox.store.dead import Selection, discard, list_dead, redrive
from outbox.store.deliveries import (
    Aligned,
    align,
    cancel_deliveries,
    list_deliveries,
    show_delivery,
)
from outbox.store.endpoints import list_endpoints, rotate_secret, show_endpoint
from outbox.store.subscriptions import list_subscriptions, show_subscription
from tests.engine.mortal import Died
from tests.engine.running import RING
from tests.property.machine import ORGS, Base, fates, processes, some
from tests.property.model import Lane, Spec, Sub
from tests.property.snapshot import Dead, Row, Snapshot
from tests.property.world import Connection, Cursor, Fate, locked, run

FROM = {
    "paused": ("active",),
    "active": ("paused", "disabled"),
    "removed": ("active", "paused", "disabled"),
}
T = TypeVar("T")
orgs = st.sampled_from([None, None, *ORGS])
deaths = st.sampled_from([None] * 5 + list(range(5)))
"""Before which of its steps a command dies."""


class Operated(Base):
    """And operators."""

    # -- configuration --------------------------------------------------------------------------

    @rule(
        which=some,
        state=st.sampled_from(["paused", "active", "active", "removed"]),
        org=orgs,
        aligned=st.booleans(),
        who=processes,
        fate=fates,
    )
    def turn(
        self,
        which: int,
        state: str,
        org: str | None,
        aligned: bool,
        who: int,
        fate: Fate = Fate.DONE,
    ) -> None:
        """Move an endpoint or a subscription; the command may die before it aligns deliveries."""
        thing = pick(self.world.model.things.values(), which)
        name = "endpoint_state" if isinstance(thing, Lane) else "subscription_state"
        lane = thing if isinstance(thing, Lane) else thing.lane
        params: dict[str, Any] = {"id": thing.id, "org_id": org, "state": state, "reason": None}
        params["from_states"] = list(FROM[state])

        def act(connection: Connection) -> Cursor:
            cursor = locked(connection, name, params)
            run(connection, "note_revisions", {"lane": lane.id, "subscription_id": None})
            return cursor

        def spec(_: Snapshot, __: Snapshot, rows: list[Row]) -> Spec:
            assert bool(rows) == (org in (None, thing.org)), "I14"
            if rows and thing.state in FROM[state]:
                self.world.model.turn(thing, state)
            return Spec()

        self.world.step(act, spec, fate, who)
        if aligned:
            self.align(lane, who, 1000)

    @rule(which=some, state=st.sampled_from(["paused", "paused", "removed"]), n=st.integers(1, 3))
    def a_message_meets_a_stopped_destination(self, which: int, state: str, n: int) -> None:
        """What was handed to the broker before is not tried any more."""
        self.traffic(n, "a", 1000, 100)
        self.turn(which, state, None, False, 0)
        if self.sent:
            self.take(0, len(self.sent), False, Fate.DONE, 0)

    @rule(which=some, who=processes, rows_max=st.sampled_from([1, 1000]), dies=deaths)
    def finish_a_command(self, which: int, who: int, rows_max: int, dies: int | None) -> None:
        self.align(pick(self.world.model.lanes.values(), which), who, rows_max, dies)

    def align(self, lane: Lane, who: int, rows_max: int, dies: int | None = None) -> None:
        world = self.world

        def spec(before: Snapshot, _: Snapshot, done: Aligned | None) -> Spec:
            found = world.model.align(before, world.now, lane.id)
            changed = done and done.held + done.released + done.cancelled
            assert changed in (None, len(found.rows))
            return found

        world.call(lambda c: align(c, lane.id, rows_max=rows_max), spec, who, dies)

    @rule(which=some, who=processes, fate=fates)
    def the_receiver_is_gone(self, which: int, who: int, fate: Fate) -> None:
        """HTTP 410 disables an endpoint and says so by an event; rows follow when they are due."""
        world = self.world
        lane = pick(world.model.endpoints.values(), which)

        def spec(before: Snapshot, after: Snapshot, rows: list[Row]) -> Spec:
            new = {i for _, i in after.events.keys() - before.events.keys()}
            if lane.state == "active":
                world.model.turn(lane, "disabled")
                assert len(new) == 1
                [event] = [e for (_, i), e in after.events.items() if i in new]
                assert (event.type, event.org_id) == ("outbox.endpoint.disabled", lane.org)
            return Spec(emitted=new)

        params = {"id": lane.id, "reason": "http_410"}
        world.step(lambda c: locked(c, "disable_endpoint", params), spec, fate, who)

    @rule(which=some, org=orgs, dies=deaths)
    def rotate(self, which: int, org: str | None, dies: int | None) -> None:
        """A new key; deliveries do not notice."""
        lane = pick(self.world.model.endpoints.values(), which)
        # Eight keys may sign at a time: the eighth new one ends the others at once.
        overlap = timedelta(hours=1) if lane.revision % 7 else timedelta()
        connection = self.world.arena.links[0]
        if lane.state == "removed" or org not in (None, lane.org):
            with pytest.raises(NotFound):
                rotate_secret(connection, lane.id, RING, org=org, overlap=overlap)
        else:
            with suppress(Died), connection.dying(dies):
                rotate_secret(connection, lane.id, RING, org=org, overlap=overlap)
                lane.revision += 1
        self.world.look(lambda *_: Spec())

    # -- deliveries -----------------------------------------------------------------------------

    @precondition(lambda self: self.world.model.matched)
    @rule(which=some, count=st.integers(1, 3), org=orgs, who=processes, dies=deaths)
    def cancel(self, which: int, count: int, org: str | None, who: int, dies: int | None) -> None:
        world = self.world
        ids = list(world.model.matched)[which % len(world.model.matched) :][:count]

        def act(connection: Connection) -> set[UUID]:
            return set(cancel_deliveries(connection, ids, org).cancelled)

        def spec(before: Snapshot, _: Snapshot, gone: set[UUID] | None) -> Spec:
            found = world.model.cancel(before, ids, org, "operator")
            assert gone is None or gone == found.rows.keys()
            return found

        world.call(act, spec, who, dies)

    @precondition(lambda self: self.world.seen.dead)
    @rule(
        which=some,
        org=orgs,
        everything=st.booleans(),
        ignore=st.booleans(),
        dry=st.booleans(),
        dies=deaths,
    )
    def redrive(
        self,
        which: int,
        org: str | None,
        everything: bool,
        ignore: bool,
        dry: bool,
        dies: int | None,
    ) -> None:
        world = self.world
        chosen, selection = self.choose(which, org, everything)

        def act(connection: Connection) -> int:
            done = redrive(connection, selection, ignore_expiry=ignore, dry_run=dry, rows_max=2)
            return done.redriven

        def spec(_: Snapshot, __: Snapshot, count: int | None) -> Spec:
            found = world.model.redrive(chosen, world.now, ignore_expiry=ignore)
            assert count in (None, len(found.rows))
            return Spec() if dry else found

        world.call(act, spec, dies=dies)

    @precondition(lambda self: self.world.seen.dead)
    @rule(which=some, org=orgs, everything=st.booleans(), dry=st.booleans(), dies=deaths)
    def discard(
        self, which: int, org: str | None, everything: bool, dry: bool, dies: int | None
    ) -> None:
        world = self.world
        chosen, selection = self.choose(which, org, everything)

        def act(connection: Connection) -> int:
            return discard(connection, selection, "no use", dry_run=dry, rows_max=2).discarded

        def spec(_: Snapshot, __: Snapshot, count: int | None) -> Spec:
            assert count in (None, len(chosen))
            return Spec() if dry else world.model.discard(chosen, "no use")

        world.call(act, spec, dies=dies)

    def choose(self, which: int, org: str | None, everything: bool) -> tuple[list[Dead], Selection]:
        """Dead letters, and the selection that names them."""
        letters = sorted(self.world.seen.dead.values(), key=lambda d: d.id)
        one = letters[which % len(letters)]
        chosen = [d for d in letters if (everything or d is one) and org in (None, d.org_id)]
        return chosen, Selection(ids=None if everything else [one.id], org=org)

    @rule(org=st.sampled_from(ORGS), which=some)
    def look_around(self, org: str, which: int) -> None:
        """I14: who asks for one organization sees nothing of another, and all of his own."""
        world = self.world
        connection = world.arena.links[0]
        mine = {str(i) for i, d in world.seen.deliveries.items() if d.org_id == org}
        assert {d["id"] for d in list_deliveries(connection, org, rows_max=1000)} == mine
        letters = {str(i) for i, d in world.seen.dead.items() if d.org_id == org}
        listed = list_dead(connection, Selection(org=org), rows_max=1000)
        assert {d["id"] for d in listed} == letters
        lanes = {i for i, lane in world.model.endpoints.items() if lane.org == org}
        assert {e["id"] for e in list_endpoints(connection, org, removed=True)} == lanes
        assert {s["org"] for s in list_subscriptions(connection, org)} <= {org}
        self.strangers(connection, org, which)

    def strangers(self, connection: Connection, org: str, which: int) -> None:
        rows = [row for row in self.world.seen.rows.values() if row.org_id != org]
        if rows:
            with pytest.raises(NotFound):
                show_delivery(connection, pick(rows, which).id, org)
        for thing in self.world.model.things.values():
            if thing.org != org:
                show = show_endpoint if isinstance(thing, Lane) else show_subscription
                with pytest.raises(NotFound):
                    show(connection, thing.id, org)

    # -- the end --------------------------------------------------------------------------------

    def faults_stop(self) -> None:
        for thing in self.world.model.things.values():
            if thing.state in FROM["active"]:
                self.resume(thing)
        for lane in self.world.model.lanes.values():
            self.align(lane, 0, 1000)
        super().faults_stop()

    def resume(self, thing: Lane | Sub) -> None:
        table = "endpoint" if isinstance(thing, Lane) else "subscription"
        query = f"UPDATE outbox.{table} SET state = 'active', revision = revision + 1 WHERE id = %s"
        self.world.arena.links[0].execute(query.encode(), [thing.id])
        self.world.model.turn(thing, "active")


def pick(things: Iterable[T], which: int) -> T:
    """One of them."""
    found = list(things)
    return found[which % len(found)]
