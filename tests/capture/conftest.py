"""A small application database whose tables are captured, and ways to read what was captured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.rows import class_row

ORDERS = """
    CREATE TABLE orders (
        id bigint PRIMARY KEY, org text, amount numeric, note text, paid boolean DEFAULT false
    )
"""


@dataclass
class Event:
    """One row of the log, with its payload parsed and as it was stored."""

    id: int
    type: str
    org_id: str | None
    subject: str | None
    text: str

    @property
    def payload(self) -> dict[str, Any]:
        """The parsed payload."""
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed

    @property
    def record(self) -> Any:
        """The new row."""
        return self.payload["record"]

    @property
    def old(self) -> Any:
        """The old row."""
        return self.payload["old_record"]


class Shop:
    """A connection to the application's database (autocommit) that can read the log."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)

    def run(self, sql: str, *values: Any) -> list[Any]:
        """Run SQL; returns the first column of the rows, if it returns rows."""
        cursor = self.connection.execute(sql.encode(), values or None)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def watch(self, table: str = "orders", **options: Any) -> bool:
        """Watch by the SQL function."""
        given = "".join(f", {name} => %({name})s" for name in options)
        sql = f"SELECT outbox.watch(%(relation)s::regclass{given})"
        row = self.connection.execute(sql.encode(), {"relation": table, **options}).fetchone()
        assert row is not None
        return bool(row[0])

    def events(self) -> list[Event]:
        """All events, oldest first; each has exactly one row in `pending`."""
        with self.connection.cursor(row_factory=class_row(Event)) as cursor:
            cursor.execute(
                "SELECT id, type, org_id, subject, payload::text AS text"
                " FROM outbox.event ORDER BY id"
            )
            found = cursor.fetchall()
        pending = self.connection.execute(
            "SELECT id, org FROM outbox.pending ORDER BY id"
        ).fetchall()
        assert pending == [(event.id, event.org_id or "") for event in found]
        return found

    def types(self) -> list[str]:
        """The types of all events, oldest first."""
        return [event.type for event in self.events()]

    def fresh(self) -> None:
        """Forget the events so far."""
        with self.connection.transaction():
            self.run("SET LOCAL outbox.retention = 'on'")
            self.run("TRUNCATE outbox.event, outbox.pending")


@pytest.fixture
def shop(database: str) -> Iterator[Shop]:
    """A database with a table `orders`, not yet watched."""
    made = Shop(database)
    made.run(ORDERS)
    with made.connection:
        yield made
