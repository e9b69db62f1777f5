"""Migrations: from nothing, twice, at once, by file, by a plain installer; and removal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

import outbox
from outbox.embedded import EmbeddedPostgres
from outbox.errors import PermissionRefused, SchemaMismatch, UsageError
from outbox.store import migrate as module
from outbox.store.connect import connect
from outbox.store.migrate import (
    ROLES,
    migrate,
    migration_sql,
    pending_migrations,
    removal,
    require_schema,
    uninstall,
)
from outbox.store.snapshot import committed_path, snapshot
from outbox.store.statements import Migration, migrations

ALL = [f"{m.version:04d}_{m.name}" for m in migrations()]


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(text.encode()).fetchall()


def test_migrations_yield_the_committed_snapshot(database: str) -> None:
    """After a change of the schema: python -m outbox.store.snapshot."""
    assert snapshot(database).splitlines() == committed_path().read_text().splitlines()


def test_the_snapshot_shows_every_kind_of_change(database: str) -> None:
    before = snapshot(database)
    changes = [
        "ALTER TABLE outbox.node ADD COLUMN extra int",
        "ALTER TABLE outbox.node ALTER COLUMN host SET DEFAULT 'x'",
        "ALTER TABLE outbox.node ALTER COLUMN host DROP NOT NULL",
        "ALTER TABLE outbox.node SET (fillfactor = 51)",
        "ALTER TABLE outbox.node ADD CHECK (pid > 0)",
        "CREATE INDEX ON outbox.node (host)",
        "ALTER TABLE outbox.event DISABLE TRIGGER append_only",
        "GRANT DELETE ON outbox.node TO outbox_reader",
        "GRANT SELECT (sealed) ON outbox.secret TO outbox_reader",
        "GRANT EXECUTE ON FUNCTION outbox.ring_bell(bigint) TO PUBLIC",
        "ALTER FUNCTION outbox.ring_bell(bigint) SECURITY DEFINER",
        "ALTER FUNCTION outbox.ring_bell(bigint) RESET search_path",
        "CREATE OR REPLACE FUNCTION outbox.payload_bytes_max() RETURNS int RETURN 2",
        "ALTER TABLE outbox.node OWNER TO outbox_owner",
        "ALTER SEQUENCE outbox.event_id CACHE 2",
        "CREATE VIEW outbox.seen AS SELECT 1 AS one",
    ]
    with psycopg.connect(database, autocommit=True) as connection:
        for change in changes:
            connection.execute(change.encode())
            after = snapshot(database)
            assert after != before, change
            before = after


def test_a_second_run_finds_nothing_to_do(empty_database: str) -> None:
    assert pending_migrations(empty_database) == ALL
    assert migrate(empty_database, "shop") == ALL
    identity = query(empty_database, "SELECT * FROM outbox.installation")
    assert migrate(empty_database, "other") == []
    assert pending_migrations(empty_database) == []
    assert query(empty_database, "SELECT * FROM outbox.installation") == identity
    assert identity[0][:2] == (1, "shop")


def test_processes_that_migrate_at_once_apply_each_migration_once(empty_database: str) -> None:
    code = f"from outbox.store.migrate import migrate; print(len(migrate({empty_database!r})))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    done = [process.communicate()[0].strip() for process in running]
    assert sorted(done) == ["0", "0", str(len(ALL))]
    assert snapshot(empty_database) == committed_path().read_text()


def test_two_databases_of_a_new_cluster_migrate_at_once(own_postgres: EmbeddedPostgres) -> None:
    """Roles belong to the cluster: both runs want to make them."""
    urls = [own_postgres.create_database(name) for name in ("one", "two")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", f"from outbox.store.migrate import migrate; migrate({url!r})"]
        )
        for url in urls
    ]
    assert [process.wait() for process in running] == [0, 0]


def test_a_migration_that_fails_leaves_nothing(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Migration(99, "broken", 1, "CREATE TABLE outbox.half (); SELECT 1/0")
    monkeypatch.setattr(module, "migrations", lambda: (*migrations(), broken))
    with pytest.raises(UsageError, match="division by zero"):
        migrate(empty_database)
    assert query(empty_database, "SELECT to_regnamespace('outbox')") == [(None,)]


def test_a_failed_upgrade_leaves_the_old_schema(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Migration(99, "broken", 1, "CREATE TABLE outbox.half (); SELECT 1/0")
    monkeypatch.setattr(module, "migrations", lambda: (*migrations(), broken))
    assert pending_migrations(database) == ["0099_broken"]
    with pytest.raises(UsageError):
        migrate(database)
    assert snapshot(database) == committed_path().read_text()


def test_the_printed_sql_yields_the_same_schema(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(migration_sql().encode())
    assert snapshot(empty_database) == committed_path().read_text()
    assert migrate(empty_database) == []
    assert query(empty_database, "SELECT instance FROM outbox.installation") == [("default",)]


@pytest.mark.parametrize(("compatible_from", "runs"), [(len(ALL), True), (99, False)])
def test_a_newer_schema_is_used_only_if_it_says_so(
    database: str, compatible_from: int, runs: bool
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO outbox.migration (version, name, compatible_from) VALUES (99, 'new', %s)",
            [min(compatible_from, 9)] if runs else [compatible_from],
        )
    with connect(database) as connection:
        if runs:
            require_schema(connection)
        else:
            with pytest.raises(SchemaMismatch, match="newer than this program"):
                require_schema(connection)


def test_a_database_without_the_schema_is_refused_by_name(empty_database: str) -> None:
    with connect(empty_database) as connection:
        with pytest.raises(SchemaMismatch, match="run: outbox migrate"):
            require_schema(connection)


def test_somebody_elses_schema_of_that_name_is_left_alone(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE SCHEMA outbox CREATE TABLE mine ()")
    with pytest.raises(SchemaMismatch, match="not ours"):
        migrate(empty_database)
    assert query(empty_database, "SELECT count(*) FROM outbox.mine") == [(0,)]


# --- who installs --------------------------------------------------------------------------------


def installer(server: EmbeddedPostgres, rights: str, name: str = "app") -> str:
    """The URL of a database owned by a role that is no superuser."""
    url = server.create_database(name)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE installer_{name} LOGIN {rights} PASSWORD 'p'".encode())
        connection.execute(f"ALTER DATABASE {name} OWNER TO installer_{name}".encode())
    return url.replace(f"postgres:{server.password}@", f"installer_{name}:p@")


def test_a_role_that_may_create_roles_is_enough(own_postgres: EmbeddedPostgres) -> None:
    """As the role `postgres` of a managed database is."""
    url = installer(own_postgres, "CREATEROLE")
    assert migrate(url) == ALL
    assert snapshot(url) == committed_path().read_text()
    with psycopg.connect(url) as connection:
        event = outbox.emit(connection, "orders.paid", {}, dedupe_key="k", ordering_key="o")
        assert connection.execute("SELECT id FROM outbox.event").fetchall() == [(event,)]
    assert migrate(url) == []
    assert uninstall(url) == []
    assert query(url, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'outbox%'") == []


def test_a_second_installer_needs_to_be_let_in_and_then_can(
    own_postgres: EmbeddedPostgres,
) -> None:
    """The roles are there already, made by somebody else for another database."""
    migrate(own_postgres.create_database("first"))
    url = installer(own_postgres, "CREATEROLE", "second")
    with pytest.raises(PermissionRefused, match="run: GRANT outbox_owner TO installer_second"):
        migrate(url)
    with psycopg.connect(own_postgres.url(), autocommit=True) as connection:
        connection.execute("GRANT outbox_owner TO installer_second")
    assert migrate(url) == ALL


def test_a_role_without_rights_is_told_so_and_changes_nothing(
    own_postgres: EmbeddedPostgres,
) -> None:
    url = installer(own_postgres, "")
    with pytest.raises(PermissionRefused, match="may not do this"):
        migrate(url)
    assert query(url, "SELECT to_regnamespace('outbox')") == [(None,)]


# --- removal -------------------------------------------------------------------------------------

CATALOG = """
SELECT 'class', relname::text FROM pg_class WHERE oid >= 16384
UNION ALL SELECT 'proc', proname FROM pg_proc WHERE oid >= 16384
UNION ALL SELECT 'trigger', tgname FROM pg_trigger
UNION ALL SELECT 'type', typname FROM pg_type WHERE oid >= 16384
UNION ALL SELECT 'schema', nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
UNION ALL SELECT 'role', rolname FROM pg_roles
UNION ALL SELECT 'default', oid::text FROM pg_default_acl
ORDER BY 1, 2
"""


def test_uninstall_leaves_no_trace(own_postgres: EmbeddedPostgres) -> None:
    url = own_postgres.create_database("app")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE public.orders (id int PRIMARY KEY)")
    before = query(url, CATALOG)
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute("SELECT outbox.watch('public.orders')")
        connection.execute("INSERT INTO public.orders VALUES (1)")
    found = removal(url)
    assert (found.watched, found.pending, found.live, found.dead) == (["public.orders"], 1, 0, 0)
    assert uninstall(url) == []
    assert query(url, CATALOG) == before


def test_roles_that_others_use_stay_and_keep_what_is_theirs(own_postgres: EmbeddedPostgres) -> None:
    other = own_postgres.create_database("other")
    migrate(other)
    url = own_postgres.create_database("app")
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE public.mine (); ALTER TABLE mine OWNER TO outbox_reader")
    assert uninstall(url) == list(ROLES)
    assert query(url, "SELECT count(*) FROM public.mine") == [(0,)]
    assert snapshot(other) == committed_path().read_text()


def test_there_is_nothing_to_remove_where_nothing_is(
    make_database: Callable[[str | None], str],
) -> None:
    url = make_database(None)
    with pytest.raises(UsageError, match="no schema outbox"):
        removal(url)
    with pytest.raises(UsageError, match="no schema outbox"):
        uninstall(url)


def test_the_snapshot_is_written_anew_from_the_migrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.store import snapshot as own

    monkeypatch.setattr(own, "committed_path", lambda: tmp_path / "schema.txt")
    own.main()
    assert (tmp_path / "schema.txt").read_text() == committed_path().read_text()
