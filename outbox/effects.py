"""What an attempt brings about, written in the transaction that settles it: all or none.

Owns the events that follow from an event, and the count of hops that keeps them from feeding
themselves. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

HOPS_HEADER = "outbox-hops"
HOPS_MAX = 8
"""An event that is more hops than this away from one that nobody's processor emitted is not
performed."""


@dataclass(frozen=True, slots=True)
class Emission:
    """One event to emit, in the organization of the delivery. `payload` is JSON text; the rest is
    as `outbox.emit` takes it. Types that begin with `outbox.` are our own."""

    type: str
    payload: str = field(repr=False)
    subject: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    ordering_key: str | None = None
    deliver_at: datetime | None = None
    expires_at: datetime | None = None
    dedupe_key: str | None = None
    dedupe_for: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Effects:
    """`emit` are events that follow, if it was delivered; `rows` what the settle statement writes
    into the tables of a kind, by its names, as JSON values, whatever became of it."""

    emit: tuple[Emission, ...] = ()
    rows: Mapping[str, object] = field(default_factory=dict)


def hops_of(headers: Mapping[str, str] | None) -> int:
    """How many hops an event is away from one that no processor emitted; what is no number counts
    as none."""
    text = str((headers or {}).get(HOPS_HEADER, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
