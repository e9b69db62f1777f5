"""The rhythm of a relay: its numbers, and when each of its steps ran last. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox.fronts import Walks
from outbox.horizon import LATER_MAX, Snapshot
from outbox.store.dispatch import Leased

FULL_S_MIN, FULL_S_MAX = 0.01, 0.08
"""How long the backlog of an organization whose every lane is full is left alone: its events wait
more cheaply unrouted. Doubles while it stays full; never for long, since an event behind the
others may go to a lane that is free."""

SIGNAL_S = 5.0
"""Signals of ordered keys are read this far back, as far as the tick looks; older ones, by a
transaction that was slow to commit, with every tend."""

LEASES_S = 2.0
"""Leases that run out are looked for from this long before the last look that found none: while
somebody holds a snapshot, every row that has died stands in the same index and is passed."""

ALL_LEASES_S = 300.0
"""So often all leases are looked at, for what a clock that was set or a slow commit hid."""

FRESH_S = 2.0
"""Fresh work flows if some was leased so lately."""

TRICKLE_S = 0.05
"""While it does, retries and replays get a small portion at least this often."""

GATE_S_MAX = 0.025
"""The longest pause between looks at transactions that may commit without ringing."""

LONG_S = 1.0
"""What is open for longer may stay so for hours, and is looked at with that pause from the first:
beside one such writer, at 800 events a second on two cores, an event took 86 and 159 us more
processor time with the haste of those of late, and 11 and 22 without."""

CLAIM_LEAST = 16
"""The smallest claim: where an adapting claim begins."""


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The numbers of a relay. Times in seconds.

    `lanes_max`: lanes and queues to lease from at a time, `walk_max`: lanes to walk over at most;
    `awake_s`: how long after the last work a relay keeps polling before it sleeps; `poll_s_max`
    bounds the gap between such polls, `rest_s_max` that between looks beside organizations whose
    lanes are full; `asleep_s`: the cheap look of a sleeping relay;
    `poll_only_s`: the gap where no bell can be heard.
    """

    lease_s: float = 30.0
    batch: int = 500
    orgs_max: int = 64
    lanes_max: int = 128
    walk_max: int = 256
    expiries_max: int = 5
    awake_s: float = 0.005
    full_s_max: float = 0.05
    rest_s_max: float = 0.005
    poll_s_min: float = 0.001
    poll_s_max: float = 0.002
    asleep_s: float = 0.5
    poll_only_s: float = 0.05
    due_s: float = 0.5
    blocked_s_min: float = 0.005
    blocked_s_max: float = 0.05
    look_s: float = 0.25
    tend_s: float = 5.0
    backoff_s_max: float = 5.0


@dataclass(frozen=True, slots=True)
class Rest:
    """Until when an organization's backlog is left alone, and for how long that is."""

    until: float
    pause_s: float


class Gate:
    """How to wait for the transactions that may not have seen that a relay asked to be rung: all
    with an id below `xmax`. Those below `long_below` are waited for with less haste."""

    def __init__(self, xmax: int, long_below: int, wait_s: float) -> None:
        self._xmax, self._long_below, self._wait_s = xmax, long_below, wait_s

    def wait(self, seen: Snapshot) -> float | None:
        """For how long to wait now, in seconds; None where all have ended."""
        if seen.xmin >= self._xmax:
            return None
        if not seen.cut and not any(self._long_below <= x < self._xmax for x in seen.running):
            return GATE_S_MAX
        wait_s = self._wait_s
        self._wait_s = min(GATE_S_MAX, wait_s * 2)
        return wait_s


@dataclass(slots=True)
class Rhythm:
    """When each periodic step ran last, on the relay's monotonic clock."""

    worked_at: float
    due_at: float = 0.0
    looked_at: float = -math.inf
    tend_at: float = 0.0
    leases_at: float = 0.0
    all_leases_at: float = -math.inf
    poll_s: float = 0.001
    lane_from: int = 0
    walks: Walks = field(default_factory=Walks)
    org_from: str = ""
    fair: bool = False
    more: bool = False
    claim_max: int = CLAIM_LEAST
    blocked_s: float = 0.005
    blocked: bool = False
    places_seen: int = 0
    full: dict[str, Rest] = field(default_factory=dict)
    careful: int = 0
    asked_to_ring: bool = False
    bell: int = 2
    quiet: bool = False
    signalled: bool = True
    fresh_at: float = -1e9
    later_at: float = 0.0
    ordered_until: float = 0.0
    long_below: int = 0
    long_next: tuple[float, int] = (-math.inf, 0)

    def begun(self, now: float, xmax: int) -> None:
        """The look of `now` said that all transactions that have begun are below `xmax`.
        `long_below` is what one said at least `LONG_S` ago."""
        at, below = self.long_next
        if now - at >= LONG_S:
            self.long_below, self.long_next = below, (now, xmax)

    def leases_since(self, now: float) -> float | None:
        """How far back to look for leases that ran out, in seconds; None is all."""
        if now - self.all_leases_at >= ALL_LEASES_S:
            return None
        return now - self.leases_at + LEASES_S

    def leases_seen(self, now: float, since_s: float | None) -> None:
        """No lease had run out at `now`, as far back as was asked."""
        self.leases_at = now
        if since_s is None:
            self.all_leases_at = now

    def walk_from(self, now: float) -> int | None:
        """Beyond which lane to walk now; None is not now."""
        return self.lane_from if self.walks.due(now) else None

    def walked(self, now: float, took_s: float, lane_last: int | None) -> None:
        """A walk took so long, and was cut after `lane_last`: then the next goes on there."""
        self.walks.took(now, took_s, more=lane_last is not None)
        self.lane_from = lane_last or 0

    def look_at(self, config: RelayConfig) -> float:
        """When to look again: earlier where a walk is to go on."""
        look_at = self.looked_at + config.look_s
        return min(look_at, self.walks.next_at) if self.lane_from else look_at

    def next_due_s(self, found: Leased, config: RelayConfig, places: int, in_all: int) -> float:
        """After which time to look for due work again: soon where a permit may come free, or where
        not all places were looked at since the last pause: so many now, `in_all` are due."""
        if found.ids:
            self.blocked_s = config.blocked_s_min
            self.blocked, self.places_seen = False, 0
            return 0.0
        self.places_seen += places
        self.blocked |= found.blocked
        if self.places_seen < in_all:
            return config.blocked_s_min
        blocked, self.blocked, self.places_seen = self.blocked, False, 0
        again_s = config.due_s
        if blocked:
            again_s, self.blocked_s = (
                self.blocked_s,
                min(config.blocked_s_max, self.blocked_s * 2),
            )
        if found.next_due_s is not None:
            again_s = min(again_s, max(0.001, found.next_due_s))
        return again_s

    def worked(self, now: float, config: RelayConfig) -> None:
        """There was work: poll closely again."""
        self.worked_at = now
        self.poll_s = config.poll_s_min

    def wait(self, s_max: float) -> float:
        """The next pause while nothing happens, doubling up to `s_max`."""
        pause_s = min(s_max, self.poll_s)
        self.poll_s = min(s_max, self.poll_s * 2)
        return pause_s

    def later_max(self, now: float, room: int, window: int) -> int:
        """How much that is not fresh may go now: all, unless fresh work flows. Then it goes in
        small portions of at most `room`, and a trickle whatever waits."""
        if now - self.fresh_at > FRESH_S:
            return window
        if room <= 0 and now - self.later_at < TRICKLE_S:
            return 0
        self.later_at = now
        return min(window, room if room > 0 else LATER_MAX)

    def resting(self, now: float) -> list[str]:
        """Organizations to leave alone now."""
        return [org for org, rest in self.full.items() if rest.until > now]

    def rest(self, full: Sequence[str], resting: Sequence[str], now: float) -> None:
        """Leave full organizations alone for a while, longer each time; forget the others."""
        kept = {org: self.full[org] for org in resting}
        for org in full:
            last = self.full.get(org)
            pause_s = FULL_S_MIN if last is None else min(FULL_S_MAX, last.pause_s * 2)
            kept[org] = Rest(now + pause_s, pause_s)
        self.full = kept
