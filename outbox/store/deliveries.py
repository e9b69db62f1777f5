"""Deliveries for operators: list, show with the story, cancel, and what a configuration change
means for them.

Promises: work comes in batches of at most `BATCH_ROWS` rows, each one transaction with its facts;
rows are locked in order of id, as everywhere; a row of another organization is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from outbox.errors import NotFound, UsageError
from outbox.store.admission import admit
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

BATCH_ROWS = 1000
REASON_CHARS_MAX = 200
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Aligned:
    """How many deliveries a change held, released and cancelled."""

    held: int = 0
    released: int = 0
    cancelled: int = 0

    def __add__(self, other: Aligned) -> Aligned:
        return Aligned(
            self.held + other.held,
            self.released + other.released,
            self.cancelled + other.cancelled,
        )


def align(connection: Connection, lane: int, *, rows_max: int = BATCH_ROWS) -> Aligned:
    """Bring the live deliveries of a lane into line with the state of their destinations.

    Leased ones come first: one that is settled meanwhile is found among the scheduled. Repeating
    it, or running it beside another, does no harm: every batch looks at the state itself.
    """
    sweeps = ("sweep_leased", "sweep_scheduled", "sweep_held")
    return sum((_sweep(connection, name, lane, rows_max) for name in sweeps), Aligned())


def _sweep(connection: Connection, name: str, lane: int, rows_max: int) -> Aligned:
    done = Aligned()
    after: dict[str, Any] = {"after_at": "-infinity", "after_id": _FIRST}
    while True:
        with connection.pipeline():
            connection.execute(statement("config_lock"))
            cursor = connection.execute(
                statement(name), {"lane": lane, "rows_max": rows_max, **after}
            )
        row = cursor.fetchone()
        assert row is not None
        looked, held, released, cancelled, last_at, last_id = row
        done += Aligned(held, released, cancelled)
        if looked < rows_max:
            return done
        after = {"after_at": last_at or "-infinity", "after_id": last_id}


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ids that were cancelled, ids that were not live any more, ids nobody knows."""

    cancelled: list[UUID]
    ended: list[UUID]
    unknown: list[UUID]


def cancel_deliveries(
    connection: Connection,
    ids: Sequence[UUID],
    org: str | None = None,
    *,
    reason: str = "operator",
) -> Cancelled:
    """Call off live deliveries. What a worker is doing at this moment may still arrive.

    `reason` (1 to 200 characters) stays in the journal. Raises UsageError for a longer one.
    """
    if not 1 <= len(reason) <= REASON_CHARS_MAX:
        raise UsageError(f"say why in 1 to {REASON_CHARS_MAX} characters")
    wanted = sorted(set(ids))
    gone: set[UUID] = set()
    for start in range(0, len(wanted), BATCH_ROWS):
        part = wanted[start : start + BATCH_ROWS]
        with connection.transaction():
            rows = connection.execute(
                statement("cancel_ids"), {"ids": part, "org_id": org, "reason": reason}
            )
            gone.update(row[0] for row in rows)
    rest = [i for i in wanted if i not in gone]
    known = {i for i in rest if _find(connection, i, org) is not None}
    return Cancelled(
        [i for i in wanted if i in gone],
        [i for i in rest if i in known],
        [i for i in rest if i not in known],
    )


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """Ids whose due time was moved, ids a worker has at this moment, ids that had ended, ids nobody
    knows."""

    rescheduled: list[UUID]
    running: list[UUID]
    ended: list[UUID]
    unknown: list[UUID]


def reschedule_deliveries(
    connection: Connection,
    ids: Sequence[UUID],
    org: str | None = None,
    *,
    at: datetime | None = None,
    wait: timedelta | None = None,
) -> Rescheduled:
    """Move the due time of scheduled and held deliveries to `at`, or to `wait` from now (server's
    clock). One that a worker has is left alone."""
    if (at is None) is (wait is None):
        raise UsageError("say when: either --at or --in")
    admit(connection, 11, "rescheduled deliveries")
    wanted = sorted(set(ids))
    moved: set[UUID] = set()
    running: set[UUID] = set()
    for start in range(0, len(wanted), BATCH_ROWS):
        parameters = {
            "ids": wanted[start : start + BATCH_ROWS],
            "org_id": org,
            "at": at,
            "wait_s": None if wait is None else wait.total_seconds(),
        }
        with connection.transaction():
            for delivery_id, was in connection.execute(statement("reschedule_ids"), parameters):
                (running if was == "leased" else moved).add(delivery_id)
    rest = [i for i in wanted if i not in moved | running]
    known = {i for i in rest if _find(connection, i, org) is not None}
    return Rescheduled(
        [i for i in wanted if i in moved],
        [i for i in wanted if i in running],
        [i for i in rest if i in known],
        [i for i in rest if i not in known],
    )


def list_deliveries(
    connection: Connection,
    org: str | None = None,
    *,
    endpoint_id: int | None = None,
    subscription_id: int | None = None,
    state: str | None = None,
    tag: str | None = None,
    before: UUID | None = None,
    rows_max: int = 100,
) -> list[dict[str, Any]]:
    """Live deliveries, newest first; `before` is the last id of the page before."""
    parameters = {
        "org_id": org,
        "endpoint_id": endpoint_id,
        "subscription_id": subscription_id,
        "state": state,
        "tag": tag,
        "before": before,
        "rows_max": rows_max,
    }
    return [row[0] for row in connection.execute(statement("delivery_list"), parameters)]


def show_delivery(
    connection: Connection, delivery_id: UUID, org: str | None = None
) -> dict[str, Any]:
    """A delivery with its story from the journal, also one that ended. Raises NotFound."""
    found = _find(connection, delivery_id, org)
    if found is None:
        raise NotFound(f"there is no delivery {delivery_id}, or its history is past retention")
    return found


def _find(connection: Connection, delivery_id: UUID, org: str | None) -> dict[str, Any] | None:
    parameters = {"id": delivery_id, "org_id": org}
    row = connection.execute(statement("delivery_show"), parameters).fetchone()
    return None if row is None else dict(row[0])
