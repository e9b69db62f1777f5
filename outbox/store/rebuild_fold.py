"""From the facts about a delivery to the row that it must have.

Owns which columns of `delivery` and `dead_letter` follow from facts, and how. State and counts are
those of `outbox.history`, the one definition of the fold; here stand the columns that it leaves
aside: what was held since when, age limits, what the dead letter tells. Pure: no database, no
clock.

What is not told by facts is not judged: leases (a leased row is compared as a scheduled one), and
`again` where a program of schema level 9 redrove, which did not know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from outbox.errors import IllegalTransition
from outbox.history import DeliveryState, Fact, FactName, apply, fold
from outbox.lifecycle import ENDED, State

_COMMON = (
    *("event_id", "event_slot", "subscription_id", "revision", "generation", "lane", "org_id"),
    *("order_key", "attempts", "budget", "expiries", "expires_at"),
)
LIVE_COLUMNS = (
    *_COMMON,
    *("state", "due_at", "age_limit_at", "held_at", "held_reason", "again"),
)
DEAD_COLUMNS = (*_COMMON, "reason", "detail", "died_at")

FAR = datetime(9999, 12, 31, tzinfo=UTC)
"""Stands for every later moment: Python's calendar ends here, PostgreSQL's does not."""
LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)

_SAME = timedelta(milliseconds=1)
"""Times that are sums of others may differ by less."""
_SUMS = frozenset({"age_limit_at", "held_at"})
_BEGINNINGS = frozenset({FactName.ROUTED, FactName.CARRIED, FactName.REPLAYED})
_NOBODY = UUID(int=0)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A fact with what the fold of `outbox.history` leaves aside."""

    fact: Fact
    subscription_id: int | None = None
    revision: int | None = None
    detail: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a row takes from its event and its subscription. `slots` hold the event, the newest
    first; `order_key` is None where the subscription is unordered."""

    slots: Sequence[int]
    created_at: datetime
    expires_at: datetime | None
    org_id: str | None
    lane: int
    max_age_s: float | None
    max_age_again_s: float | None
    order_key: int | None
    redacted: bool


@dataclass(frozen=True, slots=True)
class Owed:
    """What the facts say of a delivery: `live` or `dead` is the row that it must have."""

    live: Row | None = None
    dead: Row | None = None


GONE = Owed()
"""It has ended, or nothing is known of it: no row."""


def after(at: datetime, wait: timedelta) -> datetime:
    """`at + wait`, where the calendar ends there."""
    try:
        return min(at + wait, FAR)
    except OverflowError:
        return FAR


def moment(text: str) -> datetime:
    """A time as PostgreSQL writes it into JSON."""
    try:
        return min(datetime.fromisoformat(text), FAR)
    except ValueError:
        return LONG_AGO if text.endswith("BC") else FAR


# -- outlines -------------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def has_ended(outline: str) -> bool:
    """Does a history of this outline (see rebuild_slice.sql) end without a row? False where that
    needs a closer look.

    Which edges a history takes depends on its outline alone, so each is folded once.
    """
    facts = _begun([_outlined(word) for word in outline.split()], lambda fact: fact.name)
    try:
        state = fold(facts)
    except IllegalTransition:
        return False
    return _rests(state)


def _outlined(word: str) -> Fact:
    name, _, born = word.partition(":")
    return Fact(FactName(name), _EPOCH, _NOBODY, state=State(born) if born else None)


def _begun(facts: Sequence[Any], name: Callable[[Any], FactName]) -> Sequence[Any]:
    """The facts from a beginning on. Those before it are the rest of a history whose older facts
    are past retention; what was owed then was carried, so it had ended."""
    for number, fact in enumerate(facts):
        if name(fact) in _BEGINNINGS:
            return facts[number:]
    return ()


# -- the fold -------------------------------------------------------------------------------------


def birth(facts: Sequence[Told]) -> Told | None:
    """The fact that a delivery's history begins with, as far as it is known."""
    begun = _begun(facts, lambda told: told.fact.name)
    return begun[0] if begun else None


def owed(facts: Sequence[Told], event_id: int, context: Context) -> Owed:
    """The row that these facts, in order of time, ask for. Raises IllegalTransition where one
    cannot follow what stands before it."""
    trace = _Trace(context)
    for told in _begun(facts, lambda told: told.fact.name):
        trace.step(told)
    return trace.owed(event_id)


def needs_no_row(facts: Sequence[Told]) -> bool:
    """Has it ended for good, or is nothing known of it? Raises IllegalTransition."""
    return _rests(fold(told.fact for told in _begun(facts, lambda told: told.fact.name)))


def _rests(state: DeliveryState | None) -> bool:
    return state is None or (state.state in ENDED and state.state is not State.DEAD)


@dataclass(slots=True)
class _Trace:
    """One delivery on its way through its facts."""

    context: Context
    state: DeliveryState | None = None
    subscription_id: int | None = None
    revision: int | None = None
    generation: int = 0
    expires_at: datetime | None = None
    age_limit_at: datetime | None = None
    held_at: datetime | None = None
    held_reason: str | None = None
    again: bool = False
    died: dict[str, Any] = field(default_factory=dict)

    def step(self, told: Told) -> None:
        before, fact = self.state, told.fact
        self.state = apply(before, fact)
        if fact.name is FactName.CARRIED:
            self._carried(told)
            return
        if before is None:
            self._born(told)
        elif before.state in ENDED and self.state.state not in ENDED:
            self._revived(told)
        self._held(before, fact)
        if self.state.state is State.DEAD:
            detail = None if told.detail is None else dict(told.detail)
            self.died = {"reason": fact.reason or "", "detail": detail, "died_at": fact.at}

    def _born(self, told: Told) -> None:
        self.subscription_id, self.revision = told.subscription_id, told.revision
        self.expires_at = self.context.expires_at
        if told.fact.name is FactName.REPLAYED:
            self._revived(told)
            return
        if self.context.max_age_s is not None:
            wait = timedelta(seconds=self.context.max_age_s)
            self.age_limit_at = after(self.context.created_at, wait)

    def _revived(self, told: Told) -> None:
        """A fresh budget: its age counts anew, and an expiry that has passed is passed over."""
        at, detail = told.fact.at, told.detail or {}
        self.again = True
        self.revision = told.revision or self.revision
        self.generation = detail.get("generation", self.generation)
        if self.expires_at is not None and self.expires_at <= at:
            self.expires_at = None
        wait_s = self.context.max_age_again_s
        self.age_limit_at = None if wait_s is None else after(at, timedelta(seconds=wait_s))

    def _held(self, before: DeliveryState | None, fact: Fact) -> None:
        """The maximum age stands still while a delivery is held."""
        assert self.state is not None
        was = before is not None and before.state is State.HELD
        held = self.state.state is State.HELD
        if held and not was:
            self.held_at, self.held_reason = fact.at, fact.reason
        elif was and self.state.state is State.SCHEDULED:
            assert self.held_at is not None
            if self.age_limit_at is not None:
                stood = max(timedelta(), fact.at - self.held_at)
                self.age_limit_at = after(self.age_limit_at, stood)
        if not held:
            self.held_at = self.held_reason = None

    def _carried(self, told: Told) -> None:
        kept = dict(told.detail or {})

        def time(name: str) -> datetime | None:
            return None if kept.get(name) is None else moment(kept[name])

        self.subscription_id = told.subscription_id
        self.revision = told.revision
        self.generation = kept.get("generation", 0)
        self.expires_at, self.age_limit_at = time("expires_at"), time("age_limit_at")
        self.held_at, self.held_reason = time("held_at"), kept.get("held_reason")
        self.again = kept.get("again") or False
        self.died = {
            "reason": kept.get("reason", ""),
            "detail": kept.get("detail"),
            "died_at": time("died_at"),
        }

    def owed(self, event_id: int) -> Owed:
        state = self.state
        if state is None or _rests(state):
            return GONE
        common = {
            "event_id": event_id,
            "event_slot": self.context.slots[0],
            "subscription_id": self.subscription_id,
            "revision": self.revision,
            "generation": self.generation,
            "lane": self.context.lane,
            "org_id": self.context.org_id,
            "order_key": self.context.order_key,
            "attempts": state.attempts,
            "budget": state.budget,
            "expiries": state.expiries,
            "expires_at": self.expires_at,
        }
        if state.state is State.DEAD:
            return Owed(dead=common | self.died)
        return Owed(
            live=common
            | {
                "state": str(state.state),
                "due_at": state.due_at,
                "age_limit_at": self.age_limit_at,
                "held_at": self.held_at,
                "held_reason": self.held_reason,
                "again": self.again,
            }
        )


# -- comparing ------------------------------------------------------------------------------------


def unlike(row: Row, wanted: Row, context: Context) -> dict[str, tuple[Any, Any]]:
    """The columns in which a row is not what its facts say: (in the row, by the facts)."""
    found = {}
    for name, value in wanted.items():
        if not _alike(name, row[name], value, context):
            found[name] = (row[name], value)
    return found


def _alike(name: str, has: Any, wants: Any, context: Context) -> bool:
    if has == wants:
        return True
    match name:
        case "event_slot":
            return has in context.slots
        case "state":
            return bool(has == State.LEASED and wants == State.SCHEDULED)
        case "again":
            return has is False
        case "order_key":
            return context.redacted
        case _ if name in _SUMS and has is not None and wants is not None:
            return bool(abs(has - wants) < _SAME)
    return False


def settled(row: Row, wanted: Row, context: Context) -> Row:
    """What to write into an existing row: its own slot and key where they are as good."""
    kept = {
        name: row[name]
        for name in ("event_slot", "order_key")
        if _alike(name, row[name], wanted[name], context)
    }
    return {**wanted, **kept}


def in_order(facts: Iterable[Told]) -> dict[UUID, list[Told]]:
    """Facts by delivery, as they come."""
    found: dict[UUID, list[Told]] = {}
    for told in facts:
        found.setdefault(told.fact.delivery_id, []).append(told)
    return found


def stated(
    name: str, reason: str | None, detail: Mapping[str, Any] | None
) -> tuple[State | None, int]:
    """The state and the expiries that a `routed` or `carried` fact tells."""
    if name == FactName.ROUTED:
        return (State.SCHEDULED if reason is None else State.HELD), 0
    if name == FactName.CARRIED and detail is not None and "state" in detail:
        return State(detail["state"]), detail.get("expiries", 0)
    return None, 0
