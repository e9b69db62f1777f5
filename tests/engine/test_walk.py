"""Random walks through the real statements: whatever happens in whatever order, the journal folds
to the tables (I13), attempts and expiries keep their limits (I4), and nothing is lost (I1)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outbox.outcome import Kind, Outcome
from outbox.retry import parse_retry
from outbox.store.dispatch import Claim
from outbox.verdict import judge
from tests.engine.engine import LEASE_S, Engine, Lease, seconds

RETRY = "5s,10s,20s"
EXPIRIES_MAX = 3
ORGS = ("a", "b")

some = st.integers(0, 2**16 - 1)


class Walk(RuleBasedStateMachine):
    """Relays, workers, a broker that loses and repeats, and an operator, on one clock of ours.

    `sent` is what the broker ever got: any of it may be delivered at any time, any number of times.
    """

    engine: Engine

    @initialize()
    def begin(self) -> None:
        engine = self.engine
        with engine.connection.transaction():
            engine.run("SET LOCAL outbox.retention = 'on'")
            engine.run(
                "TRUNCATE outbox.event, outbox.journal, outbox.pending, outbox.delivery,"
                " outbox.dead_letter, outbox.subscription, outbox.secret, outbox.endpoint,"
                " outbox.lane_rate"
            )
        self.subscriptions = []
        for org in ORGS:
            lane = engine.endpoint(org, concurrency=3)
            for max_age in (None, seconds(60)):
                made = engine.subscribe(org=org, endpoint_id=lane, retry=RETRY, max_age=max_age)
                self.subscriptions.append(made)
        self.now: datetime = engine.now()
        self.sent: list[Lease] = []
        self.running: dict[Lease, int] = {}
        self.delivered: set[UUID] = set()

    def later(self, wait_s: float = 0.001) -> datetime:
        self.now += seconds(wait_s)
        return self.now

    # -- the application ------------------------------------------------------------------------

    @rule(org=st.sampled_from(ORGS), n=st.integers(1, 3), lives=st.sampled_from([None, 20.0]))
    def emit(self, org: str, n: int, lives: float | None) -> None:
        expires_at = None if lives is None else self.now + seconds(lives)
        self.engine.emit(n, org=org, expires_at=expires_at)

    # -- the relay ------------------------------------------------------------------------------

    @rule(window=st.integers(0, 5), events=st.integers(1, 4), fair=st.booleans())
    def route(self, window: int, events: int, fair: bool) -> None:
        claim = Claim(events, orgs_max=64 if fair else 0)
        self.sent += self.engine.leases(window, claim=claim, now=self.later())

    @rule(window=st.integers(1, 5))
    def lease_due(self, window: int) -> None:
        self.sent += self.engine.due(window, now=self.later())

    @rule()
    def expire(self) -> None:
        self.engine.expire(self.later(), expiries_max=EXPIRIES_MAX)

    @rule()
    def tend(self) -> None:
        self.engine.tend(self.later())

    @rule(wait_s=st.sampled_from([1.0, 6.0, LEASE_S + 1]))
    def sleep(self, wait_s: float) -> None:
        self.later(wait_s)

    @precondition(lambda self: self.sent)
    @rule(which=some)
    def release(self, which: int) -> None:
        self.engine.release([self.sent[which % len(self.sent)]])

    # -- the workers ----------------------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(which=some)
    def take(self, which: int) -> None:
        lease = self.sent[which % len(self.sent)]
        for row in self.engine.take([lease], self.later()):
            assert lease not in self.running, "I2: a lease is started once"
            assert lease[0] not in self.delivered, "what is delivered is never tried again"
            self.running[lease] = row[3]

    @precondition(lambda self: self.running)
    @rule(which=some, kind=st.sampled_from(list(Kind)), keep=st.booleans())
    def settle(self, which: int, kind: Kind, keep: bool) -> None:
        lease = list(self.running)[which % len(self.running)]
        attempt = self.running[lease]
        verdict = judge(Outcome(kind, str(kind)), parse_retry(RETRY), attempt, None, lambda: 0.0)
        settled = self.engine.settle(
            [lease],
            verdict.name,
            charged=verdict.charged,
            reason=verdict.reason,
            delay_s=None if verdict.delay is None else verdict.delay.total_seconds(),
            now=self.later(),
        )
        if settled and verdict.name == "delivered":
            assert lease[0] not in self.delivered
            self.delivered.add(lease[0])
        if settled or not keep:
            del self.running[lease]

    @precondition(lambda self: self.running)
    @rule(which=some)
    def give_up(self, which: int) -> None:
        lease = list(self.running)[which % len(self.running)]
        self.engine.settle([lease], "release", charged=False, reason="shutdown", now=self.later())
        del self.running[lease]

    @precondition(lambda self: self.running)
    @rule(which=some)
    def extend(self, which: int) -> None:
        lease = list(self.running)[which % len(self.running)]
        self.engine.extend([lease], LEASE_S, self.later())

    # -- the operator ---------------------------------------------------------------------------

    @rule(which=some, state=st.sampled_from(["active", "paused", "disabled"]))
    def turn(self, which: int, state: str) -> None:
        subscription = self.subscriptions[which % len(self.subscriptions)]
        query = "UPDATE outbox.subscription SET state = %s WHERE id = %s"
        self.engine.run(query, state, subscription)

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def the_journal_folds_to_the_tables(self) -> None:
        self.engine.check()

    @invariant()
    def limits_hold(self) -> None:
        """I4, and the permits of each lane."""
        [(attempts, expiries)] = self.engine.rows(
            "SELECT coalesce(max(attempts), 0), coalesce(max(expiries), 0) FROM ("
            " SELECT attempts, expiries FROM outbox.delivery"
            " UNION ALL SELECT attempts, expiries FROM outbox.dead_letter) x"
        )
        assert attempts <= parse_retry(RETRY).attempts_max
        assert expiries < EXPIRIES_MAX
        live = self.engine.rows(
            "SELECT lane, count(*) FROM outbox.delivery"
            " WHERE state = 'leased' AND lease_until > %s GROUP BY 1",
            self.now,
        )
        assert all(count <= 3 for _, count in live)

    @invariant()
    def nothing_is_lost(self) -> None:
        """I1: each event is pending or routed once; each pair lives, is dead, or has ended."""
        assert not self.engine.rows(
            "SELECT e.id FROM outbox.event e"
            " WHERE NOT EXISTS (SELECT FROM outbox.pending p WHERE p.id = e.id)"
            " AND (SELECT count(*) FROM outbox.journal j WHERE j.event_id = e.id"
            "      AND j.fact = 'routed') <> 1"
        )
        assert not self.engine.rows(
            "SELECT item ->> 'delivery' FROM outbox.journal j, jsonb_array_elements(j.detail) item"
            " WHERE j.fact = 'routed' AND j.detail IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM outbox.delivery d"
            "                 WHERE d.id = (item ->> 'delivery')::uuid)"
            " AND NOT EXISTS (SELECT FROM outbox.dead_letter d"
            "                 WHERE d.id = (item ->> 'delivery')::uuid)"
            " AND NOT EXISTS (SELECT FROM outbox.journal k"
            "                 WHERE k.fact IN ('delivered', 'cancelled')"
            "                 AND k.delivery_id = (item ->> 'delivery')::uuid)"
        )

    def teardown(self) -> None:
        """The faults stop: everything ends (I11)."""
        if not hasattr(self, "now"):
            return
        engine = self.engine
        engine.run("UPDATE outbox.subscription SET state = 'active'")
        engine.run(
            "UPDATE outbox.delivery SET state = 'scheduled', held_at = NULL, held_reason = NULL"
            " WHERE state = 'held'"
        )
        for _ in range(400):
            leases = engine.leases(50, now=self.later()) + engine.due(50, now=self.later())
            for row in engine.take(leases, self.later()):
                engine.settle([(row[0], row[1])], "delivered", now=self.later())
            engine.expire(self.later(LEASE_S + 1), expiries_max=EXPIRIES_MAX)
            engine.tend(self.later())
            if not engine.one("SELECT count(*) FROM outbox.pending") and not engine.one(
                "SELECT count(*) FROM outbox.delivery"
            ):
                break
        assert set(engine.states()) <= {"dead"}


def test_random_walks_keep_every_promise(engine: Engine) -> None:
    class Bound(Walk):
        pass

    Bound.engine = engine
    machine = Bound.TestCase
    machine.settings = settings(
        max_examples=15,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
