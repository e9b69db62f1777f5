"""The fold of the journal: facts in, the state of a delivery out.

Owns what each fact does to a delivery. Promises I13: the projection tables hold what this fold
yields, also when the early facts are gone and a `carried` fact stands for them.

Leases are no facts, so a leased delivery folds to `scheduled`: the facts that end a lease pass
through the edge `lease` on their way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from uuid import UUID

from outbox.errors import IllegalTransition
from outbox.lifecycle import BORN, ENDED, Edge, State, move


class FactName(StrEnum):
    """What the journal can say about a delivery."""

    ROUTED = "routed"
    ATTEMPT_FAILED = "attempt_failed"
    DELIVERED = "delivered"
    DEAD = "dead"
    LEASE_EXPIRED = "lease_expired"
    REDRIVEN = "redriven"
    REPLAYED = "replayed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISCARDED = "discarded"
    HELD = "held"
    RELEASED = "released"
    CARRIED = "carried"
    RESCHEDULED = "rescheduled"
    REDACTED = "redacted"
    """About an event, not about a delivery: its contents were erased."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One journal entry as it concerns one delivery.

    `charged` says that an attempt was used up; for `lease_expired`, that the lease had started.
    `due_at` is the next due time where the delivery goes on; left out it means `at` after
    `redriven` and `replayed`, and "as before" otherwise. `state` stands in `routed` (the state it
    was born in) and in `carried`; `attempt` and `expiries` are counts, folded from `carried` only.
    """

    name: FactName
    at: datetime
    delivery_id: UUID
    attempt: int = 0
    charged: bool = False
    budget: int = 1
    reason: str | None = None
    due_at: datetime | None = None
    expiries: int = 0
    state: State | None = None


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """A delivery as its facts tell it.

    `attempts` are charged attempts within the present budget, `expiries` started leases that ran
    out within it, `budget` counts from 1, `reason` is that of the latest fact, `due_at` is None
    once it has ended.
    """

    delivery_id: UUID
    state: State
    attempts: int = 0
    budget: int = 1
    expiries: int = 0
    due_at: datetime | None = None
    reason: str | None = None


_SETTLED: Mapping[FactName, Edge] = MappingProxyType(
    {
        FactName.ATTEMPT_FAILED: Edge.RETRY,
        FactName.DELIVERED: Edge.DELIVER,
        FactName.DEAD: Edge.KILL,
        FactName.LEASE_EXPIRED: Edge.LAPSE,
    }
)
_MOVED: Mapping[FactName, Edge] = MappingProxyType(
    {
        FactName.CANCELLED: Edge.CANCEL,
        FactName.EXPIRED: Edge.EXPIRE,
        FactName.DISCARDED: Edge.DISCARD,
        FactName.HELD: Edge.HOLD,
        FactName.RESCHEDULED: Edge.RESCHEDULE,
    }
)


def fold(facts: Iterable[Fact], start: DeliveryState | None = None) -> DeliveryState | None:
    """Fold the facts of one delivery, in journal order, onto `start`; None if there are none.

    Raises IllegalTransition if a fact cannot follow what stands before it.
    """
    state = start
    for fact in facts:
        state = apply(state, fact)
    return state


def apply(before: DeliveryState | None, fact: Fact) -> DeliveryState:
    """The state of a delivery after one more fact. Raises IllegalTransition."""
    if fact.name is FactName.CARRIED:
        return _carried(fact)
    if fact.name is FactName.ROUTED:
        return _routed(before, fact)
    if before is None:
        return _born_by_replay(fact)
    if before.delivery_id != fact.delivery_id:
        raise IllegalTransition("a fact about another delivery stands in this history")
    after = _counted(before, fact)
    if fact.name in (FactName.REDRIVEN, FactName.REPLAYED):
        return _again(after, fact)
    return _ended_without_due(replace(after, state=move(*_step(after.state, fact.name))))


def carry(state: DeliveryState, at: datetime) -> Fact:
    """The `carried` fact that stands for all facts so far when their slot is cleared."""
    return Fact(
        FactName.CARRIED,
        at,
        state.delivery_id,
        attempt=state.attempts,
        budget=state.budget,
        reason=state.reason,
        due_at=state.due_at,
        expiries=state.expiries,
        state=state.state,
    )


def _step(state: State, name: FactName) -> tuple[State, Edge]:
    """The edge a fact takes, and the state it starts from."""
    if name is FactName.DEAD and state is State.HELD:
        return state, Edge.PARK
    if name is FactName.REDACTED:
        raise IllegalTransition("redaction is about an event, not about a delivery")
    if name in _SETTLED:
        return move(state, Edge.LEASE), _SETTLED[name]
    if name is FactName.RELEASED:
        if state is State.HELD:
            return state, Edge.UNHOLD
        return move(state, Edge.LEASE), Edge.RELEASE
    return state, _MOVED[name]


def _counted(before: DeliveryState, fact: Fact) -> DeliveryState:
    expired = fact.name is FactName.LEASE_EXPIRED
    return replace(
        before,
        attempts=before.attempts + (fact.charged and not expired),
        expiries=before.expiries + (fact.charged and expired),
        due_at=fact.due_at or before.due_at,
        reason=fact.reason,
    )


def _again(before: DeliveryState, fact: Fact) -> DeliveryState:
    """Redrive and replay: a fresh budget, unless the delivery is only made due now."""
    redrives = fact.name is FactName.REDRIVEN or before.state is State.DEAD
    fresh = before.state in ENDED
    after = replace(
        before,
        state=move(before.state, Edge.REDRIVE if redrives else Edge.REPLAY),
        due_at=fact.due_at or fact.at,
    )
    return replace(after, attempts=0, expiries=0, budget=before.budget + 1) if fresh else after


def _routed(before: DeliveryState | None, fact: Fact) -> DeliveryState:
    if before is not None:
        raise IllegalTransition("a delivery is routed once")
    state = fact.state or State.SCHEDULED
    if state not in BORN:
        raise IllegalTransition(f"a delivery is not born {state}")
    return DeliveryState(
        fact.delivery_id, _without_lease(state), due_at=fact.due_at or fact.at, reason=fact.reason
    )


def _born_by_replay(fact: Fact) -> DeliveryState:
    """A new generation, or an event that a new subscription is given later: never routed. Or the
    facts before are gone by retention, which `budget` still counts."""
    if fact.name is not FactName.REPLAYED:
        raise IllegalTransition(f"the history of a delivery cannot begin with {fact.name}")
    due_at = fact.due_at or fact.at
    return DeliveryState(
        fact.delivery_id, State.SCHEDULED, budget=fact.budget, due_at=due_at, reason=fact.reason
    )


def _carried(fact: Fact) -> DeliveryState:
    if fact.state is None:
        raise IllegalTransition("a carried fact holds the full state")
    return DeliveryState(
        fact.delivery_id,
        _without_lease(fact.state),
        attempts=fact.attempt,
        budget=fact.budget,
        expiries=fact.expiries,
        due_at=fact.due_at,
        reason=fact.reason,
    )


def _without_lease(state: State) -> State:
    return State.SCHEDULED if state is State.LEASED else state


def _ended_without_due(state: DeliveryState) -> DeliveryState:
    return replace(state, due_at=None) if state.state in ENDED else state
