"""A database with one subscription, tended to as the daemon's own role."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox.store.connect import connect_hot
from outbox.store.retention import RetentionConfig, Tended, tend_retention

T0 = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEEP = RetentionConfig(keep=6 * DAY, dead_keep=10_000 * DAY, rows_max=7)


class World:
    """Events, deliveries and dead letters written straight into the tables, and a clock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.db = psycopg.connect(url, autocommit=True)
        self.run("UPDATE outbox.ring SET opened_at = %s WHERE slot = 0", T0)
        ((self.subscription,),) = self.run(
            "INSERT INTO outbox.subscription (kind, lane, org_id, patterns, retry)"
            " VALUES ('pdf', 1, 'acme', '{*}', '1s') RETURNING id"
        )

    def run(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.db.execute(query.encode(), params)
        return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *params: object) -> Any:
        ((value,),) = self.run(query, *params)
        return value

    @property
    def slot(self) -> int:
        """The slot that is written now."""
        return int(self.one("SELECT last_value FROM outbox.ring_slot"))

    def event(self, *, routed: bool = True) -> int:
        """One event of acme; its id. A routed one leaves the pending table."""
        event = int(self.one("SELECT outbox.emit('orders.paid', '{\"n\": 1}', 'acme')"))
        if routed:
            self.run("DELETE FROM outbox.pending WHERE id = %s", event)
            self.fact("routed", event, None)
        return event

    def fact(self, name: str, event: int, delivery: UUID | None, **fields: Any) -> None:
        columns = {"slot": self.slot, "at": datetime.now(UTC), "fact": name, "event_id": event}
        columns |= {"delivery_id": delivery, **fields}
        self.run(
            f"INSERT INTO outbox.journal ({', '.join(columns)})"
            f" VALUES ({', '.join(['%s'] * len(columns))})",
            *columns.values(),
        )

    def delivery(self, event: int, state: str = "scheduled", **fields: Any) -> UUID:
        columns: dict[str, Any] = {"id": uuid4(), "event_id": event, "event_slot": self.slot}
        columns |= {"subscription_id": self.subscription, "revision": 1, "lane": 1}
        columns |= {"org_id": "acme", "state": state, "due_at": T0}
        if state == "leased":
            columns |= {"token": 5, "lease_until": T0 + DAY, "started_at": T0}
        if state == "held":
            columns |= {"held_at": T0, "held_reason": "paused"}
        return self._insert("delivery", columns | fields)

    def dead_letter(self, event: int, **fields: Any) -> UUID:
        columns: dict[str, Any] = {"id": uuid4(), "event_id": event, "event_slot": self.slot}
        columns |= {"subscription_id": self.subscription, "revision": 1, "lane": 1}
        columns |= {"org_id": "acme", "generation": 0, "attempts": 3, "budget": 2, "expiries": 1}
        return self._insert("dead_letter", columns | {"reason": "http_500", "died_at": T0} | fields)

    def _insert(self, table: str, columns: dict[str, Any]) -> UUID:
        value: UUID = self.one(
            f"INSERT INTO outbox.{table} ({', '.join(columns)})"
            f" VALUES ({', '.join(['%s'] * len(columns))}) RETURNING id",
            *columns.values(),
        )
        return value

    def tend(self, day: float, config: RetentionConfig = KEEP) -> Tended:
        """Tend to retention as the daemon does, `day` days after the first slot was opened."""
        return asyncio.run(tend_at(self.url, T0 + day * DAY, config))

    def days(self, first: int, last: int, config: RetentionConfig = KEEP) -> list[Tended]:
        """Tend once a day."""
        return [self.tend(day, config) for day in range(first, last + 1)]


async def tend_at(url: str, now: datetime | None, config: RetentionConfig) -> Tended:
    connection = await connect_hot(f"{url}?options=-crole%3Doutbox_daemon", "retention")
    async with connection.raw:
        return await tend_retention(connection, config, now)


@pytest.fixture
def world(database: str) -> Any:
    made = World(database)
    yield made
    made.db.close()
