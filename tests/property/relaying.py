"""Real relays, round by round, on our clock: late commits (I9), fairness (I15), a broker down.

The model is small: what has committed must be routed within a second of relay time, whatever the
floor hides and whatever backlog another organization has; in the end every event has reached every
subscription of its organization, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar
from uuid import UUID

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from outbox.errors import BrokerUnavailable
from outbox.relay import Relay
from outbox.rhythm import RelayConfig
from outbox.store.attempts import Settlement
from outbox.store.connect import HotConnection
from outbox.store.dispatch import Dispatch
from tests.property import clock
from tests.property.model import Lease
from tests.property.snapshot import read
from tests.property.story import agree, fold_known
from tests.property.world import WRITERS, Arena, World, emit, pairs, run, settling

RELAYS = 2
ORGS = ("a", "b", "c")
ROUND = timedelta(milliseconds=50)
CONFIG = RelayConfig(batch=20)


class Broker:
    """Keeps what it gets until somebody takes it, unless it is down or forgets."""

    def __init__(self) -> None:
        self.queue: list[Lease] = []
        self.down = False

    def send(self, token: int, ids: Sequence[str]) -> None:
        if self.down:
            raise BrokerUnavailable("the broker is down")
        self.queue += [(UUID(delivery_id), token) for delivery_id in ids]

    def depth(self) -> int:
        if self.down:
            raise BrokerUnavailable("the broker is down")
        return len(self.queue)


class Relayed(RuleBasedStateMachine):
    """Two relays, one worker, writers with transactions of their own."""

    arena: ClassVar[Arena]

    @initialize()
    def begin(self) -> None:
        self.world = World(self.arena)
        self.broker = Broker()
        for org in ORGS:
            lane = self.world.endpoint(org, 1000, None)
            self.world.subscribe(lane, patterns=("*",), delays_s=(1.0, 1.0))
        self.relays = [self.relay(i) for i in range(RELAYS)]
        self.committed: dict[int, str] = {}
        self.uncommitted: dict[int, str] = {}
        self.burst = False
        self.failed = False

    def relay(self, nth: int) -> tuple[Relay, Dispatch]:
        hot = self.arena.relays[nth]

        async def opened() -> HotConnection:
            return hot

        tokens = self.world.tokens
        made = Relay(
            opened,
            self.broker.send,
            self.broker.depth,
            CONFIG,
            clock=self.monotonic,
            token=lambda: next(tokens),
        )
        return made, Dispatch(hot, CONFIG.lease_s)

    def monotonic(self) -> float:
        return (self.world.now - clock.T0).total_seconds() + 1000

    # -- the application ------------------------------------------------------------------------

    @rule(n=st.integers(1, 3), org=st.sampled_from(ORGS))
    def emit(self, n: int, org: str) -> None:
        rows = emit(self.arena.links[0], n, "orders.paid", org, 2).fetchall()
        self.committed.update({row[0]: org for row in rows})

    @precondition(lambda self: not self.burst)
    @rule()
    def burst_of_one_organization(self) -> None:
        """More than a relay routes in a second of its time with the small batches of this test."""
        emit(self.arena.links[0], 600, "orders.paid", "a", 2)
        self.burst = True

    @rule(writer=st.integers(0, WRITERS - 1), org=st.sampled_from(ORGS))
    def begin_emit(self, writer: int, org: str) -> None:
        """A transaction draws an id and stays open."""
        [(event_id,)] = emit(self.arena.writers[writer], 1, "orders.sent", org, 2).fetchall()
        self.world.open.setdefault(writer, set()).add(event_id)
        self.uncommitted[event_id] = org

    @precondition(lambda self: self.world.open)
    @rule(which=st.integers(0, 9), commit=st.sampled_from([True, True, False]))
    def end_emit(self, which: int, commit: bool) -> None:
        writer = sorted(self.world.open)[which % len(self.world.open)]
        made = self.world.open.pop(writer)
        connection = self.arena.writers[writer]
        (connection.commit if commit else connection.rollback)()
        if commit:
            self.committed.update({event_id: self.uncommitted[event_id] for event_id in made})

    # -- relays, worker, broker -----------------------------------------------------------------

    @rule(nth=st.integers(0, RELAYS - 1), count=st.sampled_from([1, 5, 30]))
    def rounds(self, nth: int, count: int) -> None:
        for _ in range(count):
            self.round(nth)

    def round(self, nth: int) -> None:
        relay, dispatch = self.relays[nth]
        if relay.broker_lost:
            if self.broker.down:
                return
            self.arena.run(relay._wait_for_broker(dispatch))
        self.arena.run(relay._round(dispatch))
        self.world.pass_time(ROUND)

    @rule(seconds=st.sampled_from([1, 3, 31]))
    def sleep(self, seconds: int) -> None:
        self.world.pass_time(timedelta(seconds=seconds))

    @rule(nth=st.integers(0, RELAYS - 1))
    def a_relay_starts_anew(self, nth: int) -> None:
        self.relays[nth] = self.relay(nth)

    @rule(verdict=st.sampled_from(["delivered", "delivered", "retry"]))
    def work(self, verdict: str) -> None:
        leases, self.broker.queue = self.broker.queue, []
        if leases:
            link = self.arena.links[0]
            rows = run(link, "take", {"now": None, **pairs(leases)}).fetchall()
            ended = [
                Settlement(
                    row[0], row[1], verdict if row[3] < 3 else "delivered", True, "x", 1, None
                )
                for row in rows
            ]
            run(link, "settle", settling(ended))

    @rule(down=st.booleans(), forgets=st.booleans())
    def trouble(self, down: bool, forgets: bool) -> None:
        self.broker.down = down
        if forgets:
            self.broker.queue.clear()

    # -- what must hold -------------------------------------------------------------------------

    @rule(nth=st.integers(0, RELAYS - 1))
    def promptly(self, nth: int) -> None:
        """I9, I15: within a second of a relay's time, everything that has committed is routed;
        behind one organization's burst, everything of the others."""
        self.broker.down = False
        due = {i for i, org in self.committed.items() if org != "a" or not self.burst}
        for _ in range(timedelta(seconds=1) // ROUND):
            self.work("delivered")
            self.round(nth)
        late = due & self.pending()
        self.failed = bool(late)
        assert not late, f"I9, I15: not routed within a second: {sorted(late)}"

    def pending(self) -> set[int]:
        return {row[0] for row in self.arena.reader.execute("SELECT id FROM outbox.pending")}

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.failed:
            note("the faults stop")
            self.finish()

    def finish(self) -> None:
        self.broker.down = False
        while self.world.open:
            self.end_emit(0, commit=True)
        for _ in range(100):
            for nth in range(RELAYS):
                self.round(nth)
            self.work("delivered")
            self.world.pass_time(timedelta(seconds=1))
            self.world.seen = read(self.arena.reader, self.world.now)
            if not (self.world.seen.pending or self.world.seen.deliveries):
                break
        seen = self.world.seen
        assert not seen.pending, f"I1: never routed: {sorted(seen.pending)}"
        assert not seen.deliveries, "I11: work does not end"
        assert not seen.dead
        agree(seen, fold_known(seen))
        self.each_once(
            sorted((f.event_id, f.org_id) for f in seen.facts.values() if f.fact == "delivered"),
            sorted((e.id, e.org_id) for e in seen.events.values()),
        )

    def each_once(
        self, delivered: list[tuple[int, str | None]], events: list[tuple[int, str | None]]
    ) -> None:
        assert delivered == events, "I1: every event reaches its organization's subscription once"
        known = {event_id for event_id, _ in events}
        assert self.committed.keys() <= known, "an event is gone"
