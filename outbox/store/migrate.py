"""Installs, upgrades, checks and removes the schema `outbox`.

All pending migrations run in one transaction under an advisory lock: two processes may migrate at
once, one waits and finds nothing to do; a failure leaves the schema as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from outbox.errors import SchemaMismatch, UsageError
from outbox.store.connect import connect
from outbox.store.statements import Migration, migrations

LOCK = 7861_0001
"""Advisory lock of migrate and uninstall, in the database's own lock space."""

OLDEST_SERVER = 140000
ROLES = ("outbox_owner", "outbox_writer", "outbox_daemon", "outbox_reader")

_RECORD = "INSERT INTO outbox.migration (version, name, compatible_from)"

Connection = psycopg.Connection[tuple[Any, ...]]


def migrate(url: str, instance: str = "default") -> list[str]:
    """Bring the schema up to date; returns the names of the migrations applied.

    `instance` names the installation when the schema is new. Raises SchemaMismatch where the
    schema is newer than this program, PermissionRefused where the role may not create it.
    """
    with connect(url) as connection:
        if connection.info.server_version < OLDEST_SERVER:
            raise SchemaMismatch("PostgreSQL 14 or newer is needed")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        pending = _pending(connection)
        for migration in pending:
            _apply(connection, migration)
        if not connection.execute("SELECT 1 FROM outbox.installation").fetchone():
            _name_installation(connection, instance)
    return [f"{m.version:04d}_{m.name}" for m in pending]


def pending_migrations(url: str) -> list[str]:
    """Names of the migrations that `migrate` would apply. Changes nothing."""
    with connect(url) as connection:
        return [f"{m.version:04d}_{m.name}" for m in _pending(connection)]


def migration_sql(instance: str = "default") -> str:
    """The SQL of all migrations with their bookkeeping, for those who apply it by other means.

    It is for a database without the schema; `instance` names the installation.
    """
    parts = ["BEGIN;"]
    for migration in migrations():
        parts += [f"-- {migration.version:04d}_{migration.name}", migration.text.strip()]
        values = f"({migration.version}, '{migration.name}', {migration.compatible_from})"
        parts.append(f"{_RECORD} VALUES {values};")
    parts += [_NAME_INSTALLATION.replace("%s", sql.Literal(instance).as_string()) + ";", "COMMIT;"]
    return "\n\n".join(parts) + "\n"


def _pending(connection: Connection) -> list[Migration]:
    known = migrations()
    if connection.execute("SELECT to_regclass('outbox.migration')").fetchone() == (None,):
        if connection.execute("SELECT to_regnamespace('outbox')").fetchone() != (None,):
            raise SchemaMismatch(
                "a schema named outbox exists that is not ours; rename it, then run: outbox migrate"
            )
        return list(known)
    rows = connection.execute("SELECT version, compatible_from FROM outbox.migration").fetchall()
    _refuse_newer({int(v): int(c) for v, c in rows}, known[-1].version)
    done = {int(row[0]) for row in rows}
    return [m for m in known if m.version not in done]


def _refuse_newer(applied: dict[int, int], newest_known: int) -> None:
    newer = [c for v, c in applied.items() if v > newest_known]
    if newer and max(newer) > newest_known:
        raise SchemaMismatch(
            f"the schema (level {max(applied)}) is newer than this program (level {newest_known}); "
            "upgrade outboxd"
        )


def _apply(connection: Connection, migration: Migration) -> None:
    connection.execute(migration.text.encode(), prepare=False)
    connection.execute(
        f"{_RECORD} VALUES (%s, %s, %s)".encode(),
        [migration.version, migration.name, migration.compatible_from],
    )


_NAME_INSTALLATION = """
INSERT INTO outbox.installation
    (epoch, instance, system_identifier, database_oid, salt, first_event_id)
SELECT 1, %s, c.system_identifier::text, d.oid::bigint, gen_random_uuid(), 1
FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()
""".strip()


def _name_installation(connection: Connection, instance: str) -> None:
    connection.execute(_NAME_INSTALLATION, [instance])


def require_schema(connection: Connection) -> None:
    """Raise SchemaMismatch unless this program can run on the schema as it is."""
    if _pending(connection):
        raise SchemaMismatch("the schema outbox is missing or old; run: outbox migrate")


@dataclass(frozen=True, slots=True)
class Removal:
    """What `uninstall` removes: watched tables, and how much is still owed."""

    watched: list[str]
    pending: int
    live: int
    dead: int


def removal(url: str) -> Removal:
    """What an uninstall would remove. Changes nothing."""
    with connect(url) as connection:
        if connection.execute("SELECT to_regnamespace('outbox')").fetchone() == (None,):
            raise UsageError("there is no schema outbox in this database")
        return _removal(connection)


def _removal(connection: Connection) -> Removal:
    counts = connection.execute(
        "SELECT (SELECT count(*) FROM outbox.pending), (SELECT count(*) FROM outbox.delivery),"
        " (SELECT count(*) FROM outbox.dead_letter)"
    ).fetchone()
    assert counts is not None
    watched = connection.execute(
        "SELECT DISTINCT format('%I.%I', n.nspname, c.relname) FROM pg_trigger t"
        " JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE p.pronamespace = 'outbox'::regnamespace AND c.relnamespace <> p.pronamespace"
        " ORDER BY 1"
    ).fetchall()
    return Removal([str(row[0]) for row in watched], *counts)


def uninstall(url: str) -> list[str]:
    """Remove triggers, schema and roles; returns the roles that stay because others use them.

    What a user made for one of the roles is never dropped with it: such a role stays.
    """
    with connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        if connection.execute("SELECT to_regnamespace('outbox')").fetchone() == (None,):
            raise UsageError("there is no schema outbox in this database")
        # Dropping the functions takes the triggers on the user's tables with it.
        connection.execute("DROP SCHEMA outbox CASCADE")
    kept = []
    with connect(url, autocommit=True) as connection:
        for role in ROLES:
            try:
                connection.execute(f"DROP ROLE IF EXISTS {role}".encode())
            except (
                psycopg.errors.DependentObjectsStillExist,
                psycopg.errors.InsufficientPrivilege,
            ):
                kept.append(role)
    return kept
