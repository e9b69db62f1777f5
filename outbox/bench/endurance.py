"""Whether it goes on as it began: at 60 % of its own peak, p99, memory and sizes of tables.

The peak is the median of drains. While webhooks are offered, memory of relay and worker and the
size of every table but the log, with its indexes, is looked at a hundred times. The log (`event`,
`journal`) grows by nature, until retention empties a slot: its bytes for each event are told.

What may grow, and why:

* memory: by `GROWTH_MB_MAX` after the first quarter. Python keeps what a burst once took; a leak
  of a few hundred bytes an event passes this within minutes.
* tables and their indexes: not beyond what the events of two turns of autovacuum leave behind. A
  row that dies keeps its place until a turn has passed, another may be under way, and a turn passes
  over a table in which fewer than `THRESHOLD_ROWS` have died. A table whose places are not used
  again passes this bound in the third turn. Where PostgreSQL is embedded, a turn comes as often in
  the quick form as in the full one: ten in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from outbox.bench import books, disk
from outbox.bench.deliveries import JOBS, WRITE_JOBS, add_receiver, receive, set_up
from outbox.bench.feed import Feed, Stretch
from outbox.bench.rates import backlog_of
from outbox.bench.report import Found, Goal, spread
from outbox.bench.rig import Rig
from outbox.bench.usage import rss_mb
from outbox.store.connect import connect

PEAK_SHARE = 0.6
LOOKS = 100
GROWTH_MB_MAX = 8.0
TURNS, TURNS_MAX = 10, 2
NAPTIME_S_MAX = 60
THRESHOLD_ROWS = 5000
"""As `delivery` and `pending` have it (`autovacuum_vacuum_threshold`)."""
ROW_BYTES = {"delivery": 600, "pending": 150}
"""A row with its index entries where no place is used twice: of 50,000 rows written at once, then
leased and started, 440 to 510 bytes each were measured, and 145 of `pending`."""
OTHERS_BYTES_MAX = 1 << 20
"""Of any other table: those hold what configuration and processes there are."""

_SIZES = """
SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid) FROM pg_class c
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r'
  AND c.relname !~ '^(event|journal|email|email_recipient)_[0-7]$'
"""
_LOG = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r'
  AND c.relname ~ '^(event|journal)_[0-7]$'
"""


@dataclass(slots=True)
class Looks:
    """What was seen, from time to time: seconds, megabytes by process, bytes by table."""

    rig: Rig
    every_s: float
    at: list[float] = field(default_factory=list)
    memory_mb: dict[str, list[float]] = field(default_factory=dict)
    table_bytes: dict[str, list[int]] = field(default_factory=dict)

    def look(self, passed: float) -> None:
        """Look, where it is time."""
        if self.at and passed - self.at[-1] < self.every_s:
            return
        self.at.append(passed)
        for name, program in self.rig.programs.items():
            if name != "receiver" and (now := rss_mb(program.pid)) is not None:
                self.memory_mb.setdefault(name, []).append(now)
        with connect(self.rig.url, autocommit=True) as connection:
            for name, table, indexes in connection.execute(_SIZES.encode()).fetchall():
                self.table_bytes.setdefault(name, []).append(table + indexes)


def sustained(rig: Rig, _goal: Goal) -> Found:
    """The value is the p99 from an event's row to its settled row."""
    port, receiver, tally = receive(rig)
    set_up(rig, JOBS)
    add_receiver(rig, port)
    rig.start_outbox()
    feed = Feed(rig, WRITE_JOBS)
    events = int(rig.choose(20_000, 3_000, rig.asked.events))
    runs = int(rig.choose(3, 1, rig.asked.runs))
    seconds = rig.choose(600.0, 20.0, rig.asked.seconds)
    feed.warm(min(events, 300))
    drains = [feed.drain(events) for _ in range(runs)]
    peak = median(one.rate for one in drains)
    naptime_s = _vacuum_often(rig, seconds)
    log_before = _number(rig, _LOG)
    looks = Looks(rig, seconds / LOOKS)
    with disk.disk_waits(rig.folder if rig.postgres else None) as waits:
        stretch = feed.offer(PEAK_SHARE * peak, seconds, watch=looks.look)
        rig.wait_until_settled()
    books.read_counts(rig.url, stretch.since).balance(stretch.events)
    backlog = backlog_of(rig, stretch)
    memory = {name: grown_mb(of) for name, of in looks.memory_mb.items()}
    tables = _tables(looks, stretch, naptime_s)
    detail = {
        "peak_per_s": spread([one.rate for one in drains]),
        "sustained": backlog,
        "disk_ms": disk.told(waits),
        "memory_mb": memory,
        "tables": tables,
        "log_bytes_each": round((_number(rig, _LOG) - log_before) / stretch.events),
        "rss_mb_max": {name: one.rss_mb_max for name, one in rig.programs.items()},
        "counts": feed.balance(tally),
    }
    conditions = {
        "events": events,
        "payload_bytes": round(drains[0].counts.payload_bytes),
        "batch": "what is due every 20 ms",
        "offered_per_s": backlog["offered_per_s"],
        "autovacuum_naptime_s": naptime_s,
        "runs": 1,
        "runs_of_the_peak": runs,
        "duration_s": seconds,
        "processes": {"relay": 1, "worker": 1, "receiver": receiver},
    }
    holds = all(one["met"] for one in (*memory.values(), *tables.values()))
    value = float(backlog["settled_after_ms"]["p99"])
    return Found(value, holds and bool(backlog["holds"]), conditions, detail)


def _vacuum_often(rig: Rig, seconds: float) -> int:
    """Let autovacuum's turns be as many as in the full form; seconds between two."""
    naptime_s = max(1, min(NAPTIME_S_MAX, round(seconds / TURNS)))
    with connect(rig.url, autocommit=True) as connection:
        if rig.postgres is not None:
            connection.execute(f"ALTER SYSTEM SET autovacuum_naptime = {naptime_s}".encode())
            connection.execute("SELECT pg_reload_conf()")
            return naptime_s
    return _number(rig, "SELECT setting::int FROM pg_settings WHERE name = 'autovacuum_naptime'")


def _number(rig: Rig, query: str) -> int:
    with connect(rig.url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def grown_mb(seen: list[float]) -> dict[str, Any]:
    """How much a process took after the first quarter."""
    grown = max(seen[len(seen) // 4 :]) - seen[len(seen) // 4]
    told = {"after_a_quarter": seen[len(seen) // 4], "at_the_end": seen[-1]}
    return {**told, "grown": round(grown, 1), "bound": GROWTH_MB_MAX, "met": grown <= GROWTH_MB_MAX}


def bound_bytes(table: str, at_first: int, per_s: float, naptime_s: int) -> int:
    """What a table may take at most, that took so much at first."""
    if table not in ROW_BYTES:
        return at_first + OTHERS_BYTES_MAX
    rows = TURNS_MAX * (per_s * naptime_s + THRESHOLD_ROWS)
    return at_first + round(rows * ROW_BYTES[table])


def _tables(looks: Looks, stretch: Stretch, naptime_s: int) -> dict[str, Any]:
    """The two that are polled, and the others that have grown beyond their bound."""
    found = {}
    for name, seen in looks.table_bytes.items():
        bound = bound_bytes(name, seen[0], stretch.per_s, naptime_s)
        met = max(seen) <= bound
        if name in ROW_BYTES or not met:
            half = max(seen[: len(seen) // 2 + 1])
            told = {"bytes_at_first": seen[0], "bytes_max_by_half": half, "bytes_max": max(seen)}
            found[name] = {**told, "bound": bound, "met": met}
    return found
