"""watch, unwatch and watches: options, refusals, rights, and what they leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from outbox.errors import NotFound, OutboxError, PermissionRefused, UsageError
from outbox.store import watching
from outbox.store.migrate import migrate

from .conftest import ORDERS, Shop

TRACES = """
    SELECT (SELECT count(*) FROM pg_trigger
            WHERE NOT tgisinternal AND tgrelid = 'orders'::regclass),
           (SELECT count(*) FROM pg_proc WHERE proname ~ '^capture_[0-9]'),
           (SELECT count(*) FROM pg_namespace
            WHERE nspname = 'outbox' AND has_schema_privilege('outbox_owner', oid, 'CREATE'))
"""


def traces(shop: Shop) -> tuple[int, ...]:
    row = shop.connection.execute(TRACES.encode()).fetchone()
    assert row is not None
    return tuple(row)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"org_column": "org", "type_prefix": "shop.order", "subject_columns": ["note", "id"]},
    {"operations": ["delete", "insert"]},
    {"include": ["id", "note"]},
    {"exclude": ["amount"]},
    {"condition": "amount > 1"},
    {"old": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_watch_twice_changes_nothing_and_unwatch_leaves_no_trace(
    shop: Shop, options: dict[str, Any]
) -> None:
    before = traces(shop)
    assert shop.watch(**options) is True
    objects = shop.run("SELECT oid FROM pg_trigger UNION SELECT oid FROM pg_proc ORDER BY 1")
    assert shop.watch(**options) is False
    assert (
        shop.run("SELECT oid FROM pg_trigger UNION SELECT oid FROM pg_proc ORDER BY 1") == objects
    )
    assert shop.watch(**options | {"type_prefix": "other"}) is True
    assert shop.run("SELECT outbox.unwatch('orders')") == [True]
    assert shop.run("SELECT outbox.unwatch('orders')") == [False]
    assert traces(shop) == before == (0, 0, 0)


def test_generated_functions_run_as_outbox_owner_for_nobody_else(shop: Shop) -> None:
    shop.watch()
    rows = shop.connection.execute(
        "SELECT proowner::regrole::text, prosecdef, proconfig[1],"
        " has_function_privilege('public', oid, 'EXECUTE')"
        " FROM pg_proc WHERE proname ~ '^capture_[0-9]+_(insert|update|delete|truncate)$'"
    ).fetchall()
    assert rows == [("outbox_owner", True, 'search_path=""', False)] * 4


def test_a_disabled_trigger_is_a_problem_that_watch_mends(shop: Shop) -> None:
    shop.watch()
    shop.run('ALTER TABLE orders DISABLE TRIGGER "!outbox_update"')
    assert shop.run("SELECT problems FROM outbox.watches()") == [
        ["capture is disabled for: update"]
    ]
    assert shop.watch() is True
    assert shop.run("SELECT problems FROM outbox.watches()") == [[]]


def test_operations_choose_what_is_captured(shop: Shop) -> None:
    shop.watch(operations=["delete"])
    shop.run("INSERT INTO orders (id) VALUES (1), (2)")
    shop.run("UPDATE orders SET note = 'x'")
    shop.run("DELETE FROM orders WHERE id = 1")
    shop.run("TRUNCATE orders")
    assert shop.types() == ["orders.deleted"]


@pytest.mark.parametrize(
    "options", [{"include": ["id", "note"]}, {"exclude": ["org", "amount", "paid"]}]
)
def test_only_kept_columns_are_told_and_only_their_changes_are_events(
    shop: Shop, options: dict[str, Any]
) -> None:
    shop.watch(**options)
    shop.run("INSERT INTO orders VALUES (1, 'a', 2, 'x')")
    shop.run("UPDATE orders SET amount = 3")
    shop.run("UPDATE orders SET note = 'y', amount = 4")
    inserted, updated = shop.events()
    assert inserted.record == {"id": 1, "note": "x"}
    assert (updated.record, updated.old) == ({"id": 1, "note": "y"}, {"id": 1, "note": "x"})
    assert updated.payload["changed"] == ["note"]


def test_excluded_columns_neither_count_nor_fail(shop: Shop) -> None:
    shop.run("ALTER TABLE orders ADD extra json")
    shop.watch(exclude=["note"])
    shop.run(
        "INSERT INTO orders (id, note, extra)"
        " VALUES (1, repeat('x', 2000000), '{\"a\": \"\\u0000\"}')"
    )
    shop.run("UPDATE orders SET note = 'short'")
    shop.run("UPDATE orders SET amount = 1")
    inserted, updated = shop.events()
    assert "omitted" not in inserted.payload
    assert '"extra":{"a": "\\u0000"}' in inserted.text
    assert updated.payload["changed"] == ["amount"]


def test_without_old_records_only_the_key_of_a_deleted_row_is_told(shop: Shop) -> None:
    shop.watch(old=False)
    for sql in (
        "INSERT INTO orders (id, note) VALUES (1, 'x')",
        "UPDATE orders SET note = 'y'",
        "DELETE FROM orders",
    ):
        shop.run(sql)
    _, updated, deleted = shop.events()
    assert (updated.old, updated.payload["changed"]) == (None, ["note"])
    assert deleted.old == {"id": 1}


@pytest.mark.parametrize(
    ("condition", "captured"),
    [
        ("amount > 1", [2]),
        ("NEW.amount > 1 OR OLD.amount > 1", [2]),
        ("note LIKE '%@%' -- a comment", [1]),
        ("note IS NULL", [2]),
        ("EXISTS (SELECT FROM pg_catalog.pg_authid)", [1, 2]),
        ("(SELECT count(*) FROM outbox.secret) > 99", [1, 2]),
    ],
)
def test_a_condition_selects_rows_and_captures_what_it_cannot_judge(
    shop: Shop, condition: str, captured: list[int]
) -> None:
    shop.watch(condition=condition)
    shop.run("INSERT INTO orders (id, amount, note) VALUES (1, NULL, 'a@b'), (2, 5, NULL)")
    shop.run("DELETE FROM orders")
    assert [(e.type, e.subject) for e in shop.events()] == [
        (kind, f"orders/{i}") for kind in ("orders.inserted", "orders.deleted") for i in captured
    ]


def test_an_error_in_the_condition_captures_the_row(shop: Shop) -> None:
    shop.watch(condition="1 / (amount - 5) > 100")
    shop.run("INSERT INTO orders (id, amount) VALUES (1, 5), (2, 6)")
    assert [e.subject for e in shop.events()] == ["orders/1"]


def test_a_condition_survives_a_change_of_its_columns_type(shop: Shop) -> None:
    shop.watch(condition="amount > 1 AND NEW.amount IS DISTINCT FROM OLD.amount")
    shop.run("INSERT INTO orders (id, amount) VALUES (1, 1), (2, 2)")
    shop.run("ALTER TABLE orders ALTER amount TYPE bigint")
    shop.run("INSERT INTO orders (id, amount) VALUES (3, 1), (4, 2)")
    assert [e.subject for e in shop.events()] == ["orders/2", "orders/4"]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("orders", {"org_column": "nope"}, "no column nope"),
    ("orders", {"org_column": ""}, "must not be empty"),
    ("orders", {"type_prefix": ""}, "must not be empty"),
    ("orders", {"subject_columns": ["id", "nope"]}, "no column nope"),
    ("orders", {"include": ["nope"]}, "no column nope"),
    ("orders", {"include": ["id"], "exclude": ["note"]}, "either"),
    ("orders", {"operations": ["insert", "upsert"]}, "not upsert"),
    ("orders", {"operations": []}, "not none"),
    ("orders", {"type_prefix": "a b"}, "not of the form"),
    ("orders", {"type_prefix": "outbox"}, "reserved"),
    ("orders", {"condition": "nope > 1"}, '"nope" does not exist'),
    ("orders", {"condition": "amount"}, "must be type boolean"),
    ("orders", {"condition": "amount > "}, "syntax error"),
    ("v", {}, "not a table"),
    ("pg_catalog.pg_class", {}, "system"),
    ("outbox.event", {}, "cannot be watched"),
]


@pytest.mark.parametrize(("table", "options", "message"), REFUSED)
def test_what_cannot_be_watched_is_refused_with_one_line(
    shop: Shop, table: str, options: dict[str, Any], message: str
) -> None:
    shop.run("CREATE VIEW v AS SELECT 1 AS id")
    with pytest.raises(UsageError) as caught:
        watching.watch(shop.connection, table, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert traces(shop) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("orders", ("public", "orders")),
        ("Shop.Orders", ("shop", "orders")),
        ('"Shop"."Or""ders.x"', ("Shop", 'Or"ders.x')),
        ("таблица", ("public", "таблица")),
    ],
)
def test_table_names_are_read_as_postgresql_reads_them(text: str, parts: tuple[str, str]) -> None:
    assert watching.parse_table(text) == parts


@pytest.mark.parametrize("text", ["", "a.b.c", "a.", '"a', "a b", "1a", 'x"y"', "a;drop"])
def test_what_is_no_table_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        watching.parse_table(text)


def test_the_python_api_watches_lists_and_unwatches(shop: Shop) -> None:
    connection = shop.connection
    assert watching.watch(connection, "public.orders", org_column="org") is True
    assert watching.watch(connection, "orders", org_column="org") is False
    (found,) = watching.watches(connection)
    assert (found.schema, found.table, found.problems) == ("public", "orders", [])
    assert found.options["org_column"] == "org"
    with pytest.raises(NotFound, match=r"no table public\.ordres"):
        watching.unwatch(connection, "ordres")
    assert watching.unwatch(connection, '"public"."orders"') is True


def test_a_dropped_table_leaves_functions_that_are_found_and_forgotten(shop: Shop) -> None:
    shop.watch()
    shop.run("DROP TABLE orders")
    listed = watching.watches(shop.connection)
    assert {w.table for w in listed} == {None}
    assert watching.forget(shop.connection) == len(listed)
    assert watching.watches(shop.connection) == []


def test_a_table_in_use_is_reported_and_not_waited_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOCK_TIMEOUT", "50ms")
    with psycopg.connect(shop.url) as other:
        other.execute("INSERT INTO orders (id) VALUES (1)")
        with pytest.raises(OutboxError, match="in use by a long transaction"):
            watching.watch(shop.connection, "orders")
        other.rollback()
    assert traces(shop) == (0, 0, 0)


@pytest.fixture
def installed_by_a_plain_role(empty_database: str) -> Iterator[str]:
    """A database whose installer is no superuser: it may create roles and owns the database."""
    admin = psycopg.connect(empty_database, autocommit=True)
    name = admin.info.dbname
    admin.execute("CREATE ROLE installer LOGIN CREATEROLE PASSWORD 'of-a-test'")
    admin.execute(f"ALTER DATABASE {name} OWNER TO installer".encode())
    admin.execute("GRANT ALL ON SCHEMA public TO installer")
    for role in ("outbox_owner", "outbox_writer", "outbox_daemon", "outbox_reader"):
        if admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
            admin.execute(f"GRANT {role} TO installer WITH ADMIN OPTION".encode())
    try:
        yield psycopg.conninfo.make_conninfo(empty_database, user="installer", password="of-a-test")
    finally:
        admin.execute("DROP SCHEMA IF EXISTS outbox CASCADE")
        admin.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER".encode())
        admin.execute("DROP OWNED BY installer CASCADE")
        admin.execute("DROP ROLE installer")
        admin.close()


def test_an_installer_without_superuser_watches_its_own_tables(
    installed_by_a_plain_role: str,
) -> None:
    url = installed_by_a_plain_role
    migrate(url)
    shop = Shop(url)
    with shop.connection:
        shop.run(ORDERS)
        assert shop.watch(org_column="org") is True
        assert shop.watch(org_column="org") is False
        shop.run("INSERT INTO orders VALUES (1, 'a')")
        shop.run("UPDATE orders SET note = 'x'")
        assert shop.types() == ["orders.inserted", "orders.updated"]
        assert shop.watch() is True
        assert shop.run("SELECT outbox.unwatch('orders')") == [True]
        shop.run("CREATE TABLE wide (id int PRIMARY KEY, j json)")
        shop.watch("wide", exclude=["id"])
        shop.run("INSERT INTO wide VALUES (1, '\"\\u0000\"')")
        assert "omitted" not in shop.events()[-1].payload


def test_only_the_owner_of_a_table_may_watch_it(
    installed_by_a_plain_role: str, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("CREATE TABLE foreign_one (id int)")
        migrate(installed_by_a_plain_role)
        with psycopg.connect(installed_by_a_plain_role, autocommit=True) as connection:
            with pytest.raises(PermissionRefused, match="only the owner of"):
                watching.watch(connection, "foreign_one")
