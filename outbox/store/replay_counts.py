"""The dry run of a replay: exact counts of what it would do now, and a sample. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any

import psycopg

from outbox.store.replay import Choice, Plan, chosen
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

SAMPLE_PAIRS = 10
JUDGE_MAX = 5000
"""Event ids that a dry run judges one by one: a tenth of a second."""
JUDGE_SPAN, JUDGE_EVENTS = 5000, 200
SAMPLE_LOOKS = 20
"""Looks that a sample takes at most: rare pairs may lie far behind the first events."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a dry run found: per subscription, type and fate how many pairs; and some of them."""

    groups: list[dict[str, Any]]
    sample: list[dict[str, Any]]

    @property
    def total(self) -> int:
        return sum(group["n"] for group in self.groups)


def count_replay(
    connection: Connection, choice: Choice, mode: str = "redeliver", *, judge_max: int = JUDGE_MAX
) -> Counted:
    """Count what a replay of this choice would do now, and take a sample. Changes nothing.

    A choice of at most `judge_max` events is judged pair by pair, a larger one by whole tables.
    """
    document, position, ceiling = chosen(connection, choice, mode)
    plan = Plan.of(mode, choice.org, document)
    if plan.events is not None or ceiling - position <= judge_max:
        pairs = list(_judged(connection, plan, position, ceiling))
        return Counted(_grouped(pairs), pairs[:SAMPLE_PAIRS])
    groups = _counted(connection, plan, position, ceiling)
    some = islice(_judged(connection, plan, position, ceiling, SAMPLE_LOOKS), SAMPLE_PAIRS)
    return Counted(groups, list(some) if groups else [])


def _counted(
    connection: Connection, plan: Plan, position: int, ceiling: int
) -> list[dict[str, Any]]:
    """The pairs of a range, by subscription, type and fate."""
    names = {"re-emit": "replay_count_re_emit", "backfill": "replay_count_backfill"}
    bounds = {"position": position, "ceiling": ceiling}
    with connection.transaction():
        # Joins of whole tables: in memory, and by as many processes as the server has to spare.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for setting in ("work_mem = '256MB'", "jit = off", "enable_memoize = off"):
            connection.execute(f"SET LOCAL {setting}".encode())
        row = connection.execute(statement("replay_aside"), bounds).fetchone()
        assert row is not None
        aside = dict(zip(("redacted", "twice", "old_slots"), row, strict=True))
        parameters = {**plan.look(), **plan.batch(), **bounds, **aside}
        counting = statement(names.get(plan.mode, "replay_count"))
        return [row[0] for row in connection.execute(counting, parameters)]


def _grouped(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("subscription", "type", "fate")
    counts = Counter(tuple(pair[name] for name in names) for pair in pairs)
    return [dict(zip(names, key, strict=True)) | {"n": counts[key]} for key in sorted(counts)]


def _judged(
    connection: Connection, plan: Plan, position: int, ceiling: int, looks_max: float = inf
) -> Iterator[dict[str, Any]]:
    """Pairs in order of event, with what would become of each."""
    bounds = {"ceiling": ceiling, "span": JUDGE_SPAN, "events_max": JUDGE_EVENTS}
    dry = {"now": None, "replay": None, "position": None, "position_now": None, "dry_run": True}
    looks = 0
    while position < ceiling and looks < looks_max:
        looks += 1
        found = connection.execute(
            statement("replay_look"), {**plan.look(), **bounds, "position": position}
        ).fetchone()
        assert found is not None
        slots, events, reached = found
        if events:
            batch = {**plan.batch(), **dry, "slots": slots, "events": events}
            judged = connection.execute(statement("replay_batch"), batch).fetchone()
            assert judged is not None
            yield from judged[3] or []
        elif reached <= position:
            return  # the rest is not routed yet
        position = reached
