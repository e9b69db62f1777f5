"""A state machine that a processor must survive: crashes, duplicates, late answers, retries.

It drives the real statements on a real PostgreSQL through `Bench`, tells a `Ledger` what happened
and compares after every step. The processor is the user's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outbox.errors import UsageError
from outbox.outcome import Kind, Outcome
from outbox.processing import UserProcessor
from outbox.testing.bench import Bench, Started
from outbox.testing.broker import Message, RecordingBroker
from outbox.testing.databases import Databases, shared
from outbox.testing.ledger import Ledger
from outbox.work import Setup, Work

EVENTS_MAX = 20
"""Events of one example."""
ATTEMPTS_MAX = 50
"""The longest policy that is played through to its end."""
INTERNAL_MAX = 20
"""How often in a row a delivery may end `internal` when no faults are left."""


def _one_of(what: str) -> st.SearchStrategy[int]:
    """The index of something in a list of the machine."""
    return st.runner().flatmap(lambda machine: st.integers(0, len(getattr(machine, what)) - 1))


_SOME_AWAIT = st.runner().flatmap(lambda machine: st.integers(0, machine.awaits))


class ProcessorMachine(RuleBasedStateMachine):
    """Subclass it, name your `processor` or write `process`, and write `effects` (and `begin`,
    `end` where there is something to set up), and give `YourMachine.TestCase` a name that pytest
    collects.

    It checks that the processor

    * is idempotent: once it has returned `delivered` for a delivery, performing that delivery again
      (its settle was lost, a message came twice, its lease was outlived), also at the same time or
      cut off in the middle, changes nothing that `effects` shows, and is never `rejected`;
    * survives crashes: in the end every delivery has left what one undisturbed attempt leaves;
    * returns one of the closed set of outcomes within its deadline, and ends: what still fails as
      `internal` when nothing disturbs it any more would be tried for ever.

    And that the engine keeps the retry rules meanwhile: attempts are counted as charged and never
    exceed the policy, a dead letter is not tried until it is redriven, nothing is lost.

    All four methods run on one event loop. `begin` is called at the start of each example, and once
    more, after `end`, before what was delivered is performed again undisturbed.
    """

    retry: ClassVar[str] = "5s,10s"
    """The retry policy, of at most fifty attempts."""
    types: ClassVar[Sequence[str]] = ("test.happened",)
    """The event types to emit."""
    payloads: ClassVar[st.SearchStrategy[Any]] = st.fixed_dictionaries({"n": st.integers(0, 9)})
    """Their payloads: anything JSON can say."""
    limit: ClassVar[timedelta] = timedelta(seconds=10)
    """How long one attempt may take, of real time: the deadline that the processor is given."""
    may_raise: ClassVar[tuple[type[Exception], ...]] = (Exception,)
    """The exceptions that the processor may let out; they become the outcome `internal`."""
    processor: ClassVar[UserProcessor | None] = None
    """What `@outbox.processor` made; without it write `process`."""
    config: ClassVar[Mapping[str, Any]] = {}
    """What its subscription is configured with."""
    databases: ClassVar[Databases | None] = None
    """Where each example's database is made; the default is what the fixtures use."""

    # -- what you write -------------------------------------------------------------------------

    async def begin(self) -> None:
        """Make the world that the processor acts on, empty. It may have to be made twice."""

    async def process(self, work: Work, deadline: float) -> Outcome:
        """Perform one delivery: call your processor. `deadline` is a time of the event loop."""
        assert self.processor is not None, (
            f"name the processor of {type(self).__name__}, or write its process"
        )
        configured = replace(work, setup=Setup(0, 1, self.config))
        return await self.processor.perform(configured, deadline)

    async def effects(self) -> Mapping[UUID, object]:
        """What each delivery has left behind, by `work.delivery_id`.

        Values are compared with `==`: leave out what may differ between two attempts, such as
        times. A delivery that has left nothing may be missing.
        """
        raise AssertionError(f"write {type(self).__name__}.effects: it shows what is left behind")

    async def end(self) -> None:
        """Take the world down."""

    # -- life -----------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        self._stack = ExitStack()
        retry, types = self.retry, tuple(self.types)
        self.bench = (type(self).databases or shared()).keep(
            (Bench, retry, types), lambda url: Bench(url, retry=retry, patterns=types)
        )
        self.bench.clear()
        self._ledger = Ledger(self.bench.policy.attempts_max)
        self.awaits = 2
        self._frozen: list[Started] = []
        self._late: list[tuple[Started, Outcome]] = []
        if self.bench.policy.attempts_max > ATTEMPTS_MAX:
            raise UsageError(f"give the machine a retry policy of at most {ATTEMPTS_MAX} attempts")
        self.bench.run(self.begin())
        self._stack.callback(lambda: self.bench.run(self.end()))

    def teardown(self) -> None:
        """The faults stop; everything must end, and look as if there had been none."""
        if not hasattr(self, "_stack"):
            return
        with self._stack:
            if sys.exception() is None and hasattr(self, "_ledger"):
                self._come_to_rest()
                self._compare_with_undisturbed()

    # -- the application, the relay, the broker ---------------------------------------------------

    @precondition(lambda self: len(self._ledger) < EVENTS_MAX)
    @rule(
        type=st.runner().flatmap(lambda machine: st.sampled_from(list(machine.types))),
        payload=st.runner().flatmap(lambda machine: machine.payloads),
        window=st.integers(0, 3),
    )
    def an_event_is_emitted(self, type: str, payload: object, window: int) -> None:  # noqa: A002
        self._ledger.emitted(self.bench.emit(type, payload))
        self.bench.route(window)

    @precondition(lambda self: len(self._ledger) > len(self._ledger.ended))
    @rule(seconds=st.sampled_from([31, 6, 1]), window=st.integers(1, 5))
    def time_passes(self, seconds: int, window: int) -> None:
        self.bench.clock.advance(seconds)
        self.bench.expire()
        self.bench.lease_due(window)

    @property
    def _broker(self) -> RecordingBroker:
        return self.bench.broker

    @property
    def _waiting(self) -> list[Message]:
        return self._broker.waiting

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"), repeats=st.booleans())
    def the_broker_repeats_or_loses(self, which: int, repeats: bool) -> None:
        (self._broker.repeat if repeats else self._broker.lose)(which)

    # -- the workers ----------------------------------------------------------------------------

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"))
    def a_worker_settles(self, which: int) -> None:
        for started in self._take(which):
            self._settle(started, self._perform(started))

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"))
    def a_worker_is_late_to_settle(self, which: int) -> None:
        self._late += [(started, self._perform(started)) for started in self._take(which)]

    @precondition(lambda self: self._late)
    @rule(which=_one_of("_late"))
    def a_late_settle_arrives(self, which: int) -> None:
        self._settle(*self._late.pop(which))

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"), at=_SOME_AWAIT)
    def a_worker_is_killed(self, which: int, at: int) -> None:
        """At this await of the processor, or when it has returned."""
        for started in self._take(which):
            self._attempt(started, at)

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"), at=_SOME_AWAIT)
    def a_worker_is_killed_and_the_next_one_too(self, which: int, at: int) -> None:
        """The first before it settles, the second at this await of the processor."""
        for started in self._take(which):
            self._perform(started)
            for again in self._lease_again(started):
                self._attempt(again, at)

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"))
    def a_worker_freezes(self, which: int) -> None:
        self._frozen += self._take(which)

    @precondition(lambda self: self._frozen)
    @rule(which=_one_of("_frozen"))
    def a_frozen_worker_goes_on(self, which: int) -> None:
        started = self._frozen.pop(which)
        self._settle(started, self._perform(started))

    @precondition(lambda self: self._waiting)
    @rule(which=_one_of("_waiting"))
    def a_worker_outlives_its_lease(self, which: int) -> None:
        """It goes on when another makes the next attempt: both at once."""
        for started in self._take(which):
            self._attempt_together([started, *self._lease_again(started)])

    def _lease_again(self, started: Started) -> list[Started]:
        """The lease runs out, and the next worker takes the delivery."""
        self.bench.clock.advance(self.bench.lease)
        self.bench.expire()
        self.bench.lease_due()
        waiting = [i for i, message in enumerate(self._waiting) if started.id.hex in message.ids]
        return [one for index in reversed(waiting) for one in self._take(index)]

    # -- the operator ---------------------------------------------------------------------------

    @property
    def _dead(self) -> list[UUID]:
        return self._ledger.dead

    @precondition(lambda self: self._dead)
    @rule(which=_one_of("_dead"))
    def a_dead_letter_is_redriven(self, which: int) -> None:
        self._redrive(self._dead[which])

    @invariant()
    def the_retry_rules_hold(self) -> None:
        self._ledger.compare(self.bench.standing())

    # -- one attempt ----------------------------------------------------------------------------

    def _take(self, index: int) -> list[Started]:
        taken = self.bench.take(self._broker.deliver(index))
        for started in taken:
            self._ledger.taken(started)
            note(f"{self._ledger.name(started.id)} is taken: attempt {started.work.attempt}")
        return taken

    def _perform(self, started: Started) -> Outcome:
        outcome = self._attempt(started)
        assert outcome is not None, "the processor cancelled itself"
        return outcome

    def _attempt(self, started: Started, cut_at: int | None = None) -> Outcome | None:
        outcome = self.bench.perform(started.work, self._process, limit=self.limit, cut_at=cut_at)
        self.awaits = max(self.awaits, self.bench.awaited)
        told = "cut off" if outcome is None else f"{outcome.kind} ({outcome.reason})"
        note(f"{self._ledger.name(started.id)} is performed: {told}")
        self._ledger.performed(started, outcome, self._effects())
        return outcome

    def _attempt_together(self, several: list[Started]) -> None:
        works = [started.work for started in several]
        outcomes = self.bench.perform_together(works, self._process, limit=self.limit)
        effects = self._effects()
        for started, outcome in zip(several, outcomes, strict=True):
            note(f"{self._ledger.name(started.id)} is performed, both at once: {outcome.kind}")
            self._ledger.performed(started, outcome, effects)
            self._settle(started, outcome)

    async def _process(self, work: Work, deadline: float) -> Outcome:
        """The processor; exceptions that it may not raise become failures."""
        try:
            return await self.process(work, deadline)
        except Exception as error:
            if isinstance(error, (AssertionError, *self.may_raise)):
                raise
            raise AssertionError(f"process raised {error!r}, which may_raise forbids") from error

    def _settle(self, started: Started, outcome: Outcome) -> None:
        settlement = self.bench.settle(started, outcome)
        if settlement is not None:
            self._ledger.settled(started, outcome, settlement)

    def _redrive(self, delivery_id: UUID) -> None:
        assert self.bench.redrive(delivery_id) == 1
        self._ledger.redriven(delivery_id)

    def _effects(self) -> dict[UUID, object]:
        return copy.deepcopy(dict(self.bench.run(self.effects())))

    # -- the end --------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        self._frozen.clear()
        self._late.clear()
        self._broker.lose_all()
        # Whose workers were killed too often may try again; what was refused may not.
        for delivery_id, one in self.bench.standing().items():
            if one.state == "dead" and one.reason == "lease_expired":
                self._redrive(delivery_id)
        last: Outcome | None = None
        for _ in range(self.bench.policy.attempts_max + INTERNAL_MAX):
            if not self.bench.wait():
                return
            last = self._round() or last
            self.the_retry_rules_hold()
        unended = self._ledger.unended
        assert not unended, (
            f"{self._ledger.name(unended[0])} never ends, though nothing disturbs it any more;"
            f" the last outcome was {last!r}. What will never work must be rejected"
        )

    def _round(self) -> Outcome | None:
        """Everything that is due, undisturbed; returns the last outcome."""
        self.bench.expire()
        self.bench.tend()
        self.bench.route()
        self.bench.lease_due()
        outcome = None
        while self._waiting:
            for started in self._take(0):
                outcome = self._perform(started)
                self._settle(started, outcome)
        return outcome

    def _compare_with_undisturbed(self) -> None:
        """Perform in a new world, once each, what was delivered, and compare the effects."""
        disturbed = self._effects()
        self.bench.run(self.end())
        self.bench.run(self.begin())
        for delivery_id, work in self._ledger.delivered.items():
            self._perform_undisturbed(self._ledger.name(delivery_id), work)
        self._ledger.compare_effects(disturbed, self._effects())

    def _perform_undisturbed(self, name: str, work: Work) -> None:
        last: Outcome | None = None
        attempts_max = self.bench.policy.attempts_max
        for attempt in range(1, attempts_max + INTERNAL_MAX):
            again = replace(work, attempt=min(attempt, attempts_max))
            last = self.bench.perform(again, self._process, limit=self.limit)
            if last is not None and last.kind is Kind.DELIVERED:
                return
        raise AssertionError(f"{name} was delivered with faults, but not without: {last!r}")
