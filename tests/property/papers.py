"""The world with e-mail, documents and broadcasts: the real processors over servers of ours.

`people` is the model of recipients, `named` that of documents, `casts` that of messages. Beside
them stands what the servers saw: who was sent to, what was stored.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

from outbox.attempt import settlement_of, work_of
from outbox.broadcast import Broadcaster
from outbox.effects import hops_of
from outbox.outcome import Outcome
from outbox.recipients import OWED, Recipient
from outbox.store.artifacts import Notes
from outbox.store.attempts import Settlement, Taken
from outbox.store.broadcasts import Broadcasts
from outbox.store.emails import Emails
from outbox.work import Setup
from outbox.worker import Processor
from processors.mail.message import Composer
from processors.mail.processor import EmailProcessor
from processors.mail.smtp import Commit, Envelope, Pool, Sent
from processors.mail.templates import Templates
from processors.pdf import PdfProcessor
from processors.rendering.engines import Document, Job
from processors.rendering.pool import Rendered, RenderPool
from processors.storage import Store
from tests.engine.mortal import Died
from tests.property.model import Lease, Spec
from tests.property.snapshot import Row, Snapshot
from tests.property.world import Fate, World

MAIL = {
    "to": ["one@example.org", "two@example.org"],
    "from": "shop@example.com",
    "subject": "Event {{ event.id }}",
    "text": "Hello",
}
PEOPLE = "SELECT delivery_id, n, state FROM outbox.email_recipient"
NAMED = "SELECT delivery_id, sha256 FROM outbox.artifact"
STRAYS = "SELECT sha256 FROM outbox.artifact_stray"
CASTS = "SELECT id FROM realtime.messages"
PAPER = {"template": "outbox:invoice", "filename": "x.pdf", "engine": "typst", "pdf_standard": []}
CAST = {"prefix": "orders", "transport": "sql", "include": [], "private": False}
REPLIES = {
    "later": (Recipient.DEFERRED, "450 4.2.0 later"),
    "never": (Recipient.REJECTED, "550 5.7.1 never"),
}
AGAIN = {Recipient.REJECTED, Recipient.SUPPRESSED, Recipient.SENDING, Recipient.UNKNOWN}
"""Whom a new budget gives another chance."""
DOUBT = {Recipient.SENDING, Recipient.UNKNOWN}
"""Nobody knows whether they were sent to."""


class End(Enum):
    """Where an attempt ends."""

    GOOD = "good"
    DIES_BEFORE = "the worker dies before the contents are sent, or the document is stored"
    DIES_AFTER = "the worker dies after that"
    LOST = "the connection is lost after the contents; the server took them"


@dataclass
class Server:
    """An SMTP server, a renderer and a place for documents, as one attempt finds them. Each
    recipient is answered `ok`, `later` or `never`."""

    replies: tuple[str, str] = ("ok", "ok")
    end: End = End.GOOD
    offered: set[int] = field(default_factory=set)
    committed: set[int] = field(default_factory=set)
    took: set[int] = field(default_factory=set)
    message: bytes = b""
    stored: set[str] = field(default_factory=set)

    async def send(self, envelope: Envelope, commit: Commit) -> Sent:
        """One transaction, as a Pool has it."""
        sent = Sent()
        self.message = envelope.data
        self.offered = {n for n, _ in envelope.people}
        for n in self.offered:
            if self.replies[n] != "ok":
                sent.note([n], *REPLIES[self.replies[n]])
        good = sorted(self.offered - sent.results.keys())
        if good and await commit(good):
            self.committed = set(good)
            if self.end is End.DIES_BEFORE:
                raise Died
            self.took = set(good)
            if self.end is End.DIES_AFTER:
                raise Died
            state = Recipient.UNKNOWN if self.end is End.LOST else Recipient.SENT
            sent.note(good, state, "250 2.0.0 taken")
        return sent

    async def render(self, job: Job) -> Rendered:
        """A document, as a RenderPool has it: the same of the same event."""
        return Rendered(Document(job.event.encode(), 1, "v"), "1")

    async def put(self, _key: str, content: bytes) -> None:
        """Store, as a Store has it."""
        if self.end is End.DIES_BEFORE:
            raise Died
        self.stored.add(sha256(content).hexdigest())
        if self.end is End.DIES_AFTER:
            raise Died

    async def url(self, _key: str) -> None:
        """No link."""


@dataclass
class Shop:
    """The connections that all examples share."""

    emails: Emails
    notes: Notes
    broadcasts: Broadcasts


@dataclass
class PapersWorld(World):
    """Runs the processors, and the daemon's broadcasts."""

    taken: dict[Lease, Taken] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    """Subscriptions of e-mail that hold what nobody knows of."""
    people: dict[UUID, dict[int, Recipient]] = field(default_factory=dict)
    begun: dict[UUID, int] = field(default_factory=dict)
    """The budget under which a message was last begun."""
    messages: dict[UUID, bytes] = field(default_factory=dict)
    sent_to: set[tuple[UUID, int]] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    named: dict[UUID, str] = field(default_factory=dict)
    """The document of each delivery that ended well."""
    casts: set[UUID] = field(default_factory=set)
    untold: set[UUID] = field(default_factory=set)
    """Deliveries that no processor ended."""

    def __post_init__(self) -> None:
        self.arena.admin.execute("DELETE FROM realtime.messages")
        super().__post_init__()
        assert isinstance(self.arena.shop, Shop)
        self.shop = self.arena.shop
        self.composer = Composer(Templates(), cast(Any, None))

    # -- attempts -------------------------------------------------------------------------------

    def take(self, leases: Sequence[Lease], fate: Fate = Fate.DONE, who: int = 0) -> list[Row]:
        rows = super().take(leases, fate, who)
        self.taken |= {(row[0], row[1]): Taken(*row) for row in rows}
        return rows

    def performs(self, lease: Lease) -> bool:
        """Whether this is an attempt of a processor that runs here."""
        return self.taken[lease].kind in ("email", "pdf")

    def perform(self, row: Row) -> Settlement:
        lease = row[0], row[1]
        ended = self._attempt(lease, Server()) if self.performs(lease) else None
        return ended or super().perform(row)

    def attempt(self, lease: Lease, server: Server) -> Settlement | None:
        """The real processor makes one attempt; None if its worker died."""
        ended = self._attempt(lease, server)
        self.look(lambda *_: Spec())
        return ended

    def _attempt(self, lease: Lease, server: Server) -> Settlement | None:
        taken = self.taken[lease]
        return self._mail(taken, server) if taken.kind == "email" else self._paper(taken, server)

    def _run(self, processor: Processor, taken: Taken, config: dict[str, Any]) -> Settlement | None:
        work = work_of(taken, setup=Setup(taken.subscription_id, taken.revision, config))

        async def run() -> Outcome:
            return await processor(work, asyncio.get_running_loop().time() + 600)

        try:
            outcome = self.arena.run(run())
        except Died:
            return None
        return settlement_of(taken, outcome, lambda: 0.0)

    def _mail(self, taken: Taken, server: Server) -> Settlement | None:
        hold = taken.subscription_id in self.held
        pool = cast(Pool, server)
        processor = EmailProcessor(Templates(), self.composer, self.shop.emails, pool)
        row = self.seen.deliveries.get(taken.id)
        if row is not None:
            self._begin(taken.id, row.budget)
        stood = self.people.get(taken.id, {})
        ended = self._run(processor, taken, MAIL | {"on_unknown": "hold" if hold else "retry"})
        for n in server.offered:
            assert stood[n] in OWED, f"{stood[n]} is offered again"
            assert not (hold and stood[n] in DOUBT), "held, and sent again, and nobody said so"
        if server.committed:
            assert row is not None
            assert row.state == "leased", "it is sent though nobody may send it"
            self.people[taken.id] |= dict.fromkeys(server.committed, Recipient.SENDING)
        self.sent_to |= {(taken.id, n) for n in server.took}
        if server.message:
            frozen = self.messages.setdefault(taken.id, server.message)
            assert frozen == server.message, "a message changed between attempts"
        return ended

    def _begin(self, delivery_id: UUID, budget: int) -> None:
        """Whoever comes first freezes the message; a new budget gives people another chance."""
        people = self.people.setdefault(delivery_id, dict.fromkeys((0, 1), Recipient.QUEUED))
        if self.begun.setdefault(delivery_id, budget) < budget:
            self.begun[delivery_id] = budget
            again = [n for n, state in people.items() if state in AGAIN]
            people |= dict.fromkeys(again, Recipient.QUEUED)

    def _paper(self, taken: Taken, server: Server) -> Settlement | None:
        pools = {"typst": cast(RenderPool, server)}
        processor = PdfProcessor(None, pools, cast(Store, server), self.shop.notes)
        ended = self._run(processor, taken, PAPER)
        self.stored |= server.stored
        self._known()
        return ended

    def _known(self) -> None:
        strays = {row[0] for row in self._rows(STRAYS)}
        assert self.stored <= strays | set(self.named.values()), "stored, and known to nobody"

    # -- what a settle brings about -------------------------------------------------------------

    def effects(self, before: Snapshot, after: Snapshot, ended: Sequence[Settlement]) -> set[int]:
        wanted = []
        for settlement in ended:
            told = json.loads(settlement.effects or "{}")
            for n, (state, *_) in told.get("email", {}).items():
                self.people[settlement.id][int(n)] = Recipient(state)
            if settlement.verdict != "delivered":
                continue
            if not told:
                self.untold.add(settlement.id)
            if "artifact" in told:
                assert settlement.id not in self.named, "a second document of one delivery"
                self.named[settlement.id] = told["artifact"]["sha256"]
            row = before.deliveries[settlement.id]
            source = before.events[row.event_slot, row.event_id]
            hops = str(hops_of(source.headers) + 1)
            wanted += [(one["type"], row.org_id, hops) for one in told.get("emit", [])]
        new = [after.events[key] for key in after.events.keys() - before.events.keys()]
        found = [(e.type, e.org_id, (e.headers or {}).get("outbox-hops")) for e in new]
        assert sorted(found) == sorted(wanted), "the events that follow, once, one hop further"
        return {event.id for event in new}

    def look(self, spec: Callable[[Snapshot, Snapshot], Spec]) -> None:
        super().look(spec)
        self.broken = True
        found: dict[UUID, dict[int, Recipient]] = {}
        for delivery_id, n, state in self._rows(PEOPLE):
            found.setdefault(delivery_id, {})[n] = Recipient(state)
        assert found == self.people, "I13: how recipients stand"
        assert dict(self._rows(NAMED)) == self.named, "one document for each that ended well"
        casts = {row[0] for row in self._rows(CASTS)}
        assert casts == self.casts, "a message is there when it is settled, and not before"
        self.broken = False

    def _rows(self, query: str) -> list[Row]:
        return self.arena.reader.execute(query.encode(), binary=True).fetchall()

    # -- broadcasts -----------------------------------------------------------------------------

    def broadcast(self, dies: int | None = None) -> None:
        """A daemon sends what is due; it may die meanwhile."""
        due = self.model.broadcast(self.seen, self.now)
        with suppress(Died), self.arena.hot.dying(dies):
            self.arena.run(Broadcaster(jitter=lambda: 0.0).round(self.shop.broadcasts))
        self.casts |= {row[0] for row in self._rows(CASTS)} & due.rows.keys()

        def spec(_: Snapshot, after: Snapshot) -> Spec:
            gone = due.rows.keys() - after.rows.keys()
            assert gone == due.rows.keys() & self.casts, "message and settle are one"
            return due if dies is None else due.perhaps()

        self.look(spec)

    def rest(self) -> None:
        super().rest()
        self.broadcast()

    # -- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        super().finish()
        for delivery_id, people in self.people.items():
            sent = {n for n, state in people.items() if state is Recipient.SENT}
            assert {(delivery_id, n) for n in sent} <= self.sent_to, "I1: told as sent, never sent"
        for delivery_id, (_, sub) in self.model.matched.items():
            if self.model.ended.get(delivery_id) != "delivered" or delivery_id in self.untold:
                continue
            match self.model.subs[sub].lane.kind:
                case "email":
                    assert set(self.people[delivery_id].values()) == {Recipient.SENT}, "I1"
                case "pdf":
                    assert self.named[delivery_id] in self.stored, "I1: told of, never stored"
                case "broadcast":
                    assert delivery_id in self.casts, "I1"
        self._known()
