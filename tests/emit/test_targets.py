"""Emit takes every kind of connection, writes in the caller's transaction and never commits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import outbox
from outbox.errors import PayloadTooLarge, PermissionRefused, SchemaMismatch, UsageError
from outbox.store.emit import PAYLOAD_BYTES_MAX
from tests.emit.helpers import (
    ASYNC_KINDS,
    SYNC_KINDS,
    opened,
    opened_async,
    rows,
    transaction_of,
    with_driver,
)

WEST = timezone(-timedelta(hours=2))
FIELDS: dict[str, Any] = {
    "org": "acme",
    "subject": "orders/42",
    "ordering_key": "42",
    "headers": {"trace": "ü"},
    "deliver_at": datetime(2031, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))),
    "expires_at": datetime(2032, 1, 1, tzinfo=UTC),
    "dedupe_key": "k",
    "dedupe_for": timedelta(hours=1),
}


@pytest.mark.parametrize("kind", SYNC_KINDS)
def test_an_event_is_there_after_commit_and_gone_after_rollback(kind: str, database: str) -> None:
    with opened(kind, database) as target:
        first = outbox.emit(target, "orders.paid", {"n": 1})
        assert rows(database, "SELECT FROM outbox.event") == []
        transaction_of(target).commit()
        outbox.emit(target, "orders.paid", {"n": 2})
        transaction_of(target).rollback()
    assert rows(database, "SELECT id, payload FROM outbox.event") == [(first, {"n": 1})]
    assert rows(database, "SELECT id, org FROM outbox.pending") == [(first, "")]


@pytest.mark.parametrize("kind", ASYNC_KINDS)
@pytest.mark.parametrize("name", ["emit", "emit_async"])
def test_async_targets_are_awaited_and_do_the_same(kind: str, name: str, database: str) -> None:
    async def run() -> int:
        emit = getattr(outbox, name)
        async with opened_async(kind, database) as target:
            first = await emit(target, "orders.paid", {"n": 1})
            assert rows(database, "SELECT FROM outbox.event") == []
            await transaction_of(target).commit()
            await emit(target, "orders.paid", {"n": 2})
            await transaction_of(target).rollback()
        return int(first)

    first = asyncio.run(run())
    assert rows(database, "SELECT id, payload FROM outbox.event") == [(first, {"n": 1})]


def stored(database: str) -> tuple[Any, ...]:
    (row,) = rows(
        database,
        "SELECT e.type, e.org_id, e.subject, e.ordering_key, e.headers, e.deliver_at, e.expires_at,"
        " d.key, d.expires_at - e.created_at BETWEEN '59 min' AND '61 min'"
        " FROM outbox.event e JOIN outbox.dedupe d ON d.event_id = e.id AND d.org = e.org_id",
    )
    return row


WANTED = (
    *("orders.paid", "acme", "orders/42", "42", {"trace": "ü"}),
    *(datetime(2031, 1, 1, 10, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC), "k", True),
)


@pytest.mark.parametrize("kind", SYNC_KINDS)
def test_every_field_arrives(kind: str, database: str) -> None:
    with opened(kind, database) as target:
        outbox.emit(target, "orders.paid", None, **FIELDS)
        transaction_of(target).commit()
    assert stored(database) == WANTED


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_every_field_arrives_from_async_targets(kind: str, database: str) -> None:
    async def run() -> None:
        async with opened_async(kind, database) as target:
            await outbox.emit(target, "orders.paid", None, **FIELDS)
            await transaction_of(target).commit()

    asyncio.run(run())
    assert stored(database) == WANTED


def test_the_results_a_cursor_holds_stay(database: str) -> None:
    with psycopg.connect(database) as connection:
        cursor = connection.execute("SELECT generate_series(1, 3)")
        assert cursor.fetchone() == (1,)
        outbox.emit(cursor, "orders.paid", 1)
        assert cursor.fetchall() == [(2,), (3,)]


def test_a_savepoint_takes_its_events_with_it(database: str) -> None:
    with Session(create_engine(with_driver(database, "psycopg"))) as session:
        outbox.emit(session, "a", 1)
        with session.begin_nested() as savepoint:
            outbox.emit(session, "b", 1)
            savepoint.rollback()
        session.commit()
        session.get_bind().dispose()  # type: ignore[union-attr]
    assert rows(database, "SELECT type FROM outbox.event") == [("a",)]


def test_emit_works_in_a_pipeline(database: str) -> None:
    with psycopg.connect(database) as connection, connection.pipeline():
        assert outbox.emit(connection, "a", 1) < outbox.emit(connection, "b", 1)


@pytest.mark.parametrize("target", [None, "postgresql://localhost", object(), create_engine])
def test_anything_else_is_refused_by_name(target: Any) -> None:
    with pytest.raises(UsageError, match="emit takes a SQLAlchemy session"):
        outbox.emit(target, "a", 1)


def test_another_database_is_refused() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(UsageError, match="not sqlite"):
        outbox.emit(connection, "a", 1)
    engine.dispose()


def test_emit_async_refuses_what_is_not_async(database: str) -> None:
    with psycopg.connect(database) as connection, pytest.raises(UsageError, match=r"outbox\.emit"):
        asyncio.run(outbox.emit_async(connection, "a", 1))  # type: ignore[arg-type]


# --- errors: one clear line each -----------------------------------------------------------------


BYTES = PAYLOAD_BYTES_MAX
OURS: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("payload of 1048577 bytes", {"payload": ["x" * (BYTES - 3)]}, PayloadTooLarge),
    ("payload of 1048577 bytes", {"payload": b"1" * (BYTES + 1)}, PayloadTooLarge),
    ("payload of 1048578 bytes", {"payload": '"' + "ü" * (BYTES // 2) + '"'}, PayloadTooLarge),
    ("cannot be written as JSON", {"payload": {"x": object()}}, UsageError),
    ("payload must be JSON in UTF-8", {"payload": b'"\xff"'}, UsageError),
    ("payload must be JSON in UTF-8", {"payload": '"\ud800"'}, UsageError),
    ("payload must not hold a NUL", {"payload": '"\x00"'}, UsageError),
    ("subject must not hold a NUL", {"subject": "a\x00"}, UsageError),
    ("subject must be a string", {"subject": 42}, UsageError),
    ("deliver_at must be .* timezone", {"deliver_at": datetime(2030, 1, 1)}, UsageError),  # noqa: DTZ001
    ("expires_at must be .* timezone", {"expires_at": "2030-01-01"}, UsageError),
    ("deliver_at is out of range", {"deliver_at": datetime.max.replace(tzinfo=WEST)}, UsageError),
    ("headers cannot be written", {"headers": {"x": object()}}, UsageError),
]


@pytest.mark.parametrize(("words", "wrong", "error"), OURS)
def test_what_is_found_here_leaves_the_transaction_usable(
    words: str, wrong: dict[str, Any], error: type[Exception], database: str
) -> None:
    arguments: dict[str, Any] = {"payload": {}, **wrong}
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TEMP TABLE kept ()")
        with pytest.raises(error, match=words) as raised:
            outbox.emit(connection, "orders.paid", **arguments)
        assert "\n" not in str(raised.value)
        connection.execute("SELECT FROM kept")


LATER = FIELDS["deliver_at"]
THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("event type 'no spaces' is not of the form", {"type": "no spaces"}),
    ("types that begin with outbox. are reserved", {"type": "outbox.mine"}),
    ("org_id must have 1 to 200 characters", {"org": ""}),
    ("invalid input syntax for type json", {"payload": "no json"}),
    ("expires_at must be after deliver_at", {"deliver_at": LATER, "expires_at": LATER}),
    ("headers must be a JSON object of at most 8192 bytes", {"headers": {"x": "y" * 8192}}),
]
SOME_KINDS = ("psycopg", "session", "asyncpg:session")


async def emit_with(kind: str, url: str, **arguments: Any) -> None:
    if kind == "asyncpg:session":
        async with opened_async(kind, url) as target:
            await outbox.emit(target, **arguments)
    else:
        with opened(kind, url) as target:
            outbox.emit(target, **arguments)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize(("words", "wrong"), THEIRS)
def test_what_postgresql_refuses_is_one_clear_line(
    words: str, wrong: dict[str, Any], kind: str, database: str
) -> None:
    arguments: dict[str, Any] = {"type": "orders.paid", "payload": {}, **wrong}
    with pytest.raises(UsageError) as raised:
        asyncio.run(emit_with(kind, database, **arguments))
    assert str(raised.value).startswith(words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_database_without_the_schema_says_what_to_run(kind: str, empty_database: str) -> None:
    with pytest.raises(SchemaMismatch, match="run: outbox migrate"):
        asyncio.run(emit_with(kind, empty_database, type="a", payload=1))


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_role_without_the_right_is_told_so(kind: str, database: str) -> None:
    with pytest.raises(PermissionRefused, match="may not emit: permission denied"):
        asyncio.run(emit_as_reader(kind, database))


async def emit_as_reader(kind: str, url: str) -> None:
    role = "SET ROLE outbox_reader"
    if kind.startswith("asyncpg"):
        async with opened_async(kind, url) as session:
            await session.execute(text(role))
            await outbox.emit(session, "a", 1)
    else:
        with opened(kind, url) as target:
            target.execute(role if kind == "psycopg" else text(role))
            outbox.emit(target, "a", 1)


def test_what_concerns_the_whole_transaction_stays_the_drivers_error(database: str) -> None:
    """An application that retries on its driver's errors must go on seeing them."""
    with psycopg.connect(database) as connection:
        connection.read_only = True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            outbox.emit(connection, "a", 1)
    engine = create_engine(with_driver(database, "psycopg"))
    with engine.connect() as sa_connection:
        sa_connection.execute(text("SET LOCAL lock_timeout = '1ms'"))
        with psycopg.connect(database) as other:
            outbox.emit(other, "a", 1, dedupe_key="k")
            with pytest.raises(OperationalError) as raised:
                outbox.emit(sa_connection, "a", 1, dedupe_key="k")
    engine.dispose()
    assert isinstance(raised.value.orig, psycopg.errors.LockNotAvailable)


def test_the_limit_is_the_one_of_sql(database: str) -> None:
    assert rows(database, "SELECT outbox.payload_bytes_max()") == [(PAYLOAD_BYTES_MAX,)]
    with psycopg.connect(database) as connection:
        outbox.emit(connection, "a", "1" * PAYLOAD_BYTES_MAX)


def test_an_application_with_one_library_never_loads_the_other() -> None:
    code = (
        "import sys, outbox, outbox.errors\n"
        "try: outbox.emit(object(), 'a', 1)\n"
        "except outbox.errors.UsageError: pass\n"
        "assert not {'psycopg', 'sqlalchemy', 'click', 'dramatiq'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
