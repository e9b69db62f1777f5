"""A clock that moves only when it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from outbox.errors import UsageError

AHEAD = timedelta(hours=1)


class Clock:
    """Call it for the time, as an aware datetime in UTC; `advance` moves it.

    It starts an hour ahead of the machine's clock unless told otherwise: what PostgreSQL stamps by
    its own clock (the time of an event, a redrive) then always lies in this clock's past.
    """

    def __init__(self, start: datetime | None = None) -> None:
        """Raises UsageError for a start without a timezone."""
        if start is not None and start.tzinfo is None:
            raise UsageError("a clock starts at a time with a timezone, such as datetime.now(UTC)")
        self._start = (start or datetime.now(UTC) + AHEAD).astimezone(UTC)
        self._now = self._start

    def __call__(self) -> datetime:
        return self._now

    def __repr__(self) -> str:
        return f"Clock({self._now.isoformat()})"

    def monotonic(self) -> float:
        """Seconds since the start, for what takes a monotonic clock."""
        return (self._now - self._start).total_seconds()

    def advance(self, by: timedelta | float) -> datetime:
        """Move forward by a timedelta or by seconds; returns the time. Raises UsageError for less
        than nothing."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta():
            raise UsageError("a clock only moves forward")
        self._now += step
        return self._now
