"""I13 broken on purpose: all damage is seen as what it is and mended, and nothing else moves."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.store.rebuild import KINDS
from outbox.store.rebuild_fold import DEAD_COLUMNS, LIVE_COLUMNS
from tests.profiles import scaled
from tests.rebuild.scene import Rows, Scene, applied, verified

IDLE = "state <> 'leased'"


def columns_of(table: str) -> str:
    """The columns that live and dead rows share, in order."""
    return (
        "id, event_id, event_slot, subscription_id, revision, generation, lane, org_id, order_key,"
        f" attempts, budget, expiries, expires_at FROM outbox.{table}"
    )


BURY = (
    f"WITH gone AS (DELETE FROM outbox.delivery WHERE {{which}} RETURNING *)"
    f" INSERT INTO outbox.dead_letter ({columns_of('x').partition(' FROM')[0]}, reason, died_at)"
    f" SELECT {columns_of('x').partition(' FROM')[0]}, 'invented', now() FROM gone"
)
REVIVE = (
    f"WITH gone AS (DELETE FROM outbox.dead_letter WHERE {{which}} RETURNING *)"
    f" INSERT INTO outbox.delivery ({columns_of('x').partition(' FROM')[0]}, state, due_at)"
    f" SELECT {columns_of('x').partition(' FROM')[0]}, 'scheduled', now() FROM gone"
)
RESURRECT = (
    "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision, lane,"
    " org_id, state, due_at) SELECT j.delivery_id, j.event_id, e.slot, j.subscription_id,"
    " j.revision, s.lane, j.org_id, 'scheduled', now()"
    " FROM outbox.journal j JOIN outbox.event e ON e.id = j.event_id"
    " JOIN outbox.subscription s ON s.id = j.subscription_id"
    " WHERE j.fact IN ('delivered', 'cancelled', 'discarded') AND {which}"
)

DAMAGES: dict[str, tuple[str, set[str]]] = {
    "all live ones lost": (f"DELETE FROM outbox.delivery WHERE {IDLE}", {"missing"}),
    "leased ones lost": ("DELETE FROM outbox.delivery WHERE state = 'leased'", {"missing"}),
    "ordered ones lost": ("DELETE FROM outbox.delivery WHERE order_key IS NOT NULL", {"missing"}),
    "held ones lost": ("DELETE FROM outbox.delivery WHERE state = 'held'", {"missing"}),
    "dead letters lost": ("DELETE FROM outbox.dead_letter", {"missing"}),
    "a removed subscription's lost": (
        (
            "DELETE FROM outbox.delivery WHERE subscription_id IN"
            " (SELECT id FROM outbox.subscription WHERE state = 'removed')"
        ),
        {"missing"},
    ),
    "live ones dead": (BURY.format(which=IDLE), {"misplaced"}),
    "dead ones alive": (REVIVE.format(which="true"), {"misplaced"}),
    "ended ones alive": (RESURRECT.format(which="true"), {"extra"}),
    "dead and alive": (
        (
            f"INSERT INTO outbox.delivery ({columns_of('x').partition(' FROM')[0]}, state, due_at)"
            f" SELECT {columns_of('dead_letter').partition(' FROM')[0]}, 'scheduled', now()"
            " FROM outbox.dead_letter"
        ),
        {"extra"},
    ),
    "alive and dead": (
        (
            "INSERT INTO outbox.dead_letter"
            f" ({columns_of('x').partition(' FROM')[0]}, reason, died_at)"
            f" SELECT {columns_of('delivery').partition(' FROM')[0]}, 'invented', now()"
            f" FROM outbox.delivery WHERE {IDLE}"
        ),
        {"extra"},
    ),
    "rows of nothing": (
        (
            "INSERT INTO outbox.delivery"
            " (id, event_id, event_slot, subscription_id, revision, lane, state, due_at)"
            " SELECT gen_random_uuid(), id, slot, 1, 1, 1, 'scheduled', now()"
            " FROM outbox.event"
        ),
        {"extra"},
    ),
    "letters of nothing": (
        (
            "INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision,"
            " generation, lane, attempts, budget, expiries, reason, died_at)"
            " SELECT gen_random_uuid(), 99999, 0, 1, 1, 0, 1, 0, 1, 0, 'x', now()"
            " FROM generate_series(1, 20)"
        ),
        {"extra"},
    ),
    "held ones released": (
        (
            "UPDATE outbox.delivery SET state = 'scheduled', held_at = NULL, held_reason = NULL"
            " WHERE state = 'held'"
        ),
        {"wrong"},
    ),
    "scheduled ones held": (
        (
            "UPDATE outbox.delivery SET state = 'held', held_at = now(), held_reason = 'whim'"
            " WHERE state = 'scheduled'"
        ),
        {"wrong"},
    ),
    "pending lost": ("DELETE FROM outbox.pending", {"pending_missing"}),
    "routed ones pending": (
        (
            "INSERT INTO outbox.pending SELECT id, slot, coalesce(org_id, '') FROM outbox.event"
            " ON CONFLICT DO NOTHING"
        ),
        {"pending_extra"},
    ),
    "pending without events": (
        "INSERT INTO outbox.pending SELECT i, 0, 'acme' FROM generate_series(90001, 90020) i",
        {"pending_extra"},
    ),
    "pending under another slot": ("UPDATE outbox.pending SET slot = 3", {"pending_wrong"}),
    "pending under another organization": (
        "UPDATE outbox.pending SET org = 'x'",
        {"pending_wrong"},
    ),
    "everything lost": (
        (
            "WITH p AS (DELETE FROM outbox.pending), l AS (DELETE FROM outbox.dead_letter)"
            " DELETE FROM outbox.delivery"
        ),
        {"missing", "pending_missing"},
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_mended(scene: Scene, name: str) -> None:
    """I13"""
    damage, kinds = DAMAGES[name]
    before, facts = scene.projections(), scene.facts_digest()
    scene.run(damage)
    assert scene.projections() != before
    damaged = scene.projections()
    report = verified(scene.url)
    assert set(report.found) == kinds
    assert scene.projections() == damaged, "--verify changes nothing"
    mended = applied(scene.url)
    assert mended.report.found == report.found
    assert (mended.left, mended.done.total() > 0) == (0, True)
    assert verified(scene.url).samples == {}
    assert scene.facts_digest() == facts, "facts are never changed"
    assert _leased_again(scene.projections(), before) == before


def _leased_again(rows: Rows, before: Rows) -> Rows:
    """A lost lease does not come back: what was leased before may be scheduled."""
    leased = {row[0]["id"] for row in before["delivery"] if row[0]["state"] == "leased"}
    for (row,) in rows["delivery"]:
        if row["id"] in leased and row["state"] == "scheduled":
            row["state"] = "leased"
    return rows


OTHER = {
    "event_id": "event_id - 1",
    "event_slot": "5",
    "subscription_id": "subscription_id + 1",
    "revision": "revision + 1",
    "generation": "generation + 1",
    "lane": "lane + 1",
    "org_id": "'other'",
    "order_key": "coalesce(order_key, 0) + 1",
    "attempts": "attempts + 1",
    "budget": "budget + 1",
    "expiries": "expiries + 1",
    "expires_at": "coalesce(expires_at, now()) + interval '1 s'",
    "due_at": "due_at + interval '1 s'",
    "age_limit_at": "coalesce(age_limit_at, now()) - interval '1 s'",
    "again": "true",
    "reason": "reason || 'x'",
    "detail": "'{\"x\": 1}'",
    "died_at": "died_at + interval '1 s'",
}
NULLABLE = {"org_id", "order_key", "expires_at", "age_limit_at", "detail"}
CHANGES = [
    (table, column, change)
    for table, columns in (("delivery", LIVE_COLUMNS), ("dead_letter", DEAD_COLUMNS))
    for column in columns
    for change in [OTHER.get(column), "NULL" if column in NULLABLE else None]
    if change is not None
]


def test_a_change_of_any_column_is_seen_and_undone(scene: Scene) -> None:
    """I13"""
    before = scene.projections()
    for table, column, change in CHANGES:
        where = "state <> 'leased'" if table == "delivery" else "true"
        where += f" AND {column} IS DISTINCT FROM ({change})"
        n = scene.one(
            f"WITH x AS (UPDATE outbox.{table} SET {column} = {change} WHERE {where} RETURNING id)"
            " SELECT count(*) FROM x"
        )
        assert n > 0, f"{table}.{column} = {change} damages nothing"
        report = verified(scene.url, rows_max=1000)
        assert dict(report.columns) == {column: n}, f"{table}.{column} = {change}"
        assert set(report.found) == {"wrong"}
        assert applied(scene.url, rows_max=1000).done == {"changed": n, "inserted": 0, "deleted": 0}
        assert scene.projections() == before, f"{table}.{column} = {change}"
    assert verified(scene.url, rows_max=1000).samples == {}


def test_held_columns_are_seen_and_undone(scene: Scene) -> None:
    """I13"""
    before = scene.projections()
    for column, change in (("held_reason", "'whim'"), ("held_at", "held_at - interval '1 s'")):
        scene.run(f"UPDATE outbox.delivery SET {column} = {change} WHERE state = 'held'")
        assert set(verified(scene.url, rows_max=1000).columns) == {column}
        applied(scene.url, rows_max=1000)
        assert scene.projections() == before


def test_the_lists_above_know_every_column() -> None:
    held = {"state", "held_at", "held_reason"}
    assert set(LIVE_COLUMNS) | set(DEAD_COLUMNS) == set(OTHER) | held


Damage = tuple[str, str]
TARGETS = {
    "delivery": [
        f"UPDATE outbox.delivery SET {column} = {OTHER[column]} WHERE {IDLE} AND {{which}}"
        for column in LIVE_COLUMNS
        if column in OTHER and column != "again"
    ]
    + [
        "DELETE FROM outbox.delivery WHERE {which}",
        BURY.format(which=IDLE + " AND {which}"),
        (
            "UPDATE outbox.delivery SET state = 'held', held_at = now(), held_reason = 'x'"
            f" WHERE {IDLE} AND {{which}}"
        ),
    ],
    "dead_letter": [
        f"UPDATE outbox.dead_letter SET {column} = {OTHER[column]} WHERE {{which}}"
        for column in DEAD_COLUMNS
    ]
    + ["DELETE FROM outbox.dead_letter WHERE {which}", REVIVE],
    "pending": [
        "DELETE FROM outbox.pending WHERE {which}",
        "UPDATE outbox.pending SET org = 'x' WHERE {which}",
        "UPDATE outbox.pending SET slot = 4 WHERE {which}",
    ],
}
steps = st.sampled_from([(t, s) for t, statements in TARGETS.items() for s in statements])


def test_any_random_damage_is_mended(scene: Scene) -> None:
    """I13"""
    before = scene.projections()

    @settings(scaled(examples=0.25), suppress_health_check=list(HealthCheck))
    @given(
        damages=st.lists(st.tuples(steps, st.integers(1, 8)), min_size=1, max_size=6),
        slice_rows=st.sampled_from([20, 100]),
    )
    def mends(damages: list[tuple[Damage, int]], slice_rows: int) -> None:
        for (_, statement), modulo in damages:
            which = f"hashtext(id::text) % {modulo} = 0"
            scene.run(statement.replace("{which}", which))
        mended = applied(scene.url, rows_max=slice_rows)
        assert mended.left == 0
        assert verified(scene.url, rows_max=slice_rows).samples == {}
        assert _leased_again(scene.projections(), before) == before

    mends()


def test_every_kind_has_a_meaning_and_a_test() -> None:
    met = set[str]().union(*(kinds for _, kinds in DAMAGES.values()))
    assert met | {"bereft", "contradiction"} == set(KINDS)
