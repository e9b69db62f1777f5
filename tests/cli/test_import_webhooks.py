"""`outbox import-webhooks`, on triggers of the shape that Supabase's dashboard makes."""

from __future__ import annotations

import json
from threading import Thread
from typing import Any

import psycopg
import pytest

from outbox import verify
from tests.cli.helpers import Outbox, Receiver

# A trigger function of the real one's name and arguments, which notes what would be sent.
SCHEMA = """
CREATE SCHEMA supabase_functions;
CREATE TABLE supabase_functions.hooks (body jsonb, url text);
CREATE FUNCTION supabase_functions.http_request() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO supabase_functions.hooks (body, url) VALUES (jsonb_build_object('type', TG_OP,
        'table', TG_TABLE_NAME, 'schema', TG_TABLE_SCHEMA, 'record', NEW, 'old_record', OLD),
        TG_ARGV[0]);
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TABLE orders (id int PRIMARY KEY, org_id text, total int);
CREATE SCHEMA "Far Away";
CREATE TABLE "Far Away"."Odd Table" (id int PRIMARY KEY, "ünit" text);
"""


def trigger(
    name: str,
    url: str,
    *,
    on: str = "INSERT OR UPDATE",
    table: str = "public.orders",
    when: str = "",
    method: str = "POST",
    headers: str = '{"Content-type":"application/json","X-Key":"s3cret"}',
    params: str = "{}",
    each: str = "AFTER",
) -> str:
    """As `pg_dump` writes it."""
    arguments = ", ".join(f"'{text}'" for text in (url, method, headers, params, "1000"))
    return (
        f'CREATE TRIGGER "{name}" {each} {on} ON {table} FOR EACH ROW {when}'
        f" EXECUTE FUNCTION supabase_functions.http_request({arguments})"
    )


@pytest.fixture
def hooked(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute(SCHEMA.encode())
    return database


def run(url: str, *statements: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        for text in statements:
            cursor.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


TRIGGERS = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname !~ '^(!|append|signal)'"


def test_hooks_are_shown_and_nothing_is_changed(outbox: Outbox, hooked: str) -> None:
    run(
        hooked,
        trigger("a", "https://example.com/in?x=1", params='{"y": "2 3", "z": 4}'),
        trigger("b", "https://example.com/b", on="DELETE", table='"Far Away"."Odd Table"'),
    )
    ran = outbox("import-webhooks", "--json", OUTBOX_DATABASE_URL=hooked)
    assert ran.code == 0
    far, orders = ran.json["webhooks"]
    assert ran.json["applied"] is False
    assert far == {
        "table": '"Far Away"."Odd Table"',
        "trigger": "b",
        "url": "https://example.com/b",
        "events": ["Far_Away.Odd_Table.deleted"],
        "body": "database-webhook",
        "headers": ["X-Key"],
        "timeout": 15.0,
        "condition": None,
        "problem": None,
    }
    assert orders["url"] == "https://example.com/in?x=1&y=2+3&z=4"
    assert orders["events"] == ["orders.inserted", "orders.updated"]
    shown = outbox("import-webhooks", OUTBOX_DATABASE_URL=hooked)
    assert "s3cret" not in ran.out + shown.out
    assert "to replace them: outbox import-webhooks --apply" in shown.err
    assert sorted(run(hooked, TRIGGERS)) == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        ([trigger("a", "https://example.com", method="GET")], "it sends GET; endpoints are sent"),
        ([trigger("a", "https://127.0.0.1/in")], "is not public"),
        ([trigger("a", "http://example.com/in")], "http"),
        ([trigger("a", "nonsense")], "URL"),
        ([trigger("a", "https://example.com", headers="nonsense")], "its headers are no JSON"),
        ([trigger("a", "https://example.com", headers='{"webhook-id":"1"}')], "set by Outbox"),
        ([trigger("a", "https://example.com", params='{"a":[1]}')], "its params are no JSON"),
        ([trigger("a", "https://example.com", on="UPDATE OF total, id")], "names id, total"),
        ([trigger("a", "https://example.com", each="BEFORE")], "not fire after each row"),
        (
            [trigger("a", "https://example.com"), "ALTER TABLE orders DISABLE TRIGGER a"],
            "it is disabled",
        ),
        (
            [
                trigger("a", "https://example.com", when="WHEN (new.total > 1)"),
                trigger("b", "https://example.com"),
            ],
            "different conditions",
        ),
        (
            [trigger("a", "https://example.com"), "SELECT outbox.watch('orders', old => false)"],
            "watched already, without the old record",
        ),
        (
            [
                trigger("a", "https://example.com"),
                "SELECT outbox.watch('orders', operations => '{insert}')",
            ],
            "watched already, without update",
        ),
    ],
)
def test_what_cannot_be_kept_as_it_is_says_why_and_stays(
    outbox: Outbox, hooked: str, key: str, statements: list[str], problem: str
) -> None:
    run(hooked, *statements)
    before = run(hooked, TRIGGERS)
    ran = outbox(
        *("import-webhooks", "--apply", "--json"),
        OUTBOX_DATABASE_URL=hooked,
        OUTBOX_SECRET_KEY=key,
    )
    assert ran.code == 0, ran.err
    assert problem in ran.json["webhooks"][0]["problem"]
    assert "endpoint" not in ran.json["webhooks"][0]
    assert run(hooked, TRIGGERS) == before
    assert run(hooked, "SELECT count(*) FROM outbox.endpoint") == [(0,)]


def test_hooks_are_replaced_under_load_and_every_change_is_sent_by_one_of_the_two(
    outbox: Outbox, hooked: str, key: str, receiver: Receiver
) -> None:
    """Before: the trigger. From the same moment on: a signed request with the same body."""
    environ = {
        "OUTBOX_DATABASE_URL": hooked,
        "OUTBOX_SECRET_KEY": key,
        "OUTBOX_EGRESS_ALLOW_CIDRS": "127.0.0.0/8",
        "OUTBOX_EGRESS_ALLOW_HTTP": "true",
        "OUTBOX_EGRESS_PORTS": str(receiver.port),
    }
    run(hooked, trigger("a", f"http://127.0.0.1:{receiver.port}/in"))
    writer = Thread(
        target=lambda: [run(hooked, f"INSERT INTO orders VALUES ({n}, 'acme')") for n in range(60)]
    )
    writer.start()
    ran = outbox("import-webhooks", "--apply", "--json", "--org-column", "org_id", **environ)
    writer.join()
    assert ran.code == 0, ran.err
    [hook] = ran.json["webhooks"]
    assert hook["secret"].startswith("whsec_")
    assert run(hooked, TRIGGERS) == []
    run(hooked, "UPDATE orders SET total = 7 WHERE id = 1", "DELETE FROM orders WHERE id = 2")
    assert outbox("run", "--drain", **environ).code == 0
    by_trigger = [row[0] for row in run(hooked, "SELECT body FROM supabase_functions.hooks")]
    bodies = [json.loads(body) for body in receiver.bodies]
    inserted = [body for body in [*by_trigger, *bodies] if body["type"] == "INSERT"]
    assert sorted(body["record"]["id"] for body in inserted) == list(range(60))
    [updated] = [body for body in bodies if body["type"] == "UPDATE"]
    assert updated == {
        "type": "UPDATE",
        "table": "orders",
        "schema": "public",
        "record": {"id": 1, "org_id": "acme", "total": 7},
        "old_record": {"id": 1, "org_id": "acme", "total": None},
    }
    assert {body["type"] for body in bodies} == {"INSERT", "UPDATE"}
    for headers, body in zip(receiver.headers, receiver.bodies, strict=True):
        assert (headers["x-key"], headers["content-type"]) == ("s3cret", "application/json")
        assert verify(body, headers, hook["secret"]).body == body
    again = outbox("import-webhooks", **environ)
    assert "there is no trigger that calls" in again.err


def test_one_transaction_holds_it_all(outbox: Outbox, hooked: str, key: str) -> None:
    """The second trigger cannot be dropped: the first stays as it was."""
    run(
        hooked,
        "CREATE TABLE things (id int PRIMARY KEY)",
        trigger("a", "https://example.com/a", when="WHEN (new.total > 1)"),
        trigger("b", "https://example.com/b", table="public.things"),
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects()"
        " WHERE object_identity LIKE 'b on%') THEN RAISE EXCEPTION 'not this one'; END IF; END $$",
        "CREATE EVENT TRIGGER refuse ON sql_drop EXECUTE FUNCTION refuse()",
    )
    environ = {"OUTBOX_DATABASE_URL": hooked, "OUTBOX_SECRET_KEY": key}
    ran = outbox("import-webhooks", "--apply", **environ)
    assert ran.code != 0
    assert "not this one" in ran.err
    assert sorted(run(hooked, TRIGGERS)) == [("a",), ("b",)]
    assert run(hooked, "SELECT count(*) FROM outbox.watches()") == [(0,)]
    assert run(hooked, "SELECT count(*) FROM outbox.endpoint") == [(0,)]
    run(hooked, "DROP EVENT TRIGGER refuse")
    assert outbox("import-webhooks", "--apply", **environ).code == 0
    run(
        hooked,
        "INSERT INTO orders VALUES (1, 'a', 1), (2, 'a', 2)",
        "INSERT INTO things VALUES (1)",
    )
    assert run(hooked, "SELECT type, subject FROM outbox.event ORDER BY id") == [
        ("orders.inserted", "orders/2"),
        ("things.inserted", "things/1"),
    ]
