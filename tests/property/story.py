"""The journal as stories of deliveries, folded by the program's one definition (I13)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from outbox.history import DeliveryState, FactName, fold
from outbox.history import Fact as Told
from outbox.lifecycle import State
from tests.property.snapshot import Delivery, Fact, Snapshot

_BIRTHS = (FactName.ROUTED, FactName.REPLAYED, FactName.CARRIED)


def told_by(fact: Fact) -> list[Told]:
    """A journal row as the fold takes it: a `routed` one tells of every delivery it lists."""
    if fact.fact == "routed":
        return [
            Told(
                FactName.ROUTED,
                fact.at,
                UUID(item["delivery"]),
                due_at=datetime.fromisoformat(item["due_at"]),
                state=State.HELD if item["held"] else State.SCHEDULED,
            )
            for item in fact.detail or []
        ]
    if fact.delivery_id is None:
        return []
    detail = fact.detail if fact.fact == "carried" else {}
    return [
        Told(
            FactName(fact.fact),
            fact.at,
            fact.delivery_id,
            attempt=fact.attempt or 0,
            charged=bool(fact.charged),
            budget=fact.budget or 1,
            reason=fact.reason,
            due_at=fact.due_at,
            expiries=detail.get("expiries", 0),
            state=State(detail["state"]) if detail else None,
        )
    ]


def fold_known(snapshot: Snapshot) -> dict[UUID, DeliveryState]:
    """The fold of the whole journal, of every delivery whose facts are not gone in part. Where a
    slot was cleared, a `carried` fact stands for those before it."""
    histories: dict[UUID, list[Told]] = {}
    for told in sorted(
        (t for fact in snapshot.facts.values() for t in told_by(fact)), key=lambda t: t.at
    ):
        histories.setdefault(told.delivery_id, []).append(told)
    found = {}
    for delivery_id, history in histories.items():
        carried = [i for i, told in enumerate(history) if told.name is FactName.CARRIED]
        whole = history[carried[-1] :] if carried else history
        if whole[0].name in _BIRTHS:
            state = fold(whole)
            assert state is not None
            found[delivery_id] = state
    return found


def agree(snapshot: Snapshot, folded: dict[UUID, DeliveryState]) -> None:
    """I13: fold = projection, for every delivery that the facts or the tables know."""
    for delivery_id, row in snapshot.rows.items():
        told = folded[delivery_id]
        state = row.state if isinstance(row, Delivery) else "dead"
        due_at = row.due_at if isinstance(row, Delivery) else None
        wanted = "scheduled" if state == "leased" else state
        assert (told.state, told.attempts, told.budget, told.expiries, told.due_at) == (
            wanted,
            row.attempts,
            row.budget,
            row.expiries,
            due_at,
        ), f"I13: {told} is not {row}"
    for delivery_id, told in folded.items():
        if delivery_id not in snapshot.rows:
            assert told.state in (State.DELIVERED, State.CANCELLED, State.DISCARDED), (
                f"I13: {told} has no row"
            )
