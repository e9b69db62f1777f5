"""Follows the log: every event once, soon after its commit, in whatever order they commit.

Ids are drawn before the commit, so a lower id may come after a higher one. What is remembered is
therefore which ids have *not* been seen: the open end, and the gaps below it. A gap is given up
when every transaction has ended that was running once the id had been drawn (an event's transaction
has its number before it draws the id, so the snapshot tells). Memory is bounded by the number of
gaps.

Promises: nothing but reading, one statement a look; a lost connection is opened again and nothing
that was committed meanwhile is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg

from outbox.errors import DatabaseUnavailable
from outbox.store.connect import connect
from outbox.store.events import EventFilter, list_events
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]
Range = tuple[int, int]

TOP = 2**63 - 1
EVERY_S = 0.5
ROWS_MAX = 1000
ROWS_WITH_PAYLOAD_MAX = 100
"""A payload may have a mebibyte."""
BACK = 10_000
"""How many ids before the start are watched: those not committed yet are shown when they come."""
GAPS_MAX = 1000
"""More gaps than this, under a transaction that stays open, and the oldest are given up."""
AGAIN_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the log found: events to show, ids met, and its snapshot."""

    events: Sequence[dict[str, Any]]
    met: Sequence[Range]
    more: bool
    last_id: int
    xmin: int
    xmax: int


class Trail:
    """Which ids were not seen yet, as ranges in order; the last one is open."""

    def __init__(self, after: int = 0, gaps_max: int = GAPS_MAX) -> None:
        self.unseen: list[Range] = [(after + 1, TOP)]
        self.given_up = 0
        self._gaps_max = gaps_max
        self._drawn: int | None = None
        self._mark: tuple[int, int] | None = None

    def note(self, look: Look) -> None:
        """Take in what a look at `unseen` found."""
        self.unseen = _without(self.unseen, look.met)
        if self._mark is not None and not look.more and look.xmin >= self._mark[1]:
            self.unseen = _from(self.unseen, self._mark[0] + 1)
            self._mark = None
        if self._mark is None and self._drawn is not None:
            # Drawn before this look's snapshot: its transaction is below `xmax`.
            self._mark = (self._drawn, look.xmax)
        self._drawn = look.last_id
        excess = len(self.unseen) - 1 - self._gaps_max
        if excess > 0:
            self.given_up += excess
            del self.unseen[:excess]


def _without(ranges: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """`ranges` without `taken`; both in order."""
    left: list[Range] = []
    index = 0
    for start, high in ranges:
        low = start
        while index < len(taken) and taken[index][1] < low:
            index += 1
        at = index
        while at < len(taken) and taken[at][0] <= high:
            if low < taken[at][0]:
                left.append((low, taken[at][0] - 1))
            low = taken[at][1] + 1
            at += 1
        if low <= high:
            left.append((low, high))
    return left


def _from(ranges: Sequence[Range], low: int) -> list[Range]:
    return [(max(start, low), high) for start, high in ranges if high >= low]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events to follow. `last` shows so many of before first, `since` those of since then."""

    patterns: tuple[str, ...] | None = None
    org: str | None = None
    since: datetime | None = None
    last: int = 0
    payload: bool = False


def look(connection: Connection, trail: Trail, wanted: Wanted, rows_max: int | None = None) -> Look:
    """Look once at what was not seen, and note it."""
    default = ROWS_WITH_PAYLOAD_MAX if wanted.payload else ROWS_MAX
    parameters = {
        "lows": [low for low, _ in trail.unseen],
        "highs": [high for _, high in trail.unseen],
        "rows_max": rows_max or default,
        "patterns": None if wanted.patterns is None else list(wanted.patterns),
        "org_id": wanted.org,
        "since": wanted.since,
        "payload": wanted.payload,
    }
    row = connection.execute(statement("event_tail"), parameters).fetchone()
    assert row is not None
    events, lows, highs, more, last_id, xmin, xmax = row
    met = tuple(zip(lows, highs, strict=True))
    found = Look(events, met, more, last_id, int(xmin), int(xmax))
    trail.note(found)
    return found


def begin(connection: Connection, wanted: Wanted) -> tuple[Trail, list[dict[str, Any]]]:
    """Where to follow from, and events of before to show first."""
    if wanted.since is not None:
        return Trail(max(0, _first_since(connection, wanted.since) - 1 - BACK)), []
    # One snapshot: what commits after it is neither shown here nor taken for seen.
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        nothing = replace(wanted, payload=False)
        newest = look(connection, Trail(TOP - 1), nothing, 1).last_id
        trail = Trail(max(0, newest - BACK))
        while look(connection, trail, nothing, BACK).more:
            pass
        return trail, _last(connection, wanted)


def _last(connection: Connection, wanted: Wanted) -> list[dict[str, Any]]:
    if wanted.last == 0:
        return []
    chosen = EventFilter(wanted.patterns, wanted.org)
    ids = [row["id"] for row in list_events(connection, chosen, rows_max=wanted.last)]
    events: list[dict[str, Any]] = []
    for event_id in reversed(ids):
        trail = Trail()
        trail.unseen = [(event_id, event_id)]
        events += look(connection, trail, wanted, 1).events
    return events


def _first_since(connection: Connection, since: datetime) -> int:
    """About the first id of then: times rise with ids but for what ran at the same time."""
    low, high = 0, TOP
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(statement("event_near"), {"id": middle}).fetchone()
        if row is None or row[1] >= since:
            high = middle
        else:
            low = int(row[0]) + 1
    return low


def follow(
    url: str,
    wanted: Wanted,
    wait: Callable[[float], None],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Every event that is wanted, for ever. `wait` is called with seconds between looks, `say`
    with what a person should know. Raises DatabaseUnavailable if the first connection fails."""
    trail: Trail | None = None
    failures = 0
    while True:
        try:
            with connect(url, autocommit=True) as connection:
                if trail is None:
                    trail, before = begin(connection, wanted)
                    yield from before
                if failures:
                    say("connected again")
                    failures = 0
                yield from _look_on(connection, trail, wanted, wait, say)
        except DatabaseUnavailable as error:
            if trail is None:
                raise
            if failures == 0:
                say(f"{error}; trying again")
            failures += 1
            wait(min(AGAIN_S_MAX, 0.1 * 2 ** min(failures, 10)))


def _look_on(
    connection: Connection,
    trail: Trail,
    wanted: Wanted,
    wait: Callable[[float], None],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    while True:
        given_up = trail.given_up
        found = look(connection, trail, wanted)
        if given_up == 0 < trail.given_up:
            say("a transaction stays open beside many others: events that it commits may be missed")
        yield from found.events
        if not found.more:
            wait(EVERY_S)
