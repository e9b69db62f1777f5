"""Column types: the log says what stood in the row, and marks what cannot stand there."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from .conftest import Shop

LIMIT = 1048576

VALUES: list[tuple[str, str, str]] = [
    (
        "numeric",
        "12345678901234567890.123456789012345678901234567890",
        "12345678901234567890.123456789012345678901234567890",
    ),
    ("numeric", "NaN", '"NaN"'),
    ("numeric", "-Infinity", '"-Infinity"'),
    ("numeric(10,4)", "1.5", "1.5000"),
    ("bigint", "9007199254740993", "9007199254740993"),
    ("double precision", "NaN", '"NaN"'),
    ("double precision", "Infinity", '"Infinity"'),
    ("double precision", "0.1", "0.1"),
    ("real", "1e30", "1e+30"),
    ("boolean", "t", "true"),
    ("text", 'ünï " \\ \n \x01', json.dumps('ünï " \\ \n \x01', ensure_ascii=False)),
    ("char(3)", "a", '"a  "'),
    ("bytea", "\\x00ff", '"\\\\x00ff"'),
    ("int[]", "{1,NULL,3}", "[1,null,3]"),
    ("text[]", "{{a,b},{c,d}}", '[["a","b"],["c","d"]]'),
    ("int4range", "[1,5)", '"[1,5)"'),
    ("int4multirange", "{[1,5),[7,9)}", '"{[1,5),[7,9)}"'),
    ("tstzrange", "empty", '"empty"'),
    ("mood", "sad", '"sad"'),
    ("positive", "5", "5"),
    ("pair", "(1,x)", '{"a":1,"b":"x"}'),
    ("pair[]", '{"(1,x)"}', '[{"a":1,"b":"x"}]'),
    ("jsonb", '{"b": 1.50, "a": [null]}', '{"a": [null], "b": 1.50}'),
    ("json", '{"a": "\\u0000", "a": 1,  "n": 1e400}', '{"a": "\\u0000", "a": 1,  "n": 1e400}'),
    ("timestamptz", "infinity", '"infinity"'),
    ("timestamptz", "2026-01-02 03:04:05.678901+00", '"2026-01-02T03:04:05.678901+00:00"'),
    ("timestamp", "-infinity", '"-infinity"'),
    ("date", "0044-03-15 BC", '"0044-03-15 BC"'),
    ("interval", "1 year 2 days 03:00", '"1 year 2 days 03:00:00"'),
    ("uuid", "6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b", '"6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b"'),
    ("inet", "::1/64", '"::1/64"'),
    ("tsvector", "a:1 b", "\"'a':1 'b'\""),
    ("bit(4)", "1010", '"1010"'),
    ("money", "1.5", '"$1.50"'),
    ("point", "(1,2)", '"(1,2)"'),
    ("regclass", "pg_class", '"pg_class"'),
]


def make_types(shop: Shop) -> None:
    shop.run("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    shop.run("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    shop.run("CREATE TYPE pair AS (a int, b text)")
    shop.run("SET timezone = 'UTC'")
    shop.run("SET lc_monetary = 'C'")


def test_every_common_type_is_captured_exactly(shop: Shop) -> None:
    make_types(shop)
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(VALUES))
    shop.run(f"CREATE TABLE every (id int PRIMARY KEY, {columns})")
    shop.watch("every")
    marks = ", ".join(f"%s::text::{kind}" for kind, _, _ in VALUES)
    shop.run(f"INSERT INTO every VALUES (1, {marks})", *[value for _, value, _ in VALUES])
    shop.run("UPDATE every SET id = 2")
    shop.run("DELETE FROM every")
    expected = ",".join(f'"c{i}":{shown}' for i, (_, _, shown) in enumerate(VALUES))
    inserted, updated, deleted = shop.events()
    assert f'"record":{{"id":1,{expected}}},"old_record"' in inserted.text
    assert f'"old_record":{{"id":2,{expected}}}' in deleted.text
    assert updated.payload["changed"] == ["id"]
    assert '"omitted"' not in deleted.text


def test_settings_of_the_writer_lose_nothing(shop: Shop) -> None:
    shop.run("CREATE TABLE s (id int PRIMARY KEY, f float8, b bytea)")
    shop.watch("s")
    with shop.connection.transaction():
        shop.run("SET LOCAL extra_float_digits = -10")
        shop.run("SET LOCAL bytea_output = 'escape'")
        shop.run("INSERT INTO s VALUES (1, 0.1234567890123456, '\\xff00')")
        shop.run("UPDATE s SET f = 0.1234567890123457")
    inserted, updated = shop.events()
    assert inserted.record == {"id": 1, "f": 0.1234567890123456, "b": "\\xff00"}
    assert updated.payload["changed"] == ["f"]


@pytest.mark.parametrize("extra", [{}, {"condition": "true"}, {"exclude": ["amount"]}])
def test_a_row_too_large_becomes_a_marker_with_its_organization(
    shop: Shop, extra: dict[str, Any]
) -> None:
    shop.run("ALTER TABLE orders ALTER note SET STORAGE EXTERNAL")
    shop.watch(org_column="org", **extra)
    shop.run("INSERT INTO orders VALUES (1, 'a', 1, repeat('x', 2000000)), (2, 'b', 1, 'small')")
    shop.run("UPDATE orders SET note = note || 'y'")
    shop.run("DELETE FROM orders WHERE id = 1")
    by_id = {(e.subject, e.type): e for e in shop.events()}
    assert len(by_id) == 5
    for kind, changed in (("inserted", None), ("updated", ["note"]), ("deleted", None)):
        event = by_id["orders/1", f"orders.{kind}"]
        assert event.org_id == "a"
        assert (event.record, event.old) == (None, None)
        assert (event.payload["omitted"], event.payload["key"]) == ("too_large", {"id": 1})
        assert event.payload["changed"] == changed
    assert "omitted" not in by_id["orders/2", "orders.inserted"].payload


@pytest.mark.parametrize("size", [16_000, 20_000, LIMIT - 400, LIMIT + 1])
@pytest.mark.parametrize("character", ["x", "\\x01"])
def test_no_payload_exceeds_the_limit(shop: Shop, size: int, character: str) -> None:
    shop.watch(org_column="org")
    shop.run(
        "INSERT INTO orders VALUES (1, 'a', 1, repeat(%s, %s))",
        character.encode().decode("unicode_escape"),
        size,
    )
    shop.run("UPDATE orders SET note = note || 'y'")
    for event in shop.events():
        assert len(event.text) <= LIMIT
        assert (event.record is None) == ("omitted" in event.payload)


@pytest.mark.parametrize("extra", [{}, {"condition": "true"}])
def test_a_small_row_whose_text_is_large_becomes_a_marker(
    shop: Shop, extra: dict[str, Any]
) -> None:
    shop.run("CREATE TABLE vast (id int PRIMARY KEY, n numeric[])")
    shop.watch("vast", **extra)
    shop.run("INSERT INTO vast VALUES (1, array_fill(1e131000::numeric, ARRAY[100])), (2, NULL)")
    big, small = shop.events()
    assert (big.subject, big.payload["omitted"], big.payload["key"]) == (
        "vast/1",
        "too_large",
        {"id": 1},
    )
    assert small.record == {"id": 2, "n": None}


def test_a_move_of_a_large_row_tells_no_organization_about_the_other(shop: Shop) -> None:
    shop.watch(org_column="org")
    shop.run("INSERT INTO orders VALUES (1, 'a', 1, repeat('x', 2000000))")
    shop.fresh()
    shop.run("UPDATE orders SET org = 'b'")
    left, came = shop.events()
    assert (left.type, left.org_id, left.old) == ("orders.deleted", "a", {"id": 1})
    assert (came.type, came.org_id, came.payload["omitted"]) == (
        "orders.inserted",
        "b",
        "too_large",
    )


@pytest.mark.parametrize("shape", ["t", "t[]", "d", "c", "c[]"])
def test_types_whose_cast_to_json_is_a_users_function_are_refused(shop: Shop, shape: str) -> None:
    shop.run("CREATE TYPE t AS ENUM ('x')")
    shop.run("CREATE FUNCTION spy(t) RETURNS json LANGUAGE plpgsql AS 'BEGIN RAISE ''spied''; END'")
    shop.run("CREATE DOMAIN d AS t")
    shop.run("CREATE TYPE c AS (a t)")
    shop.run(f"CREATE TABLE bad (id int PRIMARY KEY, v {shape})")
    shop.watch("bad")
    shop.run("CREATE CAST (t AS json) WITH FUNCTION spy(t)")
    assert "user-defined cast to json" in shop.run("SELECT problems[1] FROM outbox.watches()")[0]
    shop.run("SELECT outbox.unwatch('bad')")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="user-defined cast to json"):
        shop.watch("bad")


def test_a_conversion_that_fails_is_a_marker(shop: Shop) -> None:
    shop.run("CREATE TYPE t AS ENUM ('x')")
    shop.run("CREATE FUNCTION spy(t) RETURNS json LANGUAGE plpgsql AS 'BEGIN RAISE ''spied''; END'")
    shop.run("CREATE TABLE bad (id int PRIMARY KEY, org text, v t, w int)")
    shop.watch("bad", org_column="org", condition="true")
    shop.run("CREATE CAST (t AS json) WITH FUNCTION spy(t)")
    shop.run("INSERT INTO bad VALUES (1, 'a', 'x', 1)")
    shop.run("UPDATE bad SET w = 2")
    shop.run("DELETE FROM bad")
    for event in shop.events():
        assert (event.org_id, event.subject) == ("a", "bad/1")
        assert (event.payload["omitted"], event.payload["key"]) == ("unconvertible", {"id": 1})
        assert event.payload["changed"] in (None, ["w"])
