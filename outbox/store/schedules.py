"""Schedules in the database: events that come by the clock, the server's.

Promises: a tick is one event however many daemons run, since the statement that emits it also moves
the schedule on, and only from where it stood.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog

from outbox.errors import NotFound, UsageError
from outbox.store.connect import HotConnection
from outbox.store.emission import check_type
from outbox.store.emit import PAYLOAD_BYTES_MAX
from outbox.store.statements import statement
from outbox.ticks import MISSED, NEVER, coming, next_tick, plan

Connection = psycopg.Connection[tuple[Any, ...]]

log = structlog.get_logger("outbox.schedules")

SCHEDULES_MAX = 100
"""Due schedules that one round looks at."""
SHOWN_TICKS = 3


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """What to emit and when. `payload` is JSON text or None; `missed` is one of MISSED."""

    name: str
    cron: str
    timezone: str
    type: str
    org_id: str | None = None
    payload: str | None = None
    missed: str = "skip"

    def __post_init__(self) -> None:
        check_type(self.type)
        if self.missed not in MISSED:
            raise UsageError(f"missed ticks are handled by {', '.join(MISSED)}")
        if self.payload is not None:
            try:
                json.loads(self.payload)
            except ValueError as error:
                raise UsageError(f"the payload is not JSON: {error}") from error
            if len(self.payload.encode()) > PAYLOAD_BYTES_MAX // 2:
                raise UsageError("the payload of a schedule has at most 512 KiB")


def add_schedule(connection: Connection, spec: ScheduleSpec) -> dict[str, Any]:
    """Add a schedule; its first tick is the next one. Raises UsageError."""
    parameters = {
        "name": spec.name,
        "cron": " ".join(spec.cron.split()),
        "timezone": spec.timezone,
        "type": spec.type,
        "org_id": spec.org_id,
        "payload": spec.payload,
        "missed": spec.missed,
        "next_at": next_tick(spec.cron, spec.timezone, server_now(connection)),
    }
    if connection.execute(statement("schedule_add"), parameters).fetchone() is None:
        raise UsageError(f"there is a schedule {spec.name} already; remove it first")
    return show_schedule(connection, spec.name)


def server_now(connection: Connection) -> datetime:
    """The server's clock."""
    row = connection.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def list_schedules(connection: Connection, org: str | None = None) -> list[dict[str, Any]]:
    """Schedules by name."""
    parameters = {"name": None, "org_id": org}
    return [row[0] for row in connection.execute(statement("schedule_list"), parameters)]


def show_schedule(connection: Connection, name: str) -> dict[str, Any]:
    """One schedule with its next ticks. Raises NotFound."""
    row = connection.execute(statement("schedule_list"), {"name": name, "org_id": None}).fetchone()
    if row is None:
        raise _unknown(name)
    found = dict(row[0])
    ticks = coming(found["cron"], found["timezone"], server_now(connection), SHOWN_TICKS)
    found["coming"] = ticks if found["state"] == "active" else []
    return found


def pause_schedule(connection: Connection, name: str) -> dict[str, Any]:
    """Emit nothing more. Raises NotFound."""
    return _change(connection, name, "paused", None)


def resume_schedule(connection: Connection, name: str) -> dict[str, Any]:
    """Emit again from the next tick on; those of the pause are not missed, they were not wanted.
    Raises NotFound."""
    found = show_schedule(connection, name)
    tick = next_tick(found["cron"], found["timezone"], server_now(connection))
    return _change(connection, name, "active", tick)


def _change(
    connection: Connection, name: str, state: str, next_at: datetime | None
) -> dict[str, Any]:
    parameters = {"name": name, "state": state, "next_at": next_at}
    if connection.execute(statement("schedule_state"), parameters).fetchone() is None:
        raise _unknown(name)
    return show_schedule(connection, name)


def remove_schedule(connection: Connection, name: str) -> None:
    """Remove a schedule; what it emitted stays. Raises NotFound."""
    if connection.execute(statement("schedule_remove"), {"name": name}).fetchone() is None:
        raise _unknown(name)


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no schedule {name[:100]!r}; see: outbox schedules list")


# -- the daemon -----------------------------------------------------------------------------------


class Scheduler:
    """Emits what is due. A `clock` stands in for the server's, in tests."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        self._now: Callable[[], datetime | None] = clock or (lambda: None)
        self._broken: set[str] = set()

    async def round(self, connection: HotConnection) -> int:
        """Look once; returns how many events were emitted."""
        params = {"now": self._now(), "rows_max": SCHEDULES_MAX}
        cursor = await connection.run("schedule_due", params)
        emitted = 0
        for name, cron, timezone, missed, next_at, now in await cursor.fetchall():
            try:
                # In a thread: the ticks of a year that nobody was there take seconds to count.
                found = await asyncio.to_thread(plan, cron, timezone, missed, next_at, now)
            except UsageError as error:
                # Only a time zone that this machine does not know can come to this.
                if name not in self._broken:
                    log.error("schedule.unusable", schedule=name, error=str(error))
                self._broken.add(name)
                continue
            self._broken.discard(name)
            fired = await connection.run(
                "schedule_fire",
                {
                    "name": name,
                    "expected": next_at,
                    "ticks": list(found.ticks),
                    "next_at": min(found.next_at, NEVER),
                    "skipped": found.skipped,
                },
            )
            events = [row[0] for row in await fired.fetchall()]
            emitted += len(events)
            if events and now - found.ticks[-1] > timedelta(seconds=60):
                log.warning("schedule.late", schedule=name, events=len(events))
        return emitted
