"""The daemon's own deliveries: broadcasts, in batches, without broker and worker.

Owns when to look and what becomes of a batch that is refused. The usual batch is one statement:
messages, settle and facts in one transaction. Where the database refuses it, the batch is leased
and halved until what is at fault stands alone; over http it is always leased first.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from outbox import faults
from outbox.attempt import settlement_of
from outbox.errors import MessageRefused
from outbox.fronts import Front
from outbox.outcome import Kind, Outcome, from_exception
from outbox.store.attempts import Settlement
from outbox.store.broadcasts import Broadcasts, Message
from outbox.store.connect import HotConnection
from outbox.waiting import wait_at_most

log = structlog.get_logger("outbox.broadcast")

TRANSPORTS = ("sql", "http")
SENT = Outcome(Kind.DELIVERED, "broadcast")
COALESCED = Outcome(Kind.DELIVERED, "coalesced")


class Transport(Protocol):
    """Sends messages outside of a transaction."""

    async def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """Send them; an outcome each, in their order."""


@dataclass(frozen=True, slots=True)
class BroadcastConfig:
    """The numbers of a broadcaster. Times in seconds.

    `rows_max`: messages of one statement; `http_max`: of one request; `look_s`: how often to look
    for what nobody announced (retries, redrives, what was held), `unknown_s` the same while there
    are no broadcasts at all.
    """

    lease_s: float = 30.0
    rows_max: int = 1000
    http_max: int = 100
    look_s: float = 1.0
    unknown_s: float = 5.0


class Broadcaster:
    """One daemon's broadcasts: give `serve`, and `serve_http` where there is a server, to `upkeep`,
    over a connection each: a server that is slow, or takes so many a second, keeps no row waiting.
    `ring` wakes them when a relay has routed some; `http` is None where no server is configured."""

    def __init__(
        self,
        config: BroadcastConfig | None = None,
        http: Transport | None = None,
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        token: Callable[[], int] = lambda: secrets.randbits(62),
    ) -> None:
        self._config = config or BroadcastConfig()
        self._http = http
        self._jitter = jitter
        self._clock = clock
        self._token = token
        self._rung = {transport: asyncio.Event() for transport in TRANSPORTS}
        self._refused: str | None = None

    def ring(self) -> None:
        """There are broadcasts that were not there before."""
        for rung in self._rung.values():
            rung.set()

    async def serve(self, connection: HotConnection) -> None:
        """Broadcast by sql until cancelled. Raises the driver's errors."""
        await self._serve(connection, "sql")

    async def serve_http(self, connection: HotConnection) -> None:
        """Broadcast over http until cancelled. Raises the driver's errors."""
        await self._serve(connection, "http")

    async def _serve(self, connection: HotConnection, transport: str) -> None:
        store = Broadcasts(connection)
        await store.prepare()
        rung = self._rung[transport]
        while True:
            rung.clear()
            wait_s = await self.round(store, [transport])
            if wait_s > 0:
                await wait_at_most(rung, wait_s)

    async def round(self, store: Broadcasts, transports: Sequence[str] = TRANSPORTS) -> float:
        """Do what is due; returns the seconds after which to look again (0: at once)."""
        config = self._config
        due = await store.due()
        worked = 0
        if due.sql and "sql" in transports:
            worked += await self._by_sql(store, due.sql)
        if (
            due.http
            and "http" in transports
            and self._http is not None
            and await store.serves_http()
        ):
            worked += await self._by_http(store, self._http, due.http)
        if worked:
            return 0.0
        if not due.known:
            return config.unknown_s
        if due.next_due_s is None:
            return config.look_s
        return min(config.look_s, max(0.001, due.next_due_s))

    # -- sql ------------------------------------------------------------------------------------

    async def _by_sql(self, store: Broadcasts, places: Sequence[Front]) -> int:
        try:
            sent = await store.send(self._config.rows_max, places)
        except MessageRefused as refusal:
            self._say(refusal)
            return await self._apart(store, places)
        if sent.total:
            self._refused = None
            log.debug("broadcast.sent", sent=sent.sent, coalesced=sent.coalesced, dead=sent.dead)
        if sent.dead:
            log.warning("broadcast.dead_letters", count=sent.dead)
        return sent.total + sent.late

    async def _apart(self, store: Broadcasts, places: Sequence[Front]) -> int:
        """The batch again, leased, in halves where it is refused."""
        rows, reads, function = await store.prepare()
        token = self._token()
        rows_max, lease_s = self._config.rows_max, self._config.lease_s
        leased = await store.lease("sql", rows_max, places, token, lease_s)
        messages = await self._settle_unsent(store, leased)
        if rows or function:
            await self._halve(store, messages, rows=rows, reads=reads)
        else:
            refusal = MessageRefused("no_realtime_schema", "no way to send", lasting=False)
            await self._fail(store, messages, refusal)
        return len(leased)

    async def _halve(
        self,
        store: Broadcasts,
        messages: Sequence[Message],
        *,
        rows: bool,
        reads: bool,
    ) -> None:
        if not messages:
            return
        ended = [self._settlement(message, SENT) for message in messages]
        try:
            await store.put(messages, ended, rows=rows, reads=reads)
        except MessageRefused as refusal:
            # What is wrong with the place is wrong for all; a function that only warns may have
            # been warned by one.
            if len(messages) == 1 or not (refusal.lasting or not rows):
                self._say(refusal)
                await self._fail(store, messages, refusal)
                return
            middle = len(messages) // 2
            for half in (messages[:middle], messages[middle:]):
                await self._halve(store, half, rows=rows, reads=reads)

    # -- http -----------------------------------------------------------------------------------

    async def _by_http(self, store: Broadcasts, http: Transport, places: Sequence[Front]) -> int:
        token = self._token()
        rows_max, lease_s = self._config.http_max, self._config.lease_s
        leased = await store.lease("http", rows_max, places, token, lease_s)
        messages = await self._settle_unsent(store, leased)
        if messages:
            faults.passing("before", "broadcast_request")
            outcomes = await self._sent(http, messages)
            faults.passing("after", "broadcast_request")
            pairs = zip(messages, outcomes, strict=True)
            await store.settle([self._settlement(m, outcome) for m, outcome in pairs])
            failed = [outcome.reason for outcome in outcomes if outcome.kind is not Kind.DELIVERED]
            if failed:
                log.warning("broadcast.failed", count=len(failed), reasons=sorted(set(failed)))
        return len(leased)

    async def _sent(self, http: Transport, messages: Sequence[Message]) -> list[Outcome]:
        try:
            return await http.send(messages)
        except Exception as error:
            # One message that trips the transport must not end the broadcasts of this daemon.
            log.exception("broadcast.transport_error")
            return [from_exception(error)] * len(messages)

    # -- both -----------------------------------------------------------------------------------

    async def _settle_unsent(self, store: Broadcasts, leased: Sequence[Message]) -> list[Message]:
        """End what is not to be sent; returns the rest."""
        unsent = [
            self._settlement(
                message,
                COALESCED if message.passed else Outcome(Kind.REJECTED, message.unfit or ""),
            )
            for message in leased
            if message.passed or message.unfit
        ]
        if unsent:
            await store.settle(unsent)
        return [message for message in leased if not (message.passed or message.unfit)]

    async def _fail(
        self, store: Broadcasts, messages: Sequence[Message], refusal: MessageRefused
    ) -> None:
        kind = Kind.REJECTED if refusal.lasting else Kind.RETRY
        outcome = Outcome(kind, refusal.reason, detail={"error": str(refusal)[:500]})
        await store.settle([self._settlement(message, outcome) for message in messages])

    def _settlement(self, message: Message, outcome: Outcome) -> Settlement:
        return settlement_of(message, outcome, self._jitter)

    def _say(self, refusal: MessageRefused) -> None:
        if self._refused != refusal.reason:
            log.warning("broadcast.refused", reason=refusal.reason, error=str(refusal)[:300])
        self._refused = refusal.reason
