"""Tables of every shape: partitions, inheritance, keys, names, rights, columns that come and go."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from .conftest import Shop

PARTITIONED = """
    CREATE TABLE part (id int, org text, region text, note text, PRIMARY KEY (id, region))
        PARTITION BY LIST (region);
    CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
    CREATE TABLE part_us (note text, region text NOT NULL, org text, id int NOT NULL);
    ALTER TABLE part ATTACH PARTITION part_us FOR VALUES IN ('us');
"""


def test_partitions_are_captured_under_the_name_of_their_table(shop: Shop) -> None:
    shop.run(PARTITIONED)
    shop.watch("part", org_column="org")
    shop.run("CREATE TABLE part_as PARTITION OF part FOR VALUES IN ('as')")
    shop.run("INSERT INTO part VALUES (1, 'a', 'eu', 'x')")
    shop.run("INSERT INTO part_us (id, org, region) VALUES (2, 'b', 'us')")
    shop.run("INSERT INTO part_as VALUES (3, 'c', 'as', 'x')")
    shop.run("UPDATE part SET note = 'y'")
    shop.run("DELETE FROM part_us")
    events = shop.events()
    assert [(e.type, e.subject, e.org_id) for e in events] == [
        ("part.inserted", "part/1/eu", "a"),
        ("part.inserted", "part/2/us", "b"),
        ("part.inserted", "part/3/as", "c"),
        *sorted(
            [
                ("part.updated", "part/1/eu", "a"),
                ("part.updated", "part/2/us", "b"),
                ("part.updated", "part/3/as", "c"),
            ],
            key=lambda e: "as eu us".split().index(str(e[1])[-2:]),
        ),
        ("part.deleted", "part/2/us", "b"),
    ]
    assert {e.payload["table"] for e in events} == {"part"}
    shop.fresh()
    shop.run("TRUNCATE part")
    assert shop.types() == ["part.truncated"]


def test_a_row_that_moves_to_another_partition_is_deleted_and_inserted(shop: Shop) -> None:
    shop.run(PARTITIONED)
    shop.run("INSERT INTO part VALUES (1, 'a', 'eu', 'x')")
    shop.watch("part", org_column="org")
    shop.run("UPDATE part SET region = 'us'")
    assert [(e.type, e.subject) for e in shop.events()] == [
        ("part.deleted", "part/1/eu"),
        ("part.inserted", "part/1/us"),
    ]


def test_unwatch_leaves_no_trace_on_partitions(shop: Shop) -> None:
    shop.run(PARTITIONED)
    shop.watch("part")
    with pytest.raises(psycopg.errors.ObjectInUse, match="partition of a table that is watched"):
        shop.watch("part_eu")
    assert shop.run("SELECT outbox.unwatch('part')") == [True]
    assert shop.run(
        "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE '!%'"
    ) == [0]
    assert shop.run("SELECT count(*) FROM pg_proc WHERE proname ~ '^capture_[0-9]'") == [0]
    shop.watch("part_eu")
    with pytest.raises(psycopg.errors.ObjectInUse, match="watched on its own"):
        shop.watch("part")


def test_a_watched_table_cannot_silently_become_a_partition(shop: Shop) -> None:
    shop.run("CREATE TABLE root (LIKE orders) PARTITION BY LIST (org)")
    shop.watch()
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="unwatch_before"):
        shop.run("ALTER TABLE root ATTACH PARTITION orders FOR VALUES IN ('a')")
    shop.run("SELECT outbox.unwatch('orders')")
    shop.run("ALTER TABLE root ATTACH PARTITION orders FOR VALUES IN ('a')")
    shop.watch("orders")
    shop.run("INSERT INTO root VALUES (1, 'a')")
    assert shop.types() == ["orders.inserted"]


def test_rows_of_inheritance_children_are_their_own(shop: Shop) -> None:
    shop.run("CREATE TABLE child (extra int) INHERITS (orders)")
    shop.watch("orders")
    shop.run("INSERT INTO child (id, extra) VALUES (1, 2)")
    shop.run("INSERT INTO orders (id) VALUES (3)")
    shop.run("DELETE FROM orders")
    assert shop.types() == ["orders.inserted", "orders.deleted"]


def test_composite_missing_and_chosen_keys_make_the_subject(shop: Shop) -> None:
    shop.run("CREATE TABLE two (b text, a int, PRIMARY KEY (b, a))")
    shop.run("CREATE TABLE none (a int)")
    shop.watch("two")
    shop.watch("none")
    shop.watch(subject_columns=["note", "id"], type_prefix="shop.order")
    shop.run("INSERT INTO two VALUES ('50%/x', 1)")
    shop.run("INSERT INTO none VALUES (1)")
    shop.run("DELETE FROM none")
    shop.run("INSERT INTO orders (id, note) VALUES (1, 'n'), (2, NULL)")
    assert [(e.type, e.subject) for e in shop.events()] == [
        ("two.inserted", "two/50%25%2Fx/1"),
        ("none.inserted", None),
        ("none.deleted", None),
        ("shop.order.inserted", "shop.order/n/1"),
        ("shop.order.inserted", None),
    ]


NAMES = ["Ta\"b'le @x@ %s", "таблица", "$$", "a.b", "select", "_r", "q" * 63]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_table_and_columns_is_captured(shop: Shop, name: str) -> None:
    table = sql.Identifier(name, name)
    shop.connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    shop.connection.execute(
        sql.SQL("CREATE TABLE {} ({} int PRIMARY KEY, org text, id text, _row text)").format(
            table, sql.Identifier(name)
        )
    )
    shown = table.as_string(shop.connection)
    for extra in ({}, {"exclude": ["id"]}, {"condition": "org <> '@'"}):
        shop.watch(shown, org_column="org", **extra)
        shop.connection.execute(sql.SQL("INSERT INTO {} VALUES (7, 'o', 'x', 'y')").format(table))
        shop.connection.execute(sql.SQL("UPDATE {} SET _row = 'z'").format(table))
        shop.connection.execute(sql.SQL("UPDATE {} SET org = 'p'").format(table))
        shop.connection.execute(sql.SQL("DELETE FROM {}").format(table))
        events = shop.events()
        assert [e.type.split(".")[-1] for e in events] == [
            "inserted", "updated", "deleted", "inserted", "deleted",
        ]  # fmt: skip
        assert events[0].record[name] == 7
        assert (events[0].payload["schema"], events[0].payload["table"]) == (name, name)
        assert (events[0].subject or "").endswith("/7")
        shop.fresh()


def test_columns_added_later_appear_and_dropped_ones_harm_nothing(shop: Shop) -> None:
    for extra in (
        {},
        {"exclude": ["note"]},
        {"include": ["id", "note", "amount", "later"]},
        {"condition": "note IS NULL OR true"},
    ):
        shop.run("DROP TABLE orders")
        shop.run(
            "CREATE TABLE orders (id bigint PRIMARY KEY, org text, amount numeric,"
            " note text, later int)"
        )
        shop.watch(org_column="org", subject_columns=["amount"], **extra)
        shop.run("INSERT INTO orders VALUES (1, 'a', 1, 'x')")
        shop.run(
            "ALTER TABLE orders DROP COLUMN note, DROP COLUMN amount, DROP COLUMN later,"
            " ADD COLUMN later text"
        )
        shop.run("INSERT INTO orders VALUES (2, 'a', 'new')")
        shop.run("UPDATE orders SET later = 'newer'")
        shop.run("DELETE FROM orders")
        events = shop.events()
        assert [e.type for e in events] == ["orders.inserted"] * 2 + ["orders.updated"] * 2 + [
            "orders.deleted"
        ] * 2
        assert (events[1].record["later"], events[1].org_id, events[1].subject) == (
            "new",
            "a",
            None,
        )
        assert events[2].payload["changed"] == ["later"]
        assert "omitted" not in events[1].payload
        shop.fresh()


def test_a_column_whose_type_changes_is_captured_in_the_same_session(shop: Shop) -> None:
    shop.watch(org_column="org")
    for kind in ("varchar(9)", "text", "char(3)"):
        shop.run("INSERT INTO orders (id, org) VALUES (1, 'abc')")
        shop.run("UPDATE orders SET id = 2")
        shop.run("DELETE FROM orders")
        shop.run(
            f"ALTER TABLE orders ALTER org TYPE {kind},"
            f" ALTER id TYPE {'int' if kind == 'text' else 'bigint'}"
        )
    events = shop.events()
    assert {e.org_id for e in events} == {"abc"}
    assert [e.subject for e in events] == ["orders/1", "orders/2", "orders/2"] * 3


@pytest.mark.parametrize("change", ["DROP COLUMN org", "RENAME COLUMN org TO tenant"])
def test_a_missing_organization_column_fails_the_write_with_a_clear_message(
    shop: Shop, change: str
) -> None:
    shop.run("INSERT INTO orders VALUES (1, 'a')")
    shop.watch(org_column="org")
    shop.run("INSERT INTO orders VALUES (2, 'a')")
    shop.run(f"ALTER TABLE orders {change}")
    for statement in (
        "INSERT INTO orders (id) VALUES (3)",
        "UPDATE orders SET note = 'x'",
        "DELETE FROM orders",
    ):
        with pytest.raises(
            psycopg.errors.UndefinedColumn,
            match=r"organization column org of table .*orders is gone: run outbox watch",
        ):
            shop.run(statement)
    assert shop.types() == ["orders.inserted"]
    assert shop.run("SELECT problems[1] FROM outbox.watches()") == [
        "organization column org is gone: every write fails"
    ]


def test_a_renamed_table_keeps_its_types(shop: Shop) -> None:
    shop.watch()
    shop.run("ALTER TABLE orders RENAME TO bills")
    shop.run("INSERT INTO bills (id) VALUES (1)")
    assert shop.types() == ["orders.inserted"]
    assert shop.run("SELECT problems[1] FROM outbox.watches()") == [
        "renamed since: events still name public.orders until outbox watch runs again"
    ]


def test_generated_and_identity_columns_are_captured(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,"
        " b int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    shop.watch("made")
    shop.run("INSERT INTO made (a) VALUES (2)")
    shop.run("UPDATE made SET a = 3")
    inserted, updated = shop.events()
    assert inserted.record == {"id": 1, "a": 2, "b": 4}
    assert (updated.record["b"], updated.payload["changed"]) == (6, ["a", "b"])


@pytest.mark.pg_min(18)
@pytest.mark.parametrize("extra", [{}, {"condition": "true"}, {"exclude": ["c"]}])
def test_virtual_generated_columns_never_show_a_wrong_value(
    shop: Shop, extra: dict[str, Any]
) -> None:
    shop.run(
        "CREATE TABLE made (id int PRIMARY KEY, a int, c int,"
        " b int GENERATED ALWAYS AS (a * 2) VIRTUAL)"
    )
    shop.watch("made", **extra)
    shop.run("INSERT INTO made (id, a) VALUES (1, 2)")
    shop.run("UPDATE made SET a = 3")
    shop.run("DELETE FROM made")
    for event in shop.events():
        row = event.record or event.old
        assert row.get("b", row["a"] * 2) == row["a"] * 2


def test_a_role_that_may_only_insert_is_captured(shop: Shop) -> None:
    shop.watch(org_column="org")
    shop.run("CREATE ROLE writer_only NOLOGIN")
    try:
        shop.run("GRANT INSERT ON orders TO writer_only")
        with shop.connection.transaction():
            shop.run("SET LOCAL ROLE writer_only")
            shop.run("INSERT INTO orders VALUES (1, 'a')")
        shop.run("SET ROLE writer_only")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            shop.run("SELECT * FROM outbox.event")
        shop.run("RESET ROLE")
    finally:
        shop.run("DROP OWNED BY writer_only")
        shop.run("DROP ROLE writer_only")
    assert shop.types() == ["orders.inserted"]


def test_rows_that_rls_hides_from_their_writer_are_captured(shop: Shop) -> None:
    shop.run("ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    shop.run("CREATE POLICY p ON orders FOR INSERT WITH CHECK (true)")
    shop.watch(org_column="org")
    shop.run("CREATE ROLE blind NOLOGIN")
    try:
        shop.run("GRANT INSERT ON orders TO blind")
        with shop.connection.transaction():
            shop.run("SET LOCAL ROLE blind")
            shop.run("INSERT INTO orders VALUES (1, 'a')")
    finally:
        shop.run("DROP OWNED BY blind")
        shop.run("DROP ROLE blind")
    assert [(e.type, e.org_id) for e in shop.events()] == [("orders.inserted", "a")]


def test_temporary_objects_of_the_writer_are_never_used(shop: Shop) -> None:
    shop.watch(org_column="org")
    shop.run(
        "CREATE FUNCTION public.spy(x text) RETURNS boolean LANGUAGE plpgsql AS"
        " 'BEGIN RAISE ''spied''; END'"
    )
    for name in ("text", "json", "bool", "regclass"):
        shop.run(f'CREATE DOMAIN pg_temp."{name}" AS pg_catalog.text CHECK (public.spy(VALUE))')
    shop.run("INSERT INTO orders VALUES (1, 'a', 1)")
    shop.run("UPDATE orders SET amount = 2")
    shop.run("UPDATE orders SET org = 'b'")
    shop.run("DELETE FROM orders")
    shop.run("DISCARD ALL")
    assert len(shop.events()) == 5


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
def test_concurrent_writers_do_not_fail_because_of_capture(shop: Shop, level: str) -> None:
    shop.run("INSERT INTO orders SELECT i FROM generate_series(1, 8) i")
    shop.watch(org_column="org")
    writers = [psycopg.connect(shop.url) for _ in range(4)]
    try:
        for writer in writers:
            writer.isolation_level = getattr(psycopg.IsolationLevel, level.replace(" ", "_"))
        for i, writer in enumerate(writers):
            writer.execute("INSERT INTO orders VALUES (%s, 'a')", [100 + i])
        for i, writer in enumerate(writers):
            writer.execute(
                "INSERT INTO orders SELECT %s + i, 'b' FROM generate_series(1, 20) i",
                [1000 * (i + 1)],
            )
        for writer in writers:
            writer.commit()
    finally:
        for writer in writers:
            writer.close()
    assert len(shop.events()) == 4 * 21
