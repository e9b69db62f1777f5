"""Counts what became of every delivery, from PostgreSQL and from the receivers.

Neither side is believed alone: delivered is what the journal calls delivered and a receiver
answered 2xx. What matched is read from the `routed` facts, so that a delivery whose row vanished
is missed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outbox.demo.hearing import Broadcasts, Hearing
from outbox.errors import LossDetected, OutboxError
from outbox.store.connect import HotConnection, connect

_PROGRESS = """
SELECT EXISTS (SELECT FROM outbox.pending) OR EXISTS (SELECT FROM outbox.delivery) AS owed,
       (SELECT count(*) FROM (
            SELECT FROM outbox.delivery WHERE state = 'scheduled' AND attempts > 0 LIMIT 100000) d
       ) AS retrying,
       (SELECT count(*) FROM (SELECT FROM outbox.dead_letter LIMIT 100000) d) AS dead
"""
_EVENTS = "SELECT count(*), count(*) FILTER (WHERE type NOT LIKE 'outbox.%') FROM outbox.event"
_MATCHED = """
SELECT m.value ->> 'delivery', s.kind, e.org_id FROM outbox.journal j
JOIN outbox.event e ON e.id = j.event_id
CROSS JOIN LATERAL jsonb_array_elements(j.detail) m
JOIN outbox.subscription s ON s.id = (m.value ->> 'subscription')::bigint
WHERE j.fact = 'routed' AND j.detail IS NOT NULL
"""
# The commit timestamp stands in the server's own records (track_commit_timestamp).
_DELIVERED = """
SELECT j.delivery_id::text, extract(epoch FROM pg_xact_commit_timestamp(e.xmin))::float8
FROM outbox.journal j JOIN outbox.event e ON e.id = j.event_id WHERE j.fact = 'delivered'
"""
_LIVE = "SELECT id::text FROM outbox.delivery"
_DOCUMENTS = "SELECT delivery_id::text, sha256 FROM outbox.artifact"
_LETTERS = "SELECT delivery_id::text, message_id FROM outbox.email"
_DEAD = "SELECT id::text FROM outbox.dead_letter"
_MESSAGES = "SELECT id::text, topic, private FROM realtime.messages"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the pipeline stands. `owed`: something is pending or live."""

    owed: bool
    retrying: int
    dead: int


async def progress(connection: HotConnection) -> Progress:
    """One cheap look."""
    row = await (await connection.raw.execute(_PROGRESS)).fetchone()
    assert row is not None
    return Progress(*row)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receiver knows of one `webhook-id`. `first_at` is the unix time of its first request;
    `accepted` counts requests answered 2xx; `verified` is true if every signature was valid."""

    path: str
    first_at: float
    accepted: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Books:
    """What PostgreSQL says: ids of deliveries by what became of them, and commit times. `events`
    were written by the shop; `matched` are webhooks, `rendering` are to become documents, and
    `documents` are the SHA-256 of those that did, by delivery; `mailing` and `letters` are the same
    of e-mails, by Message-ID. `broadcasts` has books of its own."""

    events: int
    matched: frozenset[str]
    committed_at: Mapping[str, float]
    live: frozenset[str]
    dead: frozenset[str]
    events_of_ours: int = 0
    rendering: frozenset[str] = frozenset()
    documents: Mapping[str, str] = field(default_factory=dict)
    mailing: frozenset[str] = frozenset()
    letters: Mapping[str, str] = field(default_factory=dict)
    broadcasts: Broadcasts = field(default_factory=lambda: Broadcasts({}))

    def rendered(self, stored: Collection[str]) -> frozenset[str]:
        """The deliveries whose document is where it should be; `stored` are the SHA-256 of what
        lies there."""
        told = {key for key, sha256 in self.documents.items() if sha256 in stored}
        return frozenset(told & self.rendering & self.committed_at.keys())

    def mailed(self, stored: Collection[str], postbox: Mapping[str, str | None]) -> frozenset[str]:
        """The deliveries whose e-mail came with a document of ours; `postbox` is the SHA-256 of
        what was attached, by Message-ID."""
        told = {key for key, letter in self.letters.items() if postbox.get(letter) in stored}
        return frozenset(told & self.mailing & self.committed_at.keys())

    def missed(self, owed: frozenset[str], proven: frozenset[str]) -> int:
        """How many of these are neither proven nor still owed."""
        return len(owed - proven - self.live - self.dead)


def stored_hashes(folder: Path) -> frozenset[str]:
    """The SHA-256 of every document in a folder, by its bytes and not by its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    contents = [path.read_bytes() for path in files]
    return frozenset(hashlib.sha256(one).hexdigest() for one in contents if one[:5] == b"%PDF-")


def read_books(url: str) -> Books:
    """Read them all in one snapshot."""
    with connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

        def ids(query: str) -> frozenset[str]:
            return frozenset(str(row[0]) for row in connection.execute(query.encode()))

        counted = connection.execute(_EVENTS).fetchone()
        assert counted is not None
        matched = [(str(key), kind, org) for key, kind, org in connection.execute(_MATCHED)]
        committed_at = {str(key): float(at) for key, at in connection.execute(_DELIVERED)}
        live, dead = ids(_LIVE), ids(_DEAD)
        told = {key: org for key, kind, org in matched if kind == "broadcast"}
        return Books(
            events=counted[1],
            matched=frozenset(key for key, kind, _ in matched if kind == "webhook"),
            committed_at=committed_at,
            live=live,
            dead=dead,
            events_of_ours=counted[0] - counted[1],
            rendering=frozenset(key for key, kind, _ in matched if kind == "pdf"),
            documents=dict(connection.execute(_DOCUMENTS.encode()).fetchall()),
            mailing=frozenset(key for key, kind, _ in matched if kind == "email"),
            letters=dict(connection.execute(_LETTERS.encode()).fetchall()),
            broadcasts=Broadcasts(
                matched=told,
                settled=frozenset(told.keys() & committed_at.keys()),
                owed=live | dead,
                messages=connection.execute(_MESSAGES.encode()).fetchall(),
            ),
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from commit to first receipt; None where nothing was measured."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Account:
    """The count of deliveries."""

    deliveries: int
    delivered: int
    dead: int
    lost: int
    unfinished: int
    duplicates: int
    signatures_verified: int
    latency_ms: Latency


@dataclass(frozen=True, slots=True)
class Report:
    """The demo's result. `missing_events` are committed changes without an event, `phantoms`
    requests that carried what was rolled back, `forged` requests whose signature did not verify:
    all zero, or the product is broken. `documents` are invoices that were rendered and lie where
    they should, `emails` those that came with one of them attached; `hearing` is what became of
    broadcasts."""

    orders: int
    events: int
    account: Account
    seconds: float
    missing_events: int = 0
    phantoms: int = 0
    forged: int = 0
    rolled_back: int = 0
    documents: int = 0
    emails: int = 0
    followers_lost: int = 0
    hearing: Hearing = field(default_factory=Hearing)
    receivers: Sequence[Mapping[str, Any]] = ()

    @property
    def lost(self) -> int:
        """Deliveries lost, those of every kind, and changes that never became an event."""
        lost = self.account.lost + self.followers_lost + self.hearing.lost
        return lost + self.missing_events

    @property
    def screens_ms(self) -> Latency:
        """From commit to the screens."""
        waits_ms = self.hearing.waits_ms
        return Latency(percentile(waits_ms, 0.50), percentile(waits_ms, 0.99))

    @property
    def complaint(self) -> str | None:
        """What is wrong apart from losses; None if nothing is."""
        wrong = {
            "requests carried what had been rolled back": self.phantoms,
            "requests had a signature that does not verify": self.forged,
            "deliveries did not end": self.account.unfinished,
        }
        found = next((f"{count} {words}" for words, count in wrong.items() if count), None)
        return found or self.hearing.complaint

    def document(self) -> dict[str, Any]:
        """The one object of `--json`."""
        account = self.account
        return {
            "orders": self.orders,
            "events": self.events,
            "deliveries": account.deliveries,
            "delivered": account.delivered,
            "dead": account.dead,
            "lost": self.lost,
            "duplicates": account.duplicates,
            "signatures_verified": account.signatures_verified,
            "documents": self.documents,
            "emails": self.emails,
            "broadcasts": self.hearing.document(),
            "latency_ms": {"p50": account.latency_ms.p50, "p99": account.latency_ms.p99},
            "seconds": self.seconds,
        }

    def check(self) -> None:
        """Raise LossDetected if anything was lost, OutboxError if anything else is wrong."""
        if self.lost:
            raise LossDetected(f"{self.lost} of {self.account.deliveries} deliveries were lost")
        if self.complaint is not None:
            raise OutboxError(self.complaint)


def balance(books: Books, receipts: Mapping[str, Receipt], healthy: frozenset[str]) -> Account:
    """Hold the books against the receipts. `healthy` are the paths that count for the latency."""
    accepted = {key: one for key, one in receipts.items() if one.accepted > 0}
    delivered = books.committed_at.keys() & accepted.keys()
    lost = books.matched - delivered - books.live - books.dead
    waits_ms = [
        (one.first_at - books.committed_at[key]) * 1000
        for key, one in receipts.items()
        if one.path in healthy and key in books.committed_at
    ]
    return Account(
        deliveries=len(books.matched),
        delivered=len(delivered),
        dead=len(books.dead),
        lost=len(lost),
        unfinished=len(books.live),
        duplicates=sum(one.accepted > 1 for one in accepted.values()),
        signatures_verified=sum(one.verified for one in accepted.values()),
        latency_ms=Latency(percentile(waits_ms, 0.50), percentile(waits_ms, 0.99)),
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank, in tenths; None of nothing."""
    if not values:
        return None
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 1)
