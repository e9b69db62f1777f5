"""How the attempts of a worker went, by lane, until they are reported. Pure.

A lane is healthy as long as it delivers. Reports are what circuits and the disabling of endpoints
rest on; one that is lost with its worker is made up for by the next failures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outbox.outcome import Kind

DOWN = frozenset({Kind.RETRY, Kind.AMBIGUOUS})
"""No answer, or a server's error: the destination may be down."""

REFUSED = frozenset({Kind.THROTTLED, Kind.REJECTED})
"""It answered, and did not accept."""

OPEN_FAILURES = 20
OPEN_AFTER_S = 30.0
"""A circuit opens when a lane was down for so many attempts and so long, with nothing in between.
Long enough for a restart of the receiver, and for a short retry policy to end in dead letters."""

PROBE_S_MIN, PROBE_S_MAX = 2.0, 30.0
"""The time between probes of an open circuit; it doubles while they fail."""


@dataclass(slots=True)
class LaneHealth:
    """What happened to one lane since the last report."""

    delivered: bool = False
    answered: bool = False
    failures: int = 0
    down: int = 0


@dataclass(slots=True)
class Health:
    """What is still to be reported."""

    lanes: dict[int, LaneHealth] = field(default_factory=dict)

    def note(self, lane: int, kind: Kind, event_type: str) -> None:
        """Count one attempt. Failures of our own events are not held against a lane: a warning
        that cannot be delivered must not raise the next one."""
        if kind is Kind.DELIVERED:
            self._of(lane).delivered = True
        elif kind in DOWN | REFUSED and not event_type.startswith("outbox."):
            health = self._of(lane)
            health.failures += 1
            health.down += kind in DOWN
            health.answered |= kind in REFUSED

    def take(self) -> dict[int, LaneHealth]:
        """What is to be reported now, by lane in order; from here on counted anew."""
        taken, self.lanes = self.lanes, {}
        return dict(sorted(taken.items()))

    def _of(self, lane: int) -> LaneHealth:
        return self.lanes.setdefault(lane, LaneHealth())
