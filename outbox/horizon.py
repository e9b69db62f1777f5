"""Decides what a relay may skip and how much it may hand out. Pure: no clock, no database.

`Floor` keeps claims away from the old end of the pending table, where dead rows pile up while
somebody holds a snapshot, and still finds what commits late. `Window` bounds what waits in the
broker, so that waiting never outlives the lease and one organization's burst does not queue in
front of another's event.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

MARGIN_S = 0.25
"""How far the floor trails the newest id. Capture and emit have a transaction id before they draw
an event's; for whoever does not, longer than the one takes after the other. Each claim passes what
died in this time while somebody holds a snapshot: with 2 s, at 800 events a second, claims cost
PostgreSQL 15 % more then."""

SWEEP_S = 30.0
"""Everything below the floor is swept this often, whatever the snapshots say."""

SWEEP_SHARE = 0.01
"""These sweeps take no more than this share of the time: under a held snapshot they pass all that
ever died, half a million rows in 0.06 s (two cores, all in memory)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions in progress, read from `pg_current_snapshot()`; `cut` where there are more
    than were listed."""

    xmin: int
    xmax: int
    running: frozenset[int]
    cut: bool = False

    @staticmethod
    def parse(text: str) -> Snapshot:
        """Read `xmin:xmax:xip,xip`, and `:cut` behind it."""
        xmin, xmax, running, *cut = text.split(":")
        ids = frozenset(int(x) for x in running.split(",") if x)
        return Snapshot(int(xmin), int(xmax), ids, bool(cut))


class Floor:
    """The scan floor of one relay. All times are seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self.value = 0
        self._ahead: deque[tuple[float, int]] = deque()
        self._watched: dict[int, int] = {}
        self._sweep_at = now + SWEEP_S
        self._sweeping_since: float | None = None

    def reached(self, now: float, event_id: int) -> None:
        """Ids up to `event_id` had been drawn (no backlog) or claimed (backlog) at `now`."""
        if event_id > (self._ahead[-1][1] if self._ahead else self.value):
            self._ahead.append((now, event_id))

    def candidate(self, looked_at: float) -> int | None:
        """The id the floor may rise to once a claim from the present floor has run after a look
        at `looked_at`: what was reached before that look, whose snapshot tells who still writes."""
        found = None
        for at, event_id in self._ahead:
            if at > looked_at - MARGIN_S:
                break
            found = event_id
        return found

    def rise(self, to: int, before: Snapshot) -> None:
        """Raise the floor. `before` was taken before the claim that found nothing left below
        `to`: what it saw running may still commit there and is watched. Who was not running when
        the floor rose last has drawn no id below it. Where `before` is cut, somebody may be
        missing, and the floor stays."""
        if before.cut:
            return
        for xid in before.running:
            self._watched.setdefault(xid, self.value)
        while self._ahead and self._ahead[0][1] <= to:
            self._ahead.popleft()
        self.value = max(self.value, to)

    def sweep_from(self, now: float, snapshot: Snapshot) -> int | None:
        """Above which id to sweep now, as rows may have appeared below the floor; None where not.
        `swept` says that it is done."""
        if self.value == 0:
            return None
        ended = self._watched.keys() - snapshot.running
        since = min((self._watched.pop(xid) for xid in ended), default=None)
        if now < self._sweep_at:
            return since
        self._sweeping_since = now
        return 0

    def swept(self, now: float, id_max: int | None, *, all_of_it: bool) -> bool:
        """A sweep in order claimed what had appeared up to `id_max`; if that was not all of it, the
        floor falls there, and true is returned."""
        if self._sweeping_since is not None:
            took_s = now - self._sweeping_since
            self._sweep_at = now + max(SWEEP_S, took_s / SWEEP_SHARE)
            self._sweeping_since = None
        if all_of_it or id_max is None:
            return False
        self.value = id_max
        self._ahead.clear()  # what was reached lies behind what is now to be claimed
        return True


QUEUE_S = 0.03
"""How long a delivery may wait in the broker when workers keep up: bounds what one organization's
burst puts in front of another's event, and how many of an endpoint's permits wait unused. With
0.05 a worker that starts 12,000 a second had 600 of 1,000 permits in its queue."""

LATER_MAX = 12
"""How many retries and replays may wait in the broker while fresh deliveries flow: the next fresh
one waits behind them. The 99th percentile of 100 fresh ones a second beside 1,000,000 due retries,
on two cores: with 20 it went from 14 to 34 and from 16 to 34 ms, with 12 from 15 to 29."""

CLAIM_S = 0.015
"""A claim waits for room for what workers start in this time, between a quarter and half of the
size: a relay's round costs 3 ms of processor time on a slow machine, however little it claims."""

PERMITS_LEAST = 200
PERMITS_S = 0.04
"""Where a claim left the lanes it met with fewer permits, the next waits for that many, if they
should come free so soon: a row without a permit is written once more when it gets one, and small
claims cost more each (31 us an event for 64, 24 for 250)."""

PERMITS_KNOWN_S = 0.05
"""How long is known what a claim left."""

BUCKET_S = 0.1
RATE_KEPT_S = 3.0


class Window:
    """How many deliveries may be leased and not started.

    At most what workers start in a quarter of a lease, aiming at what they start in `QUEUE_S`.
    `waiting` is what is known to wait. The rate is the best of the last seconds, measured as what
    was sent minus what the broker still holds. Beside it stands what the last claim left of the
    permits of the lanes that it met: the next asks for no more.
    """

    def __init__(self, lease_s: float, first: int = 250, least: int = 10) -> None:
        self._quarter_s = lease_s / 4
        self._first, self._least = first, least
        self._factor = 1.0
        self.waiting = 0
        self._sent_in_bucket = 0
        self._bucket_at: float | None = None
        self._bucket_waiting = 0
        self._rates: deque[tuple[float, float]] = deque()
        self._spare = 0
        self._spare_at = -math.inf

    def size(self) -> int:
        """The present size, in deliveries."""
        if not self._rates:
            return self._first
        rate = self._rate()
        aim = min(max(self._first, rate * QUEUE_S), rate * self._quarter_s)
        return max(self._least, int(aim * self._factor))

    def _rate(self) -> float:
        """What workers start in a second."""
        return max((r for _, r in self._rates), default=0.0)

    def room(self) -> int:
        """How many more may be leased now, by what is known."""
        return max(0, self.size() - self.waiting)

    def claimable(self, now: float, batch: int) -> int:
        """How many events to claim now at most, where `batch` is the most at all; 0 where it is
        better to wait: a claim has a price of its own, so under load a fair batch should fit."""
        room = self.room()
        size = self.size()
        fair = max(1, size // 4, min(size // 2, int(self._rate() * CLAIM_S)))
        if room < min(batch // 2, fair):
            return 0
        age_s = now - self._spare_at
        if age_s > PERMITS_KNOWN_S:
            return room
        permits = int(self._spare + self._rate() * age_s)
        if permits >= PERMITS_LEAST:
            return min(room, permits)
        return 0 if permits + self._rate() * PERMITS_S >= PERMITS_LEAST else room

    def left(self, now: float, spare: int) -> None:
        """A claim left so many permits to the lanes that it met."""
        self._spare, self._spare_at = spare, now

    def later_room(self) -> int:
        """How many more may be leased that are not fresh while fresh ones flow."""
        return LATER_MAX - self.waiting

    def sent(self, count: int) -> None:
        """So many were handed to the broker."""
        self.waiting += count
        self._sent_in_bucket += count

    def measured(self, now: float, waiting: int) -> None:
        """The broker said that so many wait."""
        self.waiting = waiting
        if self._bucket_at is None:
            self._bucket_at, self._bucket_waiting, self._sent_in_bucket = now, waiting, 0
            return
        elapsed = now - self._bucket_at
        if elapsed < BUCKET_S:
            return
        if self._sent_in_bucket or self._bucket_waiting:
            started = max(0, self._bucket_waiting + self._sent_in_bucket - waiting)
            self._rates.append((now, started / elapsed))
            while self._rates[0][0] < now - RATE_KEPT_S and len(self._rates) > 1:
                self._rates.popleft()
            self._factor = min(1.0, self._factor * 1.05)
        self._bucket_at, self._bucket_waiting, self._sent_in_bucket = now, waiting, 0

    def unstarted_expired(self, count: int) -> None:
        """Leases ran out unstarted: the broker lost or delayed them, so hand out less."""
        if count:
            self._factor = max(0.05, self._factor / 2)
