"""Installs, removes and lists capture on tables, for the command line.

The work is done by the functions of the schema `outbox`; this module names the table the way
people write it, passes options and turns the database's refusals into one line each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg

from outbox.errors import NotFound, OutboxError, PermissionRefused, UsageError
from outbox.store.connect import describe, translate

Connection = psycopg.Connection[tuple[Any, ...]]

OPERATIONS = ("insert", "update", "delete", "truncate")

LOCK_TIMEOUT = "5s"
"""How long to wait for a busy table: while we wait, its writers queue behind us."""

_PART = r'("(?:[^"]|"")+"|[^\W\d][\w$]*)'
_TABLE = re.compile(rf"{_PART}(?:\.{_PART})?")


@dataclass(frozen=True, slots=True)
class Watch:
    """A watched table. `table` is None where the table is gone and its functions stayed."""

    schema: str | None
    table: str | None
    options: dict[str, Any]
    problems: list[str]


def parse_table(text: str) -> tuple[str, str]:
    """Schema and table of `TABLE` or `SCHEMA.TABLE`, quoted or not, as PostgreSQL reads them.

    Without a schema it is `public`: the answer must not depend on the session's search path.
    Raises UsageError where the text is no such name.
    """
    match = _TABLE.fullmatch(text)
    if match is None:
        raise UsageError(
            f'{text!r} is not a table name; write TABLE, SCHEMA.TABLE or "Sch"."Table"'
        )
    first, second = match.groups()
    if second is None:
        return ("public", _plain(first))
    return (_plain(first), _plain(second))


def _plain(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def watch(
    connection: Connection,
    table: str,
    *,
    org_column: str | None = None,
    type_prefix: str | None = None,
    subject_columns: Sequence[str] | None = None,
    operations: Sequence[str] = OPERATIONS,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    condition: str | None = None,
    old: bool = True,
) -> bool:
    """Install capture on `table`, or change it; returns whether anything changed.

    Without `subject_columns` the primary key names the subject. `condition` is a true-or-false SQL
    expression over the row. Raises NotFound, UsageError or PermissionRefused; nothing is half-done.
    """
    with _refusals(connection, table):
        oid = _find(connection, table)
        row = connection.execute(
            "SELECT outbox.watch(%s::oid::regclass, %s, %s, %s::text[], %s::text[], %s::text[],"
            " %s::text[], %s, %s)",
            [
                oid,
                org_column,
                type_prefix,
                _listed(subject_columns),
                list(operations),
                _listed(include),
                _listed(exclude),
                condition,
                old,
            ],
        ).fetchone()
    assert row is not None
    return bool(row[0])


def broadcast_direct(
    connection: Connection,
    table: str,
    *,
    org_column: str | None,
    topic_prefix: str,
    include: Sequence[str],
) -> None:
    """Broadcast the changes of `table` from its own transactions, or change how. Raises as `watch`
    does."""
    with _refusals(connection, table):
        oid = _find(connection, table)
        # As `watch` refuses them: the trigger runs with the rights of whoever installs it.
        row = connection.execute(
            "SELECT string_agg(t, ', ') FROM outbox.capture_unsafe_types(%s::oid) t", [oid]
        ).fetchone()
        if row is not None and row[0] is not None:
            raise UsageError(
                f"{table} has columns of type {row[0]}, which has a user-defined cast to json: it"
                " would run foreign code in every write; drop the cast, or change the column type"
            )
        connection.execute(
            "SELECT outbox.broadcast_direct(%s::oid::regclass, %s, %s, %s::text[])",
            [oid, org_column, topic_prefix, list(include)],
        )


def unwatch(connection: Connection, table: str) -> bool:
    """Remove capture and direct broadcasts from `table`; returns whether there were any."""
    with _refusals(connection, table):
        oid = _find(connection, table)
        row = connection.execute(
            "SELECT outbox.unwatch(x.t)::int + outbox.unbroadcast_direct(x.t)::int"
            " FROM (SELECT %s::oid::regclass) AS x (t)",
            [oid],
        ).fetchone()
    assert row is not None
    return bool(row[0])


def watches(connection: Connection) -> list[Watch]:
    """Every watched table with its options and what is wrong with it."""
    rows = connection.execute("SELECT * FROM outbox.watches()").fetchall()
    direct = connection.execute("SELECT * FROM outbox.direct_broadcasts()").fetchall()
    return [Watch(*row) for row in [*rows, *((*row, []) for row in direct)]]


def forget(connection: Connection) -> int:
    """Drop the trigger functions whose table is gone; returns how many there were."""
    row = connection.execute("SELECT outbox.forget()").fetchone()
    assert row is not None
    return int(row[0])


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _find(connection: Connection, table: str) -> int:
    schema, name = parse_table(table)
    row = connection.execute(
        "SELECT c.oid FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [schema, name],
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no table {schema}.{name}; write SCHEMA.TABLE")
    return int(row[0])


@contextmanager
def _refusals(connection: Connection, table: str) -> Iterator[None]:
    """Inside, all happens in one transaction, and errors of the database leave as ours."""
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
            yield
    except pg.InsufficientPrivilege as error:
        raise PermissionRefused(describe(error)) from error
    except pg.LockNotAvailable as error:
        raise OutboxError(f"{table} is in use by a long transaction; try again later") from error
    except (
        pg.UndefinedColumn,
        pg.WrongObjectType,
        pg.ObjectInUse,
        pg.FeatureNotSupported,
    ) as error:
        raise UsageError(describe(error)) from error
    except psycopg.Error as error:
        raise translate(error) from error
