"""What a worker writes down about attempts that run: one row a delivery, gone with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from outbox.pulse import News
from outbox.store import arrays


@dataclass(frozen=True, slots=True)
class Progress:
    """A running attempt; `news` is what it has told since the last time, or None."""

    id: UUID
    token: int
    news: News | None


def watching(told: Sequence[Progress], over: Sequence[UUID]) -> dict[str, Any]:
    """The parameters of watch.sql."""
    news = [one.news or News() for one in told]
    return {
        "ids": arrays.uuids([one.id for one in told]),
        "tokens": arrays.numbers([one.token for one in told]),
        "told": arrays.booleans([one.news is not None for one in told]),
        "percents": arrays.numbers([one.percent for one in news]),
        "notes": arrays.texts([one.note for one in news]),
        "metadata": arrays.texts([one.metadata for one in news]),
        "over": arrays.uuids(list(over)),
    }
