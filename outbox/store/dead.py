"""Dead letters: list, redrive with a fresh budget, discard.

Promises: a letter moves with its fact in one transaction and in one batch of at most
`BATCH_ROWS`; it is never live and dead at once; an organization given is the only one touched.
A batch that is cut off leaves whole letters behind, so the command is simply run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from outbox.errors import UsageError
from outbox.store.deliveries import BATCH_ROWS, REASON_CHARS_MAX
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

LOOKED_MAX = 100_000
"""Letters that the summary by reason looks at, the newest."""
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters: all that meet every condition given. `ids` None means no condition."""

    ids: Sequence[UUID] | None = None
    org: str | None = None
    endpoint_id: int | None = None
    reason: str | None = None
    since: datetime | None = None

    def parameters(self, ids: Sequence[UUID] | None) -> dict[str, Any]:
        """As parameters of the statements, for this part of the ids."""
        return {
            "ids": None if ids is None else list(ids),
            "org_id": self.org,
            "endpoint_id": self.endpoint_id,
            "reason": self.reason,
            "since": self.since,
        }

    def parts(self) -> Iterator[Sequence[UUID] | None]:
        """The ids in batches; one None where any id will do."""
        if self.ids is None:
            yield None
            return
        wanted = sorted(set(self.ids))
        for start in range(0, len(wanted), BATCH_ROWS):
            yield wanted[start : start + BATCH_ROWS]


@dataclass(frozen=True, slots=True)
class Redriven:
    """How many letters were (or, in a dry run, would be) redriven, and how many stay dead because
    their destination is removed, because they are past their expiry, or are not dead letters."""

    redriven: int = 0
    removed: int = 0
    expired: int = 0
    unknown: int = 0


def list_dead(
    connection: Connection, selection: Selection, *, rows_max: int = 100
) -> list[dict[str, Any]]:
    """Dead letters, newest first."""
    parameters = selection.parameters(None) | {"rows_max": rows_max}
    return [row[0] for row in connection.execute(statement("dead_list"), parameters)]


def dead_reasons(connection: Connection, selection: Selection) -> list[dict[str, Any]]:
    """The newest `LOOKED_MAX` dead letters, counted by reason and endpoint."""
    parameters = selection.parameters(None) | {"looked_max": LOOKED_MAX}
    return [row[0] for row in connection.execute(statement("dead_reasons"), parameters)]


def redrive(
    connection: Connection,
    selection: Selection,
    *,
    ignore_expiry: bool = False,
    dry_run: bool = False,
    rows_max: int = BATCH_ROWS,
) -> Redriven:
    """Give dead letters a fresh budget, due now."""
    extra = {"ignore_expiry": ignore_expiry, "dry_run": dry_run}
    total = Redriven()
    for redriven, removed, expired in _batches(
        connection, "dead_redrive", selection, extra, rows_max
    ):
        total = Redriven(
            total.redriven + redriven, total.removed + removed, total.expired + expired
        )
    found = total.redriven + total.removed + total.expired
    return replace(total, unknown=_unknown(selection, found))


@dataclass(frozen=True, slots=True)
class Discarded:
    """How many letters were (or would be) given up, and how many ids are no dead letters."""

    discarded: int = 0
    unknown: int = 0


def discard(
    connection: Connection,
    selection: Selection,
    why: str,
    *,
    dry_run: bool = False,
    rows_max: int = BATCH_ROWS,
) -> Discarded:
    """Give dead letters up for good; `why` (1 to 200 characters) stays in the journal."""
    if not 1 <= len(why) <= REASON_CHARS_MAX:
        raise UsageError(f"say why in 1 to {REASON_CHARS_MAX} characters")
    extra = {"why": why, "dry_run": dry_run}
    batches = _batches(connection, "dead_discard", selection, extra, rows_max)
    discarded = sum(batch[0] for batch in batches)
    return Discarded(discarded, _unknown(selection, discarded))


def _unknown(selection: Selection, found: int) -> int:
    return 0 if selection.ids is None else len(set(selection.ids)) - found


def _batches(
    connection: Connection,
    name: str,
    selection: Selection,
    extra: Mapping[str, Any],
    rows_max: int,
) -> Iterator[tuple[int, ...]]:
    """Run one of the two statements until it has seen everything; the counts of each batch."""
    for ids in selection.parts():
        after_id = _FIRST
        while True:
            parameters = {**selection.parameters(ids), **extra}
            with connection.transaction():
                row = connection.execute(
                    statement(name), {**parameters, "after_id": after_id, "rows_max": rows_max}
                ).fetchone()
            assert row is not None
            looked, *counts, after_id = row
            yield tuple(counts)
            if looked < rows_max:
                break
