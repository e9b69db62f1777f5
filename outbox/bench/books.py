"""What happened, read from the journal when all is over: nothing is counted while it runs.

Times are the server's. Events that the product itself emits (`outbox.*`) do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outbox.errors import LossDetected, OutboxError
from outbox.store.connect import connect

BUCKET_S = 0.1
GROWTH_SHARE_MAX = 0.02
"""A backlog that grows by less than this share of what is offered does not grow."""

_MARK = "SELECT coalesce(max(id), 0), pg_current_wal_lsn()::text FROM outbox.event"
_COUNTS = """
SELECT (SELECT count(*) FROM outbox.event WHERE id > %(mark)s AND type NOT LIKE 'outbox.%%'),
       (SELECT coalesce(avg(octet_length(payload::text)), 0)::float8 FROM outbox.event
        WHERE id > %(mark)s AND type NOT LIKE 'outbox.%%'),
       count(DISTINCT delivery_id) FILTER (WHERE fact = 'delivered'),
       count(*) FILTER (WHERE fact = 'attempt_failed'),
       count(*) FILTER (WHERE fact = 'dead'),
       (SELECT reason FROM outbox.journal WHERE fact = 'dead' AND event_id > %(mark)s LIMIT 1),
       extract(epoch FROM max(at) FILTER (WHERE fact = 'delivered'))::float8
FROM outbox.journal WHERE event_id > %(mark)s
"""
_SERIES = """
SELECT floor((t - %(begin)s) / %(bucket_s)s)::int AS bucket, sum(n)::int FROM (
    SELECT extract(epoch FROM created_at)::float8, 1 FROM outbox.event
    WHERE id > %(mark)s AND type NOT LIKE 'outbox.%%'
    UNION ALL
    SELECT extract(epoch FROM at)::float8, -1 FROM outbox.journal
    WHERE event_id > %(mark)s AND fact = 'delivered') AS moves (t, n)
GROUP BY bucket ORDER BY bucket
"""
_WAITS = """
SELECT extract(epoch FROM j.at - e.created_at)::float8 * 1000
FROM outbox.journal j JOIN outbox.event e ON e.id = j.event_id
WHERE j.event_id > %(mark)s AND j.fact = 'delivered'
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """The last event and the place in the WAL before something begins."""

    event: int
    lsn: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Events since a mark and what became of them; `ended_at` is when the last was settled."""

    events: int
    payload_bytes: float
    delivered: int
    failed_attempts: int
    dead: int
    dead_reason: str | None
    ended_at: float

    def balance(self, events: int) -> None:
        """Raise LossDetected where not each of the events that were written is delivered once,
        OutboxError where one is dead."""
        if self.dead:
            raise OutboxError(f"{self.dead} of {events} deliveries are dead: {self.dead_reason}")
        if self.events != events or self.delivered != events:
            raise LossDetected(
                f"{events} events were written, {self.events} stand in the log, "
                f"{self.delivered} were delivered"
            )


def mark(url: str) -> Mark:
    """Where things stand now."""
    with connect(url, autocommit=True) as connection:
        row = connection.execute(_MARK).fetchone()
    assert row is not None
    return Mark(*row)


def server_time(url: str) -> float:
    """The server's clock, unix time."""
    return float(_value(url, "SELECT extract(epoch FROM clock_timestamp())::float8"))


def wal_bytes(url: str, since: str) -> int:
    """Bytes of WAL written since a place in it."""
    return int(_value(url, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s::pg_lsn)", [since]))


def _value(url: str, query: str, params: list[Any] | None = None) -> Any:
    with connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]


def read_counts(url: str, since: Mark) -> Counts:
    """What became of the events since `since`."""
    with connect(url, autocommit=True) as connection:
        row = connection.execute(_COUNTS, {"mark": since.event}).fetchone()
    assert row is not None
    return Counts(*row)


def read_backlog(url: str, since: Mark, begin: float) -> list[tuple[float, float]]:
    """Events committed and not settled, by seconds since `begin` (unix time)."""
    params = {"mark": since.event, "begin": begin, "bucket_s": BUCKET_S}
    with connect(url, autocommit=True) as connection:
        rows = connection.execute(_SERIES, params).fetchall()
    points, waiting = [], 0
    for bucket, moved in rows:
        waiting += moved
        points.append(((bucket + 1) * BUCKET_S, float(waiting)))
    return points


def read_waits_ms(url: str, since: Mark) -> list[float]:
    """Milliseconds from an event's row to its settled row, for each."""
    with connect(url, autocommit=True) as connection:
        return [float(row[0]) for row in connection.execute(_WAITS, {"mark": since.event})]
