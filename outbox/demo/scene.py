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
INVOICE_EVERY = 20
"""Of the orders that a session sees paid, one in so many gets an invoice."""
INVOICES = ("invoice.issued",)
INVOICE = {
    "template": "outbox:invoice",
    "filename": "invoice-{{ event.data.number }}.pdf",
}
"""What becomes of an invoice: the configuration of the subscription that renders it."""

LETTERS = ("outbox.document.rendered",)
LETTER = {
    "from": "{{ event.data.source.data.seller.name }} <billing@shop.example.com>",
    "to": "{{ event.data.source.data.customer.email }}",
    "subject": "Your invoice {{ event.data.source.data.number }}",
    "text": "Dear {{ event.data.source.data.customer.name }},\n\nyour invoice is attached.\n",
    "attachments": [{"artifact": "{{ event.data.artifact.sha256 }}"}],
}
"""And of the document: the configuration of the subscription that mails it."""

ORGS = tuple(dict.fromkeys(one.org for one in DESTINATIONS))

TOPICS = "orders"
BROADCASTS = ("orders.*", *LETTERS)
BROADCAST = {"topic": f"{TOPICS}:{{org_id}}", "include": ["status", "total", "artifact"]}
"""What an organization's screens are told: the configuration of its subscription."""

WATCHED = ORGS[:2]
"""The organizations whose orders the page shows side by side."""
REPLAYED = 25
"""How many past messages the page asks for, which is as many as Realtime gives."""
TRICKLE_PER_S = 2.0
"""Orders a second that still come in once all is counted, for who looks on."""


def topic_of(org: str) -> str:
    """The channel of an organization."""
    return f"{TOPICS}:{org}"


def pace(orders: int) -> float:
    """Orders a second: a busy shop, which takes ten seconds for a thousand orders or more. Beyond
    what the machine delivers, latency is queueing."""
    return max(100.0, orders / 10)
