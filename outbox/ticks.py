"""The ticks of a cron expression in a time zone, and which of them are still to be emitted. Pure.

Across changes of daylight saving time they follow Debian's cron: a job of a fixed hour that the
change skips runs right after it, one whose hour comes twice runs once; jobs of every hour or minute
follow the clock that elapses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from outbox.errors import UsageError

MISSED = ("skip", "one", "all")
"""What becomes of ticks that nobody emitted in time: none of them, the last, each."""

LATE = timedelta(seconds=60)
"""A tick that is later than this was missed."""
TICKS_MAX = 100
"""Ticks that one round emits at most; the rest follow in the next ones."""
BEHIND_MAX = 1000
"""Of more missed ticks than this only the last are emitted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Ticks to emit now, the tick that is next, and how many are passed over."""

    ticks: tuple[datetime, ...]
    next_at: datetime
    skipped: int = 0


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"there is no time zone {name[:80]!r}; write for example Europe/Berlin or UTC"
        ) from error


def ticks_after(cron: str, timezone: str, at: datetime) -> Iterator[datetime]:
    """The ticks above `at`, in UTC. Raises UsageError for an expression that is none."""
    if len(cron.split()) != 5:
        raise UsageError(
            f"{cron[:80]!r} is not a cron expression of five fields, as in '0 9 * * 1-5'"
        )
    try:
        # Whole seconds: the library counts in them.
        ticks = CronSim(cron, at.astimezone(zone(timezone)).replace(microsecond=0))
    except CronSimError as error:
        raise UsageError(f"{cron[:80]!r} is not a cron expression: {error}") from error
    for tick in ticks:
        found = tick.astimezone(UTC)
        if found > at:
            yield found


def next_tick(cron: str, timezone: str, at: datetime) -> datetime:
    """The first tick above `at`. Raises UsageError where there is none in fifty years."""
    tick = next(ticks_after(cron, timezone, at), None)
    if tick is None:
        raise UsageError(f"{cron[:80]!r} never comes")
    return tick


def plan(cron: str, timezone: str, missed: str, next_at: datetime, now: datetime) -> Plan:
    """What to do when `next_at` is not above `now`. Where an expression has no tick left, the next
    one is set beyond reach."""
    due = [next_at]
    dropped = 0
    following = NEVER
    for tick in ticks_after(cron, timezone, next_at):
        if tick > now:
            following = tick
            break
        due.append(tick)
        if len(due) > BEHIND_MAX:
            dropped += 1
            del due[0]
    if missed == "all":
        rest = due[TICKS_MAX:]
        return Plan(tuple(due[:TICKS_MAX]), rest[0] if rest else following, dropped)
    last = due[-1]
    kept = (last,) if missed == "one" or now - last <= LATE else ()
    return Plan(kept, following, dropped + len(due) - len(kept))


NEVER = datetime(9999, 1, 1, tzinfo=UTC)


def coming(cron: str, timezone: str, at: datetime, count: int) -> list[datetime]:
    """The next ticks, for people."""
    return list(islice(ticks_after(cron, timezone, at), count))
