"""The fold of the journal: written cases, and a model that walks the lifecycle."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import IllegalTransition
from outbox.history import DeliveryState, Fact, FactName, apply, carry, fold
from outbox.lifecycle import BORN, ENDED, LIVE, State

ID = UUID(int=1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: int) -> datetime:
    return T0 + timedelta(seconds=second)


def fact(name: str, second: int = 0, **fields: Any) -> Fact:
    return Fact(FactName(name), at(second), ID, **fields)


def folded(*facts: Fact) -> DeliveryState:
    state = fold(facts)
    assert state is not None
    return state


ROUTED = fact("routed", due_at=at(0))
FAILED = fact("attempt_failed", 1, charged=True, reason="http_500", due_at=at(9))
DIED = fact("dead", 9, charged=True, reason="exhausted")

# Which facts can follow in which folded state: a model kept apart from the edges on purpose.
FOLLOWERS: dict[State, list[str]] = {
    State.SCHEDULED: [
        "attempt_failed",
        "delivered",
        "dead",
        "lease_expired",
        "replayed",
        "cancelled",
        "expired",
        "held",
        "released",
        "rescheduled",
    ],
    State.HELD: ["released", "cancelled", "expired", "dead", "rescheduled"],
    State.DELIVERED: ["replayed"],
    State.DEAD: ["redriven", "replayed", "discarded"],
    State.CANCELLED: [],
    State.DISCARDED: [],
}


@st.composite
def histories(draw: st.DrawFn) -> list[Fact]:
    born = draw(st.sampled_from(sorted(BORN)))
    facts = [fact("routed", state=born, due_at=at(0))]
    for second in range(1, draw(st.integers(0, 15)) + 1):
        names = FOLLOWERS[folded(*facts).state]
        if not names:
            break
        facts.append(
            fact(
                draw(st.sampled_from(names)),
                second,
                charged=draw(st.booleans()),
                reason=draw(st.sampled_from([None, "timeout", "http_500"])),
                due_at=draw(st.none() | st.integers(0, 99).map(at)),
            )
        )
    return facts


# --- properties ---------------------------------------------------------------------------------


@given(histories())
def test_folding_is_the_same_in_one_go_and_in_pieces(facts: list[Fact]) -> None:
    for cut in range(len(facts) + 1):
        assert fold(facts[cut:], fold(facts[:cut])) == fold(facts)


@given(histories(), st.data())
def test_a_carried_fact_stands_for_all_before_it(facts: list[Fact], data: st.DataObject) -> None:
    """I13 across retention: the early facts may go once their state was carried."""
    cut = data.draw(st.integers(1, len(facts)))
    carried = carry(folded(*facts[:cut]), at(cut))
    assert fold([carried, *facts[cut:]]) == fold(facts)
    assert fold([*facts[:cut], carried, *facts[cut:]]) == fold(facts)


@given(
    st.builds(
        DeliveryState,
        delivery_id=st.just(ID),
        state=st.sampled_from(sorted(set(State) - {State.LEASED})),
        attempts=st.integers(0, 9),
        budget=st.integers(1, 9),
        expiries=st.integers(0, 9),
        due_at=st.none() | st.integers(0, 99).map(at),
        reason=st.none() | st.text(),
    )
)
def test_a_carried_fact_holds_the_full_state(state: DeliveryState) -> None:
    assert fold([carry(state, at(5))]) == state


@given(histories())
def test_a_live_delivery_is_due_and_an_ended_one_is_not(facts: list[Fact]) -> None:
    state = folded(*facts)
    assert (state.due_at is None) == (state.state in ENDED)
    assert state.state is not State.LEASED


@given(histories())
def test_counts_are_those_of_the_present_budget(facts: list[Fact]) -> None:
    """I4: charged attempts rise by one, started expiries count apart, a budget starts at zero."""
    attempts = expiries = 0
    budget = 1
    before = None
    for one in facts:
        expired = one.name is FactName.LEASE_EXPIRED
        attempts += one.charged and not expired
        expiries += one.charged and expired
        if one.name in (FactName.REDRIVEN, FactName.REPLAYED) and before in ENDED:
            attempts, expiries, budget = 0, 0, budget + 1
        before = folded(*facts[: facts.index(one) + 1]).state
    state = folded(*facts)
    assert (state.attempts, state.expiries, state.budget) == (attempts, expiries, budget)


@given(histories(), st.sampled_from(FactName))
def test_what_cannot_follow_raises(facts: list[Fact], name: FactName) -> None:
    state = folded(*facts)
    if name is FactName.CARRIED or name.value in FOLLOWERS[state.state]:
        return
    with pytest.raises(IllegalTransition):
        apply(state, fact(name.value))


# --- written cases ------------------------------------------------------------------------------


def test_no_facts_are_no_delivery() -> None:
    assert fold([]) is None


@pytest.mark.parametrize(
    ("born", "state"), [(s, s) for s in ("scheduled", "held")] + [("leased", "scheduled")]
)
def test_a_lease_at_birth_is_no_fact(born: str, state: str) -> None:
    routed = fact("routed", state=State(born), due_at=at(3))
    assert folded(routed) == DeliveryState(ID, State(state), due_at=at(3))


def test_a_failed_attempt_is_charged_and_due_again() -> None:
    assert folded(ROUTED, FAILED) == DeliveryState(
        ID, State.SCHEDULED, attempts=1, due_at=at(9), reason="http_500"
    )


def test_our_own_fault_is_not_charged() -> None:
    own = replace(FAILED, charged=False, reason="processor_error")
    assert folded(ROUTED, own, own).attempts == 0


def test_only_expiries_of_started_leases_count_and_they_count_apart() -> None:
    started, unstarted = (fact("lease_expired", 30, charged=c) for c in (True, False))
    state = folded(ROUTED, started, unstarted, started)
    assert (state.attempts, state.expiries) == (0, 2)


def test_a_release_charges_nothing_and_keeps_the_due_time() -> None:
    assert folded(ROUTED, FAILED, fact("released", 10)) == replace(
        folded(ROUTED, FAILED), reason=None
    )


def test_held_and_released_returns_to_the_schedule() -> None:
    held = fact("held", 2, reason="paused")
    assert folded(ROUTED, held).state is State.HELD
    back = folded(ROUTED, FAILED, held, fact("released", 50, due_at=at(50)))
    assert (back.state, back.attempts, back.due_at) == (State.SCHEDULED, 1, at(50))


def test_a_redrive_gives_a_fresh_budget_due_now() -> None:
    state = folded(ROUTED, FAILED, DIED, fact("redriven", 70))
    assert state == DeliveryState(ID, State.SCHEDULED, budget=2, due_at=at(70))


def test_a_replay_of_a_delivered_one_gives_a_fresh_budget() -> None:
    state = folded(ROUTED, FAILED, fact("delivered", 9, charged=True), fact("replayed", 80))
    assert state == DeliveryState(ID, State.SCHEDULED, budget=2, due_at=at(80))


def test_a_replay_of_a_dead_one_is_a_redrive() -> None:
    assert folded(ROUTED, DIED, fact("replayed", 80)) == folded(ROUTED, DIED, fact("redriven", 80))


def test_a_replay_of_a_scheduled_one_only_makes_it_due() -> None:
    state = folded(ROUTED, FAILED, fact("replayed", 5))
    assert (state.attempts, state.budget, state.due_at) == (1, 1, at(5))


def test_too_old_is_dead_with_its_reason() -> None:
    state = folded(ROUTED, fact("held", 1), fact("expired", 2, reason="max_age"))
    assert (state.state, state.reason, state.due_at) == (State.DEAD, "max_age", None)


def test_a_history_begins_with_its_birth_once() -> None:
    with pytest.raises(IllegalTransition, match="cannot begin with delivered"):
        folded(fact("delivered"))
    with pytest.raises(IllegalTransition, match="routed once"):
        folded(ROUTED, ROUTED)
    for state in set(State) - LIVE:
        with pytest.raises(IllegalTransition, match="not born"):
            folded(replace(ROUTED, state=state))


def test_a_carried_fact_must_hold_the_state() -> None:
    with pytest.raises(IllegalTransition, match="full state"):
        folded(fact("carried"))


def test_facts_of_two_deliveries_are_not_mixed() -> None:
    with pytest.raises(IllegalTransition, match="another delivery"):
        folded(ROUTED, replace(FAILED, delivery_id=UUID(int=2)))
