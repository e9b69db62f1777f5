"""Projections against facts: is every row of `delivery`, `dead_letter` and `pending` what the
journal and the log say, and has every delivery that they say is owed its row?

Promises: one snapshot for facts and rows, so that a system under full load shows no difference
that is none; slices of bounded size, so that memory does not grow with the log; nothing is changed
here (`outbox.store.rebuild_mend` does that). While it reads, retention empties no slot: TRUNCATE is
not seen by older snapshots as it should be.

What is past retention is unknown, not wrong: a delivery whose first facts are gone and that was not
carried had ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format

from outbox.errors import IllegalTransition
from outbox.history import Fact, FactName
from outbox.store.arrays import numbers, uuids
from outbox.store.rebuild_fold import (
    DEAD_COLUMNS,
    FAR,
    GONE,
    LIVE_COLUMNS,
    LONG_AGO,
    Context,
    Owed,
    Row,
    Told,
    birth,
    has_ended,
    in_order,
    needs_no_row,
    owed,
    stated,
    unlike,
)
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]
Pair = tuple[int, UUID]
"""A delivery and the event that its facts name."""

SLICE_ROWS = 5000
JUDGED_MAX = 500
"""Deliveries whose whole histories are in memory at once."""
SAMPLE_MAX = 20
"""Differences of each kind that a report shows."""

ID_MAX = 2**63 - 1
_FIRST = UUID(int=0)

KINDS: Mapping[str, str] = {
    "missing": "owed or dead by the facts, without its row",
    "extra": "a row of what the facts say has ended, or of which they know nothing",
    "misplaced": "a live delivery that is dead by the facts, or the other way round",
    "wrong": "a row whose columns are not what the facts say",
    "pending_missing": "an event neither pending nor routed",
    "pending_extra": "pending although routed, or without its event",
    "pending_wrong": "pending under another slot or organization than its event's",
    "bereft": "owed or dead, but its event or its subscription is not there",
    "contradiction": "facts that cannot follow one another",
}
UNMENDABLE = frozenset({"bereft", "contradiction"})
"""Rows cannot be made right where the facts are not: these are shown, and stay."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the facts say. `columns`: (in the row, by the facts)."""

    kind: str
    event_id: int
    delivery_id: UUID | None = None
    columns: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    why: str | None = None

    def told(self) -> dict[str, Any]:
        """As JSON shows it."""
        shown: dict[str, Any] = {"event": self.event_id, "delivery": self.delivery_id}
        if self.columns:
            shown["columns"] = {
                name: {"row": row, "facts": facts} for name, (row, facts) in self.columns.items()
            }
        if self.why is not None:
            shown["why"] = self.why
        return shown


@dataclass(frozen=True, slots=True)
class Slice:
    """What one slice held. `upto` is the last event id looked at, of about `ceiling`."""

    upto: int
    ceiling: int
    events: int = 0
    facts: int = 0
    deliveries: int = 0
    differences: Sequence[Difference] = ()


@dataclass(slots=True)
class Report:
    """What was read and what was found."""

    events: int = 0
    facts: int = 0
    deliveries: int = 0
    found: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Difference]] = field(default_factory=dict)

    def add(self, part: Slice) -> None:
        """Count one slice."""
        self.events += part.events
        self.facts += part.facts
        self.deliveries += part.deliveries
        for difference in part.differences:
            self.found[difference.kind] += 1
            self.columns.update(difference.columns.keys())
            sample = self.samples.setdefault(difference.kind, [])
            if len(sample) < SAMPLE_MAX:
                sample.append(difference)

    @property
    def equal(self) -> bool:
        """Is everything as the facts say?"""
        return not self.found


Tell = Callable[[Slice], None]


def verify(
    connection: Connection, *, rows_max: int = SLICE_ROWS, tell: Tell | None = None
) -> Report:
    """Compare, on an autocommit connection. `tell` hears of every slice as it is done."""
    report = Report()
    for part in slices(connection, rows_max=rows_max):
        report.add(part)
        if tell is not None:
            tell(part)
    return report


def slices(connection: Connection, *, rows_max: int = SLICE_ROWS) -> Iterator[Slice]:
    """Everything, in slices of one snapshot: along the log first, then rows that no fact knows."""
    with snapshot(connection):
        # Rows under a wrong event: looked for by that event, no fact would seem to know them.
        astray: set[UUID] = set()
        done = ceiling = 0
        while done < ID_MAX:
            part = _along_the_log(connection, done, rows_max)
            astray.update(
                d.delivery_id for d in part.differences if "event_id" in d.columns if d.delivery_id
            )
            done, ceiling = part.upto, part.ceiling
            yield part
        yield from _unknown_rows(connection, rows_max, astray, ceiling)


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """A transaction whose every look sees the same moment."""
    with connection.transaction():
        connection.execute(statement("rebuild_snapshot"))
        yield


def _along_the_log(connection: Connection, done: int, rows_max: int) -> Slice:
    [(upto, ceiling)] = _fetch(connection, "rebuild_bounds", {"after": done, "rows_max": rows_max})
    upto = ID_MAX if upto is None else upto
    differences: list[Difference] = []
    doubtful: list[Pair] = []
    read: Counter[str] = Counter()
    for kind, event_id, delivery_id, outline, n in _fetch(
        connection, "rebuild_slice", {"after": done, "upto": upto}
    ):
        if kind == "history":
            read["deliveries"] += 1
            if n or not has_ended(outline):
                doubtful.append((event_id, delivery_id))
        elif kind in KINDS:
            differences.append(Difference(kind, event_id))
        else:
            read[kind] = n
    for start in range(0, len(doubtful), JUDGED_MAX):
        differences += judge(connection, doubtful[start : start + JUDGED_MAX]).differences
    return Slice(upto, ceiling, read["events"], read["facts"], read["deliveries"], differences)


def _unknown_rows(
    connection: Connection, rows_max: int, astray: set[UUID], ceiling: int
) -> Iterator[Slice]:
    after_id: UUID | None = _FIRST
    while after_id is not None:
        rows = _fetch(connection, "rebuild_orphans", {"after_id": after_id, "rows_max": rows_max})
        yield Slice(
            ceiling,
            ceiling,
            differences=[
                Difference("extra", event_id, delivery_id, why="no fact speaks of it")
                for delivery_id, event_id, orphan in rows
                if orphan and delivery_id not in astray
            ],
        )
        after_id = rows[-1][0] if len(rows) == rows_max else None


# -- judging --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """Some deliveries, as they are and as they should be. Only those of `sound` can be mended."""

    live: Mapping[UUID, Row]
    dead: Mapping[UUID, Row]
    sound: Mapping[UUID, tuple[Owed, Context | None]]
    differences: Sequence[Difference]


def judge(connection: Connection, pairs: Iterable[Pair]) -> Judged:
    """Compare whole histories with rows, as this transaction sees them."""
    events = {delivery_id: event_id for event_id, delivery_id in pairs}
    facts = _facts(connection, events)
    contexts = _contexts(connection, events, facts)
    live = _rows(connection, "rebuild_live", events, LIVE_COLUMNS)
    dead = _rows(connection, "rebuild_dead", events, DEAD_COLUMNS)
    sound: dict[UUID, tuple[Owed, Context | None]] = {}
    differences: list[Difference] = []
    for delivery_id, event_id in events.items():
        told, context = facts.get(delivery_id, []), contexts.get(delivery_id)
        try:
            wanted = _owed(told, event_id, context)
        except IllegalTransition as error:
            why = f"{error}: {' '.join(item.fact.name for item in told)}"
            differences.append(Difference("contradiction", event_id, delivery_id, why=why[:500]))
            continue
        if wanted is None:
            differences.append(Difference("bereft", event_id, delivery_id))
            continue
        sound[delivery_id] = (wanted, context)
        rows = live.get(delivery_id), dead.get(delivery_id)
        if birth(told) is None and any(row and row["event_id"] != event_id for row in rows):
            continue  # Its facts stand under another event: somebody has mended it meanwhile.
        differences += _compared((event_id, delivery_id), *rows, wanted, context)
    return Judged(live, dead, sound, differences)


def _owed(told: Sequence[Told], event_id: int, context: Context | None) -> Owed | None:
    """None where a row is owed that nothing can be put into. Raises IllegalTransition."""
    if context is not None:
        return owed(told, event_id, context)
    return GONE if needs_no_row(told) else None


def _compared(
    pair: Pair, live: Row | None, dead: Row | None, wanted: Owed, context: Context | None
) -> Iterator[Difference]:
    if live is None and dead is not None and wanted.live is not None:
        yield Difference("misplaced", *pair, why="dead, should be live")
        return
    if dead is None and live is not None and wanted.dead is not None:
        yield Difference("misplaced", *pair, why="live, should be dead")
        return
    for name, row, want in (("live", live, wanted.live), ("dead", dead, wanted.dead)):
        if want is not None and row is None:
            yield Difference("missing", *pair, why=f"should be {name}")
        elif want is None and row is not None:
            yield Difference("extra", *pair, why=f"should not be {name}")
        elif row is not None and want is not None and context is not None:
            columns = unlike(row, want, context)
            if columns:
                yield Difference("wrong", *pair, columns)


# -- reading --------------------------------------------------------------------------------------

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class _Moment(Loader):
    """A timestamptz; what lies outside of Python's calendar is its end."""

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        micros = int.from_bytes(bytes(data), "big", signed=True)
        try:
            return min(_POSTGRES_EPOCH + timedelta(microseconds=micros), FAR)
        except OverflowError:
            return FAR if micros > 0 else LONG_AGO


def _fetch(connection: Connection, name: str, parameters: Mapping[str, Any]) -> list[Any]:
    cursor = connection.cursor(binary=True)
    try:
        return cursor.execute(statement(name), parameters).fetchall()
    except psycopg.DataError:
        # A time that Python has no word for. Rare, and the way around costs time.
        cursor.adapters.register_loader("timestamptz", _Moment)
        return cursor.execute(statement(name), parameters).fetchall()


def _facts(connection: Connection, events: Mapping[UUID, int]) -> dict[UUID, list[Told]]:
    parameters = {"event_ids": numbers(events.values()), "ids": uuids(events)}
    return in_order(_told(*row) for row in _fetch(connection, "rebuild_facts", parameters))


def _told(
    delivery_id: UUID,
    name: str,
    at: datetime,
    attempt: int,
    charged: bool,
    budget: int,
    reason: str | None,
    due_at: datetime | None,
    subscription_id: int | None,
    revision: int | None,
    detail: Mapping[str, Any] | None,
) -> Told:
    state, expiries = stated(name, reason, detail)
    fact = Fact(
        FactName(name), at, delivery_id, attempt, charged, budget, reason, due_at, expiries, state
    )
    return Told(fact, subscription_id, revision, detail)


def _contexts(
    connection: Connection, events: Mapping[UUID, int], facts: Mapping[UUID, Sequence[Told]]
) -> dict[UUID, Context]:
    births = [(key, found) for key in events if (found := birth(facts.get(key, ()))) is not None]
    parameters = {
        "ids": uuids(key for key, _ in births),
        "event_ids": numbers(events[key] for key, _ in births),
        "subscription_ids": numbers(told.subscription_id for _, told in births),
        "revisions": numbers(told.revision for _, told in births),
    }
    rows = _fetch(connection, "rebuild_context", parameters)
    return {row[0]: Context(*row[1:]) for row in rows}


def _rows(
    connection: Connection, name: str, ids: Iterable[UUID], columns: Sequence[str]
) -> dict[UUID, Row]:
    rows = _fetch(connection, name, {"ids": uuids(ids)})
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}
