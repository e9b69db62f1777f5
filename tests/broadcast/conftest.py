"""A database with the stand-in of Supabase Realtime, and broadcasts driven round by round."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import psycopg
import pytest

from outbox.broadcast import BroadcastConfig, Broadcaster, Transport
from outbox.store.broadcasts import Broadcasts
from outbox.store.connect import connect_hot
from outbox.store.subscriptions import KindSpec, Rule, add_kind
from tests.engine.engine import Engine
from tests.realtime.scene import realtime_database, realtime_template

__all__ = ["realtime_database", "realtime_template"]

T = TypeVar("T")
CONFIG = {"prefix": "orders", "transport": "sql", "include": ["status"], "private": True}


class Station(Engine):
    """An engine that broadcasts."""

    def subscribe_broadcast(
        self, org: str | None = "acme", retry: str = "5s,10s", **config: Any
    ) -> int:
        spec = KindSpec("broadcast", CONFIG | config)
        with psycopg.connect(self.url, autocommit=True) as connection:
            return add_kind(connection, spec, Rule(("*",), retry=retry), org)

    def hot(self, body: Callable[[Broadcasts], Awaitable[T]]) -> T:
        """Run with the statements over a hot connection."""

        async def run() -> T:
            connection = await connect_hot(self.url, "test")
            try:
                store = Broadcasts(connection)
                await store.prepare()
                return await body(store)
            finally:
                await connection.raw.close()

        return asyncio.run(run())

    def broadcast(self, http: Transport | None = None, **numbers: Any) -> None:
        """Route, and broadcast until nothing is due."""
        self.route(1000)
        config = BroadcastConfig(**numbers)

        async def body(store: Broadcasts) -> None:
            caster = Broadcaster(config, http, jitter=lambda: 0.0)
            while await caster.round(store) == 0:
                pass

        self.hot(body)

    def messages(self) -> list[tuple[Any, ...]]:
        """(topic, event, payload, private) in order."""
        return self.rows(
            "SELECT topic, event, payload, private FROM realtime.messages"
            " ORDER BY (payload ->> 'id')::bigint, topic"
        )


@pytest.fixture
def station(database: str) -> Iterator[Station]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT outbox.install_realtime_shim()")
    made = Station(database)
    yield made
    made.close()
