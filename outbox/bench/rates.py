"""How many deliveries a second: the family of mail, pdf, broadcast, noop and webhooks.

First some events pass, so that everything is warm. Then, `runs` times, events are committed in one
transaction and the time is taken from that commit until the last of them is settled: the drain.
Last, events are committed at a steady rate of four fifths of the median drain (never more than the
goal) beside everything else, and the backlog must not grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from outbox.bench import books
from outbox.bench.feed import Feed, Stretch, Tally
from outbox.bench.report import Found, percentile, slope, spread
from outbox.bench.rig import Rig
from outbox.rhythm import RelayConfig
from outbox.worker import WorkerConfig

STEADY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Load:
    """What is written. `statement` writes the events numbered %(first)s to %(last)s."""

    statement: str
    events: int
    events_quick: int
    seconds: float = 15.0
    warm_up: int = 300


class Rates:
    """One scenario of the family. `tally` asks the receiver for its counts, where there is one."""

    def __init__(self, rig: Rig, load: Load, goal: float, tally: Tally | None = None) -> None:
        self._rig = rig
        self._load = load
        self._goal = goal
        self._tally = tally
        self._feed = Feed(rig, load.statement)

    def measure(self) -> Found:
        """All of it. Raises LossDetected where the counts do not balance."""
        rig = self._rig
        events = int(rig.choose(self._load.events, self._load.events_quick, rig.asked.events))
        runs = int(rig.choose(3, 1, rig.asked.runs))
        seconds = rig.choose(self._load.seconds, 4.0, rig.asked.seconds)
        self._feed.warm(min(events, self._load.warm_up))
        drains = [self._feed.drain(events) for _ in range(runs)]
        rates = [one.rate for one in drains]
        steady = self._steady(min(self._goal, STEADY_SHARE * median(rates)), seconds)
        detail = {
            "drain_per_s": spread(rates),
            "sustained": steady,
            "cpu_us_each": medians([one.cpu_us for one in drains]),
            "wal_bytes_each": round(median(one.wal_bytes for one in drains)),
            "rss_mb_max": {name: one.rss_mb_max for name, one in rig.programs.items()},
            "counts": self._feed.balance(self._tally),
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

    def _steady(self, rate: float, seconds: float) -> dict[str, Any]:
        """Offer so many events a second; what became of the backlog."""
        rig = self._rig
        stretch = self._feed.offer(rate, seconds)
        rig.wait_until_settled()
        books.read_counts(rig.url, stretch.since).balance(stretch.events)
        return backlog_of(rig, stretch)


def backlog_of(rig: Rig, stretch: Stretch) -> dict[str, Any]:
    """What was offered and how its backlog went, read when all of it is settled."""
    took_s = stretch.took_s
    points = books.read_backlog(rig.url, stretch.since, stretch.began_at)
    growth = slope([(at, n) for at, n in points if took_s / 4 <= at <= took_s])
    waits_ms = books.read_waits_ms(rig.url, stretch.since)
    return {
        "offered_per_s": round(stretch.per_s, 1),
        "backlog_growth_per_s": round(growth, 1),
        "backlog_max": round(max((n for at, n in points if at <= took_s), default=0)),
        "settled_after_ms": {
            "p50": round(percentile(waits_ms, 0.5), 1),
            "p99": round(percentile(waits_ms, 0.99), 1),
        },
        "holds": growth <= books.GROWTH_SHARE_MAX * stretch.per_s,
    }


def medians(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """By name the median, and of all names the sum."""
    names = {name: round(median(row[name] for row in rows), 1) for name in rows[0]}
    return names | ({"all": round(sum(names.values()), 1)} if names else {})
