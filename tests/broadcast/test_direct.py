"""Direct broadcasts: a trigger of the table's own, without a hop and within its organization."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.errors import UsageError
from outbox.store import watching
from tests.broadcast.conftest import Station


@pytest.fixture
def orders(station: Station) -> Station:
    station.run(
        "CREATE TABLE public.orders (id int PRIMARY KEY, org_id text, status text, note text)"
    )
    station.connection.execute("SET search_path = public")
    watching.broadcast_direct(
        station.connection, "public.orders", org_column="org_id", topic_prefix="orders",
        include=("status",),
    )  # fmt: skip
    return station


def sent(station: Station) -> list[tuple[Any, ...]]:
    return station.rows(
        "SELECT topic, event, payload ->> 'operation', payload -> 'record',"
        " payload -> 'old_record', private FROM realtime.messages"
        " ORDER BY inserted_at, payload ->> 'operation'"
    )


def test_each_change_goes_to_its_organization_with_the_columns_on_the_list(orders: Station) -> None:
    orders.run("INSERT INTO orders VALUES (1, 'a', 'new', 'secret')")
    orders.run("UPDATE orders SET status = 'paid'")
    orders.run("DELETE FROM orders")
    assert sent(orders) == [
        ("orders:a", "orders.inserted", "INSERT", {"id": 1, "status": "new"}, None, True),
        ("orders:a", "orders.updated", "UPDATE", {"id": 1, "status": "paid"}, {"id": 1}, True),
        ("orders:a", "orders.deleted", "DELETE", None, {"id": 1}, True),
    ]


def test_a_number_that_a_client_would_damage_is_a_string(orders: Station) -> None:
    orders.run("ALTER TABLE orders ALTER id TYPE bigint, ALTER status TYPE numeric[] USING NULL")
    orders.run("INSERT INTO orders VALUES (9007199254740993, 'a', '{1, 9007199254740993}')")
    [(_, _, _, record, _, _)] = sent(orders)
    assert record == {"id": "9007199254740993", "status": [1, "9007199254740993"]}


def test_a_row_that_moves_is_gone_for_one_and_new_for_the_other(orders: Station) -> None:
    orders.run(
        "INSERT INTO orders VALUES (1, 'a', 'new', 'x'), (2, NULL, 'x', 'y'), (3, '', 'x', 'y')"
    )
    orders.run("DELETE FROM realtime.messages")
    orders.run("UPDATE orders SET org_id = 'b' WHERE id = 1")
    assert sent(orders) == [
        ("orders:a", "orders.deleted", "DELETE", None, {"id": 1}, True),
        ("orders:b", "orders.inserted", "INSERT", {"id": 1, "status": "new"}, None, True),
    ]


def test_a_writer_without_rights_on_realtime_broadcasts_all_the_same(orders: Station) -> None:
    orders.run("CREATE ROLE clerk_of_direct")
    try:
        orders.run("GRANT ALL ON orders TO clerk_of_direct")
        orders.run("SET ROLE clerk_of_direct")
        orders.run("INSERT INTO orders VALUES (1, 'a', 'new', '')")
        orders.run("RESET ROLE")
        assert len(sent(orders)) == 1
    finally:
        orders.run("RESET ROLE")
        orders.run("DROP OWNED BY clerk_of_direct")
        orders.run("DROP ROLE clerk_of_direct")


def test_a_type_whose_cast_would_run_foreign_code_is_refused(orders: Station) -> None:
    """The trigger has the rights of whoever installs it."""
    orders.run("CREATE TYPE public.trap AS (x int)")
    orders.run(
        "CREATE FUNCTION public.sprung(trap) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json'"
    )
    orders.run("CREATE CAST (public.trap AS json) WITH FUNCTION public.sprung(trap)")
    orders.run("ALTER TABLE orders ADD COLUMN trap public.trap")
    with pytest.raises(UsageError, match="user-defined cast to json"):
        watching.broadcast_direct(
            orders.connection, "public.orders", org_column="org_id", topic_prefix="orders",
            include=("trap",),
        )  # fmt: skip


def test_unwatch_leaves_no_trace_and_the_list_shows_it(orders: Station) -> None:
    connection = orders.connection
    [watch] = watching.watches(connection)
    assert (watch.table, watch.options["broadcast"]) == ("orders", "direct")
    assert watching.unwatch(connection, "public.orders")
    assert watching.watches(connection) == []
    assert orders.rows("SELECT tgname FROM pg_trigger WHERE tgrelid = 'orders'::regclass") == []
    assert not watching.unwatch(connection, "public.orders")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"org_column": "nobody"}, "has no column nobody"),
        ({"include": ("ghost",)}, "has no column ghost"),
        ({"topic_prefix": "a:b"}, "topic prefix"),
    ],
)
def test_a_mistake_is_one_clear_line(orders: Station, options: dict[str, Any], says: str) -> None:
    given = {"org_column": "org_id", "topic_prefix": "orders", "include": ()} | options
    with pytest.raises(UsageError, match=says):
        watching.broadcast_direct(orders.connection, "public.orders", **given)
