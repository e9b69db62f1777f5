"""Erasure: takes the contents of named events out of the log, the journal and the dead letters.

The one exception to the rule that facts stay as they were written, itself a fact: a `redacted`
fact a event says who and why. Which event, when, for whom, and what became of each delivery stays;
payload, headers, subject, ordering key, deduplication keys and everything a receiver answered goes,
and so do the messages that were made of it, with their recipients.

Promises: an event is redacted whole, in one transaction with the end of what is still owed of it;
batches are small, so nobody waits long; cut off, it is simply run again. A delivery whose outcome
arrives later finds its row gone, so nothing that quotes the event is written afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors as pg

from outbox.errors import OutboxError, UsageError
from outbox.store.connect import describe
from outbox.store.deliveries import REASON_CHARS_MAX
from outbox.store.statements import statement
from outbox.store.subscriptions import check_filter

Connection = psycopg.Connection[tuple[Any, ...]]

LOOKED_MAX = 5000
"""Events of the log that one statement looks at."""
GROUP_EVENTS = 5000
"""Events whose deduplication keys are erased together: no index finds these by event."""
BATCH_EVENTS = 100
"""Events of one transaction. It holds the dispatch lock, so relays wait for it."""
TRIES = 5
LOCK_TIMEOUT_MS = 3000

KEPT = (
    *("id", "event_id", "event_slot", "subscription_id", "revision", "generation", "lane"),
    *("org_id", "state", "due_at", "expires_at", "age_limit_at", "attempts", "budget", "expiries"),
    *("again", "held_at", "held_reason", "reason", "died_at", "from_slot", "carried_at"),
    *("replay", "mode", "status", "duration_ms", "ended_by"),
)
"""What stays of a fact's detail: ids, states, times and codes, which the fold needs. Named, so that
what a later version or a user's processor adds is erased until somebody decides otherwise. A
delivery's `order_key` is not among them: it is a hash of the ordering key."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events: all that meet every condition given.

    `where` is an SQL/JSON path predicate over the payload; `until` is not included.
    """

    ids: Sequence[int] | None = None
    subject: str | None = None
    org: str | None = None
    patterns: tuple[str, ...] | None = None
    where: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def empty(self) -> bool:
        """Is there no condition at all?"""
        return all(getattr(self, f.name) is None for f in fields(self))


@dataclass(frozen=True, slots=True)
class Found:
    """Ids of the events chosen, in order; how many were redacted before; how many `where` cannot
    judge, because their payload holds text that SQL/JSON cannot."""

    ids: list[int] = field(default_factory=list)
    already: int = 0
    unjudged: int = 0


@dataclass(frozen=True, slots=True)
class Toll:
    """What a redaction ended and erased, or would: pending, live and dead are still owed."""

    events: int = 0
    pending: int = 0
    live: int = 0
    dead: int = 0
    facts: int = 0
    dedupe: int = 0
    emails: int = 0
    replays: int = 0
    artifacts: int = 0

    def __add__(self, other: Toll) -> Toll:
        return Toll(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def find_events(
    connection: Connection,
    choice: Choice,
    *,
    looked_max: int = LOOKED_MAX,
    told: Callable[[int], None] = lambda _found: None,
) -> Found:
    """Look through the log. Raises UsageError for a `where` that is no predicate."""
    if choice.where is not None:
        check_filter(connection, choice.where)
    parameters = {
        "org_id": choice.org,
        "subject": choice.subject,
        "patterns": None if choice.patterns is None else list(choice.patterns),
        "since": choice.since,
        "until": choice.until,
        "filter": choice.where,
        "looked_max": looked_max,
    }
    ids: list[int] = []
    already = unjudged = 0
    for chosen, redacted, undecided in _found(connection, choice.ids, parameters):
        ids += chosen
        already += redacted
        unjudged += undecided
        told(len(ids))
    return Found(_with_announced(connection, ids), already, unjudged)


def _with_announced(connection: Connection, ids: list[int]) -> list[int]:
    """These events and those that told of their documents, whose payloads hold the same data."""
    told: set[int] = set()
    for part in _parts(ids, GROUP_EVENTS):
        rows = connection.execute(statement("redact_announced"), {"ids": part})
        told.update(row[0] for row in rows)
    return sorted(told.union(ids))


def _found(
    connection: Connection, ids: Sequence[int] | None, parameters: dict[str, Any]
) -> Iterator[tuple[list[int], int, int]]:
    """Batch by batch: of the ids, or of the whole log where there are none."""
    parts: Iterable[list[int] | None] = [None]
    if ids is not None:
        parts = _parts(sorted(set(ids)), parameters["looked_max"])
    for part in parts:
        after, more = 0, True
        while more:
            row = connection.execute(
                statement("redact_find"), parameters | {"ids": part, "after": after}
            ).fetchone()
            assert row is not None
            chosen, redacted, undecided, after, more = row
            yield chosen, redacted, undecided


def count(connection: Connection, ids: Sequence[int]) -> Toll:
    """What redacting these events would end and erase."""
    total = Toll()
    for part in _parts(ids, GROUP_EVENTS):
        deliveries = _deliveries(connection, part)
        parameters = {"ids": part, "deliveries": deliveries, "kept": list(KEPT)}
        row = connection.execute(statement("redact_count"), parameters).fetchone()
        assert row is not None
        total += Toll(len(part), *row)
    return total


@dataclass(frozen=True, slots=True)
class Redacted:
    """What was done; `xid` is the last transaction that did it, None if none did."""

    toll: Toll
    xid: str | None = None


def redact(
    connection: Connection,
    ids: Sequence[int],
    why: str,
    *,
    subject: str | None = None,
    batch_events: int = BATCH_EVENTS,
    told: Callable[[Toll], None] = lambda _toll: None,
) -> Redacted:
    """Redact these events; `why` (1 to 200 characters) stays in the journal, so it names nobody.

    `subject` is erased from the filters of past replays beside the subjects of the events. Follow
    it with `sweep`, which removes the row versions that were replaced.
    """
    check_why(why)
    total, xid = Toll(), None
    for group in _parts(ids, GROUP_EVENTS):
        erased = connection.execute(statement("redact_dedupe"), {"ids": group}).rowcount
        total += Toll(dedupe=erased)
        for part in _parts(group, batch_events):
            done, xid = _tried(connection, part, why, subject)
            total += done
            told(total)
    return Redacted(total, xid)


def check_why(why: str) -> None:
    """Raise UsageError unless it is a reason of 1 to 200 characters."""
    if not 1 <= len(why) <= REASON_CHARS_MAX:
        raise UsageError(f"say why in 1 to {REASON_CHARS_MAX} characters")


def _parts(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])


def _deliveries(connection: Connection, ids: list[int]) -> list[UUID]:
    return [row[0] for row in connection.execute(statement("redact_owed"), {"ids": ids})]


def _tried(
    connection: Connection, ids: list[int], why: str, subject: str | None
) -> tuple[Toll, str]:
    """One batch. It must not wait long with the dispatch lock in its hands; then it tries again."""
    for _ in range(TRIES - 1):
        try:
            return _redact_batch(connection, ids, why, subject)
        except (pg.LockNotAvailable, pg.DeadlockDetected):
            continue
    try:
        return _redact_batch(connection, ids, why, subject)
    except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
        raise OutboxError(
            f"another session holds what is to be redacted ({describe(error)}); what was done stays"
            " done: end that session and run the command again"
        ) from error


def _redact_batch(
    connection: Connection, ids: list[int], why: str, subject: str | None
) -> tuple[Toll, str]:
    """Several statements, each with a snapshot of its own: once the rows are locked, whatever a
    settle or a carrying wrote in the meantime is seen, and nothing more can be written."""
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}".encode())
        connection.execute(statement("config_lock"))
        replays = connection.execute(
            statement("redact_replays"), {"ids": ids, "subject": subject}
        ).rowcount
        connection.execute(statement("redact_begin"), {"ids": ids})
        deliveries = _deliveries(connection, ids)
        _lock(connection, deliveries)
        row = connection.execute(
            statement("redact_end"), {"ids": ids, "deliveries": deliveries, "why": why}
        ).fetchone()
        assert row is not None
        connection.execute(statement("redact_aside"), {"ids": ids, "deliveries": deliveries})
        connection.execute(statement("redact_events"), {"ids": ids})
        facts = connection.execute(
            statement("redact_facts"), {"ids": ids, "kept": list(KEPT)}
        ).rowcount
        emails = connection.execute(
            statement("redact_emails"), {"deliveries": deliveries}
        ).fetchone()
        artifacts = connection.execute(statement("redact_artifacts"), {"ids": ids}).fetchone()
    assert emails is not None
    assert artifacts is not None
    events, pending, live, dead, xid = row
    toll = Toll(
        events, pending, live, dead, facts, 0, emails[0], replays=replays, artifacts=artifacts[0]
    )
    return toll, xid


def _lock(connection: Connection, deliveries: list[UUID]) -> None:
    """Wait for whoever settles, carries or redrives one of these. What is redriven meanwhile is
    not locked here and need not be: nobody leases it without the dispatch lock."""
    for name in ("redact_lock_live", "redact_lock_dead"):
        connection.execute(statement(name), {"deliveries": deliveries}).fetchall()


# -- what lies behind -----------------------------------------------------------------------------

_EVERY_SLOT = ", ".join(
    f"outbox.{table}_{slot}"
    for table in ("event", "journal", "email", "email_recipient")
    for slot in range(8)
)
_BESIDE = ", ".join(
    f"outbox.{table}"
    for table in ("dead_letter", "dedupe", "replay", "artifact", "progress", "key_use")
)
_CLEANED = (
    f"VACUUM (TRUNCATE FALSE) {_EVERY_SLOT}",
    # Their indexes hold values, not ids alone.
    f"VACUUM (INDEX_CLEANUP ON, TRUNCATE FALSE) {_BESIDE}",
    f"ANALYZE outbox.event, outbox.journal, {_BESIDE}",
)
CLEAN_HINT = f"VACUUM outbox.event, outbox.journal, outbox.email, outbox.email_recipient, {_BESIDE}"


def sweep(connection: Connection, xid: str | None) -> list[str]:
    """Remove the row versions that a redaction replaced, and samples of them in the planner's
    statistics. Needs autocommit. Returns what could not be removed and why, a line each.

    All slots are gone through: what an interrupted redaction left is removed with the rest.
    """
    notes: list[str] = []
    connection.add_notice_handler(lambda notice: notes.append(notice.message_primary or ""))
    for command in _CLEANED:
        connection.execute(command.encode())
    warnings = []
    if notes:
        warnings.append(f"not everything was vacuumed ({notes[0]}); as the owner run: {CLEAN_HINT}")
    if xid is not None:
        holders = [row[0] for row in connection.execute(statement("redact_holders"), {"xid": xid})]
        if holders:
            warnings.append(
                f"{_some(holders)} may still see what was erased and keeps it in the files; when"
                f" it has ended run: {CLEAN_HINT}"
            )
    return warnings + _forget_statistics(connection)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _forget_statistics(connection: Connection) -> list[str]:
    """ANALYZE passes over an empty table and leaves samples of the values that it held."""
    name = "redact_forget_18" if connection.info.server_version >= 180000 else "redact_forget"
    left = connection.execute(statement("redact_statistics")).fetchall()
    try:
        for table, column, inherited in left:
            parameters = {"table_name": table, "column_name": column, "inherited": inherited}
            connection.execute(statement(name), parameters)
    except pg.InsufficientPrivilege:
        tables = ", ".join(sorted({row[0] for row in left}))
        text = f"statistics of tables that are empty now ({tables}) hold samples of past values;"
        return [f"{text} a superuser removes them from pg_statistic"]
    return []
