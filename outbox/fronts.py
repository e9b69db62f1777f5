"""Where the deliveries that wait begin, as one process has seen it. Pure: no clock, no database.

A delivery that left its queue stays in the index for as long as somebody holds a snapshot, at the
low end of its lane, and who looks from there passes all that has ever waited. So a process
remembers the front of each lane and queue: a time before which nothing of it is due. What others
put behind a front is found by a walk over everything, which is made now and then, in a share of the
time.

All times are seconds since 1970 by the server's clock, but for those of `Walks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

WALK_SHARE = 0.05
"""Walks take no more than this share of the time: each passes all that has died."""

WALK_S_MAX = 5.0
"""But one is made at least this often: a server that stood still once must not hide for minutes
what others made ready."""

PASS_SHARE = 0.25
"""Where all lanes are walked over in parts, the parts together take no longer than `WALK_S_MAX`
either, unless they would take more than this share of the time."""

PART_S = 0.05
"""A part that took longer is followed by one over half as many lanes: claims wait meanwhile."""

HALVINGS_MAX = 6
"""So often at most: 4 lanes of 256. Whoever has just connected begins so, since it knows no front
and cannot know what a walk takes."""

KEPT = 16384
"""Of so many lanes and queues the front is remembered: those met lately. What is forgotten before
its turn to be looked at comes waits for a walk to meet it again."""

Place = tuple[int, int]
"""A lane and a queue: 0 first attempts, 1 retries, 2 replays and redrives."""

Front = tuple[int, int, float]
"""A place and a time before which nothing there is due."""


class Walks:
    """When the next walk may be made, and over how much. In seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.next_at = -math.inf
        self._parts, self._parts_before = 0, 1  # of this pass over all lanes, of the one before
        self._halvings = HALVINGS_MAX

    def due(self, now: float) -> bool:
        """Whether one may be made."""
        return now >= self.next_at

    def lanes(self, lanes_max: int) -> int:
        """How many lanes to walk over, of at most so many."""
        return max(1, lanes_max >> self._halvings)

    def took(self, now: float, seconds: float, *, more: bool = False) -> None:
        """One that began at `now` took so long; `more` lanes are left for the next."""
        self._parts += 1
        part_s = WALK_S_MAX / max(self._parts, self._parts_before)
        self.next_at = now + min(
            WALK_S_MAX, seconds / WALK_SHARE, max(part_s, seconds / PASS_SHARE)
        )
        if seconds > PART_S:
            self._halvings = min(HALVINGS_MAX, self._halvings + 1)
        elif seconds < PART_S / 4:
            self._halvings = max(0, self._halvings - 1)
        if not more:
            self._parts, self._parts_before = 0, self._parts


class Fronts:
    """The fronts of the `kept` lanes and queues met last. `margin_s` is how far they trail what was
    seen: where rows may be committed that much later than they say."""

    def __init__(self, margin_s: float = 0.0, kept: int = KEPT) -> None:
        self._margin_s = margin_s
        self._kept = kept
        self._now = -math.inf  # when something was seen last: no front lies beyond
        self._fronts: dict[Place, float] = {}  # those met least lately first
        self._waiting: dict[Place, float] = {}  # when the first of them is due; next in turn first

    def walked(self, now: float, found: Iterable[Front], beyond: float, last: float) -> None:
        """A walk over lanes > `beyond` up to `last` found these, and nothing else."""
        met = list(found)
        places = {(lane, queue) for lane, queue, _ in met}
        for place in [p for p in self._waiting if beyond < p[0] <= last and p not in places]:
            del self._waiting[place]
        self.looked(now, met)

    def looked(self, now: float, found: Iterable[tuple[int, int, float | None]]) -> None:
        """These are the first that a look from the fronts on found; None where there is nothing."""
        self._now = max(self._now, now)
        for lane, queue, due in found:
            place = (lane, queue)
            self._remember(place, now - self._margin_s if due is None else due)
            if due is None:
                self._waiting.pop(place, None)
            else:
                self._waiting[place] = due

    def clear(self, now: float, places: Iterable[Place]) -> None:
        """A look from their fronts on found nothing due there."""
        self._now = max(self._now, now)
        for place in places:
            self._remember(place, now - self._margin_s)
            if self._waiting.get(place, now) <= now:
                self._waiting.pop(place, None)

    def put(self, found: Iterable[Front]) -> None:
        """Deliveries were put there, due at these times."""
        for lane, queue, due in found:
            place = (lane, queue)
            self._remember(place, min(due, self._fronts.get(place, due)))
            self._waiting[place] = min(due, self._waiting.get(place, due))

    def _remember(self, place: Place, due: float) -> None:
        self._fronts.pop(place, None)
        front = min(due, self._now - self._margin_s)
        # Long before 1970 a float has no microseconds left, and rounded up it would hide a row.
        self._fronts[place] = front if front > 0 else -math.inf
        if len(self._fronts) > self._kept:
            forgotten = next(iter(self._fronts))
            del self._fronts[forgotten]
            self._waiting.pop(forgotten, None)

    def next_at(self, after: float = -math.inf) -> float:
        """When the first of what is known to wait is due, of what is due after then; else inf."""
        return min((at for at in self._waiting.values() if at > after), default=math.inf)

    def count_due(self, now: float) -> int:
        """How many places something is due in."""
        return sum(at <= now for at in self._waiting.values())

    def due(self, now: float, places_max: int) -> list[Front]:
        """At most so many places where something is due, in turn."""
        due = [place for place, at in self._waiting.items() if at <= now][:places_max]
        for place in due:
            self._waiting[place] = self._waiting.pop(place)
        return [(*place, self._fronts[place]) for place in due]

    def known(self, queue: int | None = None, places_max: int | None = None) -> list[Front]:
        """What is remembered, of one queue or of all, at most so many: the last that were met."""
        last = reversed(self._fronts.items())
        found = ((*p, at) for p, at in last if queue is None or p[1] == queue)
        return list(islice(found, places_max))


def zipped(lanes: Sequence[int] | None, *more: Sequence[float] | None) -> list[Any]:
    """Columns as arrays, null where there is no row, as rows."""
    return list(zip(lanes or (), *[column or () for column in more], strict=True))
