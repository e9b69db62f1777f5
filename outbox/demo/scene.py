"""What the demo is made of: the organizations, their receivers, and how each of those behaves.

Pure data. The moods last a moment each, so that retries are seen and the demo still ends soon.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

SESSIONS = 4
ROLLED_BACK = "rolled back"
"""The note of orders whose transaction rolls back: no receiver may ever see it."""

STEADY_RETRY = "1s,2s,5s,10s"
TROUBLED_RETRY = "100ms,200ms,400ms,800ms,1s,1s,2s,5s,10s"


@dataclass(frozen=True, slots=True)
class Destination:
    """A receiver: whose it is, what it subscribes to, how it behaves for its first `mood_s`.

    `more` are the patterns of a second subscription of the same endpoint. Moods: `steady`,
    `fails` (500), `throttles` (429 with Retry-After), `hangs` (no answer at all).
    """

    org: str
    name: str
    patterns: tuple[str, ...]
    more: tuple[str, ...] = ()
    mood: str = "steady"
    mood_s: float = 0.0
    timeout: timedelta = timedelta(seconds=15)
    concurrency: int = 500

    @property
    def path(self) -> str:
        """Its path on the demo's HTTP server."""
        return f"/{self.org}/{self.name}"

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.org}/{self.name}"

    @property
    def retry(self) -> str:
        """Its retry policy."""
        return STEADY_RETRY if self.mood == "steady" else TROUBLED_RETRY


DESTINATIONS = (
    Destination("acme", "crm", ("orders.*",), more=("customers.*",)),
    Destination("acme", "warehouse", ("order_items.*",)),
    Destination("globex", "audit", ("*",)),
    Destination("globex", "billing", ("orders.*",), mood="fails", mood_s=0.8),
    Destination("initech", "erp", ("orders.*",), mood="throttles", mood_s=0.5),
    Destination(
        "umbrella",
        "mailer",
        ("orders.inserted", "orders.updated"),
        more=("orders.deleted",),
        mood="hangs",
        mood_s=0.5,
        timeout=timedelta(seconds=1),
        concurrency=64,
    ),
)
ORGS = tuple(dict.fromkeys(one.org for one in DESTINATIONS))


def pace(orders: int) -> float:
    """Orders a second: a busy shop, which takes ten seconds for a thousand orders or more. Beyond
    what the machine delivers, latency is queueing."""
    return max(100.0, orders / 10)
