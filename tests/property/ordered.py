"""The machine with ordered subscriptions (I8).

What ends badly blocks, parks or skips what follows of its key. Redrive is a named exception: what
went already is not called back when an earlier one returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import rule

from outbox.fronts import zipped
from outbox.outcome import Kind
from outbox.store.dead import Selection, discard
from outbox.store.dispatch import Claim
from tests.property.machine import ORGS, fates, processes
from tests.property.model import Lease, Spec
from tests.property.operators import Operated
from tests.property.snapshot import Delivery, Event, Row, Snapshot
from tests.property.world import Fate, World, locked

ENDS = (Kind.REJECTED, Kind.REJECTED, Kind.RETRY, Kind.INTERNAL, Kind.DELIVERED)


class OrderedWorld(World):
    """Checks order at the moment at which it counts: when an attempt begins."""

    def take(self, leases: Sequence[Lease], fate: Fate = Fate.DONE, who: int = 0) -> list[Row]:
        before = self.seen
        taken = super().take(leases, fate, who)
        for row_id, row in self.seen.deliveries.items():
            was = before.deliveries.get(row_id)
            if was is not None and was.started_at is None and row.started_at is not None:
                for why in self.out_of_order(before, was):
                    raise AssertionError(f"I8: {was} started: {why}")
        return taken

    def out_of_order(self, before: Snapshot, row: Delivery) -> Iterator[str]:
        """Why this attempt comes too early."""
        sub = self.model.subs[row.subscription_id]
        events = {event.id: event for event in before.events.values()}
        mine = events[row.event_id]
        if sub.order_mode is None or mine.ordering_key is None:
            return
        pairs = {pair: delivery_id for delivery_id, pair in self.model.matched.items()}
        for event in events.values():
            if self.comes_before(event, mine):
                if event.id in before.pending and sub.matches(event):
                    yield f"{event.id} is not routed"
                earlier = before.rows.get(pairs.get((event.id, sub.id), row.id))
                if earlier is None or earlier.id == row.id or earlier.budget > 1:
                    continue
                if isinstance(earlier, Delivery):
                    yield f"{event.id} is not settled: {earlier}"
                elif sub.order_mode != "skip" and earlier.reason != "expired":
                    yield f"{event.id} is dead"

    @staticmethod
    def comes_before(event: Event, other: Event) -> bool:
        key = (other.org_id, other.ordering_key)
        return event.id < other.id and (event.org_id, event.ordering_key) == key

    def advance(self, fate: Fate = Fate.DONE, who: int = 0, since_s: float | None = None) -> None:
        params = {"now": None, "since_s": since_s, "rows_max": 1000}

        def advanced(before: Snapshot, _: Snapshot, rows: list[Row]) -> Spec:
            self.fronts.put(zipped(*rows[0][3:]))
            return self.model.advance(before, self.now)

        self.step(
            lambda c: locked(c, "order_advance", params),
            advanced,
            fate,
            who,
        )

    def rest(self) -> None:
        """The dead are given up, so that nothing waits for them."""
        self.advance()
        if self.seen.dead:
            dead = list(self.seen.dead.values())
            everything = Selection()
            self.call(
                lambda c: discard(c, everything, "no use"),
                lambda *_: self.model.discard(dead, "no use"),
            )
        super().rest()


class Ordered(Operated):
    """One ordered subscription and one that is not, for each organization."""

    kind: ClassVar[type[World]] = OrderedWorld
    world: OrderedWorld
    mode: ClassVar[str]

    def configure(self, concurrency: int, rate: float | None, delays: tuple[float, ...]) -> None:
        for org in ORGS:
            lane = self.world.endpoint(org, max(3, concurrency), None)
            self.world.subscribe(lane, patterns=("*",), delays_s=delays, order_mode=self.mode)
            self.world.subscribe(
                lane, patterns=("*",), delays_s=(1.0,), max_age=timedelta(seconds=60), above=1
            )

    @rule(
        n=st.integers(1, 3),
        org=st.sampled_from(["a", "a", "a", "b"]),
        key=st.sampled_from(["k1", "k1", "k2"]),
        lives_s=st.sampled_from([None, None, 40]),
        waits_s=st.sampled_from([None, None, None, 20]),
    )
    def emit_in_order(
        self, n: int, org: str, key: str, lives_s: int | None, waits_s: int | None
    ) -> None:
        world = self.world
        deliver_at = None if waits_s is None else world.now + timedelta(seconds=waits_s)
        since = deliver_at or world.now
        expires_at = None if lives_s is None else since + timedelta(seconds=lives_s)
        world.emit(
            n,
            "orders.paid",
            org,
            2,
            ordering_key=key,
            deliver_at=deliver_at,
            expires_at=expires_at,
        )

    @rule(fate=fates, who=processes, since_s=st.sampled_from([None, 5.0]))
    def advance(self, fate: Fate, who: int, since_s: float | None) -> None:
        self.world.advance(fate, who, since_s)

    def try_all(self) -> None:
        """Keys have their turn, and whatever may go is tried."""
        self.world.advance()
        self.sent += self.world.lease_due(1000)
        if self.sent:
            self.take(0, len(self.sent), False, Fate.DONE, 0)

    @rule(org=st.sampled_from(ORGS))
    def the_later_one_is_routed_first(self, org: str) -> None:
        """Relays claim on both sides of a floor: the earlier one may come second."""
        self.emit_in_order(2, org, "k1", None, None)
        self.world.route(Claim(100, floor=max(self.world.seen.pending, default=1) - 1), 1000)
        self.world.pass_time(timedelta(seconds=1))
        self.try_all()

    @rule(n=st.integers(1, 3), org=st.sampled_from(ORGS), kind=st.sampled_from(ENDS))
    def the_first_ends(self, n: int, org: str, kind: Kind) -> None:
        """What becomes of those behind it, and of those that come then?"""
        for count in (n, 1):
            self.emit_in_order(count, org, "k1", None, None)
            self.world.route(Claim(100), 0)
            self.try_all()
            leases = list(self.running)
            self.world.settle([self.judged(lease, kind, None, 0.0) for lease in leases])
            self.past += leases
            self.running = {}

    @rule(who=processes)
    def one_further(self, who: int) -> None:
        """Keys have their turn, and one delivery is tried."""
        self.world.advance()
        self.sent += self.world.lease_due(1, who=who)
        if self.sent:
            self.take(len(self.sent) - 1, 1, False, Fate.DONE, who)


class Blocking(Ordered):
    mode = "block"


class Parking(Ordered):
    mode = "park"


class Skipping(Ordered):
    mode = "skip"
