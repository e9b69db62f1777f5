"""The columns that `outbox.history` leaves aside, and outlines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from outbox.errors import IllegalTransition
from outbox.history import Fact, FactName
from outbox.lifecycle import State
from outbox.store.rebuild_fold import (
    FAR,
    GONE,
    LONG_AGO,
    Context,
    Row,
    Told,
    after,
    birth,
    has_ended,
    moment,
    needs_no_row,
    owed,
    stated,
    unlike,
)

ID = UUID(int=1)
T0 = datetime(2030, 1, 1, tzinfo=UTC)
CONTEXT = Context((3, 1), T0, T0 + timedelta(hours=1), "acme", 5, 100.0, 50.0, None, False)


def at(second: float) -> datetime:
    return T0 + timedelta(seconds=second)


def told(name: str, second: float, *, detail: dict[str, Any] | None = None, **fields: Any) -> Told:
    state, expiries = stated(name, fields.get("reason"), detail)
    fact = Fact(FactName(name), at(second), ID, state=state, expiries=expiries, **fields)
    return Told(fact, 7, 2, detail)


ROUTED = told("routed", 0, due_at=T0)
DEAD = told("dead", 10, charged=True, reason="http_500", detail={"status": 500})


def live(*facts: Told, context: Context = CONTEXT) -> Row:
    found = owed(facts, 42, context)
    assert found.live is not None
    assert found.dead is None
    return found.live


@pytest.mark.parametrize(
    ("outline", "ended"),
    [
        ("routed delivered", True),
        ("routed attempt_failed lease_expired delivered", True),
        ("routed:held released delivered", True),
        ("routed:held cancelled", True),
        ("routed dead discarded", True),
        ("carried:dead discarded", True),
        ("replayed delivered", True),
        ("attempt_failed delivered", True),  # the rest of one that is past retention
        ("redriven delivered", True),
        ("attempt_failed carried:held cancelled", True),
        ("routed", False),
        ("routed:held", False),
        ("routed dead", False),
        ("routed delivered replayed", False),
        ("carried:dead", False),
        ("routed:held delivered", False),  # contradictions are looked at closely
        ("routed delivered delivered", False),
        ("carried:", False),
    ],
)
def test_an_outline_tells_whether_a_row_is_left(outline: str, ended: bool) -> None:
    assert has_ended(outline) is ended


def test_a_routed_delivery_takes_its_row_from_event_subscription_and_fact() -> None:
    assert live(ROUTED) == {
        "event_id": 42,
        "event_slot": 3,
        "subscription_id": 7,
        "revision": 2,
        "generation": 0,
        "lane": 5,
        "org_id": "acme",
        "order_key": None,
        "attempts": 0,
        "budget": 1,
        "expiries": 0,
        "expires_at": at(3600),
        "state": "scheduled",
        "due_at": T0,
        "age_limit_at": at(100),
        "held_at": None,
        "held_reason": None,
        "again": False,
    }


def test_the_maximum_age_stands_still_while_held() -> None:
    held = told("held", 20, reason="paused")
    row = live(ROUTED, held)
    assert (row["state"], row["held_at"], row["held_reason"]) == ("held", at(20), "paused")
    assert row["age_limit_at"] == at(100)
    row = live(ROUTED, held, told("released", 50, reason="resumed"))
    assert (row["state"], row["age_limit_at"]) == ("scheduled", at(130))
    assert (row["held_at"], row["held_reason"]) == (None, None)
    born = told("routed", 0, reason="order", due_at=T0)
    assert live(born, told("released", 9))["age_limit_at"] == at(109)


def test_a_lease_given_back_moves_nothing() -> None:
    assert live(ROUTED, told("released", 50, due_at=at(50)))["age_limit_at"] == at(100)


def test_a_fresh_budget_counts_its_age_anew_and_passes_over_an_expiry_that_has_passed() -> None:
    row = live(ROUTED, DEAD, told("redriven", 70))
    assert (row["age_limit_at"], row["expires_at"], row["budget"]) == (at(120), at(3600), 2)
    assert row["again"] is True
    row = live(ROUTED, DEAD, told("redriven", 4000))
    assert row["expires_at"] is None
    again = told("replayed", 80, detail={"generation": 0})
    assert live(ROUTED, told("delivered", 9, charged=True), again)["age_limit_at"] == at(130)


def test_what_is_only_made_due_keeps_its_age_and_its_class() -> None:
    row = live(ROUTED, told("replayed", 5, due_at=at(5), detail={"generation": 0}))
    assert (row["due_at"], row["age_limit_at"], row["again"]) == (at(5), at(100), False)


def test_a_replay_may_give_birth_to_another_generation() -> None:
    row = live(told("replayed", 9000, detail={"generation": 3}))
    assert (row["generation"], row["age_limit_at"], row["expires_at"]) == (3, at(9050), None)


def test_a_dead_letter_tells_its_last_reason() -> None:
    found = owed([ROUTED, DEAD], 42, CONTEXT)
    assert found.live is None
    assert found.dead is not None
    assert found.dead["reason"] == "http_500"
    assert found.dead["detail"] == {"status": 500}
    assert found.dead["died_at"] == at(10)


def test_what_was_carried_goes_on_from_what_it_holds() -> None:
    kept = {
        "state": "held",
        "expiries": 2,
        "generation": 1,
        "expires_at": "2031-01-01T00:00:00+00:00",
        "age_limit_at": "20000-01-01T00:00:00+00:00",
        "held_at": "2030-01-01T00:00:01.5+00:00",
        "held_reason": "paused",
        "again": True,
    }
    row = live(told("carried", 5, attempt=4, budget=3, reason="x", due_at=at(2), detail=kept))
    assert (row["attempts"], row["budget"], row["expiries"], row["generation"]) == (4, 3, 2, 1)
    assert (row["held_at"], row["held_reason"], row["due_at"]) == (at(1.5), "paused", at(2))
    assert (row["age_limit_at"], row["again"]) == (FAR, True)
    dead = {"state": "dead", "reason": "max_age", "died_at": "2030-01-01T00:00:03+00:00"}
    found = owed([told("carried", 5, detail=dead)], 42, CONTEXT).dead
    assert found is not None
    assert (found["reason"], found["died_at"], found["detail"]) == ("max_age", at(3), None)


def test_a_history_without_its_beginning_had_ended() -> None:
    rest = [told("attempt_failed", 1), told("delivered", 2)]
    assert owed(rest, 42, CONTEXT) == GONE
    assert birth(rest) is None
    assert needs_no_row(rest)
    assert not needs_no_row([*rest, told("carried", 3, detail={"state": "scheduled"})])
    with pytest.raises(IllegalTransition):
        needs_no_row([ROUTED, ROUTED])


def test_times_stop_where_the_calendar_ends() -> None:
    assert after(FAR, timedelta(days=1)) == FAR
    assert after(T0, timedelta(days=999_999_999)) == FAR
    assert moment("30000-01-01T00:00:00+00:00") == FAR
    assert moment("0044-03-15T00:00:00+00:00 BC") == LONG_AGO
    far = Context((0,), T0, None, None, 1, 1e12, None, None, False)
    assert live(ROUTED, context=far)["age_limit_at"] == FAR


def test_a_row_is_compared_with_some_sense() -> None:
    row = dict(live(ROUTED))
    assert unlike(row, live(ROUTED), CONTEXT) == {}
    as_good = {
        "event_slot": 1,  # the event stands there too
        "state": State.LEASED,
        "age_limit_at": at(100.0005),
    }
    assert unlike({**row, **as_good}, live(ROUTED), CONTEXT) == {}
    assert unlike({**row, "event_slot": 2}, live(ROUTED), CONTEXT) == {"event_slot": (2, 3)}
    assert unlike({**row, "again": True}, live(ROUTED), CONTEXT) == {"again": (True, False)}
    redriven = live(ROUTED, DEAD, told("redriven", 70))
    assert unlike({**redriven, "again": False}, redriven, CONTEXT) == {}
    held = live(told("routed", 0, reason="paused"))
    assert "state" in unlike({**row, "state": "leased"}, held, CONTEXT)
