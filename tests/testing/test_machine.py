"""The state machine for users catches what it is for, and accepts what is right."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from outbox.attempt import settlement_of
from outbox.errors import UsageError
from outbox.outcome import Kind, Outcome
from outbox.store.attempts import Settlement, Taken
from outbox.testing import Databases, ProcessorMachine
from outbox.work import Work
from tests.profiles import scaled

DONE = Outcome(Kind.DELIVERED, "done")

# The first example that fails is enough: shrinking it would cost more than finding it.
CATCH = settings(
    max_examples=200,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
)


class World(dict[UUID, list[str]]):
    """What processors do to it: each entry is one effect."""

    async def do(self, work: Work, what: str = "sent") -> None:
        await asyncio.sleep(0)
        self.setdefault(work.delivery_id, []).append(what)
        await asyncio.sleep(0)


Process = Callable[[World, Work], Awaitable[Any]]


async def idempotent(world: World, work: Work) -> Outcome:
    await asyncio.sleep(0)
    world[work.delivery_id] = ["sent"]
    await asyncio.sleep(0)
    return DONE


async def without_a_key(world: World, work: Work) -> Outcome:
    await world.do(work)
    return DONE


async def sent_before_noted(world: World, work: Work) -> Outcome:
    """A crash between the two sends again."""
    if "noted" not in world.get(work.delivery_id, []):
        await world.do(work)
        await asyncio.sleep(0)
        await world.do(work, "noted")
    return DONE


async def looked_before_leapt(world: World, work: Work) -> Outcome:
    """Two at once both find nothing."""
    if work.delivery_id not in world:
        await asyncio.sleep(0)
        world.setdefault(work.delivery_id, []).append("sent")
    return DONE


async def taken_away_first(world: World, work: Work) -> Outcome:
    """A duplicate that is cut off leaves nothing."""
    world.pop(work.delivery_id, None)
    await asyncio.sleep(0)
    world[work.delivery_id] = ["sent"]
    return DONE


async def duplicates_refused(world: World, work: Work) -> Outcome:
    if work.delivery_id in world:
        return Outcome(Kind.REJECTED, "exists")
    world[work.delivery_id] = ["sent"]
    return DONE


async def neighbours_overwritten(world: World, work: Work) -> Outcome:
    for delivery_id in world:
        world[delivery_id] = ["overwritten"]
    world[work.delivery_id] = ["sent"]
    return DONE


async def no_outcome(world: World, work: Work) -> None:
    world[work.delivery_id] = ["sent"]


async def a_kind_of_its_own(world: World, work: Work) -> Outcome:
    kind: Any = "success"
    return Outcome(kind, "done")


async def for_ever_internal(world: World, work: Work) -> Outcome:
    raise KeyError("no such column")


async def past_the_deadline(world: World, work: Work) -> Outcome:
    await asyncio.Event().wait()
    return DONE


def machine_of(performed: Process, server: Databases, **fields: Any) -> type[ProcessorMachine]:
    class Machine(ProcessorMachine):
        databases = server

        async def begin(self) -> None:
            self.world = World()

        async def process(self, work: Work, deadline: float) -> Outcome:
            outcome: Outcome = await performed(self.world, work)
            return outcome

        async def effects(self) -> Mapping[UUID, object]:
            return self.world

    return type(performed.__name__, (Machine,), fields)


@pytest.mark.hypothesis
def test_an_idempotent_processor_passes(outbox_databases: Databases) -> None:
    machine = machine_of(idempotent, outbox_databases)
    run_state_machine_as_test(machine, settings=scaled(0.1))


@pytest.mark.hypothesis
def test_a_processor_with_every_outcome_passes(outbox_databases: Databases) -> None:
    async def any_outcome(world: World, work: Work) -> Outcome:
        kind = list(Kind)[json.loads(work.payload)["n"] % len(Kind)]
        if kind is Kind.INTERNAL and work.attempt < 3:
            return DONE
        if kind is Kind.DELIVERED:
            await idempotent(world, work)
        return Outcome(Kind.REJECTED if kind is Kind.INTERNAL else kind, "as_asked")

    run_state_machine_as_test(machine_of(any_outcome, outbox_databases), settings=scaled(0.1))


@pytest.mark.parametrize(
    ("performed", "told"),
    [
        (without_a_key, "not idempotent"),
        (sent_before_noted, "left something else than one undisturbed attempt"),
        (looked_before_leapt, "left something else than one undisturbed attempt"),
        (taken_away_first, "not idempotent"),
        (duplicates_refused, "a duplicate must be delivered too"),
        (neighbours_overwritten, "not idempotent"),
        (no_outcome, "must return an Outcome"),
        (a_kind_of_its_own, "must be a Kind"),
        (for_ever_internal, "never ends, though nothing disturbs it"),
    ],
)
def test_a_wrong_processor_is_caught(
    performed: Process, told: str, outbox_databases: Databases
) -> None:
    with pytest.raises(AssertionError, match=told):
        run_state_machine_as_test(machine_of(performed, outbox_databases), settings=CATCH)


def test_a_processor_that_outlives_its_deadline_is_caught(outbox_databases: Databases) -> None:
    machine = machine_of(past_the_deadline, outbox_databases, limit=timedelta(seconds=0.1))
    with pytest.raises(AssertionError, match="still ran at its deadline"):
        run_state_machine_as_test(machine, settings=CATCH)


def test_an_exception_that_may_not_be_raised_is_caught(outbox_databases: Databases) -> None:
    machine = machine_of(for_ever_internal, outbox_databases, may_raise=(OSError,))
    with pytest.raises(AssertionError, match="which may_raise forbids"):
        run_state_machine_as_test(machine, settings=CATCH)


async def retried(world: World, work: Work) -> Outcome:
    await idempotent(world, work)
    return DONE if work.attempt == 2 else Outcome(Kind.RETRY, "http_500")


def not_charged(taken: Taken, outcome: Outcome, jitter: Callable[[], float]) -> Settlement:
    return settlement_of(taken, outcome, jitter)._replace(charged=False)


def dead_at_once(taken: Taken, outcome: Outcome, jitter: Callable[[], float]) -> Settlement:
    settlement = settlement_of(taken, outcome, jitter)
    return settlement._replace(verdict=settlement.verdict.replace("retry", "dead"))


def said_but_not_done(taken: Taken, outcome: Outcome, jitter: Callable[[], float]) -> Settlement:
    settlement = settlement_of(taken, outcome, jitter)
    return settlement._replace(verdict=settlement.verdict.replace("delivered", "release"))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (not_charged, "attempts charged, not"),
        (dead_at_once, "is dead, not retry"),
        (said_but_not_done, "is release, not delivered"),
    ],
)
def test_an_engine_that_breaks_the_retry_rules_is_caught(
    broken: Callable[..., Settlement],
    told: str,
    outbox_databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outbox.testing.bench.settlement_of", broken)
    with pytest.raises(AssertionError, match=told):
        run_state_machine_as_test(machine_of(retried, outbox_databases), settings=CATCH)


def test_a_policy_too_long_to_play_through_is_refused(outbox_databases: Databases) -> None:
    policy = "exp:base=1s,factor=2,cap=1h,attempts=51"
    machine = machine_of(idempotent, outbox_databases, retry=policy)
    with pytest.raises(UsageError, match="at most 50 attempts"):
        run_state_machine_as_test(machine, settings=CATCH)


def test_a_failure_prints_the_steps_and_what_replays_them(
    outbox_databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    printing = settings(CATCH, print_blob=True)
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(
            machine_of(duplicates_refused, outbox_databases), settings=printing
        )
    notes = "\n".join(caught.value.__notes__)
    assert "state.an_event_is_emitted(" in notes
    # Which event it is hangs on the ids, and with them on the salt of the installation.
    assert re.search(r"the delivery of event \d+ is performed: rejected \(exists\)", notes)
    assert "@reproduce_failure(" in notes
