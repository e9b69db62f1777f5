"""Plans of the polled statements: no sequential scan of a hot table, and the same cost under a
backlog of a million as under a thousand, with statistics taken while all was empty, when it was
small, and when it was deep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from outbox.bench.backlog import shape
from outbox.store.dispatch import ID_MAX
from outbox.store.statements import statement
from tests.engine.engine import Engine, another

BATCH = 50
LEASES: dict[str, Any] = {
    "now": None, "token": 7, "lease_s": 30.0, "window": BATCH, "lanes": [], "oldest": [],
    "front_lanes": [], "fronts": [],
}  # fmt: skip
ORDERED = {
    "floor": 0, "ceiling": ID_MAX, "events_max": BATCH,
    "orgs_max": 0, "org_from": "", "orgs_skipped": [],
}  # fmt: skip
INDEXES = (
    b"SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE NOT"
    b" indisprimary AND indrelid IN ('outbox.pending'::regclass, 'outbox.delivery'::regclass)"
)
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
        """Add pending events, the last ninth of another organization, for each a delivery that
        is fresh or failed, and for the first thousand one that is leased."""
        first = self.size + 1
        with psycopg.connect(self.engine.url, autocommit=True) as connection:
            aside = connection.execute(INDEXES).fetchall() if to > 100_000 else []
            for name, _ in aside:  # made anew at the end, which takes a fraction of the time
                connection.execute(f"DROP INDEX {name}".encode())
            connection.execute(
                "WITH e AS (INSERT INTO outbox.event (id, slot, type, org_id, payload, created_at)"
                " SELECT nextval('outbox.event_id'), 0, 'orders.paid',"
                " CASE WHEN g > %s THEN 'b' ELSE 'a' END, '{}', clock_timestamp()"
                " FROM generate_series(%s::int, %s) g RETURNING id, org_id)"
                " INSERT INTO outbox.pending SELECT id, 0, org_id FROM e",
                [to - (to - self.size) // 9, first, to],
            )
            for state, last in (("scheduled", to), ("leased", 1000)):
                connection.execute(
                    "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id,"
                    " revision, lane, org_id, state, due_at, attempts, token, lease_until)"
                    " SELECT lpad(%(k)s || to_hex(g), 32, '0')::uuid, p.id, 0, s.id, 1, s.lane,"
                    " s.org_id, %(state)s, now(), g %% 2, l.token, l.until"
                    " FROM generate_series(%(first)s::int, %(last)s) g,"
                    " (SELECT id, lane, org_id FROM outbox.subscription WHERE org_id = 'a') s,"
                    " (SELECT id FROM outbox.pending LIMIT 1) p,"
                    " (SELECT CASE %(state)s WHEN 'leased' THEN 7 END AS token,"
                    " CASE %(state)s WHEN 'leased' THEN now() + interval '1 h' END AS until) l",
                    {"state": state, "k": "ab"[state == "leased"], "first": first, "last": last},
                )
            for _, index in aside:
                connection.execute(index.encode())
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

    def places(self) -> dict[str, list[float]]:
        """Every lane and queue, from the beginning on."""
        found = [(*place[:2], 0.0) for place in self.engine.walk()]
        names = ("due_lanes", "due_queues", "fronts")
        return {n: [place[i] for place in found] for i, n in enumerate(names)}

    def start(self, name: str, ids: list[Any]) -> None:
        """Bring the leases into the state that the statement wants."""
        at = "clock_timestamp()" if name.startswith("settle") else "NULL"
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
    "lease_due": LEASES | {"due_lanes": [], "due_queues": [], "later_max": 500},
    "take": {"now": None, "tokens": [7] * BATCH},
    "settle": {
        "now": None, "tokens": [7] * BATCH, "verdicts": ["delivered", "retry"] * (BATCH // 2),
        "charged": [True] * BATCH, "reasons": ["x"] * BATCH, "delays_s": [5.0] * BATCH,
        "details": [None] * BATCH, "effects": [None] * BATCH,
    },
    "settle_delivered": {
        "now": None, "tokens": [7] * BATCH, "reasons": ["x"] * BATCH, "details": [None] * BATCH,
    },
    "extend": {"now": None, "tokens": [7] * BATCH, "lease_s": 30.0},
    "watch": {
        "now": None, "tokens": [7] * BATCH, "told": [True] * BATCH, "percents": [1.0] * BATCH,
        "notes": ["x"] * BATCH, "metadata": ["{}"] * BATCH, "over": [],
    },
    "expire_leases": {"now": None, "since_s": None, "rows_max": BATCH, "expiries_max": 5},
    "tick": {
        "floor": 0, "bell": None, "leases": True, "since_s": 2.0, "lane_from": 0, "lanes_max": 256,
    },
    "owed_now": {},
}  # fmt: skip


@pytest.fixture
def backlog(engine: Engine) -> Backlog:
    return Backlog(engine)


def test_the_polled_statements_cost_the_same_under_any_backlog(backlog: Backlog) -> None:
    """And whatever the statistics say: of empty tables, of small ones, of deep ones. What a relay
    does all the time, it does by one plan in a small backlog and in a deep one."""
    small: dict[str, int] = {}
    ways: dict[str, Any] = {}
    for size, analyzed in ((1_000, False), (1_000, True), (1_000_000, False), (1_000_000, True)):
        if size > backlog.size:
            backlog.grow(size)
        if analyzed:
            backlog.engine.run("ANALYZE outbox.pending, outbox.delivery, outbox.event")
        for name, params in STATEMENTS.items():
            ids = backlog.ids()
            backlog.start(name, ids)
            names = backlog.prepare(name.split()[0])
            given = {"ids": ids} | (backlog.places() if name == "lease_due" else {})
            plan = backlog.explain(names, params | given)
            where = f"{name}, {size:,} rows, {'new' if analyzed else 'old'} statistics"
            if name in ("take", "settle", "extend", "watch"):
                assert plan["Actual Rows"] == BATCH, where
            scans = [
                node["Relation Name"]
                for node in nodes(plan)
                if node["Node Type"] == "Seq Scan" and HOT.match(node["Relation Name"])
            ]
            assert not scans, f"{where}: scans {scans}"
            usual = small.setdefault(name, touched(plan))
            assert touched(plan) <= 2 * usual + 20, (
                f"{where}: {touched(plan)} blocks, {usual} in a small backlog"
            )
            if analyzed and name in ("route", "route fairly", "lease_due"):
                assert shape(plan) == ways.setdefault(name, shape(plan)), f"{where}: another plan"


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


def test_leases_that_ended_cost_nothing_while_somebody_holds_a_snapshot(backlog: Backlog) -> None:
    """Their rows stay in the indexes, and grow more all the time."""
    backlog.grow(1_000)
    looks = {name: STATEMENTS[name] | {"since_s": 2.0} for name in ("tick", "expire_leases")}

    def cost() -> dict[str, int]:
        return {n: touched(backlog.explain(backlog.prepare(n), p)) for n, p in looks.items()}

    before = cost()
    with another(backlog.engine.url) as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM outbox.subscription")
        for at in ("- interval '1 h'", "+ interval '29 s'"):
            backlog.engine.run(
                "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
                " lane, org_id, state, due_at, token, lease_until)"
                " SELECT gen_random_uuid(), d.event_id, 0, d.subscription_id, 1, d.lane, d.org_id,"
                f" 'leased', now(), 8, now() {at} FROM generate_series(1, 10000),"
                " (SELECT * FROM outbox.delivery LIMIT 1) d"
            )
            backlog.engine.run("DELETE FROM outbox.delivery WHERE token = 8")
        after = cost()
    for name, blocks in after.items():
        assert blocks <= 2 * before[name] + 20, f"{name}: {before[name]} blocks, then {blocks}"


@pytest.mark.parametrize("name", ["route", "lease_due"])
def test_counting_permits_costs_what_a_lane_has_under_way(backlog: Backlog, name: str) -> None:
    """Neither leases of other lanes, nor those that ended while somebody holds a snapshot: whose
    rows stay in the index, before the oldest live one. By a plan made while all was empty."""
    engine = backlog.engine
    lane, other = (row[0] for row in engine.rows("SELECT lane FROM outbox.subscription ORDER BY 1"))
    few = {"events_max": 1, "window": 1, "later_max": 1}
    params = STATEMENTS[name] | few | {"lanes": [lane], "oldest": [9]}
    names = backlog.prepare(name)
    backlog.explain(names, params)
    backlog.grow(1_000)

    def lease(lane: int, token: int, n: int) -> None:
        writer.execute(
            "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
            " lane, org_id, state, due_at, token, lease_until)"
            " SELECT gen_random_uuid(), d.event_id, 0, d.subscription_id, 1, %s, d.org_id,"
            " 'leased', now(), %s, now() + interval '29 s' FROM generate_series(1, %s),"
            " (SELECT * FROM outbox.delivery LIMIT 1) d",
            [lane, token, n],
        )

    def cost() -> int:
        return touched(backlog.explain(names, params))

    with another(engine.url) as writer, another(engine.url) as holder:
        writer.execute("DELETE FROM outbox.delivery WHERE state = 'leased'")
        lease(lane, 9, 3)
        before = cost()
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM outbox.subscription")
        lease(lane, 8, 10_000)
        writer.execute("DELETE FROM outbox.delivery WHERE token = 8")
        lease(other, 8, 10_000)
        after = cost()
    assert after <= 2 * before + 20, f"{before} blocks, then {after}"


def test_what_has_waited_costs_nothing_while_somebody_holds_a_snapshot(engine: Engine) -> None:
    """For a permit or a retry: its rows stay in the index, before the front of their place."""
    backlog = Backlog(engine)
    engine.emit(1, "a")
    engine.route()
    engine.emit(1, "a")
    [(lane, front)] = engine.rows("SELECT lane, extract(epoch FROM due_at)::float8"
                                  " FROM outbox.delivery")  # fmt: skip
    places = {"due_lanes": [lane], "due_queues": [0], "front_lanes": [lane], "fronts": [front]}
    polled = {
        name: STATEMENTS[name] | places | {"lane_from": None}
        for name in ("route", "lease_due", "tick")
    }

    def cost() -> dict[str, int]:
        return {n: touched(backlog.explain(backlog.prepare(n), p)) for n, p in polled.items()}

    before = cost()
    with another(engine.url) as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM outbox.subscription")
        engine.run(
            "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
            " lane, org_id, state, due_at) SELECT gen_random_uuid(), d.event_id, 0,"
            " d.subscription_id, 1, d.lane, d.org_id, 'scheduled', d.due_at - interval '1 s'"
            " FROM generate_series(1, 20000), (SELECT * FROM outbox.delivery LIMIT 1) d"
        )
        engine.run("DELETE FROM outbox.delivery WHERE due_at < to_timestamp(%s)", front)
        after = cost()
        places["fronts"] = [0.0]
        polled = {n: p | {"fronts": [0.0], "lane_from": 0} for n, p in polled.items()}
        from_the_beginning = cost()
    for name, blocks in after.items():
        assert blocks <= 2 * before[name] + 20, f"{name}: {before[name]} blocks, then {blocks}"
        assert from_the_beginning[name] > blocks + 40, f"{name}: this would not be seen"


@pytest.mark.parametrize("name", ["take", "settle", "settle_delivered", "extend"])
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
