"""How many deliveries a second: the family of mail, pdf, broadcast, noop and webhooks.

First some events pass, so that everything is warm. Then, `runs` times, events are committed in one
transaction and the time is taken from that commit until the last of them is settled: the drain.
Last, events are committed at a steady rate of four fifths of the median drain (never more than the
goal) beside everything else, and the backlog must not grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import monotonic, sleep
from typing import Any

from outbox.bench import books
from outbox.bench.report import Found, percentile, slope, spread
from outbox.bench.rig import Rig
from outbox.errors import LossDetected
from outbox.rhythm import RelayConfig
from outbox.store.connect import connect
from outbox.worker import WorkerConfig

CHUNK = 1000
"""Events of one statement, while a backlog is written."""
STEADY_SHARE = 0.8
TICK_S = 0.02
"""A commit each so many seconds, while events are offered at a steady rate."""

Tally = Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Load:
    """What is written. `statement` writes the events numbered %(first)s to %(last)s."""

    statement: str
    events: int
    events_quick: int
    seconds: float = 15.0
    warm_up: int = 300


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain: events a second; microseconds of processor time of each part and bytes of WAL
    (without those of the events themselves) for each delivery."""

    rate: float
    counts: books.Counts
    cpu_us: Mapping[str, float]
    wal_bytes: float
    rest_after_s: float


class Rates:
    """One scenario of the family. `tally` asks the receiver for its counts, where there is one."""

    def __init__(self, rig: Rig, load: Load, goal: float, tally: Tally | None = None) -> None:
        self._rig = rig
        self._load = load
        self._goal = goal
        self._tally = tally
        self._written = 0

    def measure(self) -> Found:
        """All of it. Raises LossDetected where the counts do not balance."""
        rig = self._rig
        events = int(rig.choose(self._load.events, self._load.events_quick, rig.asked.events))
        runs = int(rig.choose(3, 1, rig.asked.runs))
        seconds = rig.choose(self._load.seconds, 4.0, rig.asked.seconds)
        self._write(min(events, self._load.warm_up))
        rig.wait_until_settled()
        drains = [self._drain(events) for _ in range(runs)]
        rates = [one.rate for one in drains]
        steady = self._steady(min(self._goal, STEADY_SHARE * median(rates)), seconds)
        detail = {
            "drain_per_s": spread(rates),
            "sustained": steady,
            "cpu_us_each": _medians([one.cpu_us for one in drains]),
            "wal_bytes_each": round(median(one.wal_bytes for one in drains)),
            "rss_mb_max": {name: one.rss_mb_max for name, one in rig.programs.items()},
            "counts": self._balance(drains),
        }
        conditions = {
            "events": events,
            "payload_bytes": round(drains[0].counts.payload_bytes),
            "batch": {
                "written_at_once": events,
                "claimed_at_most": RelayConfig().batch,
                "settled_at_most": WorkerConfig().settle_max,
            },
            "runs": runs,
            "duration_s": {
                "drains": round(sum(events / one for one in rates), 1),
                "steady": seconds,
            },
        }
        return Found(round(median(rates), 1), bool(steady["holds"]), conditions, detail)

    def _write(self, count: int) -> None:
        """Commit so many events at once."""
        first = self._written + 1
        self._written += count
        with connect(self._rig.url) as connection:
            for start in range(first, self._written + 1, CHUNK):
                last = min(start + CHUNK - 1, self._written)
                connection.execute(self._load.statement.encode(), {"first": start, "last": last})
                self._rig.check()

    def _drain(self, events: int) -> Drain:
        rig = self._rig
        since = books.mark(rig.url)
        self._write(events)
        before, began_at = rig.used(), books.server_time(rig.url)
        written = books.mark(rig.url)
        rig.wait_until_settled()
        after = rig.used()
        counts = books.read_counts(rig.url, since)
        counts.balance(events)
        seconds = max(counts.ended_at - began_at, 1e-3)
        return Drain(
            rate=events / seconds,
            counts=counts,
            cpu_us={name: (after[name] - before[name]) / events * 1e6 for name in before},
            wal_bytes=books.wal_bytes(rig.url, written.lsn) / events,
            rest_after_s=seconds,
        )

    def _steady(self, rate: float, seconds: float) -> dict[str, Any]:
        """Offer so many events a second; what became of the backlog."""
        rig = self._rig
        since, began_at = books.mark(rig.url), books.server_time(rig.url)
        events = self._offer(rate, seconds)
        took_s = books.server_time(rig.url) - began_at
        rig.wait_until_settled()
        books.read_counts(rig.url, since).balance(events)
        points = books.read_backlog(rig.url, since, began_at)
        growth = slope([(at, n) for at, n in points if took_s / 4 <= at <= took_s])
        offered = events / took_s
        waits_ms = books.read_waits_ms(rig.url, since)
        return {
            "offered_per_s": round(offered, 1),
            "backlog_growth_per_s": round(growth, 1),
            "backlog_max": round(max((n for at, n in points if at <= took_s), default=0)),
            "settled_after_ms": {
                "p50": round(percentile(waits_ms, 0.5), 1),
                "p99": round(percentile(waits_ms, 0.99), 1),
            },
            "holds": growth <= books.GROWTH_SHARE_MAX * offered,
        }

    def _offer(self, rate: float, seconds: float) -> int:
        """Commit events at a steady rate; returns how many."""
        first, began_at = self._written, monotonic()
        with connect(self._rig.url, autocommit=True) as connection:
            while (passed := monotonic() - began_at) < seconds:
                last = first + int(passed * rate) + 1
                params = {"first": self._written + 1, "last": last}
                connection.execute(self._load.statement.encode(), params)
                self._written = last
                self._rig.check()
                sleep(max(0.0, TICK_S - (monotonic() - began_at - passed)))
        return self._written - first

    def _balance(self, drains: list[Drain]) -> dict[str, Any]:
        """Every event against what the receiver saw. Raises LossDetected."""
        counts: dict[str, Any] = {
            "written": self._written,
            "failed_attempts": sum(one.counts.failed_attempts for one in drains),
        }
        if self._tally is None:
            return counts
        told = self._tally()
        if told["received"] != self._written:
            raise LossDetected(
                f"{self._written} were delivered, the receiver saw {told['received']}"
            )
        return counts | {
            "received": told["received"],
            "duplicates": told["requests"] - told["received"],
        }


def _medians(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """By name the median, and of all names the sum."""
    names = {name: round(median(row[name] for row in rows), 1) for name in rows[0]}
    return names | ({"all": round(sum(names.values()), 1)} if names else {})
