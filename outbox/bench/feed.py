"""What is written: at once or at a steady rate, and counted against what came of it.

A drain is events committed in one transaction, and the time from that commit until the last of
them is settled. A stretch is events committed at a steady rate for some time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from outbox.bench import books
from outbox.bench.rig import Rig
from outbox.errors import LossDetected
from outbox.store.connect import connect

CHUNK = 1000
"""Events of one statement, while a backlog is written."""
TICK_S = 0.02
"""A commit each so many seconds, while events are offered at a steady rate."""

Tally = Callable[[], dict[str, Any]]
"""Asks the receiver for its counts."""
Watch = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain: events a second; microseconds of processor time of each part and bytes of WAL
    (without those of the events themselves) for each delivery; seconds that it took."""

    rate: float
    counts: books.Counts
    cpu_us: Mapping[str, float]
    wal_bytes: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events offered from `began_at` to `ended_at` (unix times of the server)."""

    since: books.Mark
    began_at: float
    ended_at: float
    events: int

    @property
    def took_s(self) -> float:
        """Seconds."""
        return self.ended_at - self.began_at

    @property
    def per_s(self) -> float:
        """Events a second that were offered."""
        return self.events / self.took_s


class Feed:
    """Writes events by a statement that writes those numbered %(first)s to %(last)s. `written` is
    how many there are, `failed` how many attempts of drains failed."""

    def __init__(self, rig: Rig, statement: str) -> None:
        self._rig = rig
        self._statement = statement.encode()
        self.written = 0
        self.failed = 0

    def write(self, count: int) -> None:
        """Commit so many events at once."""
        first = self.written + 1
        self.written += count
        with connect(self._rig.url) as connection:
            for start in range(first, self.written + 1, CHUNK):
                last = min(start + CHUNK - 1, self.written)
                connection.execute(self._statement, {"first": start, "last": last})
                self._rig.check()

    def warm(self, count: int) -> None:
        """Let so many pass, so that everything is warm."""
        self.write(count)
        self._rig.wait_until_settled()

    def drain(self, events: int) -> Drain:
        """Commit so many at once and wait until all are settled. Raises LossDetected."""
        rig = self._rig
        since = books.mark(rig.url)
        self.write(events)
        began_at, before = books.server_time(rig.url), rig.used()
        written = books.mark(rig.url)
        rig.wait_until_settled()
        after = rig.used()
        counts = books.read_counts(rig.url, since)
        counts.balance(events)
        self.failed += counts.failed_attempts
        took_s = max(counts.ended_at - began_at, 1e-3)
        return Drain(
            rate=events / took_s,
            counts=counts,
            cpu_us={name: (after[name] - before[name]) / events * 1e6 for name in before},
            wal_bytes=books.wal_bytes(rig.url, written.lsn) / events,
            took_s=took_s,
        )

    def offer(
        self,
        rate: float,
        seconds: float,
        since: books.Mark | None = None,
        watch: Watch | None = None,
    ) -> Stretch:
        """Commit events at a steady rate; `watch` is called with the seconds that have passed,
        after each commit. What is older than `since` does not count (by default: all before)."""
        rig = self._rig
        since = since or books.mark(rig.url)
        first, server_began_at, began_at = self.written, books.server_time(rig.url), monotonic()
        with connect(rig.url, autocommit=True) as connection:
            while (passed := monotonic() - began_at) < seconds:
                last = first + int(passed * rate) + 1
                if last > self.written:
                    params = {"first": self.written + 1, "last": last}
                    connection.execute(self._statement, params)
                self.written = last
                rig.check()
                if watch is not None:
                    watch(passed)
                sleep(max(0.0, TICK_S - (monotonic() - began_at - passed)))
        ended_at = books.server_time(rig.url)
        return Stretch(since, server_began_at, ended_at, self.written - first)

    def balance(self, tally: Tally | None) -> dict[str, Any]:
        """Every event against what the receiver saw, where it can tell. Raises LossDetected."""
        counts: dict[str, Any] = {"written": self.written, "failed_attempts": self.failed}
        if tally is None:
            return counts
        told = tally()
        if told["received"] != self.written:
            raise LossDetected(
                f"{self.written} were delivered, the receiver saw {told['received']}"
            )
        return counts | {
            "received": told["received"],
            "duplicates": told["requests"] - told["received"],
        }
