"""Keeps programs out that are too old for what is to be written: those that run are named, and
nothing is changed."""

from __future__ import annotations

from typing import Any

import psycopg

from outbox.errors import SchemaMismatch
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]


def admit(connection: Connection, level: int, what: str) -> None:
    """Raise SchemaMismatch while programs run that are older than a level of the schema; keep them
    out from now on."""
    row = connection.execute(statement("subscription_admit"), {"level": level}).fetchone()
    if row is not None and row[0]:
        raise SchemaMismatch(
            f"{what} need an outbox of this version everywhere; upgrade {row[0][0]}"
            + (f" and {len(row[0]) - 1} more" if len(row[0]) > 1 else "")
        )
