"""The SQL that is installed: the stand-in's functions, the policies, their removal, the doctor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import product
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from outbox.embedded import EmbeddedPostgres
from outbox.errors import SchemaMismatch
from outbox.store.connect import connect
from outbox.store.doctor import examine
from outbox.store.migrate import migrate, removal, uninstall
from outbox.store.realtime import require_shim
from outbox.store.realtime_check import realtime_problems
from tests.realtime.scene import person

Connection = psycopg.Connection[Any]
LOST = "WarnSendingBroadcastMessage:"
OWN_ROW = """
ALTER TABLE memberships ENABLE ROW LEVEL SECURITY;
GRANT UPDATE ON memberships TO authenticated;
CREATE POLICY own ON memberships TO authenticated
    USING (user_id::text = current_setting('request.jwt.claim.sub', true));
"""
LOOSE = "CREATE POLICY loose ON realtime.messages FOR"


@pytest.fixture
def db(realtime_database: str) -> Iterator[Connection]:
    with psycopg.connect(realtime_database, autocommit=True) as connection:
        yield connection


def warnings(connection: Connection) -> list[tuple[str | None, str | None]]:
    found: list[tuple[str | None, str | None]] = []
    connection.add_notice_handler(lambda n: found.append((n.sqlstate, n.message_primary)))
    return found


def messages(db: Connection, columns: str = "payload") -> list[Any]:
    query = f"SELECT {columns} FROM realtime.messages ORDER BY inserted_at"
    return db.execute(query.encode()).fetchall()


# -- the stand-in's functions ----------------------------------------------------------------------


def test_send_writes_what_supabases_writes(db: Connection) -> None:
    db.execute("SELECT realtime.send('{\"a\": 1}', 'e', 'it''s \"é\"')")
    db.execute("SELECT realtime.send('{\"id\": \"mine\"}', 'e', 't', false)")
    columns = "payload, event, topic, private, extension, payload ->> 'id' = id::text, topic"
    first, second = messages(db, columns)
    assert set(first[0]) == {"a", "id"}
    assert first[1:6] == ("e", 'it\'s "é"', True, "broadcast", True)
    assert second[0] == {"id": "mine"}
    assert second[2:4] == ("t", False)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("'[1]', 'e', 't'", "path element at position 1 is not an integer"),
        ("'5', 'e', 't'", "cannot set path in scalar"),
        ("'null', 'e', 't'", "cannot set path in scalar"),
        ("'{}', 'e', NULL", 'syntax error at or near "NULL"'),
    ],
)
def test_send_never_raises_and_loses_what_it_cannot_write(
    db: Connection, call: str, text: str
) -> None:
    told = warnings(db)
    db.execute(f"SELECT realtime.send({call})".encode())
    [(state, message)] = told
    assert state == "01000"
    assert str(message).startswith(f"{LOST} {text}")
    assert messages(db) == []


def test_send_without_a_partition_or_a_right_warns_and_the_write_goes_on(db: Connection) -> None:
    told = warnings(db)
    with db.transaction(force_rollback=True):
        db.execute("SET LOCAL ROLE authenticated")
        db.execute("SELECT realtime.send('{}', 'e', 't')")
    with db.transaction(force_rollback=True):
        db.execute("ALTER TABLE realtime.messages ALTER inserted_at SET DEFAULT '2000-01-01'")
        db.execute("SELECT realtime.send('{}', 'e', 't')")
    assert [message for _, message in told] == [
        f'{LOST} new row violates row-level security policy for table "messages"',
        f'{LOST} no partition of relation "messages" found for row',
    ]


def test_send_costs_a_subtransaction_and_leaves_the_topic_set(db: Connection) -> None:
    with db.transaction():
        db.execute("SELECT realtime.send('{}', 'e', 't')")
        assert db.execute("SELECT realtime.topic()").fetchone() == ("t",)
    assert db.execute("SELECT realtime.topic()").fetchone() == (None,)
    with db.transaction(force_rollback=True):
        db.execute("SELECT realtime.send('{}', 'e', 'rolled back')")
    assert len(messages(db)) == 1


TRIGGER = """
CREATE TABLE orders (id int, note text);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM realtime.broadcast_changes('orders:acme', TG_OP, TG_OP, TG_TABLE_NAME, TG_TABLE_SCHEMA,
                                     NEW, OLD);
  RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON orders
  FOR EACH ROW EXECUTE FUNCTION tell();
INSERT INTO orders VALUES (1, 'a');
UPDATE orders SET note = 'b';
DELETE FROM orders;
"""


def test_broadcast_changes_makes_the_documented_payload(db: Connection) -> None:
    with db.transaction():
        db.execute(TRIGGER.encode())
    told = [row for (row, private) in messages(db, "payload, private") if private]
    assert all(row.pop("id") for row in told)
    assert all((row.pop("table"), row.pop("schema")) == ("orders", "public") for row in told)
    a, b = {"id": 1, "note": "a"}, {"id": 1, "note": "b"}
    assert sorted(told, key=lambda row: ["INSERT", "UPDATE", "DELETE"].index(row["operation"])) == [
        {"operation": "INSERT", "record": a, "old_record": None},
        {"operation": "UPDATE", "record": b, "old_record": a},
        {"operation": "DELETE", "record": None, "old_record": b},
    ]


@pytest.mark.parametrize(
    ("operation", "level", "text"),
    [
        ("insert", "ROW", "Unexpected operation type: insert"),
        ("TRUNCATE", "ROW", "Unexpected operation type: TRUNCATE"),
        (
            "INSERT",
            "STATEMENT",
            "function can only be triggered for each row, not for each statement",
        ),
    ],
)
def test_broadcast_changes_aborts_the_write_for_wrong_arguments(
    db: Connection, operation: str, level: str, text: str
) -> None:
    with pytest.raises(pg.RaiseException, match=f"^Failed to process the row: {text}"):
        db.execute(
            "SELECT realtime.broadcast_changes('t', 'e', %s, 'a', 'b', NULL::record, NULL, %s)",
            [operation, level],
        )


def test_partitions_follow_the_days_and_the_old_ones_go(db: Connection) -> None:
    def days() -> list[str]:
        rows = db.execute(
            "SELECT right(inhrelid::regclass::text, 10) FROM pg_inherits"
            " WHERE inhparent = 'realtime.messages'::regclass ORDER BY 1"
        ).fetchall()
        return [row[0] for row in rows]

    first = db.execute("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date").fetchall()[0][0]
    around = [f"{first + timedelta(days=n):%Y_%m_%d}" for n in range(-1, 7)]
    assert days() == around[:5]
    # The session's time zone is no matter.
    db.execute("SET timezone = 'Pacific/Auckland'")
    db.execute("SELECT outbox.keep_realtime_partitions(now() + interval '3 days')")
    assert days() == around[1:]  # 72 hours are kept
    db.execute("SELECT outbox.keep_realtime_partitions(now() + interval '6 days')")
    assert days()[0] == around[4]


# -- installing ------------------------------------------------------------------------------------


def test_the_stand_in_is_refused_where_a_schema_realtime_is_that_is_not_ours(
    database: str,
) -> None:
    with pytest.raises(SchemaMismatch, match="run: outbox realtime --install-shim"):
        require_shim(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA realtime")
        with pytest.raises(pg.DuplicateSchema, match="on Supabase it is the real one"):
            connection.execute("SELECT outbox.install_realtime_shim()")
        assert connection.execute("SELECT to_regclass('realtime.messages')").fetchone() == (None,)
        with pytest.raises(SchemaMismatch, match="is not the stand-in"):
            require_shim(database)
        connection.execute("DROP SCHEMA realtime")
        require_shim(database, install=True)
        require_shim(database)
        connection.execute("SELECT realtime.send('{}', 'e', 't')")
        require_shim(database, install=True)  # renews the functions, keeps the messages
        assert len(messages(connection)) == 1


def test_a_role_that_is_no_superuser_installs_it_where_the_roles_are(
    own_postgres: EmbeddedPostgres,
) -> None:
    admin = own_postgres.create_database("app")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(
            "CREATE ROLE installer LOGIN CREATEROLE BYPASSRLS PASSWORD 'password';"
            " ALTER DATABASE app OWNER TO installer"
        )
    url = admin.replace(f"postgres:{own_postgres.password}@", "installer:password@")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("GRANT pg_read_all_stats TO installer; GRANT EXECUTE ON FUNCTION"
                           " pg_control_system() TO installer")  # fmt: skip
    migrate(url)
    require_shim(url, install=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET ROLE authenticated; RESET ROLE")
        connection.execute("SELECT realtime.send('{}', 'e', 't')")
        assert len(messages(connection)) == 1


def test_everything_goes_with_uninstall_and_the_schema_of_supabase_stays(
    own_postgres: EmbeddedPostgres,
) -> None:
    roles = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_|^outbox|^postgres$'"
    schemas = "SELECT nspname FROM pg_namespace WHERE nspname IN ('realtime', 'auth', 'outbox')"
    install = "SELECT outbox.install_realtime_policies('orders', 'm', 'user_id', 'org_id')"
    table = "CREATE TABLE m (user_id uuid, org_id text); GRANT SELECT ON m TO authenticated"
    url = own_postgres.create_database("app")
    migrate(url)
    require_shim(url, install=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(table.encode())
        connection.execute(install.encode())
        assert removal(url).realtime == [
            "the policy outbox_orders on realtime.messages",
            "the stand-in schema realtime with its messages",
            "the stand-in schema auth",
        ]
        # The rights of a table of the user's keep this role.
        assert uninstall(url) == ["authenticated"]
        assert connection.execute(schemas.encode()).fetchall() == []
        assert connection.execute(roles.encode()).fetchall() == [("authenticated",)]
        # Now as on Supabase: what is there is not ours, only the policy is.
        connection.execute("CREATE SCHEMA realtime; CREATE SCHEMA auth")
        connection.execute(
            "CREATE FUNCTION realtime.topic() RETURNS text LANGUAGE sql AS $$ SELECT 't' $$;"
            " CREATE TABLE realtime.messages (topic text, extension text)"
        )
        migrate(url)
        connection.execute(install.encode())
        assert removal(url).realtime == ["the policy outbox_orders on realtime.messages"]
        assert uninstall(url) == ["authenticated"]
        assert len(connection.execute(schemas.encode()).fetchall()) == 2
        assert connection.execute("SELECT count(*) FROM pg_policy").fetchone() == (0,)


# -- policies --------------------------------------------------------------------------------------

INSTALL = "SELECT outbox.install_realtime_policies(%s, %s, %s, %s)"


def test_policies_are_installed_once_however_often_and_nobody_may_send(db: Connection) -> None:
    for prefix in ("orders", "orders:", "orders"):
        row = db.execute(INSTALL, [prefix, "memberships", "user_id", "org_id"]).fetchone()
        assert row == ("outbox_orders",)
    rows = db.execute("SELECT policyname, cmd, roles FROM pg_policies").fetchall()
    assert rows == [("outbox_orders", "SELECT", ["authenticated"])]
    kept = db.execute("SELECT topic_prefix, membership FROM outbox.realtime_policy").fetchall()
    assert kept == [("orders", "public.memberships")]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", "memberships", "user_id", "org_id"), pg.InvalidParameterValue, "a topic prefix is"),
        (("a:b", "memberships", "user_id", "org_id"), pg.InvalidParameterValue, "prefix is"),
        (("a'b", "memberships", "user_id", "org_id"), pg.InvalidParameterValue, "prefix is"),
        (("é", "memberships", "user_id", "org_id"), pg.InvalidParameterValue, "prefix is"),
        ((None, "memberships", "user_id", "org_id"), pg.InvalidParameterValue, "must all be"),
        (("a", "memberships", None, "org_id"), pg.InvalidParameterValue, "must all be given"),
        (("a", "memberships", "who", "org_id"), pg.UndefinedColumn, "has no column who"),
        (("a", "secret_m", "u", "o"), pg.InsufficientPrivilege, "run: GRANT SELECT"),
        (("a", "open_m", "u", "o"), pg.InsufficientPrivilege, "ENABLE ROW LEVEL SECURITY"),
        (("a", "far.m", "u", "o"), pg.InsufficientPrivilege, "run: GRANT USAGE ON SCHEMA far"),
    ],
)
def test_policies_that_would_not_hold_are_refused(
    db: Connection, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    db.execute(
        "CREATE TABLE secret_m (u text, o text); CREATE TABLE open_m (u text, o text);"
        " GRANT ALL ON open_m TO authenticated; CREATE SCHEMA far;"
        " CREATE TABLE far.m (u text, o text); GRANT SELECT ON far.m TO authenticated"
    )
    with pytest.raises(error, match=text):
        db.execute(INSTALL, arguments)


USERS = (
    ("uuid", person("alice"), "not a uuid"),
    ("bigint", "42", "42.0"),
    ("int", "7", "99999999999999999"),
    ("text", "älice", "ÄLICE"),
    ("varchar(20)", "a'b", "a"),
    ("numeric", "1.50", "1.5"),
)
ORGS = (
    ("text", "a:b", "a"),
    ("int", "7", "07"),
    ("uuid", person("acme"), person("acme").upper()),
)


def may(db: Connection, sub: str | None, org: str) -> bool:
    with db.transaction(force_rollback=True):
        db.execute("SELECT realtime.send('{}', 'e', %s)", [f"rooms:{org}"])
        db.execute("SELECT set_config('request.jwt.claims', %s, true)", [json.dumps({"sub": sub})])
        db.execute("SET LOCAL ROLE authenticated")
        return bool(messages(db))


def test_policies_fit_the_types_of_the_columns(db: Connection) -> None:
    for (user_type, user, not_user), (org_type, org, not_org) in product(USERS, ORGS):
        db.execute(
            f'CREATE TABLE m ("the user" {user_type}, "Org" {org_type}, topic text)'.encode()
        )
        db.execute("GRANT SELECT ON m TO authenticated")
        db.execute("INSERT INTO m VALUES (%s, %s, 'x'), (NULL, NULL, 'x')", [user, org])
        db.execute(INSTALL, ["rooms", "m", "the user", "Org"])
        assert may(db, user, org), (user_type, org_type)
        for who, where in ((not_user, org), (user, not_org), (None, org), ("", org), (user, "")):
            assert not may(db, who, where), (user_type, who, org_type, where)
        db.execute("DROP TABLE m CASCADE")


# -- the doctor ------------------------------------------------------------------------------------


def problems(url: str) -> list[str]:
    with connect(url, autocommit=True) as connection:
        return [problem for problem, _fix in realtime_problems(connection)]


def test_the_doctor_finds_nothing_in_what_we_install_and_leaves_nothing(
    realtime_database: str, db: Connection
) -> None:
    assert problems(realtime_database) == []
    assert messages(db) == []
    found = examine(realtime_database, "default", None, timedelta(days=7))
    assert [one for one in found if one.check in {"realtime", "roles"}] == []


def test_the_doctor_finds_a_tenant_who_was_let_into_the_log(
    realtime_database: str, db: Connection
) -> None:
    db.execute("GRANT USAGE ON SCHEMA outbox TO authenticated")
    db.execute("GRANT SELECT ON outbox.event TO authenticated")
    found = examine(realtime_database, "default", None, timedelta(days=7))
    [one] = [one for one in found if one.check == "roles"]
    assert one.problem.startswith("authenticated can read outbox.event")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (
            "ALTER TABLE realtime.messages DISABLE ROW LEVEL SECURITY",
            ["row-level security on realtime.messages is off", "cannot|can join", "can send"],
        ),
        (
            f"{LOOSE} SELECT TO authenticated USING (realtime.topic() LIKE 'orders:%')",
            ["the policy loose .* does not look at the row's topic", "can join orders:"],
        ),
        (
            f"{LOOSE} SELECT TO authenticated USING (topic <> realtime.topic())",
            ["can read the messages of orders:.* with SQL"],
        ),
        (
            f"{LOOSE} INSERT TO authenticated WITH CHECK (topic = realtime.topic())",
            ["a member of organization .* may send", "another organization can send", "stranger"],
        ),
        (
            "ALTER TABLE memberships ENABLE ROW LEVEL SECURITY",
            ["a member of organization acme cannot join orders:acme"],
        ),
        (
            "GRANT INSERT ON memberships TO authenticated",
            ["a stranger can write a row into public.memberships and so join organization"],
        ),
        (
            OWN_ROW,
            ["a member of another organization can write a row into public.memberships"],
        ),
        ("DROP POLICY outbox_orders ON realtime.messages", ["the policy outbox_orders .* is gone"]),
        ("ALTER TABLE memberships RENAME TO people", ["the table public.memberships .* is gone"]),
    ],
)
def test_the_doctor_gets_through_where_there_is_a_hole(
    realtime_database: str, db: Connection, damage: str, found: list[str]
) -> None:
    db.execute(damage.encode())
    told = problems(realtime_database)
    for pattern in found:
        assert any(re.search(pattern, problem) for problem in told), (pattern, told)


def test_the_doctor_has_nothing_to_say_without_realtime(
    database: str, make_database: Callable[[str | None], str]
) -> None:
    assert problems(database) == []
