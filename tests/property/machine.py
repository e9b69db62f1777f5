"""The state machine: relays, workers, a broker, an application, operators, on one clock of ours.

`sent` is what the broker ever got and has not lost: any of it may arrive at any time, in any order,
any number of times. `running` is what workers work on; `past` are leases that were somebody's once.
Each rule is one step of one process, checked against the model (world.py).
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine as conjecture
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from outbox.outcome import CHARGED, Kind, Outcome
from outbox.retry import RETRY_AFTER_CAP, parse_retry
from outbox.store.attempts import Settlement
from outbox.store.dispatch import Claim
from outbox.verdict import judge
from tests.property.model import Lease, Sub
from tests.property.world import LINKS, WRITERS, Arena, Fate, World

ORGS = ("a", "b")
TYPES = ("orders.paid", "orders.sent", "users.new")
DELAYS_S = ((5.0, 10.0, 20.0), (0.0, 60.0), (7200.0,))

SHRINK_S = 10
"""A failure is made small for so long: its steps must be printed before the test's time is over."""

some = st.integers(0, 2**12 - 1)
fates = st.sampled_from([Fate.DONE] * 6 + [Fate.FORGOTTEN, Fate.UNDONE])
processes = st.integers(0, LINKS - 1)


def run_machine(
    machine: type[RuleBasedStateMachine], arena: Arena, seed: int, how: settings
) -> None:
    """Run a machine; a failure names the seed of the run beside Hypothesis's own blob."""

    class Bound(machine):  # type: ignore[valid-type,misc]
        pass

    Bound.arena = arena
    Bound.__name__ = Bound.__qualname__ = machine.__name__
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conjecture, "MAX_SHRINKING_SECONDS", SHRINK_S)
            run_state_machine_as_test(Bound, settings=how)
    except BaseException as error:
        test = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
        profile = settings.get_current_profile_name()
        error.add_note(
            f"replay: pytest {test} --hypothesis-profile={profile} --hypothesis-seed={seed}"
        )
        raise


class Base(RuleBasedStateMachine):
    """A relay or more, a worker or more, and the faults between them."""

    arena: ClassVar[Arena]
    kind: ClassVar[type[World]] = World
    world: World

    @initialize(
        concurrency=st.sampled_from([1, 3, 4, 1000]),
        rate=st.sampled_from([None, None, 2.0]),
        delays=st.sampled_from(DELAYS_S),
    )
    def begin(self, concurrency: int, rate: float | None, delays: tuple[float, ...]) -> None:
        self.world = self.kind(self.arena)
        self.sent: list[Lease] = []
        self.running: dict[Lease, tuple[int, float | None]] = {}
        self.past: list[Lease] = []
        self.begun: set[Lease] = set()
        self.configure(concurrency, rate, delays)

    def configure(self, concurrency: int, rate: float | None, delays: tuple[float, ...]) -> None:
        """Two organizations, two subscriptions on one endpoint each, an operator's for all, and a
        processor of the user's."""
        world = self.world
        for org in ORGS:
            lane = world.endpoint(org, concurrency, rate if org == "a" else None)
            world.subscribe(lane, patterns=("orders.*",), delays_s=delays)
            world.subscribe(
                lane, patterns=("*",), delays_s=(1.0,), max_age=timedelta(seconds=60), above=1
            )
        everyone = world.endpoint(None, 1000, None)
        world.subscribe(everyone, patterns=("users.new", "outbox.endpoint.*"), delays_s=delays)
        world.own("a", min(concurrency, 3), rate, patterns=("orders.sent",), delays_s=delays)

    # -- time -----------------------------------------------------------------------------------

    @rule(wait_s=st.sampled_from([1, 6, 29, 30, 61, 3600]))
    def sleep(self, wait_s: int) -> None:
        self.world.pass_time(timedelta(seconds=wait_s))

    @precondition(lambda self: self.sent)
    @rule()
    def the_broker_loses_everything_for_an_hour(self) -> None:
        self.past += self.sent
        self.sent = []
        self.world.pass_time(timedelta(hours=1))

    @precondition(lambda self: self.sent)
    @rule(which=some, count=st.integers(1, 3))
    def the_broker_loses(self, which: int, count: int) -> None:
        """A message is gone; what it was about comes again when its lease has ended."""
        first = which % len(self.sent)
        self.past += self.sent[first : first + count]
        self.sent = self.sent[:first] + self.sent[first + count :]

    # -- the application ------------------------------------------------------------------------

    @rule(
        n=st.integers(1, 3),
        org=st.sampled_from([*ORGS, *ORGS, None]),
        event_type=st.sampled_from(TYPES),
        payload=st.integers(0, 3),
        waits_s=st.sampled_from([None, None, None, 20, 5400]),
        lives_s=st.sampled_from([None, None, None, 40, 7200]),
    )
    def emit(
        self,
        n: int,
        org: str | None,
        event_type: str,
        payload: int,
        waits_s: int | None,
        lives_s: int | None,
    ) -> None:
        world = self.world
        deliver_at = None if waits_s is None else world.now + timedelta(seconds=waits_s)
        since = deliver_at or world.now
        expires_at = None if lives_s is None else since + timedelta(seconds=lives_s)
        options: dict[str, Any] = {"deliver_at": deliver_at, "expires_at": expires_at}
        world.emit(n, event_type, org, payload, **options)

    @rule(
        org=st.sampled_from(ORGS),
        payload=st.integers(0, 3),
        key=st.sampled_from(["x", "y"]),
        ordering_key=st.sampled_from([None, "k1"]),
    )
    def emit_once(self, org: str, payload: int, key: str, ordering_key: str | None) -> None:
        self.world.emit_once("orders.paid", org, payload, key, ordering_key)

    @rule(
        writer=st.integers(0, WRITERS - 1),
        n=st.integers(1, 2),
        org=st.sampled_from(ORGS),
        ordering_key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def begin_emit(self, writer: int, n: int, org: str, ordering_key: str | None) -> None:
        self.world.begin_emit(writer, n, "orders.sent", org, ordering_key=ordering_key)

    @precondition(lambda self: self.world.open)
    @rule(some=some, commit=st.sampled_from([True, True, False]))
    def end_emit(self, some: int, commit: bool) -> None:
        """I9: what commits late is found like everything else."""
        writers = sorted(self.world.open)
        self.world.end_emit(writers[some % len(writers)], commit=commit)

    # -- the relay ------------------------------------------------------------------------------

    @rule(
        window=st.sampled_from([0, 1, 3, 1000]),
        events=st.integers(1, 5),
        orgs_max=st.sampled_from([0, 0, 1, 64]),
        org_from=st.sampled_from(["", "", "a\x01"]),
        skipped=st.sampled_from([(), (), ("a",)]),
        fate=fates,
        who=processes,
    )
    def route(
        self,
        window: int,
        events: int,
        orgs_max: int,
        org_from: str,
        skipped: tuple[str, ...],
        fate: Fate,
        who: int,
    ) -> None:
        claim = Claim(events, orgs_max=orgs_max, org_from=org_from, orgs_skipped=skipped)
        if orgs_max == 0:
            claim = Claim(events)
        self.sent += self.world.route(claim, window, fate, who)

    @rule(some=some, above=st.booleans(), window=st.sampled_from([0, 1000]))
    def route_on_one_side_of_a_floor(self, some: int, above: bool, window: int) -> None:
        floor = some % (max(self.world.seen.pending, default=0) + 1)
        claim = Claim(1000, floor=floor) if above else Claim(1000, ceiling=floor)
        self.sent += self.world.route(claim, window)

    @rule(
        window=st.sampled_from([1, 3, 1000]),
        walk=st.booleans(),
        places_max=st.sampled_from([1, 100, 100]),
        later_max=st.sampled_from([1, 1000, 1000]),
        fate=fates,
        who=processes,
    )
    def lease_due(
        self, window: int, walk: bool, places_max: int, later_max: int, fate: Fate, who: int
    ) -> None:
        """After a walk, or where a relay that made one before knows something to be due."""
        limits = {"places_max": places_max, "later_max": later_max}
        self.sent += self.world.lease_due(window, fate, who, walk=walk, **limits)

    @rule(fate=fates, who=processes, rows_max=st.sampled_from([1, 1000, 1000]))
    def expire(self, fate: Fate, who: int, rows_max: int) -> None:
        self.world.expire(fate, who, rows_max)

    @rule(fate=fates, who=processes)
    def tend(self, fate: Fate, who: int) -> None:
        self.world.tend(fate, who)

    @precondition(lambda self: self.sent)
    @rule(which=some, fate=fates, who=processes)
    def the_broker_refuses(self, which: int, fate: Fate, who: int) -> None:
        lease = self.sent[which % len(self.sent)]
        self.world.release([each for each in self.sent if each[1] == lease[1]], fate, who)

    # -- the workers ----------------------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(which=some, count=st.integers(1, 4), again=st.booleans(), fate=fates, who=processes)
    def take(self, which: int, count: int, again: bool, fate: Fate, who: int) -> None:
        """A message arrives; the broker may keep it and bring it again."""
        first = which % len(self.sent)
        leases = self.sent[first : first + count]
        for row in self.world.take(leases, fate, who):
            lease = (row[0], row[1])
            assert lease not in self.begun, "I2: a lease is started once"
            self.begun.add(lease)
            self.running[lease] = (row[3], row[15])
        if not again:
            self.sent = self.sent[:first] + self.sent[first + count :]
            self.past += leases

    @rule(count=st.integers(1, 6), again=st.booleans(), which=some, who=processes)
    def flow(self, count: int, again: bool, which: int, who: int) -> None:
        """A calm moment: what is there is routed or leased, and some of it arrives."""
        if self.world.seen.pending:
            self.sent += self.world.route(Claim(100), 1000, who=who)
        self.sent += self.world.lease_due(1000, who=who)
        if self.sent:
            self.take(which, count, again, Fate.DONE, who)

    @rule(
        n=st.sampled_from([1, 1, 2, 4]),
        org=st.sampled_from(["a", "a", "b"]),
        window=st.sampled_from([2, 1000]),
        left=st.integers(0, 2),
    )
    def traffic(self, n: int, org: str, window: int, left: int) -> None:
        """Events that everybody of an organization gets, on their way at once; none is answered."""
        self.world.emit(n, "orders.paid", org, 2)
        self.sent += self.world.route(Claim(100), window)
        if len(self.sent) > left:
            self.take(0, len(self.sent) - left, False, Fate.DONE, 0)

    def something_runs(self) -> bool:
        if not self.running:
            self.traffic(2, "a", 1000, 0)
        return bool(self.running)

    @rule(
        wait_s=st.sampled_from([1, 21, 61]),
        kind=st.sampled_from([Kind.RETRY, Kind.RETRY, Kind.REJECTED]),
        fresh=st.booleans(),
        window=st.sampled_from([2, 3, 1000]),
        jitter=st.sampled_from([0.0, 0.5]),
    )
    def everything_fails(
        self, wait_s: int, kind: Kind, fresh: bool, window: int, jitter: float
    ) -> None:
        """I15: a storm of retries is due at once, perhaps with first attempts among them."""
        for org in ORGS:
            self.world.emit(3, "orders.paid", org, 2)
        self.sent += self.world.route(Claim(100), 1000)
        for _ in range(2):
            self.sent += self.world.lease_due(1000)
            if self.sent:
                self.take(0, len(self.sent), False, Fate.DONE, 0)
            self.world.settle([self.judged(lease, kind, None, jitter) for lease in self.running])
            self.past += list(self.running)
            self.running = {}
        self.world.pass_time(timedelta(seconds=wait_s))
        if fresh:
            for org in ORGS:
                self.world.emit(1, "orders.paid", org, 2)
            self.world.route(Claim(100), 0)
        self.sent += self.world.lease_due(window)

    @rule(which=some, delivered=st.sampled_from([False, False, True]), window=st.integers(1, 3))
    def a_destination_is_down(self, which: int, delivered: bool, window: int) -> None:
        """Its circuit opens; then one probe goes at a time."""
        lanes = [lane for lane in self.world.model.lanes.values() if lane.id > 0]
        lane = lanes[which % len(lanes)]
        for _ in range(2):
            self.world.report(lane, delivered=delivered)
            self.world.pass_time(timedelta(seconds=6))
        self.sent += self.world.lease_due(window)

    @rule(events=st.integers(2, 6), orgs_max=st.sampled_from([1, 2, 64]))
    def a_fair_claim(self, events: int, orgs_max: int) -> None:
        """I15: one organization's backlog hides nothing of another's."""
        for org in (*ORGS, None):
            self.world.emit(3, "orders.paid", org, 2)
        self.sent += self.world.route(Claim(events, orgs_max=orgs_max), 1000)

    @precondition(lambda self: self.running)
    @rule(
        which=some,
        kinds=st.lists(st.sampled_from(Kind), min_size=1, max_size=3),
        after_s=st.sampled_from([None, None, 3, 100_000]),
        jitter=st.sampled_from([0.0, 0.5]),
        fate=fates,
        who=processes,
    )
    def settle(
        self,
        which: int,
        kinds: list[Kind],
        after_s: int | None,
        jitter: float,
        fate: Fate,
        who: int,
    ) -> None:
        leases = list(self.running)
        chosen = dict(zip(leases[which % len(leases) :], kinds, strict=False))
        ended = [self.judged(lease, kind, after_s, jitter) for lease, kind in chosen.items()]
        self.world.settle(ended, fate, who)
        # A worker that heard nothing settles the same again.
        if fate is Fate.DONE:
            for lease in chosen:
                del self.running[lease]
                self.past.append(lease)

    def judged(self, lease: Lease, kind: Kind, after_s: int | None, jitter: float) -> Settlement:
        """The real judgement, compared with the formula (I4, I5)."""
        attempt, age_left_s = self.running[lease]
        sub = self.sub_of(lease)
        policy = parse_retry(sub.retry)
        after = None if after_s is None else timedelta(seconds=after_s)
        age_left = None if age_left_s is None else timedelta(seconds=age_left_s)
        outcome = Outcome(kind, str(kind), after=after)
        verdict = judge(outcome, policy, attempt, age_left, lambda: jitter)
        assert verdict.charged == (kind in CHARGED)
        if verdict.delay is not None and kind is not Kind.INTERNAL:
            assert attempt <= len(sub.delays_s), "I4: more attempts than the policy has"
            base = timedelta(seconds=sub.delays_s[attempt - 1])
            asked = min(after, RETRY_AFTER_CAP) if after else timedelta()
            assert verdict.delay == max(base, asked) + base * 0.1 * jitter, "I5: the due time"
        delay_s = None if verdict.delay is None else verdict.delay.total_seconds()
        detail = json.dumps({"said": str(kind)})
        name, charged, reason = verdict.name, verdict.charged, verdict.reason
        return Settlement(lease[0], lease[1], name, charged, reason, delay_s, detail)

    def sub_of(self, lease: Lease) -> Sub:
        return self.world.model.subs[self.world.model.matched[lease[0]][1]]

    @precondition(lambda self: self.running)
    @rule(which=some, fate=fates, who=processes)
    def extend(self, which: int, fate: Fate, who: int) -> None:
        leases = list(self.running)
        self.world.extend(leases[which % len(leases) :], fate, who)

    @rule(which=some, verdict=st.sampled_from(["delivered", "dead", "retry"]))
    def a_wrong_token(self, which: int, verdict: str) -> None:
        """I3: another lease's token ends and lengthens nothing."""
        if not self.something_runs():
            return
        delivery_id, token = list(self.running)[which % len(self.running)]
        lease = (delivery_id, token + 1_000_000)
        self.world.settle([Settlement(*lease, verdict, True, "strange", 0.0, None)])
        self.world.extend([lease])

    @rule(n=st.integers(1, 3), verdict=st.sampled_from(["delivered", "dead", "retry", "release"]))
    def too_early(self, n: int, verdict: str) -> None:
        """I3: a lease that has not started is not settled; one that has, whose message came again,
        is. What is delivered is always charged."""
        self.traffic(n, "b", 1000, 100)
        charged = verdict == "delivered"
        ended = [Settlement(*lease, verdict, charged, "early", 0.0, None) for lease in self.sent]
        if ended:
            self.world.settle(ended)

    @precondition(lambda self: self.sent)
    @rule(which=some, late_s=st.sampled_from([29, 30, 31, 61]))
    def a_message_comes_late(self, which: int, late_s: int) -> None:
        """Around the end of its lease, when nobody has taken that back yet."""
        self.world.pass_time(timedelta(seconds=late_s))
        self.take(which, 2, True, Fate.DONE, 0)

    @precondition(lambda self: self.running)
    @rule(which=some)
    def a_worker_shuts_down(self, which: int) -> None:
        """What runs is given back, uncharged."""
        leases = list(self.running)[which % len(self.running) :]
        self.world.settle([released(lease) for lease in leases])
        for lease in leases:
            del self.running[lease]
            self.past.append(lease)

    @precondition(lambda self: self.running)
    @rule()
    def the_workers_die(self) -> None:
        self.past += list(self.running)
        self.running = {}

    @precondition(lambda self: self.past or self.sent)
    @rule(which=some, verdict=st.sampled_from(["delivered", "dead", "retry"]), twist=st.booleans())
    def stale(self, which: int, verdict: str, twist: bool) -> None:
        """I3: whoever comes late, or too early, or with a wrong token, changes nothing that is not
        his."""
        leases = self.past + self.sent
        delivery_id, token = leases[which % len(leases)]
        lease = (delivery_id, token + 1_000_000 if twist else token)
        self.world.settle([Settlement(*lease, verdict, True, "late", 0.0, None)])
        self.world.extend([lease])
        for row in self.world.take([lease]):
            self.running[row[0], row[1]] = (row[3], row[15])
            self.begun.add((row[0], row[1]))

    # -- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.world.broken:
            note("the faults stop")
            self.faults_stop()

    def faults_stop(self) -> None:
        """I1, I11: work ends once nothing goes wrong any more."""
        self.world.finish()


def released(lease: Lease) -> Settlement:
    return Settlement(*lease, "release", False, "shutdown", None, None)
