"""The states of a delivery and the named edges between them.

This table is the list that SQL (a CHECK) and `docs/lifecycle.md` (a diagram) repeat; tests compare
them. Nothing moves a delivery but an edge: `move` raises on every other pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from outbox.errors import IllegalTransition


class State(StrEnum):
    """Where a delivery is."""

    SCHEDULED = "scheduled"
    LEASED = "leased"
    HELD = "held"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


class Edge(StrEnum):
    """Why a delivery moves."""

    LEASE = "lease"
    """The relay claims it."""
    DELIVER = "deliver"
    """The attempt succeeded."""
    RETRY = "retry"
    """The attempt failed and another follows."""
    KILL = "kill"
    """The attempt failed for good, or attempts or started expiries are used up."""
    RELEASE = "release"
    """The lease is given back unused; nothing is charged."""
    LAPSE = "lapse"
    """The lease expired."""
    HOLD = "hold"
    """Its subscription was paused or disabled, or its order is blocked."""
    UNHOLD = "unhold"
    """What held it is over."""
    PARK = "park"
    """An earlier delivery of its key died, and the subscription parks what follows."""
    EXPIRE = "expire"
    """It outlived its maximum age or its `expires_at`."""
    CANCEL = "cancel"
    """Somebody called it off."""
    REDRIVE = "redrive"
    """A dead letter gets a fresh budget."""
    DISCARD = "discard"
    """A dead letter is given up."""
    REPLAY = "replay"
    """Redelivered under the same key; one that is scheduled becomes due now."""
    RESCHEDULE = "reschedule"
    """Somebody moved its due time."""


LIVE = frozenset({State.SCHEDULED, State.LEASED, State.HELD})
"""States of deliveries that are still owed."""

ENDED = frozenset(State) - LIVE
"""States in which nothing is tried (I6)."""

BORN = LIVE
"""States in which routing may create a delivery."""

EDGES: Mapping[Edge, Mapping[State, State]] = MappingProxyType(
    {
        Edge.LEASE: {State.SCHEDULED: State.LEASED},
        Edge.DELIVER: {State.LEASED: State.DELIVERED},
        Edge.RETRY: {State.LEASED: State.SCHEDULED},
        Edge.KILL: {State.LEASED: State.DEAD},
        Edge.RELEASE: {State.LEASED: State.SCHEDULED},
        Edge.LAPSE: {State.LEASED: State.SCHEDULED},
        Edge.HOLD: {State.SCHEDULED: State.HELD, State.LEASED: State.HELD},
        Edge.UNHOLD: {State.HELD: State.SCHEDULED},
        Edge.PARK: {State.HELD: State.DEAD},
        Edge.EXPIRE: {State.SCHEDULED: State.DEAD, State.HELD: State.DEAD},
        Edge.CANCEL: dict.fromkeys(sorted(LIVE), State.CANCELLED),
        Edge.REDRIVE: {State.DEAD: State.SCHEDULED},
        Edge.DISCARD: {State.DEAD: State.DISCARDED},
        Edge.RESCHEDULE: {State.SCHEDULED: State.SCHEDULED, State.HELD: State.HELD},
        Edge.REPLAY: {State.DELIVERED: State.SCHEDULED, State.SCHEDULED: State.SCHEDULED},
    }
)


def move(state: State, edge: Edge) -> State:
    """Return the state after `edge`. Raises IllegalTransition if it does not start at `state`."""
    target = EDGES[edge].get(state)
    if target is None:
        raise IllegalTransition(f"a {state} delivery has no edge {edge}")
    return target
