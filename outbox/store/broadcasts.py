"""The statements of the daemon's broadcasts: claim, write into `realtime.messages`, settle.

Two ways in: one statement that does all three, which is the fast one, and a lease that is settled
later, for what cannot be done at once. In both, message and settle are one transaction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg

from outbox.errors import MessageRefused
from outbox.fronts import Front, Fronts, Walks, zipped
from outbox.store import arrays
from outbox.store.attempts import Attempts, Settlement
from outbox.store.connect import HotConnection, describe

SERVE_LOCK = 7861_0006
"""Advisory lock of the daemon that sends over http: one at a time, so that a rate is one rate."""

# Who broadcasts asks every few seconds. A silent session belongs to a daemon that is cut off, and
# something in between may keep it open for ever, with the lock.
_SILENT = "SET idle_session_timeout = '20s'"

_WARNING = "SendingBroadcastMessage"


MARGIN_S = 2.0
"""How much later than they are due broadcasts may be committed and are still seen by a look from
the front on: a relay that routes dates them by its beginning, and takes a second at most."""

LANES_KEPT = 1024
"""Of so many lanes the front is remembered: each look passes them all to PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Due:
    """What waits: where for which transport, when the next is due, whether there are such
    subscriptions at all."""

    sql: Sequence[Front]
    http: Sequence[Front]
    next_due_s: float | None
    known: bool


@dataclass(frozen=True, slots=True)
class Message:
    """A leased broadcast. `payload` is JSON text; `passed`: a newer one of its subject stands for
    it; `unfit` says why it cannot be a message."""

    id: UUID
    attempt: int
    retry: str
    age_left_s: float | None
    topic: str | None
    event: str
    payload: str
    private: bool
    passed: bool
    unfit: str | None
    token: int
    headers: str | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What one batch came to. `late` were committed too late for it, and are due at once."""

    sent: int = 0
    coalesced: int = 0
    dead: int = 0
    late: int = 0

    @property
    def total(self) -> int:
        """Deliveries that ended."""
        return self.sent + self.coalesced + self.dead


# What is wrong with the place, not with a message: it is tried again.
_PLACE = {
    "23514": "no_partition",
    "42501": "permission_denied",
    "42P01": "no_realtime_schema",
    "3F000": "no_realtime_schema",
    "42883": "no_realtime_schema",
    "42703": "realtime_schema_differs",
    "55P03": "locked",
    "40P01": "locked",
    "57014": "timeout",
    "53100": "disk_full",
}
_OWN = ("22", "23")
"""Classes of errors that a value brings about: it is not tried again."""


def refusal_of(error: psycopg.Error) -> MessageRefused | None:
    """What a failed statement says of messages; None if it says nothing, as a lost connection."""
    state = error.sqlstate or ""
    # Rows that no partition takes fail like those that break a condition, which has a name.
    of_value = state == "23514" and error.diag.constraint_name is not None
    if state in _PLACE and not of_value:
        return MessageRefused(_PLACE[state], describe(error), lasting=False)
    if state[:2] in _OWN:
        return MessageRefused("message_refused", describe(error), lasting=True)
    return None


def _columns(places: Sequence[Front]) -> dict[str, str]:
    return arrays.columns(places, "lanes", "queues", "fronts")


class Broadcasts:
    """The statements over one hot connection. A `clock` stands in for the server's, in tests."""

    def __init__(
        self,
        connection: HotConnection,
        clock: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._attempts = Attempts(connection, clock)
        self._now: Callable[[], datetime | None] = clock or (lambda: None)
        self._warnings: list[str] = []
        self._fronts = Fronts(MARGIN_S, LANES_KEPT)
        self._walks = Walks()
        self._monotonic = monotonic
        connection.raw.add_notice_handler(self._note)

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if _WARNING in (diagnostic.message_primary or ""):
            self._warnings.append(str(diagnostic.message_primary))

    async def prepare(self) -> tuple[bool, bool, bool]:
        """Set what holds for the session; returns whether messages can be written as rows, whether
        they can be read, whether there is the function."""
        if self._connection.direct:
            # A crash undoes message and settle together.
            await self._connection.raw.execute("SET synchronous_commit = off")
            await self._connection.raw.execute(_SILENT)
        row = await (await self._connection.run("broadcast_way", {})).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    async def due(self) -> Due:
        """Look for what waits: everywhere, or where a walk would be too dear again, from the fronts
        on."""
        began = self._monotonic()
        walk = self._walks.due(began)
        places = [] if walk else self._fronts.known()
        params = {"now": self._now(), "walk": walk} | _columns(places)
        row = await (await self._connection.run("broadcast_due", params)).fetchone()
        assert row is not None
        known, now, *columns = row
        found = zipped(*columns)
        met = [(lane, queue, due) for lane, queue, due, _, _ in found]
        if walk:
            self._walks.took(began, self._monotonic() - began)
            self._fronts.walked(now, met, -math.inf, 0)
        else:
            self._fronts.looked(now, met)
        due: dict[str | None, list[Front]] = {"sql": [], "http": []}
        for lane, queue, front, transport, ripe_at in found:
            if ripe_at is not None and ripe_at <= now:
                due[transport].append((lane, queue, front))
        waits = [at - now for *_, at in found if at is not None and at > now]
        if not walk:  # whoever rang may wait in a lane that was never met
            waits.append(max(0.0, self._walks.next_at - self._monotonic()))
        return Due(due["sql"], due["http"], min(waits, default=None), known)

    async def send(self, rows_max: int, places: Sequence[Front]) -> Sent:
        """Broadcast what is due there by sql, in one statement. Raises MessageRefused, nothing
        done."""
        try:
            params = {"now": self._now(), "rows_max": rows_max} | _columns(places)
            row = await (await self._connection.run("broadcast_send", params)).fetchone()
        except psycopg.Error as error:
            raise refusal_of(error) or error from error.__cause__
        assert row is not None
        return Sent(*row)

    async def lease(
        self,
        transport: str,
        rows_max: int,
        places: Sequence[Front],
        token: int,
        lease_s: float,
    ) -> list[Message]:
        """Lease and start what is due there, in order of event."""
        params = {
            "now": self._now(),
            "transport": transport,
            "rows_max": rows_max,
            "token": token,
            "lease_s": lease_s,
        } | _columns(places)
        cursor = await self._connection.run("broadcast_lease", params)
        return [Message(*(*row, token)) for row in await cursor.fetchall()]

    async def settle(self, ended: Sequence[Settlement]) -> set[UUID]:
        """End leased broadcasts; returns the ids that were still ours."""
        return await self._attempts.settle(ended)

    async def put(
        self, messages: Sequence[Message], ended: Sequence[Settlement], *, rows: bool, reads: bool
    ) -> None:
        """Settle messages and write those that were still ours, in one transaction: as `rows`, or
        by realtime.send. Raises MessageRefused, with nothing done."""
        self._warnings.clear()
        try:
            async with self._connection.raw.transaction():
                ours = await self.settle(ended)
                kept = [message for message in messages if message.id in ours]
                await self._write(kept, rows=rows, reads=reads)
        except psycopg.Error as error:
            raise refusal_of(error) or error from error.__cause__

    async def _write(self, messages: Sequence[Message], *, rows: bool, reads: bool) -> None:
        params = {
            "ids": arrays.uuids([m.id for m in messages]),
            "topics": arrays.texts([m.topic for m in messages]),
            "events": arrays.texts([m.event for m in messages]),
            "payloads": arrays.texts([m.payload for m in messages]),
            "privates": arrays.booleans([m.private for m in messages]),
        }
        if rows:
            await self._connection.run("broadcast_put", params)
            return
        await self._connection.run("broadcast_call", params)
        if self._warnings:
            raise MessageRefused("not_sent", self._warnings[0], lasting=False)
        if reads:
            cursor = await self._connection.run("broadcast_check", {"topics": params["topics"]})
            found = {row[0] for row in await cursor.fetchall()}
            if any(str(message.id) not in found for message in messages):
                text = "realtime.send wrote no row"
                raise MessageRefused("not_sent", text, lasting=False)

    async def serves_http(self) -> bool:
        """Whether it is this daemon that sends over http. Behind a transaction pooler a lock of the
        session would stay with whichever connection was lent, held against everybody: there each
        daemon sends, within a rate of its own."""
        if not self._connection.direct:
            return True
        query = "SELECT pg_catalog.pg_try_advisory_lock(%s)"
        row = await (await self._connection.raw.execute(query, [SERVE_LOCK])).fetchone()
        return bool(row is not None and row[0])
