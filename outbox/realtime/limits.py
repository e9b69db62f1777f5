"""How much a client may do, with Supabase's defaults, and how a rate is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

Clock = Callable[[], float]

FRAME_BYTES_MAX = 5_000_000
BODY_BYTES_MAX = 8_000_000
WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """Per server. Delays are in seconds: refusals come late, so that a client in a loop is slow."""

    channels: int = 100
    joins_per_s: float = 100
    events_per_s: float = 100
    users: int = 200
    payload_kb: int = 3000
    private_only: bool = False
    connect_delay_s: float = 2.0
    join_delay_s: float = 5.0
    idle_s: float = 60.0
    replication_s: float = 60.0
    token_check_s: float = 300.0
    queue_max: int = 10_000

    @property
    def payload_bytes(self) -> int:
        """The size of a payload, as JSON text. (Supabase measures its own inner form of it.)"""
        return self.payload_kb * 1000 + 500

    def without_delays(self) -> Limits:
        """The same, refusing at once."""
        return replace(self, connect_delay_s=0.0, join_delay_s=0.0)


class Rate:
    """Counts, and averages over whole seconds, the last minute at most: a burst within a second
    passes, a rate that lasts does not."""

    def __init__(self, limit: float, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self._buckets: deque[tuple[int, int]] = deque()
        self._first: int | None = None

    def add(self, count: int = 1) -> None:
        """Count what happened now."""
        second = int(self._clock())
        if self._buckets and self._buckets[-1][0] == second:
            count += self._buckets.pop()[1]
        self._buckets.append((second, count))
        if self._first is None:
            self._first = second

    @property
    def average(self) -> float:
        """Events a second, over the seconds that are over."""
        second = int(self._clock())
        while self._buckets and self._buckets[0][0] < second - WINDOW_S:
            self._buckets.popleft()
        if not self._buckets:
            self._first = None
        if self._first is None or self._first == second:
            return 0.0
        total = sum(count for at, count in self._buckets if at < second)
        return total / min(second - self._first, WINDOW_S)

    @property
    def exceeded(self) -> bool:
        """Whether more has happened than may."""
        return self.average > self.limit
