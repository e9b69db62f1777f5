"""The statements of a replay cost the same in a long log as in a short one, with a plan that was
made while all was empty."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.store.replay import Plan
from tests.engine.engine import Engine
from tests.engine.test_plans import HOT, Backlog, nodes, touched

BATCH = 50
EVENTS = """
WITH e AS (
    INSERT INTO outbox.event (id, slot, type, org_id, payload, created_at)
    SELECT nextval('outbox.event_id'), 0, 'orders.paid', 'a', '{}', clock_timestamp()
    FROM generate_series(1, %s) RETURNING id, created_at),
d AS (
    SELECT e.id AS event_id, s.id AS sub,
           outbox.delivery_id(e.id, e.created_at, s.id, 0, i.salt) AS id
    FROM e, outbox.subscription s, outbox.installation i WHERE s.org_id = 'a'),
r AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, org_id, detail)
    SELECT 0, clock_timestamp(), 'routed', event_id, 'a',
           jsonb_build_array(jsonb_build_object('delivery', id, 'subscription', sub)) FROM d)
INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, budget)
SELECT 0, clock_timestamp() + interval '1 s', 'delivered', event_id, id, sub, 'a', 1 FROM d
"""


@pytest.fixture
def engine(database: str) -> Any:
    made = Engine(database)
    yield made
    made.close()


@pytest.mark.parametrize("filtered", [False, True])
def test_a_batch_costs_the_same_in_any_log(engine: Engine, filtered: bool) -> None:
    backlog = Backlog(engine)
    lane = engine.one("SELECT id FROM outbox.endpoint WHERE org_id = 'a'")
    plan = Plan.of("redeliver", None, {"endpoint": lane} if filtered else {})
    engine.run(
        "INSERT INTO outbox.replay (id, mode, filter, why, rate_per_s, position, ceiling)"
        " VALUES ('x', 'redeliver', '{}', 'x', 1, 0, 1000000)"
    )
    look = {**plan.look(), "position": 100, "ceiling": 10**6, "span": 500, "events_max": BATCH}
    batch = {
        **plan.batch(), "now": None, "replay": "x", "position": 0, "position_now": 1,
        "slots": [0] * BATCH, "events": list(range(101, 101 + BATCH)), "dry_run": False,
    }  # fmt: skip
    costs: dict[str, list[int]] = {"replay_look": [], "replay_batch": []}
    for size in (1_000, 30_000):
        engine.run(EVENTS, size)
        for name, params in (("replay_look", look), ("replay_batch", batch)):
            explained = backlog.explain(backlog.prepare(name), params)
            scans = [
                node["Relation Name"]
                for node in nodes(explained)
                if node["Node Type"] == "Seq Scan" and HOT.match(node["Relation Name"])
                and node["Actual Loops"]
            ]  # fmt: skip
            assert not scans, f"{name} scans {scans}"
            costs[name].append(touched(explained))
    for name, (short, long) in costs.items():
        assert long <= 2 * short + 20, (
            f"{name}: {short} blocks in a short log, {long} in a long one"
        )
