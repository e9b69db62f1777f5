"""Makes projections what the facts say, row by row, while everything runs.

Promises: facts are never changed. Every row is locked, its facts are read again and it is judged
again before it is touched; a leased one is left alone, for it is in use. Work comes in batches of
at most `BATCH_ROWS`, each one transaction under the lock of configuration, so that nobody routes,
leases, replays or changes subscriptions meanwhile. A batch that is cut off leaves whole rows
behind: the command is simply run again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from outbox.store.rebuild import (
    SLICE_ROWS,
    UNMENDABLE,
    Connection,
    Judged,
    Pair,
    Report,
    Tell,
    judge,
    slices,
)
from outbox.store.rebuild_fold import Row, settled
from outbox.store.statements import statement

BATCH_ROWS = 100

Item = TypeVar("Item")


@dataclass(slots=True)
class Mended:
    """`report` is what was found first. `done` counts rows by what was done to them: inserted,
    changed, deleted, put (into pending), dropped (from it). `leased` rows were in use; run again
    when they have ended. What was found and is in none of these had changed by itself."""

    report: Report = field(default_factory=Report)
    done: Counter[str] = field(default_factory=Counter)
    leased: int = 0

    @property
    def left(self) -> int:
        """Differences that are still there."""
        return self.leased + sum(self.report.found[kind] for kind in UNMENDABLE)


def apply(
    reader: Connection,
    writer: Connection,
    *,
    rows_max: int = SLICE_ROWS,
    tell: Tell | None = None,
) -> Mended:
    """Mend what differs. Two autocommit connections: one reads on while the other mends."""
    mended = Mended()
    for part in slices(reader, rows_max=rows_max):
        mended.report.add(part)
        differences = [d for d in part.differences if d.kind not in UNMENDABLE]
        events = [d.event_id for d in differences if d.delivery_id is None]
        pairs = {d.delivery_id: d.event_id for d in differences if d.delivery_id is not None}
        for ids in _batches(sorted(set(events))):
            _mend_pending(writer, ids, mended)
        for batch in _batches(sorted(pairs)):
            _mend(writer, [(pairs[key], key) for key in batch], mended)
        if tell is not None:
            tell(part)
    return mended


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), BATCH_ROWS):
        yield items[start : start + BATCH_ROWS]


def _mend_pending(writer: Connection, ids: Sequence[int], mended: Mended) -> None:
    with writer.transaction():
        writer.execute(statement("config_lock"))
        row = writer.execute(statement("rebuild_pending"), {"ids": list(ids)}).fetchone()
    assert row is not None
    mended.done.update(put=row[0], dropped=row[1])


def _mend(writer: Connection, pairs: Sequence[Pair], mended: Mended) -> None:
    ids = {"ids": [delivery_id for _, delivery_id in pairs]}
    with writer.transaction():
        writer.execute("SET LOCAL enable_seqscan = off; SET LOCAL timezone = 'UTC'")
        writer.execute(statement("config_lock"))
        writer.execute(statement("rebuild_lock_live"), ids)
        writer.execute(statement("rebuild_lock_dead"), ids)
        # From here on in statements of their own: they see what the holders of these rows wrote.
        judged = judge(writer, pairs)
        differs = judged.sound.keys() & {d.delivery_id for d in judged.differences}
        leased = {key for key in differs if _is_leased(judged.live.get(key))}
        mended.leased += len(leased)
        plan = _Plan(judged)
        for key in sorted(differs - leased):
            plan.add(key)
        mended.done.update(plan.run(writer))


def _is_leased(row: Row | None) -> bool:
    return row is not None and row["state"] == "leased"


class _Plan:
    """What is to be written for one batch."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged
        self._drop_live: list[UUID] = []
        self._drop_dead: list[UUID] = []
        self._put_live: list[dict[str, Any]] = []
        self._put_dead: list[dict[str, Any]] = []

    def add(self, key: UUID) -> None:
        """Plan one delivery."""
        (wanted, _), live, dead = self._judged.sound[key], self._judged.live, self._judged.dead
        if wanted.live is None and key in live:
            self._drop_live.append(key)
        if wanted.dead is None and key in dead:
            self._drop_dead.append(key)
        if wanted.live is not None:
            self._put_live.append(self._written(key, wanted.live, live.get(key)))
        if wanted.dead is not None:
            row = self._written(key, wanted.dead, dead.get(key))
            detail = row["detail"]
            self._put_dead.append({**row, "detail": None if detail is None else json.dumps(detail)})

    def _written(self, key: UUID, wanted: Row, row: Row | None) -> dict[str, Any]:
        context = self._judged.sound[key][1]
        if row is not None:
            assert context is not None
            wanted = settled(row, wanted, context)
        return {"id": key, "known": row is not None, **wanted}

    def run(self, writer: Connection) -> Counter[str]:
        """Write it; counts by what was done."""
        writer.execute(statement("rebuild_drop_live"), {"ids": self._drop_live})
        writer.execute(statement("rebuild_drop_dead"), {"ids": self._drop_dead})
        for name, rows in (
            ("rebuild_put_live", self._put_live),
            ("rebuild_put_dead", self._put_dead),
        ):
            if rows:
                writer.cursor().executemany(statement(name), rows)
        mended = [row["id"] for row in self._put_live]
        writer.execute(statement("rebuild_signal"), {"ids": mended})
        known = [row["known"] for row in self._put_live + self._put_dead]
        return Counter(
            inserted=known.count(False),
            changed=known.count(True),
            deleted=len(self._drop_live) + len(self._drop_dead),
        )
