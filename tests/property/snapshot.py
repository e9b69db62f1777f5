"""Everything the engine keeps, read at one moment, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from tests.property import clock

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Delivery:
    """A row of `delivery`."""

    id: UUID
    event_id: int
    event_slot: int
    subscription_id: int
    revision: int
    generation: int
    lane: int
    org_id: str | None
    order_key: int | None
    again: bool
    state: str
    due_at: datetime
    expires_at: datetime | None
    age_limit_at: datetime | None
    token: int | None = None
    lease_until: datetime | None = None
    started_at: datetime | None = None
    attempts: int = 0
    budget: int = 1
    expiries: int = 0
    held_at: datetime | None = None
    held_reason: str | None = None


@dataclass(frozen=True)
class Dead:
    """A row of `dead_letter`, its detail left out."""

    id: UUID
    event_id: int
    event_slot: int
    subscription_id: int
    revision: int
    generation: int
    lane: int
    org_id: str | None
    order_key: int | None
    attempts: int
    budget: int
    expiries: int
    expires_at: datetime | None
    reason: str
    died_at: datetime


@dataclass(frozen=True)
class Fact:
    """A row of `journal`."""

    slot: int
    at: datetime
    fact: str
    event_id: int
    delivery_id: UUID | None
    subscription_id: int | None
    org_id: str | None
    revision: int | None
    budget: int | None
    attempt: int | None
    charged: bool | None
    reason: str | None
    due_at: datetime | None
    detail: Any


@dataclass(frozen=True)
class Event:
    """A row of `event`; the payload as text."""

    id: int
    slot: int
    type: str
    org_id: str | None
    subject: str | None
    ordering_key: str | None
    payload: str
    created_at: datetime
    deliver_at: datetime | None
    expires_at: datetime | None
    headers: Any


Place = tuple[int, str]
"""Where a fact lies: its slot and its place in it. Nothing that is never changed ever moves."""


@dataclass(frozen=True)
class Snapshot:
    """The tables. `state_of` holds (state, revision) of endpoints and subscriptions."""

    deliveries: dict[UUID, Delivery]
    dead: dict[UUID, Dead]
    pending: dict[int, tuple[int, str]]
    facts: dict[Place, Fact]
    events: dict[tuple[int, int], Event]
    state_of: dict[int, tuple[str, int]]
    health: dict[int, Row]
    clock_slot: int

    @property
    def rows(self) -> dict[UUID, Delivery | Dead]:
        return {**self.deliveries, **self.dead}


def _columns(row: type, alias: str) -> str:
    names = (field.name for field in fields(row))
    return ", ".join(f"{alias}.payload::text" if n == "payload" else f"{alias}.{n}" for n in names)


_READ = (
    f"SELECT {_columns(Delivery, 'd')} FROM outbox.delivery d",
    f"SELECT {_columns(Dead, 'd')} FROM outbox.dead_letter d",
    "SELECT id, slot, org FROM outbox.pending",
    f"SELECT j.ctid::text, {_columns(Fact, 'j')} FROM outbox.journal j",
    f"SELECT {_columns(Event, 'e')} FROM outbox.event e",
    """SELECT id, state, revision FROM outbox.endpoint
       UNION ALL SELECT id, state, revision FROM outbox.subscription""",
    "SELECT lane, probe_at, probing FROM outbox.lane_health",
    "SELECT last_value FROM outbox.ring_slot",
)


def read(connection: psycopg.Connection[Row], next_at: datetime) -> Snapshot:
    """Read all tables in one flight; whoever reads is alone. Then it is `next_at`."""
    with connection.pipeline():
        cursors = [connection.execute(query.encode(), binary=True) for query in _READ]
        clock.turn(connection, next_at)
    rows = [cursor.fetchall() for cursor in cursors]
    return Snapshot(
        deliveries={row[0]: Delivery(*row) for row in rows[0]},
        dead={row[0]: Dead(*row) for row in rows[1]},
        pending={row[0]: (row[1], row[2]) for row in rows[2]},
        facts={(row[1], row[0]): Fact(*row[1:]) for row in rows[3]},
        events={(row[1], row[0]): Event(*row) for row in rows[4]},
        state_of={row[0]: (row[1], row[2]) for row in rows[5]},
        health={row[0]: row[1:] for row in rows[6]},
        clock_slot=rows[7][0][0],
    )
