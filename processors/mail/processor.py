"""The kind `email`: one attempt offers one frozen message to those recipients it is owed to.

Promises: the message is frozen before anything is sent, and every attempt sends those bytes; that
somebody may have been sent to is committed before the contents are; what became of each recipient
is written with the settle. A delivery is tried again as long as somebody is owed it; then it is
delivered if everybody was sent to or is suppressed, and dead if somebody was rejected.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from outbox.effects import Effects
from outbox.errors import ConfigurationError, DatabaseUnavailable, NotFound, OutboxError
from outbox.outcome import DATABASE_AWAY, Kind, Outcome
from outbox.recipients import HARD, OWED, Recipient, enhanced_code
from outbox.settings import Settings
from outbox.smtp_url import parse_smtp_url
from outbox.store.emails import Emails, EmailsUnavailable, Frozen, Person
from outbox.work import Work
from processors.kinds import Kind as KindOfDestination
from processors.mail.config import Plan, compile_plan
from processors.mail.message import Composer, MessageRefused
from processors.mail.signing import signer_of
from processors.mail.smtp import Envelope, Pool, Sent, ServerUnusable
from processors.mail.templates import Templates

PLANS_KEPT = 1000
MARGIN_S = 1.0
"""An attempt ends by itself this long before its time: it can then say what it knows."""
TIMEOUT = timedelta(minutes=5)
CONCURRENCY = 500


class EmailProcessor:
    """Sends one delivery."""

    def __init__(
        self, templates: Templates, composer: Composer, emails: Emails, pool: Pool
    ) -> None:
        self._templates = templates
        self._composer = composer
        self._emails = emails
        self._pool = pool
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()

    async def __call__(self, work: Work, deadline: float) -> Outcome:
        """Make one attempt. `deadline` is a loop time."""
        try:
            plan = self._plan(work)
            frozen = await self._frozen(plan, work)
        except MessageRefused as refusal:
            return Outcome(Kind.REJECTED, refusal.reason, detail={"error": str(refusal)})
        except NotFound as error:
            return Outcome(Kind.REJECTED, "attachment_missing", detail={"error": str(error)})
        except OutboxError as error:
            return _unprepared(error)
        if frozen is None:
            return Outcome(Kind.INTERNAL, "gone")  # cancelled or erased meanwhile: the settle tells
        attempt = _Attempt(plan, frozen)
        if attempt.owed:
            unusable = await self._send(work, frozen, attempt, deadline - MARGIN_S)
            if unusable is not None:
                return unusable
        return attempt.outcome()

    async def _send(
        self, work: Work, frozen: Frozen, attempt: _Attempt, until: float
    ) -> Outcome | None:
        """Offer it. Returns an outcome only where no recipient was offered anything."""
        started = asyncio.get_running_loop().time()
        called_off = False

        async def commit(numbers: Sequence[int]) -> bool:
            nonlocal called_off
            attempt.committed = tuple(numbers)
            called_off = not await self._emails.sending(work.delivery_id, frozen.slot, numbers)
            return not called_off

        people = [(person.n, person.address) for person in attempt.owed]
        envelope = Envelope(frozen.sender, people, frozen.mime, frozen.smtputf8)
        try:
            async with asyncio.timeout_at(until):
                attempt.take(await self._pool.send(envelope, commit))
        except TimeoutError:
            attempt.time_out()
        except ServerUnusable as error:
            return Outcome(Kind.INTERNAL, error.reason, detail={"error": str(error)})
        except EmailsUnavailable as error:
            return _unprepared(error)
        if called_off:
            return Outcome(Kind.INTERNAL, "gone")
        attempt.duration_s = asyncio.get_running_loop().time() - started
        return None

    def _plan(self, work: Work) -> Plan:
        setup = work.setup
        assert setup is not None
        key = (setup.subscription_id, setup.revision)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = compile_plan(self._templates, setup.config)
            if len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan

    async def _frozen(self, plan: Plan, work: Work) -> Frozen | None:
        """The message that was frozen; else it is made now, and frozen."""
        frozen = await self._emails.open(work.delivery_id)
        if frozen is None:
            frozen = await self._emails.freeze(await self._composer.compose(plan, work))
        return frozen


def _unprepared(error: OutboxError) -> Outcome:
    after = DATABASE_AWAY if isinstance(error, DatabaseUnavailable) else None
    detail = {"error": str(error)[:500]}
    return Outcome(Kind.INTERNAL, "email_unprepared", after=after, detail=detail)


class _Attempt:
    """What one attempt knows about the recipients, and what follows. Pure."""

    def __init__(self, plan: Plan, frozen: Frozen) -> None:
        self._hold = plan.hold_unknown
        self._people = {person.n: person for person in frozen.people}
        self._results: dict[int, tuple[Recipient, str | None]] = {}
        self._offered: set[int] = set()
        self.committed: tuple[int, ...] = ()
        self.duration_s = 0.0
        self.owed = [person for person in frozen.people if self._is_owed(person)]
        self._offered = {person.n for person in self.owed}

    def _is_owed(self, person: Person) -> bool:
        if person.state not in OWED:
            return False
        if person.state is Recipient.SENDING and self._hold:
            # An attempt before ended between the contents and its settle.
            self._results[person.n] = (Recipient.UNKNOWN, "the attempt before did not end")
            return False
        if person.state is Recipient.UNKNOWN and self._hold:
            return False  # others are tried again; a redrive makes this one queued
        if person.suppressed:
            self._results[person.n] = (Recipient.SUPPRESSED, None)
            return False
        return True

    def take(self, sent: Sent) -> None:
        """What a transaction made of them."""
        self._results.update(sent.results)

    def time_out(self) -> None:
        """The attempt's time is over; who was committed may have been sent to."""
        for person in self.owed:
            state = Recipient.UNKNOWN if person.n in self.committed else Recipient.DEFERRED
            self._results[person.n] = (state, "the attempt took too long")

    def outcome(self) -> Outcome:
        """What follows from where everybody stands now."""
        states = {
            person.n: self._results.get(person.n, (person.state, None))[0]
            for person in self._people.values()
        }
        kind, reason = self._verdict(set(states.values()))
        return Outcome(kind, reason, detail=self._detail(), effects=self._effects())

    def _verdict(self, states: set[Recipient]) -> tuple[Kind, str]:
        if states & {Recipient.QUEUED, Recipient.DEFERRED, Recipient.SENDING}:
            return Kind.RETRY, "deferred"
        if Recipient.UNKNOWN in states and not self._hold:
            return Kind.AMBIGUOUS, "unknown"
        if Recipient.UNKNOWN in states:
            return Kind.REJECTED, "unknown_held"
        if Recipient.REJECTED in states:
            return Kind.REJECTED, "rejected"
        everybody = states <= {Recipient.SUPPRESSED}
        return Kind.DELIVERED, "suppressed" if everybody else "sent"

    def _detail(self) -> dict[str, object]:
        told = [
            {"n": n, "address": self._people[n].address, "state": str(state), "reply": reply}
            for n, (state, reply) in sorted(self._results.items())
        ]
        return {"duration_ms": round(self.duration_s * 1000), "recipients": told}

    def _effects(self) -> Effects | None:
        if not self._results:
            return None
        rows = {
            str(n): [str(state), reply, n in self._offered, _reason(state, reply)]
            for n, (state, reply) in self._results.items()
        }
        return Effects(rows={"email": rows})


def _reason(state: Recipient, reply: str | None) -> str | None:
    """Why an address is to be suppressed from now on, or None."""
    code = enhanced_code((reply or "")[:20])
    return f"rejected {code}" if state is Recipient.REJECTED and code in HARD else None


# -- the kind -------------------------------------------------------------------------------------


@asynccontextmanager
async def open_email(settings: Settings) -> AsyncIterator[dict[str, EmailProcessor]]:
    """The processor, where an SMTP server is set; else e-mail waits for a worker that has one."""
    if settings.smtp_url is None:
        yield {}
        return
    templates = Templates(settings.templates)

    async def artifact(org_id: str | None, sha256: str) -> bytes:
        # Imported when it is first used: documents bring libraries of their own.
        from processors.artifacts import fetch

        return await fetch(settings, org_id, sha256)

    composer = Composer(templates, artifact, signer_of(settings))
    emails = Emails(settings.database)
    server = parse_smtp_url(settings.smtp_url)
    pool = Pool(server, None if server.tls == "none" else _tls(settings))
    try:
        yield {"email": EmailProcessor(templates, composer, emails, pool)}
    finally:
        await pool.close()
        await emails.close()


def _tls(settings: Settings) -> ssl.SSLContext:
    """Certificates are verified against the system's authorities and the operator's file."""
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"OUTBOX_CA_FILE: {settings.ca_file}: {error}") from error
    return context


def _check(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    compile_plan(Templates(settings.templates), config)
    return dict(config)


KIND = KindOfDestination(open=open_email, check=_check, concurrency=CONCURRENCY, timeout=TIMEOUT)
