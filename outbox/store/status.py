"""The state of the installation in a few numbers, cheap at any size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg

from outbox.store.statements import statement

COUNT_MAX = 100_000
"""Counts are exact up to here, then estimates."""

COUNTED = ("pending", "scheduled", "leased", "held", "dead")


@dataclass(frozen=True, slots=True)
class Status:
    """Counts of events (`pending`) and deliveries (the rest), and ages in seconds.

    `last_poll_s` is the age of the latest successful poll of any relay, None if none ever polled;
    `estimated` names the counts that are estimates.
    """

    pending: int
    scheduled: int
    leased: int
    held: int
    dead: int
    oldest_pending_s: float | None
    last_poll_s: float | None
    relays: int
    workers: int
    estimated: list[str] = field(default_factory=list)


def read_status(
    connection: psycopg.Connection[tuple[Any, ...]], *, count_max: int = COUNT_MAX
) -> Status:
    """Read the status. Never counts more than `count_max` rows of a table."""
    with connection.transaction():
        # The counts must walk the index of their state, not the whole table.
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SET LOCAL enable_bitmapscan = off")
        row = connection.execute(statement("status"), {"count_max": count_max}).fetchone()
    assert row is not None
    exact, estimates, ages, nodes = row[:5], row[5:10], row[10:12], row[12:14]
    counts = {
        name: count if count <= count_max else max(count, estimate or 0)
        for name, count, estimate in zip(COUNTED, exact, estimates, strict=True)
    }
    return Status(
        **counts,
        oldest_pending_s=_rounded(ages[0]),
        last_poll_s=_rounded(ages[1]),
        relays=nodes[0],
        workers=nodes[1],
        estimated=[n for n, c in zip(COUNTED, exact, strict=True) if c > count_max],
    )


def _rounded(age_s: float | None) -> float | None:
    # A clock that was set back between two statements must not give a negative age.
    return None if age_s is None else round(max(0.0, age_s), 3)
