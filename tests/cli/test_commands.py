"""The commands that install, capture and emit, and the form of their output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.helpers import Outbox, Ran


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture
def with_table(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute(
            'CREATE TABLE orders (id bigint PRIMARY KEY, org text, secret text, "Größe" int)'
        )
    return database


def test_migrate_installs_once(outbox: Outbox, empty_database: str) -> None:
    environ = {"OUTBOX_DATABASE_URL": empty_database}
    check = outbox("migrate", "--check", "--json", **environ)
    assert check.code == 6
    assert check.json["pending"][0] == "0001_tables"
    first = outbox("migrate", "--json", "--instance", "shop", **environ)
    assert first.json == {"applied": check.json["pending"]}
    assert outbox("migrate", "--json", **environ).json == {"applied": []}
    assert outbox("migrate", "--check", **environ).code == 0
    assert rows(empty_database, "SELECT instance FROM outbox.installation") == [("shop",)]


def test_the_sql_of_migrate_can_be_applied_by_other_means(
    outbox: Outbox, empty_database: str
) -> None:
    text = outbox("migrate", "--sql", "--instance", "staging").out
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(text.encode())
    assert outbox("migrate", "--check", OUTBOX_DATABASE_URL=empty_database).code == 0
    assert rows(empty_database, "SELECT instance FROM outbox.installation") == [("staging",)]


def test_uninstall_changes_nothing_without_yes(outbox: Outbox, with_table: str) -> None:
    environ = {"OUTBOX_DATABASE_URL": with_table}
    outbox("watch", "public.orders", **environ)
    dry = outbox("uninstall", "--json", **environ).json
    assert (dry["removed"], dry["watched"]) == (False, ["public.orders"])
    assert outbox("watches", "--json", **environ).json[0]["table"] == "orders"
    wet = outbox("uninstall", "--yes", "--json", **environ).json
    assert wet["removed"] is True
    assert rows(with_table, "SELECT to_regnamespace('outbox')") == [(None,)]
    assert rows(with_table, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == [(0,)]


def test_watch_takes_every_option_and_twice_changes_nothing(
    outbox: Outbox, with_table: str
) -> None:
    environ = {"OUTBOX_DATABASE_URL": with_table}
    call = [
        *("watch", "public.orders", "--org-column", "org", "--type-prefix", "sales"),
        *("--subject-column", "org", "--subject-column", "id", "--on", "insert,update"),
        *("--exclude", "secret", "--when", "id > 0", "--no-old", "--json"),
    ]
    assert outbox(*call, **environ).json == {"table": "public.orders", "changed": True}
    assert outbox(*call, **environ).json == {"table": "public.orders", "changed": False}
    with psycopg.connect(with_table) as connection:
        connection.execute("INSERT INTO orders VALUES (7, 'acme', 'hush', 1), (0, 'acme', '', 1)")
        connection.execute("DELETE FROM orders")
    found = rows(with_table, "SELECT type, org_id, subject, payload FROM outbox.event")
    assert [row[:3] for row in found] == [("sales.inserted", "acme", "sales/acme/7")]
    assert found[0][3]["record"] == {"id": 7, "org": "acme", "Größe": 1}


def test_watch_says_what_it_means_to_have_no_organization(outbox: Outbox, with_table: str) -> None:
    environ = {"OUTBOX_DATABASE_URL": with_table}
    assert "--all-orgs" in outbox("watch", "orders", **environ).err
    assert "--all-orgs" not in outbox("watch", "orders", "--org-column", "org", **environ).err


def test_watch_includes_only_the_columns_named(outbox: Outbox, with_table: str) -> None:
    environ = {"OUTBOX_DATABASE_URL": with_table}
    assert outbox("watch", "orders", "--include", "id,Größe", **environ).code == 0
    with psycopg.connect(with_table) as connection:
        connection.execute("INSERT INTO orders VALUES (7, 'acme', 'hush', 1)")
    assert rows(with_table, "SELECT payload -> 'record' FROM outbox.event") == [
        ({"id": 7, "Größe": 1},)
    ]


def test_unwatch_removes_and_says_whether_there_was_anything(
    outbox: Outbox, with_table: str
) -> None:
    environ = {"OUTBOX_DATABASE_URL": with_table}
    outbox("watch", "orders", **environ)
    assert outbox("unwatch", "orders", "--json", **environ).json["changed"] is True
    assert outbox("unwatch", "orders", "--json", **environ).json["changed"] is False
    assert outbox("watches", "--json", **environ).json == []


def test_what_a_dropped_table_left_is_cleaned_up(outbox: Outbox, with_table: str) -> None:
    environ = {"OUTBOX_DATABASE_URL": with_table}
    outbox("watch", "orders", **environ)
    with psycopg.connect(with_table) as connection:
        connection.execute("DROP TABLE orders")
    assert outbox("watches", "--json", **environ).json[0]["problems"]
    assert outbox("unwatch", "--gone", "--json", **environ).json["forgotten"] > 0
    assert outbox("watches", "--json", **environ).json == []


def test_emit_prints_the_id_alone(outbox: Outbox, database: str) -> None:
    ran = outbox("emit", "orders.paid", '{"a": 1.10}', OUTBOX_DATABASE_URL=database)
    found = rows(database, "SELECT id, type, org_id, payload::text FROM outbox.event")
    assert found == [(int(ran.out), "orders.paid", None, '{"a": 1.10}')]
    assert ran.err == ""


def test_emit_takes_every_option(outbox: Outbox, database: str) -> None:
    ran = outbox(
        *("emit", "orders.paid", "--org", "acme", "--subject", "orders/1", "--ordering-key", "k"),
        *("--header", "A: b: c", "--header", "D:e", "--deliver-at", "2030-01-01T00:00:00+02:00"),
        *("--expires-at", "2031-01-01T00:00:00Z", "--dedupe-key", "once", "--json"),
        OUTBOX_DATABASE_URL=database,
    )
    found = rows(
        database,
        "SELECT id, org_id, subject, ordering_key, headers, payload, deliver_at ="
        " '2029-12-31 22:00Z', expires_at = '2031-01-01 00:00Z' FROM outbox.event",
    )
    headers = {"A": "b: c", "D": "e"}
    assert found == [(ran.json["id"], "acme", "orders/1", "k", headers, {}, True, True)]


def test_a_dedupe_key_gives_the_first_id_again(outbox: Outbox, database: str) -> None:
    call = ("emit", "orders.paid", "--dedupe-key", "once")
    first = outbox(*call, OUTBOX_DATABASE_URL=database).out
    assert outbox(*call, OUTBOX_DATABASE_URL=database).out == first
    assert rows(database, "SELECT count(*) FROM outbox.event") == [(1,)]


def test_in_counts_on_the_servers_clock(outbox: Outbox, database: str) -> None:
    outbox("emit", "orders.paid", "--in", "2h", OUTBOX_DATABASE_URL=database)
    query = "SELECT deliver_at - created_at BETWEEN '119 min' AND '2 h' FROM outbox.event"
    assert rows(database, query) == [(True,)]


def test_the_payload_comes_from_a_file_or_stdin(
    outbox: Outbox, run_outbox: Callable[..., Ran], database: str, tmp_path: Path
) -> None:
    (tmp_path / "payload.json").write_text('{"from": "file"}')
    environ = {"OUTBOX_DATABASE_URL": database}
    assert outbox("emit", "a.b", "--file", "payload.json", **environ).code == 0
    for args in (("-",), ("--file", "-")):
        assert run_outbox("emit", "a.b", *args, stdin='{"from": "stdin"}', **environ).code == 0
    found = rows(database, "SELECT payload ->> 'from' FROM outbox.event ORDER BY id")
    assert found == [("file",), ("stdin",), ("stdin",)]


def test_config_shows_what_is_in_force_and_no_secret(
    outbox: Outbox, key: str, tmp_path: Path
) -> None:
    (tmp_path / "outbox.toml").write_text('lease = "10s"\n')
    environ = {
        "OUTBOX_CONFIG": "outbox.toml",
        "OUTBOX_SECRET_KEY": key,
        "OUTBOX_DATABASE_URL": "postgresql://me:hush@db/shop",
    }
    shown = outbox("config", "--json", **environ).json
    assert shown["lease"] == {
        "setting": "lease",
        "value": "10s",
        "source": "file",
        "variable": "OUTBOX_LEASE",
    }
    assert shown["database_url"]["value"] == "postgresql://me:***@db/shop"
    for ran in (outbox("config", **environ), outbox("config", "--json", **environ)):
        assert key not in ran.out
        assert "hush" not in ran.out


@pytest.mark.parametrize(
    "args",
    [
        "status",
        "doctor",
        "watches",
        "config",
        "uninstall",
        "migrate",
        "endpoints list",
        "subscriptions list",
        "events list",
        "deliveries list",
        "dead list",
    ],
)
def test_json_is_one_document_on_stdout(args: str, outbox: Outbox, database: str) -> None:
    ran = outbox(*args.split(), "--json", OUTBOX_DATABASE_URL=database)
    assert isinstance(ran.json, dict | list)
    assert ran.err == ""
    assert outbox(*args.split(), OUTBOX_DATABASE_URL=database).code == ran.code
