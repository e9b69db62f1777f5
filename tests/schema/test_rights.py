"""Who may do what: every function, every role, and facts that nobody changes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from outbox.embedded import EmbeddedPostgres
from outbox.store.statements import sql_folder, statement
from tests.servers import PeerPostgres

Connection = psycopg.Connection[Any]
# Statistics are a superuser's before PostgreSQL 18; redact says so where they are not ours.
SUPERUSERS = {"redact_forget"}
# The rights on realtime.messages are the operator's to give: see docs/broadcast.md.
MESSAGES = {"broadcast_send", "broadcast_put", "broadcast_call", "broadcast_check"}
STATEMENTS = [
    pytest.param(name, marks=pytest.mark.pg_min(18)) if name.endswith("_18") else name
    for name in sorted(path.stem for path in (sql_folder() / "statements").glob("*.sql"))
    # Those of the stand-in server are for whoever installed the stand-in.
    if name not in SUPERUSERS and not name.startswith("realtime_") and name not in MESSAGES
]


@pytest.fixture
def db(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def as_daemon(
    postgres: EmbeddedPostgres | PeerPostgres, migrated_template: str
) -> Iterator[Connection]:
    """One connection of the daemon's role for all statements: each is rolled back."""
    name = f"rights_{os.getpid()}"
    with psycopg.connect(
        postgres.create_database(name, migrated_template), autocommit=True
    ) as connection:
        connection.execute("SET ROLE outbox_daemon")
        yield connection
    postgres.drop_database(name)


def names(connection: Connection, query: str, *params: object) -> list[Any]:
    return [row[0] for row in connection.execute(query.encode(), params)]


# --- functions -----------------------------------------------------------------------------------


def watch_something(db: Connection) -> None:
    db.execute("CREATE TABLE public.orders (id int PRIMARY KEY, org text)")
    db.execute("SELECT outbox.watch('public.orders', org_column => 'org')")


def test_public_may_execute_no_function(db: Connection) -> None:
    watch_something(db)
    open_to_all = names(
        db,
        "SELECT p.oid::regprocedure::text FROM pg_proc p, LATERAL"
        " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x"
        " WHERE p.pronamespace = 'outbox'::regnamespace AND x.grantee = 0",
    )
    assert open_to_all == []


def test_every_definer_function_belongs_to_the_owner_and_pins_its_search_path(
    db: Connection,
) -> None:
    watch_something(db)
    rows = db.execute(
        "SELECT proname, pg_get_userbyid(proowner), proconfig FROM pg_proc"
        " WHERE pronamespace = 'outbox'::regnamespace AND prosecdef"
    ).fetchall()
    assert {row[1] for row in rows} == {"outbox_owner"}
    assert [row for row in rows if 'search_path=""' not in row[2]] == []
    assert {str(row[0]).split("_")[0] for row in rows} == {"emit", "capture"}


def test_every_other_function_belongs_to_the_installer(db: Connection) -> None:
    watch_something(db)
    owned = names(
        db,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace"
        " AND NOT prosecdef AND proowner = 'outbox_owner'::regrole",
    )
    assert owned == []


def rights(db: Connection, role: str) -> dict[str, list[str]]:
    """What a role was granted on tables and sequences of the schema."""
    rows = db.execute(
        "SELECT c.relname, x.privilege_type FROM pg_class c, LATERAL aclexplode(c.relacl) x"
        " WHERE c.relnamespace = 'outbox'::regnamespace AND x.grantee = %s::regrole ORDER BY 1, 2",
        [role],
    )
    found: dict[str, list[str]] = defaultdict(list)
    for table, privilege in rows:
        found[table].append(privilege)
    return dict(found)


def test_the_owner_of_definer_functions_may_do_what_capture_and_emit_need_and_no_more(
    db: Connection,
) -> None:
    assert rights(db, "outbox_owner") == {
        "event": ["INSERT"],
        "pending": ["INSERT"],
        "dedupe": ["INSERT", "SELECT", "UPDATE"],
        "event_id": ["USAGE"],
        "ring_slot": ["SELECT"],
        "bell": ["SELECT", "UPDATE"],
    }
    attributes = "rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls"
    assert names(db, f"SELECT {attributes} FROM pg_roles WHERE rolname = 'outbox_owner'") == [False]
    owned = "SELECT relname FROM pg_class WHERE relowner = 'outbox_owner'::regrole"
    assert names(db, owned) == []
    assert not db.execute("SELECT has_schema_privilege('outbox_owner', 'outbox', 'CREATE')"
                          ).fetchall()[0][0]  # fmt: skip
    assert names(db, "SELECT roleid::regrole::text FROM pg_auth_members WHERE member ="
                     " 'outbox_owner'::regrole") == []  # fmt: skip


# --- roles ---------------------------------------------------------------------------------------


def executable(db: Connection, role: str) -> list[Any]:
    return names(
        db,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace"
        " AND has_function_privilege(%s, oid, 'EXECUTE') ORDER BY 1",
        role,
    )


def test_a_writer_may_emit_and_nothing_else(db: Connection) -> None:
    assert rights(db, "outbox_writer") == {}
    assert executable(db, "outbox_writer") == ["emit"]


def test_a_reader_reads_everything_but_secrets_and_changes_nothing(db: Connection) -> None:
    granted = rights(db, "outbox_reader")
    assert {tuple(kinds) for kinds in granted.values()} == {("SELECT",)}
    assert not {"secret", "endpoint"} & set(granted)
    assert executable(db, "outbox_reader") == [
        "capture_functions",
        "capture_problems",
        "capture_unsafe_types",
        "direct_broadcasts",
        "expiry",
        "key_text",
        "like_patterns",
        "order_key",
        "tombstone",
        "turn_key",
        "type_matches",
        "watches",
    ]
    db.execute("SET ROLE outbox_reader")
    db.execute("SELECT id, url, state, concurrency FROM outbox.endpoint")
    for hidden in ("headers_sealed FROM outbox.endpoint", "sealed FROM outbox.secret"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(f"SELECT {hidden}".encode())


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_daemons_role_can_run_every_statement(as_daemon: Connection, name: str) -> None:
    params: dict[str, Any] = defaultdict(lambda: None)
    if name == "emit":
        params |= {"type": "a", "payload": "1"}
    with as_daemon.transaction(force_rollback=True):
        try:
            as_daemon.execute(statement(name), params)
        except (psycopg.DataError, psycopg.IntegrityError):
            # Parameters that are all null may violate a constraint; rights were judged before.
            hot = {"route", "take", "settle", "settle_delivered", "lease_due", "expire_leases"}
            assert name not in hot


def test_the_daemon_cannot_touch_facts_or_other_schemas(db: Connection) -> None:
    granted = rights(db, "outbox_daemon")
    assert granted["event"] == granted["journal"] == ["INSERT", "SELECT"]
    assert granted["event_3"] == granted["journal_3"] == ["INSERT", "SELECT", "TRUNCATE"]
    assert granted["migration"] == ["SELECT"]
    assert "forget" not in executable(db, "outbox_daemon")


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_the_roles_of_a_hosted_api_get_nothing(db: Connection, role: str) -> None:
    watch_something(db)
    with db.transaction(force_rollback=True):
        # Roles belong to the server: the stand-in of Realtime in another database may have made it.
        if not names(db, "SELECT 1 FROM pg_roles WHERE rolname = %s", role):
            db.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        assert rights(db, role) == {}
        assert executable(db, role) == []
        relations = names(
            db,
            "SELECT relname FROM pg_class WHERE relnamespace = 'outbox'::regnamespace"
            " AND CASE relkind"
            " WHEN 'S' THEN has_sequence_privilege(%s, oid, 'USAGE, SELECT, UPDATE')"
            " WHEN 'i' THEN false WHEN 'I' THEN false"
            " ELSE has_table_privilege(%s, oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
            " OR has_any_column_privilege(%s, oid, 'SELECT, INSERT, UPDATE') END",
            *[role] * 3,
        )
        assert relations == []
        assert names(db, "SELECT has_schema_privilege(%s, 'outbox', 'USAGE, CREATE')", role) == [
            False
        ]


# --- facts stay (I7) -----------------------------------------------------------------------------

FACTS = [f"{table}{slot}" for table in ("event", "journal") for slot in ("", "_0", "_7")]


def write_facts(db: Connection) -> None:
    for slot in (0, 7):
        db.execute("SELECT setval('outbox.ring_slot', %s, true)", [slot])
        db.execute("SELECT outbox.emit('a', '1')")
    db.execute(
        "INSERT INTO outbox.journal (slot, at, fact, event_id)"
        " SELECT slot, created_at, 'routed', id FROM outbox.event"
    )


CHANGES = ("UPDATE outbox.{} SET slot = slot", "DELETE FROM outbox.{}", "TRUNCATE outbox.{}")
EVERYTHING = "SELECT e.*, j.* FROM outbox.event e, outbox.journal j ORDER BY 1, 2, j.event_id"


@pytest.mark.parametrize("role", ["postgres", "outbox_owner", "outbox_daemon"])
def test_nobody_changes_a_fact(db: Connection, role: str) -> None:
    """I7, for the superuser too."""
    write_facts(db)
    before = db.execute(EVERYTHING).fetchall()
    refusals = (psycopg.errors.RestrictViolation, psycopg.errors.InsufficientPrivilege)
    db.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    for change in [change.format(table) for table in FACTS for change in CHANGES]:
        with pytest.raises(refusals) as refused:
            db.execute(change.encode())
        assert role != "postgres" or "append-only" in str(refused.value), change
    db.execute("RESET ROLE")
    assert db.execute(EVERYTHING).fetchall() == before
    assert len(before) == 4


def test_retention_truncates_slots_and_that_is_all_it_may(db: Connection) -> None:
    write_facts(db)
    db.execute("SET ROLE outbox_daemon; SET outbox.retention = 'on'")
    db.execute("TRUNCATE outbox.event_0")
    for refused in ("TRUNCATE outbox.event", "DELETE FROM outbox.event_7", "TRUNCATE outbox.node"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(refused.encode())
    db.execute("RESET ROLE")
    with pytest.raises(psycopg.errors.RestrictViolation):
        db.execute("DELETE FROM outbox.event_7")


TOMBSTONE = "payload = outbox.tombstone(), headers = NULL, subject = NULL, ordering_key = NULL"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE outbox.event SET payload = '{}'",
        f"UPDATE outbox.event SET {TOMBSTONE.replace('outbox.tombstone()', 'payload')}",
        "UPDATE outbox.event SET payload = outbox.tombstone()",  # the subject stays
        f"UPDATE outbox.event SET {TOMBSTONE}, type = 'b'",
        f"UPDATE outbox.event SET {TOMBSTONE}, org_id = 'other'",
        "UPDATE outbox.journal SET detail = NULL, reason = 'x'",
        "UPDATE outbox.subscription_revision SET config = '{}'",
        "DELETE FROM outbox.event",
        "DELETE FROM outbox.journal",
    ],
)
def test_who_redacts_may_write_the_tombstone_and_nothing_else(db: Connection, change: str) -> None:
    """I7, for the superuser too."""
    db.execute("SELECT outbox.emit('a', '1', subject => 'orders/1', headers => '{\"a\": \"b\"}')")
    db.execute(
        "INSERT INTO outbox.journal (slot, at, fact, event_id) VALUES (0, now(), 'routed', 1)"
    )
    db.execute(
        "INSERT INTO outbox.subscription_revision (subscription_id, revision, config)"
        " VALUES (1, 1, '[]')"
    )
    db.execute("SET outbox.redaction = 'on'")
    with pytest.raises(psycopg.errors.RestrictViolation):
        db.execute(change.encode())
    db.execute(f"UPDATE outbox.event SET {TOMBSTONE}".encode())
    db.execute("UPDATE outbox.journal SET detail = NULL")


def test_a_revision_once_written_stays(db: Connection) -> None:
    db.execute(
        "INSERT INTO outbox.subscription_revision (subscription_id, revision, config)"
        " VALUES (1, 1, '{}')"
    )
    for change in ("UPDATE {} SET config = '[]'", "DELETE FROM {}", "TRUNCATE {}"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            db.execute(change.format("outbox.subscription_revision").encode())
