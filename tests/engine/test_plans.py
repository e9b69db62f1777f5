"""Plans of the polled statements: no sequential scan of a hot table, and the same cost under a
backlog of a hundred thousand as under a thousand, with statistics taken while all was empty."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from psycopg import sql

from outbox.store.dispatch import ID_MAX
from outbox.store.statements import statement
from tests.engine.engine import Engine

BATCH = 50
LEASES = {"now": None, "token": 7, "lease_s": 30.0, "window": BATCH}
ORDERED = {
    "floor": 0, "ceiling": ID_MAX, "events_max": BATCH,
    "orgs_max": 0, "org_from": "", "orgs_skipped": [],
}  # fmt: skip
HOT = re.compile(r"(pending|delivery|dead_letter|event_\d|journal_\d)")


class Backlog:
    """A database with so many pending events and scheduled and leased deliveries."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        for table in ("pending", "delivery", "dead_letter", "event_0", "journal_0"):
            engine.run(f"ALTER TABLE outbox.{table} SET (autovacuum_enabled = off)")
        engine.run("ANALYZE")
        for org in ("a", "b"):
            lane = engine.endpoint(org, concurrency=100_000)
            engine.subscribe(org=org, endpoint_id=lane)
        self.size = 0

    def grow(self, to: int) -> None:
        """Add pending events, and for each a scheduled, a failed and a leased delivery."""
        self.engine.run(
            "WITH e AS (INSERT INTO outbox.event (id, slot, type, org_id, payload, created_at)"
            " SELECT nextval('outbox.event_id'), 0, 'orders.paid',"
            " CASE WHEN g %% 9 = 0 THEN 'b' ELSE 'a' END, '{}', clock_timestamp()"
            " FROM generate_series(%s::int, %s) g RETURNING id, org_id)"
            " INSERT INTO outbox.pending SELECT id, 0, org_id FROM e",
            self.size + 1,
            to,
        )
        self.engine.run(
            "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
            " lane, org_id, state, due_at, attempts, token, lease_until)"
            " SELECT md5(k || '/' || g)::uuid, p.id, 0, s.id, 1, s.lane, s.org_id,"
            " CASE k WHEN 3 THEN 'leased' ELSE 'scheduled' END, clock_timestamp(), k / 2,"
            " CASE k WHEN 3 THEN 7 END, CASE k WHEN 3 THEN clock_timestamp() + interval '1 h' END"
            " FROM generate_series(%s::int, %s) g, generate_series(1, 3) k,"
            " (SELECT id, lane, org_id FROM outbox.subscription WHERE org_id = 'a') s,"
            " (SELECT id FROM outbox.pending LIMIT 1) p WHERE k < 3 OR g <= 1000",
            self.size + 1,
            to,
        )
        self.size = to

    def ids(self) -> list[Any]:
        query = "SELECT id FROM outbox.delivery WHERE state = 'leased' ORDER BY id LIMIT %s"
        return [row[0] for row in self.engine.rows(query, BATCH)]

    def prepare(self, name: str) -> list[str]:
        """Prepare a statement as `probe`; returns its parameters in order."""
        names: list[str] = []

        def number(match: re.Match[str]) -> str:
            if match[1] not in names:
                names.append(match[1])
            return f"${names.index(match[1]) + 1}"

        text = re.sub(r"%\((\w+)\)s", number, statement(name)).replace("%%", "%")
        self.engine.connection.execute("DEALLOCATE ALL")
        self.engine.connection.execute(f"PREPARE probe AS {text}".encode(), prepare=False)
        return names

    def explain(self, names: list[str], params: dict[str, Any]) -> dict[str, Any]:
        """Run `probe` under its generic plan, and undo it; the plan with what it touched."""
        values = sql.SQL(", ").join(sql.Literal(params[n]) for n in names)
        given = sql.SQL("({})").format(values) if names else sql.SQL("")
        connection = self.engine.connection
        with connection.transaction(force_rollback=True):
            row = connection.execute(
                sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE probe {}").format(given),
                prepare=False,
            ).fetchone()
        assert row is not None
        plan: dict[str, Any] = row[0][0]["Plan"]
        return plan

    def start(self, name: str, ids: list[Any]) -> None:
        """Bring the leases into the state that the statement wants."""
        at = "clock_timestamp()" if name == "settle" else "NULL"
        self.engine.run(f"UPDATE outbox.delivery SET started_at = {at} WHERE id = ANY (%s)", ids)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def touched(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


STATEMENTS: dict[str, dict[str, Any]] = {
    "route": LEASES | ORDERED,
    "route fairly": LEASES | ORDERED | {"orgs_max": 64},
    "lease_due": LEASES | {"lane_from": 0, "lanes_max": 128, "later_max": 500},
    "take": {"now": None, "tokens": [7] * BATCH},
    "settle": {
        "now": None, "tokens": [7] * BATCH, "verdicts": ["delivered", "retry"] * (BATCH // 2),
        "charged": [True] * BATCH, "reasons": ["x"] * BATCH, "delays_s": [5.0] * BATCH,
        "details": [None] * BATCH, "effects": [None] * BATCH,
    },
    "extend": {"now": None, "tokens": [7] * BATCH, "lease_s": 30.0},
    "watch": {
        "now": None, "tokens": [7] * BATCH, "told": [True] * BATCH, "percents": [1.0] * BATCH,
        "notes": ["x"] * BATCH, "metadata": ["{}"] * BATCH, "over": [],
    },
    "expire_leases": {"now": None, "rows_max": BATCH, "expiries_max": 5},
    "tick": {"floor": 0, "bell": None, "scheduled": True},
    "owed_now": {},
}  # fmt: skip


@pytest.fixture
def backlog(engine: Engine) -> Backlog:
    return Backlog(engine)


def test_the_polled_statements_cost_the_same_under_any_backlog(backlog: Backlog) -> None:
    plans: dict[str, list[dict[str, Any]]] = {name: [] for name in STATEMENTS}
    for size in (1_000, 100_000):
        backlog.grow(size)
        for name, params in STATEMENTS.items():
            ids = backlog.ids()
            backlog.start(name, ids)
            names = backlog.prepare(name.split()[0])
            plans[name].append(backlog.explain(names, params | {"ids": ids}))
    for name in ("take", "settle", "extend", "watch"):
        assert [plan["Actual Rows"] for plan in plans[name]] == [BATCH, BATCH], name
    for name, (small, large) in plans.items():
        scans = [
            node["Relation Name"]
            for node in nodes(large)
            if node["Node Type"] == "Seq Scan" and HOT.match(node["Relation Name"])
            and node["Actual Loops"]
        ]  # fmt: skip
        assert not scans, f"{name} scans {scans}"
        assert touched(large) <= 2 * touched(small) + 20, (
            f"{name}: {touched(small)} blocks at 1,000 rows, {touched(large)} at 100,000"
        )


def test_a_key_that_many_wait_for_costs_the_same(engine: Engine) -> None:
    """Of one key three are under way; a new event of it is routed, and one gets its turn."""
    backlog = Backlog(engine)
    engine.run(
        "UPDATE outbox.subscription SET order_mode = 'share', key = 'type', key_concurrency = 3"
    )
    cost: dict[str, list[int]] = {"route": [], "order_advance": []}
    for size in (1_000, 30_000):
        engine.emit(3, "a")
        engine.route()
        engine.run(
            "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
            " lane, org_id, order_key, state, due_at, held_at, held_reason)"
            " SELECT md5(%s || '/' || g)::uuid, d.event_id + g, 0, d.subscription_id, 1, d.lane,"
            " 'a', d.order_key, 'held', clock_timestamp(), clock_timestamp(), 'order'"
            " FROM generate_series(1, %s) g, (SELECT * FROM outbox.delivery LIMIT 1) d",
            size,
            size,
        )
        engine.run("DELETE FROM outbox.delivery WHERE id IN (SELECT id FROM outbox.delivery"
                   " WHERE held_reason IS NULL LIMIT 1)")  # fmt: skip
        engine.emit(1, "a")
        advance = {"now": None, "since_s": None, "rows_max": BATCH}
        for name, params in (("route", LEASES | ORDERED), ("order_advance", advance)):
            names = backlog.prepare(name)
            cost[name].append(touched(backlog.explain(names, params)))
        engine.route()
        engine._locked("order_advance", advance)
    for name, (small, large) in cost.items():
        assert large <= 2 * small + 20, f"{name}: {small} blocks, then {large}"


@pytest.mark.parametrize("name", ["take", "settle", "extend"])
def test_a_plan_made_while_all_was_empty_reaches_rows_by_their_id(
    backlog: Backlog, name: str
) -> None:
    """A daemon prepares its statements at its start and keeps the plans for days."""
    names = backlog.prepare(name)
    for _ in range(6):
        backlog.explain(names, STATEMENTS[name] | {"ids": [UUID(int=0)] * BATCH})
    backlog.grow(1_000)
    ids = backlog.ids()
    backlog.start(name, ids)
    early = touched(backlog.explain(names, STATEMENTS[name] | {"ids": ids}))
    late = touched(backlog.explain(backlog.prepare(name), STATEMENTS[name] | {"ids": ids}))
    assert early <= 2 * late, f"{early} blocks where {late} are enough"
