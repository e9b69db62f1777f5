"""Installs, upgrades, checks and removes the schema `outbox`.

All pending migrations run in one transaction under an advisory lock: two processes may migrate at
once, one waits and finds nothing to do; a failure leaves the schema as it was.

An upgrade runs under load. It locks what it may change at once or, after half a second, not at
all: then it lets everybody pass and tries again, a bounded number of times. The application's
transactions never wait for it: the tables that they write are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from outbox.errors import DatabaseUnavailable, SchemaMismatch, UsageError
from outbox.store.connect import connect
from outbox.store.statements import Migration, migrations, statement

LOCK = 7861_0001
"""Advisory lock of migrate and uninstall, in the database's own lock space."""

OLDEST_SERVER = 140000
ROLES = ("outbox_owner", "outbox_writer", "outbox_daemon", "outbox_reader")

_RECORD = "INSERT INTO outbox.migration (version, name, compatible_from)"

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How an upgrade waits for its locks: `tries` times at most `wait_ms` each.

    Who waits holds up everybody behind it, so it waits briefly; and less than PostgreSQL's
    deadlock_timeout (1 s), so that in a deadlock it is this one that gives way.
    """

    wait_ms: int = 500
    tries: int = 30
    pause_s: float = 1.0


def migrate(
    url: str,
    instance: str = "default",
    *,
    patience: Patience = Patience(),
    pause: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda _text: None,
) -> list[str]:
    """Bring the schema up to date; returns the names of the migrations applied.

    `instance` names the installation when the schema is new; `tell` is told once what an upgrade
    waits for. Raises SchemaMismatch where the schema is newer than this program, PermissionRefused
    where the role may not create it, DatabaseUnavailable where others keep its tables locked.
    """
    holder = ""
    for number in range(patience.tries):
        if number > 0:
            pause(patience.pause_s)
        with connect(url) as connection:
            if connection.info.server_version < OLDEST_SERVER:
                raise SchemaMismatch("PostgreSQL 14 or newer is needed")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            pending = _pending(connection)
            if not pending or _locks_tables(connection, patience.wait_ms):
                _bring_up(connection, pending, instance)
                return [f"{m.version:04d}_{m.name}" for m in pending]
            holder = _holder(connection)
        if number == 0:
            tell(f"waiting: {holder} keeps tables of the schema outbox locked")
    raise DatabaseUnavailable(
        f"nothing was changed: {holder} keeps tables of the schema outbox locked; end it or wait"
        " for its end, then run: outbox migrate"
    )


def _bring_up(connection: Connection, pending: list[Migration], instance: str) -> None:
    for migration in pending:
        _apply(connection, migration)
    if not connection.execute("SELECT 1 FROM outbox.installation").fetchone():
        _name_installation(connection, instance)


def _locks_tables(connection: Connection, wait_ms: int) -> bool:
    """Lock every table that capture and emit do not write; false, with nothing locked, where that
    takes too long. All at the start and in one statement, whose time is what is limited: nothing
    slow happens while some are locked and others are waited for."""
    names = [str(name) for (name,) in connection.execute(_LOCKED).fetchall()]
    if not names:
        return True
    before = connection.execute("SHOW statement_timeout").fetchone()
    assert before is not None
    try:
        _limit(connection, f"{wait_ms}ms")
        connection.execute(statement("config_lock"))
        connection.execute(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE".encode())
        _limit(connection, before[0])
    except (pg.QueryCanceled, pg.LockNotAvailable, pg.DeadlockDetected):
        connection.rollback()
        return False
    return True


def _limit(connection: Connection, value: str) -> None:
    connection.execute("SELECT set_config('statement_timeout', %s, true)", [value])


_LOCKED = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'outbox' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname NOT IN ('event', 'pending', 'dedupe')
ORDER BY c.oid
"""

_HOLDER = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename),
       date_trunc('second', clock_timestamp() - a.xact_start)
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL AND EXISTS (
    SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = a.pid AND l.granted AND l.locktype = 'relation'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND c.relnamespace = 'outbox'::regnamespace)
ORDER BY a.xact_start LIMIT 1
"""


def _holder(connection: Connection) -> str:
    """Who has had something of the schema locked for longest, in words."""
    row = connection.execute(_HOLDER).fetchone()
    if row is None:
        return "another session"
    return f"the transaction of process {row[0]} ({row[1]}), open for {row[2]},"


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
    """What `uninstall` removes: watched tables, how much is still owed, and what stands outside the
    schema for Supabase Realtime, in words."""

    watched: list[str]
    pending: int
    live: int
    dead: int
    realtime: list[str]


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
    pending, live, dead = counts
    realtime = _remove_realtime(connection, dry=True)
    return Removal([str(row[0]) for row in watched], pending, live, dead, realtime)


def _remove_realtime(connection: Connection, *, dry: bool) -> list[str]:
    """Policies and the stand-in schema; a schema of an older level knows neither."""
    known = connection.execute("SELECT to_regprocedure('outbox.remove_realtime(boolean)')")
    if known.fetchone() == (None,):
        return []
    rows = connection.execute("SELECT * FROM outbox.remove_realtime(%s)", [dry]).fetchall()
    return [str(row[0]) for row in rows]


_MADE_ROLES = """
SELECT r.rolname FROM pg_roles r
WHERE shobj_description(r.oid, 'pg_authid') = 'outbox: made by install_realtime_shim' ORDER BY 1
"""


def uninstall(url: str) -> list[str]:
    """Remove triggers, schema and roles; returns the roles that stay because others use them.

    What a user made for one of the roles is never dropped with it: such a role stays.
    """
    with connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        if connection.execute("SELECT to_regnamespace('outbox')").fetchone() == (None,):
            raise UsageError("there is no schema outbox in this database")
        _remove_realtime(connection, dry=False)
        # Dropping the functions takes the triggers on the user's tables with it.
        connection.execute("DROP SCHEMA outbox CASCADE")
        made = [str(row[0]) for row in connection.execute(_MADE_ROLES).fetchall()]
    kept = []
    with connect(url, autocommit=True) as connection:
        for role in (*ROLES, *made):
            try:
                connection.execute(f"DROP ROLE IF EXISTS {role}".encode())
            except (
                psycopg.errors.DependentObjectsStillExist,
                psycopg.errors.InsufficientPrivilege,
            ):
                kept.append(role)
    return kept
