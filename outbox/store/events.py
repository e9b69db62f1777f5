"""The log for operators: list events, show one with its payload and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from outbox.errors import NotFound
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

LOOKED_MAX = 5_000_000
"""A listing looks at no event older than this many before the newest."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events: all that meet every condition given. `before` is the last id of the page
    before; times are aware, `until` is not included."""

    patterns: tuple[str, ...] | None = None
    org: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None


def list_events(
    connection: Connection, wanted: EventFilter, *, rows_max: int = 100
) -> list[dict[str, Any]]:
    """Events, newest first, without their payloads."""
    parameters = {
        "patterns": None if wanted.patterns is None else list(wanted.patterns),
        "org_id": wanted.org,
        "subject": wanted.subject,
        "since": wanted.since,
        "until": wanted.until,
        "before": wanted.before,
        "looked_max": LOOKED_MAX,
        "rows_max": rows_max,
    }
    return [row[0] for row in connection.execute(statement("event_list"), parameters)]


def show_event(connection: Connection, event_id: int, org: str | None = None) -> dict[str, Any]:
    """One event. `payload_text` is the stored JSON; `payload` the same decoded, where a number with
    more digits than a float holds is rounded. Raises NotFound."""
    row = connection.execute(statement("event_show"), {"id": event_id, "org_id": org}).fetchone()
    if row is None:
        raise NotFound(f"there is no event {event_id}, or it is past retention")
    return {**row[0], "payload": json.loads(row[1]), "payload_text": row[1]}
