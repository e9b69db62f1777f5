"""Dead letters: list, redrive with a fresh budget, discard, and the request that would be sent.

Promises: a letter moves with its fact in one transaction and in one batch of at most
`BATCH_ROWS`; it is never live and dead at once; an organization given is the only one touched.
A batch that is cut off leaves whole letters behind, so the command is simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from outbox.errors import NotFound, UsageError
from outbox.store.attempts import Taken
from outbox.store.deliveries import BATCH_ROWS, REASON_CHARS_MAX
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

LOOKED_MAX = 100_000
"""Letters that the summary by reason looks at, the newest; likewise a list by type or subject."""
_BATCH_LOOKED_MAX = 10_000
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters: all that meet every condition given. `ids` None means no condition.

    `since` and `until` (not included) bound the time of death; `patterns` and `subject` are of the
    event.
    """

    ids: Sequence[UUID] | None = None
    org: str | None = None
    endpoint_id: int | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    patterns: tuple[str, ...] | None = None
    subject: str | None = None

    def parameters(self, ids: Sequence[UUID] | None) -> dict[str, Any]:
        """As parameters of the statements, for this part of the ids."""
        return {
            "ids": None if ids is None else list(ids),
            "org_id": self.org,
            "endpoint_id": self.endpoint_id,
            "reason": self.reason,
            "since": self.since,
            "until": self.until,
            "patterns": None if self.patterns is None else list(self.patterns),
            "subject": self.subject,
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
    parameters = selection.parameters(None) | {"rows_max": rows_max, "looked_max": LOOKED_MAX}
    return [row[0] for row in connection.execute(statement("dead_list"), parameters)]


def dead_reasons(connection: Connection, selection: Selection) -> list[dict[str, Any]]:
    """The newest `LOOKED_MAX` dead letters, counted by reason and endpoint."""
    parameters = selection.parameters(None) | {"looked_max": LOOKED_MAX}
    return [row[0] for row in connection.execute(statement("dead_reasons"), parameters)]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast, and who is told. `rate_per_s` None means as fast as it goes; `told` is called with
    the number done so far after every batch. `clock` is monotonic, in seconds."""

    rate_per_s: float | None = None
    told: Callable[[int], None] = lambda _done: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def rows_max(self, rows_max: int) -> int:
        """The size of a batch: at most what a second may hold."""
        return rows_max if self.rate_per_s is None else max(1, min(rows_max, int(self.rate_per_s)))

    def keep(self, started: float, done: int) -> None:
        """Wait until `done` since `started` is not too fast any more."""
        if self.rate_per_s is not None:
            self.sleep(max(0.0, started + done / self.rate_per_s - self.clock()))


def letter_as_taken(connection: Connection, delivery_id: UUID, org: str | None = None) -> Taken:
    """A dead letter as a worker would take it if it were redriven now. Raises NotFound."""
    parameters = {"id": delivery_id, "org_id": org}
    row = connection.execute(statement("dead_request"), parameters).fetchone()
    if row is None:
        raise NotFound(f"there is no dead letter {delivery_id}, or its event is past retention")
    return Taken(*row)


def redrive(
    connection: Connection,
    selection: Selection,
    *,
    ignore_expiry: bool = False,
    dry_run: bool = False,
    rows_max: int = BATCH_ROWS,
    pace: Pace | None = None,
) -> Redriven:
    """Give dead letters a fresh budget, due now; ordered ones when their turn comes."""
    pace = Pace() if pace is None or dry_run else pace
    extra = {"ignore_expiry": ignore_expiry, "dry_run": dry_run}
    total = Redriven()
    for redriven, removed, expired in _batches(
        connection,
        "dead_redrive",
        selection,
        extra,
        pace.rows_max(rows_max),
        before=partial(pace.keep, pace.clock()),
    ):
        total = Redriven(
            total.redriven + redriven, total.removed + removed, total.expired + expired
        )
        pace.told(total.redriven)
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
    before: Callable[[int], None] = lambda _done: None,
) -> Iterator[tuple[int, ...]]:
    """Run one of the two statements until it has seen everything; the counts of each batch.
    `before` is called ahead of every batch, with how many were changed so far."""
    done, looked_max = 0, rows_max
    for ids in selection.parts():
        after_id = _FIRST
        while True:
            before(done)
            limits = {"looked_max": looked_max, "rows_max": rows_max, "after_id": after_id}
            parameters = {**selection.parameters(ids), **extra, **limits}
            with connection.transaction():
                row = connection.execute(statement(name), parameters).fetchone()
            assert row is not None
            more, *counts, after_id = row
            done += counts[0]
            # Where few of those looked at are chosen, look at more at once.
            few = sum(counts) < rows_max // 2
            looked_max = min(2 * looked_max, _BATCH_LOOKED_MAX) if few else rows_max
            yield tuple(counts)
            if not more:
                break
