"""Whether a claim and a lease cost the same under a deep backlog as under a small one.

Waiting events and scheduled deliveries are written straight into the tables, by sets, as capture
and routing would have left them. Then a session like a relay's claims (`route`, in order of id and
fairly over organizations) and leases (`lease_due`) again and again, and the time of each is taken
as the session sees it. What was claimed is replaced and what was leased is given back in between.
The same is done with the small backlog first, in the same database.

Events wait for some organizations, deliveries are scheduled for others, so that both statements
hand out leases. Half of the deliveries are due, every other one is a retry. Their events are not
written: neither statement reads the event of a delivery that exists.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from outbox.bench.report import Found, Goal, percentile, spread
from outbox.bench.rig import HOST, Rig
from outbox.errors import OutboxError
from outbox.store.connect import HotConnection, connect, connect_hot, translated
from outbox.store.dispatch import Claim, Dispatch
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.statements import statement
from outbox.store.subscriptions import Rule

BATCH = 100
"""Events of a claim, deliveries of a lease."""
SMALL = 10_000
ORGS = 10
CHUNK = 100_000
LEASE_S = 30.0
PLACES_MAX = 128
ORGS_MAX = 64

_EVENTS = """
WITH e AS (
    INSERT INTO outbox.event (id, slot, type, org_id, payload, created_at)
    SELECT nextval('outbox.event_id'), (SELECT last_value FROM outbox.ring_slot), 'bench.waits',
           'waiting-' || g %% %(orgs)s, '{"record": {"id": 1}}', clock_timestamp()
    FROM generate_series(1, %(rows)s) g RETURNING id, slot, org_id)
INSERT INTO outbox.pending (id, slot, org) SELECT id, slot, org_id FROM e
"""
_DELIVERIES = """
INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision, lane, org_id,
    state, due_at, attempts)
SELECT gen_random_uuid(), nextval('outbox.event_id'), 0, s.id, s.revision, s.lane, s.org_id,
       'scheduled', clock_timestamp() + CASE WHEN g %% 4 < 2 THEN interval '-1 s' ELSE '1 h' END,
       g %% 2
FROM generate_series(1, %(rows)s) g
JOIN (SELECT row_number() OVER (ORDER BY id) - 1 AS n, id, revision, lane, org_id
      FROM outbox.subscription WHERE org_id LIKE 'scheduled-%%') s ON s.n = g / 4 %% %(orgs)s
"""
_READY = "VACUUM (ANALYZE) outbox.event, outbox.pending, outbox.delivery"
_PREPARED = """
SELECT name, cardinality(parameter_types) FROM pg_prepared_statements
WHERE starts_with(statement, %s)
"""

Shape = list[Any]


@dataclass(frozen=True, slots=True)
class Depth:
    """What was seen at one size: for each statement the p99 of every run in milliseconds, the
    number of samples of all, and the shapes of the plans."""

    p99_ms: dict[str, list[float]]
    p50_ms: dict[str, float]
    samples: int
    plans: dict[str, Shape]


def backlog(rig: Rig, _goal: Goal) -> Found:
    """The value is the worst ratio of the p99 in the deep backlog to that in the small one."""
    deep = int(rig.choose(10_000_000, 200_000, rig.asked.events))
    small = min(SMALL, deep // 10)
    runs = int(rig.choose(3, 1, rig.asked.runs))
    seconds = rig.choose(10.0, 2.0, rig.asked.seconds)
    _subscribe(rig)
    _fill(rig, small)
    shallow = asyncio.run(_measure(rig, runs, seconds))
    _fill(rig, deep - small)
    found = asyncio.run(_measure(rig, runs, seconds))
    ratios = {
        name: spread([one / other for one, other in zip(of, shallow.p99_ms[name], strict=True)], 3)
        for name, of in found.p99_ms.items()
    }
    same = {name: plan == shallow.plans[name] for name, plan in found.plans.items()}
    worst = max(ratios, key=lambda name: float(ratios[name]["median"]))
    detail = {
        "ratio": ratios[worst],
        "worst": worst,
        "ratios": ratios,
        "p99_ms_by_depth": {"small": _spreads(shallow), "deep": _spreads(found)},
        "p50_ms_by_depth": {"small": shallow.p50_ms, "deep": found.p50_ms},
        "same_plan": {**same, "met": all(same.values())},
        "samples": {"small": shallow.samples, "deep": found.samples},
    }
    conditions = {
        "events": deep,
        "deliveries": deep,
        "small": small,
        "organizations": 2 * ORGS,
        "payload_bytes": 21,
        "batch": BATCH,
        "runs": runs,
        "duration_s": {"each_statement": seconds},
        "processes": {"relay": "one session in the bench"},
    }
    return Found(float(ratios[worst]["median"]), all(same.values()), conditions, detail)


def _spreads(depth: Depth) -> dict[str, Any]:
    return {name: spread(of, 2) for name, of in depth.p99_ms.items()}


# -- filling --------------------------------------------------------------------------------------


def _subscribe(rig: Rig) -> None:
    """An endpoint for each organization."""
    rig.set(egress_ports=frozenset({9}))
    with connect(rig.url, autocommit=True) as connection:
        for org in (f"{kind}-{n}" for kind in ("waiting", "scheduled") for n in range(ORGS)):
            spec = EndpointSpec(url=f"http://{HOST}:9/hook", org_id=org, rule=Rule(("*",)))
            add_endpoint(connection, spec, rig.settings.key_ring())


def _fill(rig: Rig, rows: int) -> None:
    """Add so many events and deliveries; afterwards tables and statistics are in order."""
    with connect(rig.url, autocommit=True) as connection:
        for begin in range(0, rows, CHUNK):
            params = {"rows": min(CHUNK, rows - begin), "orgs": ORGS}
            for query in (_EVENTS, _DELIVERIES):
                connection.execute(query.encode(), params)
                rig.check()
        connection.execute(_READY)
        rig.check()


# -- measuring ------------------------------------------------------------------------------------


class Session:
    """A relay's session and what it has handed out."""

    def __init__(self, rig: Rig, hot: HotConnection, plain: HotConnection) -> None:
        self._hot = hot
        self._plain = plain.raw
        self._dispatch = Dispatch(hot, LEASE_S)
        self._token = 0
        self.rig = rig

    async def prepare(self) -> None:
        """As a relay does."""
        await self._dispatch.prepare()
        await self._dispatch.due()

    async def claim(self) -> Callable[[], Awaitable[None]]:
        """Claim in order of id."""
        return await self._route(Claim(BATCH))

    async def claim_fairly(self) -> Callable[[], Awaitable[None]]:
        """Claim fairly over organizations."""
        return await self._route(Claim(BATCH, orgs_max=ORGS_MAX))

    async def _route(self, claim: Claim) -> Callable[[], Awaitable[None]]:
        self._token += 1
        done = await self._dispatch.route(claim, BATCH, self._token)
        _enough(done.leased, "route")
        return lambda: self._replace(done.ids)

    async def lease(self) -> Callable[[], Awaitable[None]]:
        """Lease what is due."""
        self._token += 1
        token, places = self._token, self._dispatch.fronts.due(math.inf, PLACES_MAX)
        done = await self._dispatch.lease_due(places, BATCH, token)
        _enough(len(done.ids), "lease_due")
        return lambda: self._dispatch.release(token, done.ids)

    async def _replace(self, ids: Sequence[str]) -> None:
        """End what was created, and let as many events wait as before."""
        delete = "DELETE FROM outbox.delivery WHERE id = ANY (%s::uuid[])"
        await self._plain.execute(delete, [list(ids)])
        await self._plain.execute(_EVENTS.encode(), {"rows": len(ids), "orgs": ORGS})

    async def plan(self, name: str) -> Shape:
        """The shape of the plan by which this session runs a statement: the very one it prepared,
        which does not depend on parameters."""
        begin = statement(name).partition("\n")[0]
        row = await (await self._hot.raw.execute(_PREPARED, [begin])).fetchone()
        assert row is not None
        nulls = ", ".join(["NULL"] * row[1])
        explain = f'EXPLAIN (FORMAT JSON) EXECUTE "{row[0]}" ({nulls})'
        told = await (await self._hot.raw.execute(explain.encode(), prepare=False)).fetchone()
        assert told is not None
        return shape(told[0][0]["Plan"])


def _enough(count: int, name: str) -> None:
    if count < BATCH:
        raise OutboxError(f"{name} handed out {count} leases, not {BATCH}: ask for more --events")


def shape(plan: dict[str, Any]) -> Shape:
    """What a plan does to what, by which way, in which order; not what it is thought to cost."""
    names = ("Node Type", "Subplan Name", "Join Type", "Relation Name", "Index Name")
    return [
        [plan.get(name) for name in names],
        [shape(child) for child in plan.get("Plans", [])],
    ]


async def _measure(rig: Rig, runs: int, seconds: float) -> Depth:
    with translated():
        async with AsyncExitStack() as stack:
            hot, plain = [await connect_hot(rig.url, name) for name in ("relay", "bench")]
            stack.push_async_callback(hot.raw.close)
            stack.push_async_callback(plain.raw.close)
            if not hot.direct:
                raise OutboxError("a pooler stands in between: its plans are not ours to look at")
            return await _in_session(Session(rig, hot, plain), runs, seconds)


async def _in_session(session: Session, runs: int, seconds: float) -> Depth:
    await session.prepare()
    steps = {
        "route": session.claim,
        "route_fairly": session.claim_fairly,
        "lease_due": session.lease,
    }
    waits: dict[str, list[list[float]]] = {name: [] for name in steps}
    for step in steps.values():
        await (await step())()  # the first prepares the statement, and plans it for good
    for _ in range(runs):
        for name, step in steps.items():
            waits[name].append(await _repeat(session.rig, step, seconds))
    return Depth(
        p99_ms={name: [percentile(run, 0.99) for run in of] for name, of in waits.items()},
        p50_ms={
            name: round(percentile([one for run in of for one in run], 0.5), 2)
            for name, of in waits.items()
        },
        samples=sum(len(run) for of in waits.values() for run in of),
        plans={name: await session.plan(name) for name in ("route", "lease_due")},
    )


async def _repeat(
    rig: Rig, step: Callable[[], Awaitable[Callable[[], Awaitable[None]]]], seconds: float
) -> list[float]:
    """Milliseconds of each, for so long."""
    waits, until = [], monotonic() + seconds
    while monotonic() < until:
        began = perf_counter()
        undo = await step()
        waits.append((perf_counter() - began) * 1000)
        await undo()
        rig.check()
    return waits
