"""Status is right, bounded and cheap; doctor finds what is wrong and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from outbox.embedded import EmbeddedPostgres, free_port
from outbox.store import doctor
from outbox.store.statements import statement
from outbox.store.status import read_status
from tests.cli.helpers import Outbox, Shop

ZERO = {"pending": 0, "scheduled": 0, "leased": 0, "held": 0, "dead": 0}


def alive(url: str, *kinds: str, ago: str = "0 s") -> None:
    with psycopg.connect(url) as connection:
        for kind in kinds:
            connection.execute(
                "INSERT INTO outbox.node VALUES (%s, %s, 'here', 1, clock_timestamp(),"
                " clock_timestamp() - %s::interval)",
                [uuid4(), kind, ago],
            )


def fill(url: str, pending: int = 0, **deliveries: int) -> None:
    """Rows as a backlog would hold them."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO outbox.pending SELECT g, 0, '' FROM generate_series(1, %s) g", [pending]
        )
        for state, count in deliveries.items():
            connection.execute(
                "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
                " lane, state, due_at, attempts, token, lease_until, held_at, held_reason)"
                " SELECT gen_random_uuid(), g, 0, 1, 1, 1, %(s)s, now(), g %% 2,"
                " CASE %(s)s WHEN 'leased' THEN 1 END, CASE %(s)s WHEN 'leased' THEN now() END,"
                " CASE %(s)s WHEN 'held' THEN now() END, CASE %(s)s WHEN 'held' THEN 'paused' END"
                " FROM generate_series(1, %(n)s) g",
                {"s": state, "n": count},
            )


def test_an_empty_installation_has_nothing_to_show(outbox: Outbox, database: str) -> None:
    assert outbox("status", "--json", OUTBOX_DATABASE_URL=database).json == {
        **ZERO,
        "oldest_pending_s": None,
        "last_poll_s": None,
        "relays": 0,
        "workers": 0,
        "estimated": [],
    }


def test_status_counts_each_state(outbox: Outbox, shop: Shop) -> None:
    shop.emit(2)
    fill(shop.url, scheduled=3, leased=4, held=5)
    alive(shop.url, "relay", "worker", "worker")
    shown = outbox("status", "--json", OUTBOX_DATABASE_URL=shop.url).json
    wanted = {"pending": 2, "scheduled": 3, "leased": 4, "held": 5, "dead": 0}
    assert {name: shown[name] for name in ZERO} == wanted
    assert shown["oldest_pending_s"] >= 0
    assert shown["last_poll_s"] >= 0
    assert (shown["relays"], shown["workers"]) == (1, 2)


def test_a_silent_relay_is_not_alive_and_its_last_poll_is_told(
    outbox: Outbox, database: str
) -> None:
    alive(database, "relay", ago="1 h")
    shown = outbox("status", "--json", OUTBOX_DATABASE_URL=database).json
    assert shown["relays"] == 0
    assert 3600 <= shown["last_poll_s"] < 3700


def test_beyond_the_limit_counts_are_estimates_that_say_so(database: str) -> None:
    fill(database, pending=3000, scheduled=3000, leased=10)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE outbox.pending, outbox.delivery")
        status = read_status(connection, count_max=1000)
        assert status.estimated == ["pending", "scheduled"]
        assert (status.pending, status.scheduled, status.leased) == (3000, 3000, 10)


def test_an_estimate_without_statistics_is_at_least_the_limit(database: str) -> None:
    fill(database, pending=30)
    with psycopg.connect(database) as connection:
        status = read_status(connection, count_max=10)
    assert status.pending >= 11
    assert status.estimated == ["pending"]


def test_status_reads_no_more_rows_than_the_limit(database: str) -> None:
    fill(database, pending=20_000, scheduled=20_000, held=20_000)
    with psycopg.connect(database) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        plan = connection.execute(
            b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement("status").encode(), {"count_max": 100}
        ).fetchone()
    assert plan is not None
    read = [
        node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
        for node in nodes_of(plan[0][0]["Plan"])
        if str(node.get("Relation Name", "")) in {"pending", "delivery", "dead_letter"}
    ]
    assert max(read) <= 101


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


def findings(outbox: Outbox, shop: Shop, **environ: str) -> dict[str, str]:
    """What doctor finds, by check, apart from nobody running."""
    alive(shop.url, "relay", "worker")
    ran = outbox("doctor", "--json", **{**shop.environ, **environ})
    assert ran.json["ok"] is (ran.code == 0)
    return {f["check"]: f"{f['problem']} | {f['fix']}" for f in ran.json["findings"]}


def test_a_healthy_installation_has_no_findings(outbox: Outbox, shop: Shop) -> None:
    assert findings(outbox, shop) == {}
    assert outbox("doctor", **shop.environ).err == "nothing is wrong\n"


def test_doctor_finds_that_nobody_runs(outbox: Outbox, shop: Shop) -> None:
    ran = outbox("doctor", "--json", **shop.environ)
    assert ran.code == 1
    assert [f["check"] for f in ran.json["findings"]] == ["relay"]
    alive(shop.url, "relay")
    ran = outbox("doctor", "--json", **shop.environ)
    assert [f["check"] for f in ran.json["findings"]] == ["worker"]


def test_doctor_stops_at_a_missing_schema(outbox: Outbox, empty_database: str) -> None:
    ran = outbox("doctor", "--json", OUTBOX_DATABASE_URL=empty_database)
    assert ran.code == 1
    assert [(f["check"], f["fix"]) for f in ran.json["findings"]] == [
        ("schema", "run: outbox migrate")
    ]


OLD_EVENT = """
WITH e AS (INSERT INTO outbox.event (id, slot, type, payload, created_at)
           VALUES (nextval('outbox.event_id'), 0, 'a.b', '{}', now() - interval '1 h') RETURNING id)
INSERT INTO outbox.pending SELECT id, 0, '' FROM e
"""
LOST_COLUMN = """
CREATE TABLE t (id int PRIMARY KEY, org text);
SELECT outbox.watch('t', org_column => 'org');
ALTER TABLE t DROP COLUMN org
"""
LOST_TABLE = "CREATE TABLE t (id int PRIMARY KEY); SELECT outbox.watch('t'); DROP TABLE t"
FAILING = """
INSERT INTO outbox.lane_health (lane, failing_since, failed_at, failures)
SELECT id, now() - interval '1 h', now(), 17 FROM outbox.endpoint
"""
BLOCKED = """
UPDATE outbox.subscription SET order_mode = 'block';
INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision, generation,
    lane, org_id, order_key, attempts, budget, expiries, reason, died_at)
SELECT gen_random_uuid(), n, 0, s.id, 1, 0, s.lane, 'acme', n % 2, 1, 1, 0, 'http_500', now()
FROM outbox.subscription s, generate_series(1, 4) n
"""
ALTERED_SECRET = "UPDATE outbox.secret SET sealed = overlay(sealed placing '\\x00' from 30)"


@pytest.mark.parametrize(
    ("check", "wrong", "words"),
    [
        (
            "identity",
            "UPDATE outbox.installation SET system_identifier = '1'",
            "another PostgreSQL",
        ),
        ("endpoints", "UPDATE outbox.endpoint SET state = 'disabled'", "endpoints resume"),
        ("retention", "UPDATE outbox.ring SET opened_at = now() - interval '30 d'", "30 days"),
        ("pending", OLD_EVENT, "s old"),
        ("watches", LOST_COLUMN, "public.t"),
        ("watches", LOST_TABLE, "unwatch --gone"),
        ("keys", ALTERED_SECRET, "1 stored"),
        ("failing", FAILING, "(17 tries)"),
        ("order", BLOCKED, "2 key(s)"),
    ],
)
def test_doctor_finds(check: str, wrong: str, words: str, outbox: Outbox, shop: Shop) -> None:
    shop.execute(wrong)
    found = findings(outbox, shop)
    assert list(found) == [check]
    assert words in found[check]


def test_doctor_finds_secrets_that_no_key_opens(outbox: Outbox, shop: Shop) -> None:
    found = findings(outbox, shop, OUTBOX_SECRET_KEY="")
    assert list(found) == ["keys"]
    assert "OUTBOX_SECRET_KEY is not set" in found["keys"]


def test_doctor_finds_an_unreachable_broker(outbox: Outbox, shop: Shop) -> None:
    found = findings(outbox, shop, OUTBOX_BROKER_URL=f"redis://:hush@127.0.0.1:{free_port()}")
    assert list(found) == ["broker"]
    assert "hush" not in found["broker"]


def test_doctor_finds_a_transaction_that_stays_open(
    outbox: Outbox, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TRANSACTION_MAX", timedelta(0))
    with psycopg.connect(shop.url, application_name="forgotten") as connection:
        connection.execute("SELECT 1")
        found = findings(outbox, shop)
    assert list(found) == ["transactions"]
    assert "forgotten" in found["transactions"]


def test_doctor_goes_on_after_a_check_that_it_may_not_ask(outbox: Outbox, shop: Shop) -> None:
    shop.execute("DROP FUNCTION outbox.watches()")
    shop.execute("UPDATE outbox.endpoint SET state = 'disabled'")
    assert list(findings(outbox, shop)) == ["watches", "endpoints"]


def test_doctor_says_what_to_do_about_a_check_that_its_role_may_not_ask(
    outbox: Outbox, shop: Shop, postgres: EmbeddedPostgres
) -> None:
    shop.execute("CREATE ROLE examiner LOGIN PASSWORD 'x'")
    try:
        shop.execute("GRANT outbox_reader TO examiner")
        url = shop.url.replace(f"postgres:{postgres.password}@", "examiner:x@")
        ran = outbox("doctor", "--json", **{**shop.environ, "OUTBOX_DATABASE_URL": url})
    finally:
        shop.execute("DROP OWNED BY examiner; DROP ROLE examiner")
    fixes = [found["fix"] for found in ran.json["findings"] if "denied" in found["problem"]]
    assert fixes
    assert all("role" in fix and "denied" not in fix for fix in fixes)
