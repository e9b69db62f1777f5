"""The schema on another major version of PostgreSQL than the embedded one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

import outbox
from outbox.store.connect import connect, connect_hot
from outbox.store.identity import check_identity
from outbox.store.migrate import migrate, uninstall
from outbox.store.retention import RetentionConfig, Tended, tend_retention
from outbox.store.snapshot import committed_path, snapshot


@pytest.fixture
def migrated(peer_database: str) -> Iterator[str]:
    migrate(peer_database)
    yield peer_database
    uninstall(peer_database)  # the roles are the cluster's: they go, or stay with who uses them


def test_the_schema_is_the_same_on_every_version(migrated: str) -> None:
    assert snapshot(migrated).splitlines() == committed_path().read_text().splitlines()
    assert migrate(migrated) == []


def test_events_are_emitted_and_captured(migrated: str) -> None:
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.orders (id int PRIMARY KEY, org text)")
        connection.execute("SELECT outbox.watch('public.orders', org_column => 'org')")
        connection.execute("INSERT INTO public.orders VALUES (1, 'acme')")
        first = outbox.emit(connection, "orders.paid", {}, org="acme", dedupe_key="k")
        assert outbox.emit(connection, "orders.paid", {}, org="acme", dedupe_key="k") == first
        types = connection.execute("SELECT type FROM outbox.event ORDER BY id").fetchall()
    assert types == [("orders.inserted",), ("orders.paid",)]


def test_the_database_knows_itself(migrated: str) -> None:
    with connect(migrated) as connection:
        check_identity(connection, "default")


def test_a_slot_is_emptied_and_what_is_owed_is_carried(migrated: str) -> None:
    with psycopg.connect(migrated, autocommit=True) as connection:
        outbox.emit(connection, "late.one", 1)
        now = datetime.now(UTC)
        tended = [asyncio.run(tend(migrated, now + timedelta(days=day))) for day in (2, 9)]
        assert tended[0].turned_to == 1
        assert (tended[1].cleared, tended[1].carried) == ((0,), 1)
        assert connection.execute("SELECT slot FROM outbox.event").fetchall() == [(1,)]


async def tend(url: str, now: datetime) -> Tended:
    connection = await connect_hot(url, "retention")
    async with connection.raw:
        return await tend_retention(connection, RetentionConfig(), now)
