"""What each statement leaves in the log."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from .conftest import Shop


def test_insert_update_delete_and_truncate_are_captured(shop: Shop) -> None:
    assert shop.watch(org_column="org") is True
    shop.run("INSERT INTO orders VALUES (1, 'a', 1.50, 'x')")
    shop.run("UPDATE orders SET amount = 2 WHERE id = 1")
    shop.run("DELETE FROM orders")
    shop.run("TRUNCATE orders")
    inserted, updated, deleted, truncated = shop.events()
    row = {"id": 1, "org": "a", "amount": 1.5, "note": "x", "paid": False}
    assert inserted.payload == {
        "operation": "INSERT",
        "schema": "public",
        "table": "orders",
        "record": row,
        "old_record": None,
        "changed": None,
    }
    assert (inserted.type, inserted.org_id, inserted.subject) == (
        "orders.inserted",
        "a",
        "orders/1",
    )
    assert '"amount":1.50' in inserted.text
    assert (updated.type, updated.record, updated.old) == (
        "orders.updated",
        row | {"amount": 2},
        row,
    )
    assert updated.payload["changed"] == ["amount"]
    assert (deleted.type, deleted.record, deleted.old) == (
        "orders.deleted",
        None,
        row | {"amount": 2},
    )
    assert (truncated.type, truncated.org_id, truncated.subject) == ("orders.truncated", None, None)
    assert (truncated.record, truncated.old) == (None, None)


def test_a_bulk_update_of_100000_rows_pairs_every_row(shop: Shop) -> None:
    shop.run("INSERT INTO orders SELECT i, 'o' || i % 7, i, 'x' FROM generate_series(1, 100000) i")
    shop.watch(org_column="org")
    shop.run("UPDATE orders SET id = id + 1000000, amount = amount + 1")
    assert shop.run(
        "SELECT count(*) FROM outbox.event WHERE type = 'orders.updated'"
        " AND (payload #>> '{record,id}')::int = (payload #>> '{old_record,id}')::int + 1000000"
        " AND org_id = payload #>> '{record,org}'"
        " AND subject = 'orders/' || (payload #>> '{record,id}')"
    ) == [100000]
    assert shop.run("SELECT count(*) FROM outbox.pending") == [100000]


@pytest.mark.parametrize("extra", [{}, {"condition": "id > 0"}, {"exclude": ["note"]}])
def test_bulk_inserts_and_deletes_keep_order(shop: Shop, extra: dict[str, Any]) -> None:
    shop.watch(org_column="org", **extra)
    shop.run("INSERT INTO orders SELECT i, 'o' || i % 7, i, 'x' FROM generate_series(1, 5000) i")
    assert shop.run("SELECT array_agg(subject ORDER BY id) FROM outbox.event") == [
        [f"orders/{i}" for i in range(1, 5001)]
    ]
    shop.fresh()
    shop.run("DELETE FROM orders")
    assert len(shop.events()) == 5000


def test_an_update_that_changes_nothing_is_no_event(shop: Shop) -> None:
    shop.run("ALTER TABLE orders ADD extra json, ADD place point")
    shop.run("INSERT INTO orders VALUES (1, 'a', 1, 'x', true, '{\"a\": 1}', '(1,2)')")
    shop.watch()
    shop.run("UPDATE orders SET amount = amount, extra = extra")
    assert shop.types() == []
    shop.run("UPDATE orders SET extra = '{\"a\":  1}'")
    assert [e.payload["changed"] for e in shop.events()] == [["extra"]]


def test_a_changed_primary_key_names_the_new_row_and_shows_the_old(shop: Shop) -> None:
    shop.run("INSERT INTO orders VALUES (1, 'a'), (2, 'a')")
    shop.watch()
    shop.run("UPDATE orders SET id = id + 10")
    assert [(e.old["id"], e.record["id"], e.subject) for e in shop.events()] == [
        (1, 11, "orders/11"),
        (2, 12, "orders/12"),
    ]


def test_a_move_between_organizations_is_two_events_that_tell_nothing(shop: Shop) -> None:
    shop.run("INSERT INTO orders VALUES (1, 'a', 5, 'secret of a')")
    shop.watch(org_column="org")
    shop.run("UPDATE orders SET org = 'b', note = 'secret of b'")
    left, came = shop.events()
    assert (left.type, left.org_id, left.subject) == ("orders.deleted", "a", "orders/1")
    assert (left.record, left.old, left.payload["operation"]) == (None, {"id": 1}, "DELETE")
    assert (came.type, came.org_id, came.subject) == ("orders.inserted", "b", "orders/1")
    assert (came.old, came.record["note"]) == (None, "secret of b")
    assert "secret of a" not in came.text
    shop.fresh()
    shop.run("UPDATE orders SET org = NULL")
    shop.run("UPDATE orders SET org = ''")
    left, came, none = shop.events()
    assert (left.org_id, came.org_id, none.org_id, none.type) == ("b", None, None, "orders.updated")


def test_a_null_or_empty_organization_is_none(shop: Shop) -> None:
    shop.watch(org_column="org")
    shop.run("INSERT INTO orders VALUES (1, NULL), (2, ''), (3, 'c')")
    assert [e.org_id for e in shop.events()] == [None, None, "c"]


def test_an_overlong_organization_still_captures(shop: Shop) -> None:
    shop.watch(org_column="org")
    shop.run("INSERT INTO orders VALUES (1, repeat('x', 100000))")
    shop.run("UPDATE orders SET org = repeat('y', 100000)")
    orgs = [e.org_id or "" for e in shop.events()]
    assert len(orgs) == 3
    assert orgs[0] == orgs[1] != orgs[2]
    assert all(org.startswith("sha256:") for org in orgs)


def test_copy_and_on_conflict_are_captured(shop: Shop) -> None:
    shop.watch()
    with (
        shop.connection.cursor() as cursor,
        cursor.copy("COPY orders (id, note) FROM STDIN") as copy,
    ):
        for i in range(3):
            copy.write_row([i, f"n{i}"])
    assert shop.types() == ["orders.inserted"] * 3
    shop.fresh()
    shop.run("INSERT INTO orders (id) VALUES (0) ON CONFLICT DO NOTHING")
    assert shop.types() == []
    shop.run(
        "INSERT INTO orders (id, note) VALUES (0, 'new'), (9, 'nine')"
        " ON CONFLICT (id) DO UPDATE SET note = excluded.note"
    )
    assert sorted((e.type, e.subject) for e in shop.events()) == [
        ("orders.inserted", "orders/9"),
        ("orders.updated", "orders/0"),
    ]


@pytest.mark.pg_min(15)
def test_merge_is_captured(shop: Shop) -> None:
    shop.run("INSERT INTO orders (id, note) VALUES (1, 'x'), (2, 'y')")
    shop.watch()
    shop.run(
        "MERGE INTO orders o USING (VALUES (1), (2), (3)) v(id) ON o.id = v.id"
        " WHEN MATCHED AND v.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET note = 'z'"
        " WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id)"
    )
    assert sorted((e.type, e.subject) for e in shop.events()) == [
        ("orders.deleted", "orders/1"),
        ("orders.inserted", "orders/3"),
        ("orders.updated", "orders/2"),
    ]


def test_foreign_key_cascades_are_captured(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE d (id int PRIMARY KEY,"
        " o bigint REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE)"
    )
    shop.run("CREATE TABLE n (id int PRIMARY KEY, o bigint REFERENCES orders ON DELETE SET NULL)")
    shop.run("INSERT INTO orders (id) VALUES (1), (2)")
    shop.run("INSERT INTO d VALUES (1, 1), (2, 2)")
    shop.run("INSERT INTO n VALUES (1, 2)")
    for table in ("orders", "d", "n"):
        shop.watch(table)
    shop.run("UPDATE orders SET id = 5 WHERE id = 1")
    assert sorted(shop.types()) == ["d.updated", "orders.updated"]
    shop.fresh()
    shop.run("DELETE FROM orders WHERE id = 2")
    assert sorted(shop.types()) == ["d.deleted", "n.updated", "orders.deleted"]
    shop.fresh()
    shop.run("TRUNCATE orders CASCADE")
    assert sorted(shop.types()) == ["d.truncated", "n.truncated", "orders.truncated"]


def test_what_is_rolled_back_leaves_nothing(shop: Shop) -> None:
    shop.watch()
    with shop.connection.transaction():
        shop.run("INSERT INTO orders (id) VALUES (1)")
        with shop.connection.transaction(force_rollback=True):
            shop.run("INSERT INTO orders (id) VALUES (2)")
        with pytest.raises(psycopg.errors.UniqueViolation), shop.connection.transaction():
            shop.run("INSERT INTO orders (id) VALUES (3), (1)")
        shop.run("UPDATE orders SET note = 'kept'")
    assert [(e.type, e.subject) for e in shop.events()] == [
        ("orders.inserted", "orders/1"),
        ("orders.updated", "orders/1"),
    ]


def test_events_of_a_transaction_stand_in_the_order_of_its_statements(shop: Shop) -> None:
    shop.watch()
    with shop.connection.transaction():
        shop.run("INSERT INTO orders (id) VALUES (1)")
        shop.run("UPDATE orders SET note = 'a'")
        shop.run("DELETE FROM orders")
        shop.run("INSERT INTO orders (id) VALUES (1)")
    assert [t.split(".")[1] for t in shop.types()] == ["inserted", "updated", "deleted", "inserted"]


def test_a_trigger_of_the_user_that_changes_the_row_comes_after_its_insert(shop: Shop) -> None:
    shop.run(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE orders SET note = ''touched'' WHERE id = NEW.id; RETURN NULL; END'"
    )
    shop.run('CREATE TRIGGER "!touch" AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION touch()')
    shop.watch()
    shop.run("INSERT INTO orders (id, note) VALUES (1, 'first')")
    assert [(e.type, e.record["note"]) for e in shop.events()] == [
        ("orders.inserted", "first"),
        ("orders.updated", "touched"),
    ]


def test_what_a_before_trigger_makes_of_a_row_is_captured(shop: Shop) -> None:
    shop.run(
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.note := upper(NEW.note); RETURN NEW; END'"
    )
    shop.run("CREATE TRIGGER fill BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fill()")
    shop.watch()
    shop.run("INSERT INTO orders (id, note) VALUES (1, 'low')")
    assert shop.events()[0].record["note"] == "LOW"


def test_a_replica_does_not_capture_again(shop: Shop) -> None:
    shop.watch()
    with shop.connection.transaction():
        shop.run("SET LOCAL session_replication_role = replica")
        shop.run("INSERT INTO orders (id) VALUES (1)")
        shop.run("UPDATE orders SET note = 'x'")
    assert shop.types() == []


def test_the_bell_rings_a_sleeping_relay_only(shop: Shop) -> None:
    shop.watch()
    shop.run("LISTEN outbox")
    shop.run("SELECT setval('outbox.bell', 1)")
    shop.run("INSERT INTO orders (id) VALUES (1), (2)")
    assert list(shop.connection.notifies(timeout=0)) == []
    for sql in (
        "INSERT INTO orders (id) VALUES (3), (4)",
        "UPDATE orders SET note = 'x'",
        "DELETE FROM orders",
        "TRUNCATE orders",
    ):
        shop.run("SELECT setval('outbox.bell', 2)")
        shop.run(sql)
        shop.run("SELECT 1")
        assert len(list(shop.connection.notifies(timeout=0))) == 1, sql


@pytest.mark.pg_min(16)
@pytest.mark.parametrize("extra", [{}, {"condition": "true"}, {"exclude": ["paid"]}])
def test_capture_draws_no_subtransaction_ids(shop: Shop, extra: dict[str, Any]) -> None:
    shop.watch(org_column="org", **extra)
    with shop.connection.transaction():
        for i in range(100):
            shop.run("INSERT INTO orders VALUES (%s, 'a', 1, repeat('x', 30000))", i)
        shop.run("UPDATE orders SET org = 'b', amount = 2")
        shop.run("DELETE FROM orders")
        assert shop.run(
            "SELECT s.subxact_count FROM pg_stat_get_backend_idset() i,"
            " pg_stat_get_backend_subxact(i) s"
            " WHERE pg_stat_get_backend_pid(i) = pg_backend_pid()"
        ) == [0]
    assert len(shop.events()) == 400
