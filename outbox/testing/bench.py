"""The real engine, moved step by step: one relay, any number of workers, no daemon and no thread.

Every step runs the very statements that daemons and workers run, on a database of the caller's and
by the caller's clock. Steps are ordinary functions; the processor, a coroutine function, runs on
the event loop that belongs to the bench.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import outbox
from outbox.addressbook import open_endpoint
from outbox.attempt import settlement_of, work_of
from outbox.outcome import Outcome
from outbox.retry import parse_retry
from outbox.rhythm import RelayConfig
from outbox.secrets import KeyRing
from outbox.store.attempts import Attempts, Settlement, Taken
from outbox.store.connect import connect, connect_hot
from outbox.store.dead import Selection, list_dead, redrive
from outbox.store.deliveries import list_deliveries, show_delivery
from outbox.store.dispatch import Claim, Dispatch
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule
from outbox.testing.attempt import Attempt
from outbox.testing.broker import Message, RecordingBroker
from outbox.testing.clock import Clock
from outbox.testing.databases import empty
from outbox.work import Endpoint, Work
from outbox.worker import Processor

T = TypeVar("T")

ROWS_MAX = 10_000
"""What one look at the tables shows at most."""
LIMIT = timedelta(seconds=10)
"""How long an attempt may take, unless told otherwise."""
ORG = "acme"


@dataclass(frozen=True, slots=True)
class Started:
    """A delivery that a worker has taken: the right to make one attempt."""

    taken: Taken
    work: Work

    @property
    def id(self) -> UUID:
        """The delivery: the idempotency key."""
        return self.taken.id


@dataclass(frozen=True, slots=True)
class Standing:
    """A delivery that is live (scheduled, leased, held) or dead. `attempts` counts the charged ones
    of the present budget; `due_at` and `reason` belong to live and dead ones."""

    id: UUID
    event_id: int
    state: str
    attempts: int
    budget: int
    due_at: datetime | None
    reason: str | None


class Bench:
    """One organization with one subscription, over a database with the schema and nothing else.

    `retry` and `patterns` are those of the subscription, `lease` the length of a lease. A bench is
    a context manager, and is used where no event loop runs.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        broker: RecordingBroker | None = None,
        retry: str = "5s,10s",
        patterns: Sequence[str] = ("*",),
        lease: timedelta = timedelta(seconds=30),
    ) -> None:
        self.url = url
        self.clock = clock or Clock()
        self.broker = broker or RecordingBroker()
        self.policy = parse_retry(retry)
        self.awaited = 0
        self.lease = lease
        self._rule = Rule(patterns=tuple(patterns), retry=retry)
        self._tokens = itertools.count(1)
        self._opened = ExitStack()

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._runner = stack.enter_context(asyncio.Runner())
            self._connection = stack.enter_context(connect(self.url, autocommit=True))
            hot = self.run(connect_hot(self.url, "bench"))
            stack.callback(lambda: self.run(hot.raw.close()))
            self._dispatch = Dispatch(hot, self.lease.total_seconds(), self.clock)
            self._attempts = Attempts(hot, self.clock)
            self._endpoint = self._add_endpoint()
            self._opened = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._opened.close()

    def clear(self) -> None:
        """Empty the database and the broker, and begin again with one subscription."""
        self.run(_cancel_the_rest())
        self.broker.forget()
        empty(self._connection)
        self._endpoint = self._add_endpoint()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop of the bench."""
        return self._runner.run(work)

    def _add_endpoint(self) -> Endpoint:
        """The destination as a processor is shown it, with the keys of a webhook."""
        ring = KeyRing.from_text(KeyRing.generate_text())
        spec = EndpointSpec("http://127.0.0.1:9/", ORG, self._rule, circuit=False)
        added = add_endpoint(self._connection, spec, ring)
        [stored] = self.run(self._attempts.endpoints([added.id]))
        return open_endpoint(stored, ring)

    # -- the application ------------------------------------------------------------------------

    def emit(
        self,
        type: str,  # noqa: A002 (the word of the event envelope)
        payload: object,
        *,
        subject: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Emit one event and commit; returns its id."""
        return outbox.emit(
            self._connection, type, payload, org=ORG, subject=subject, headers=headers
        )

    # -- the relay ------------------------------------------------------------------------------

    def route(self, window: int = 1000) -> int:
        """Match what is pending, lease at most `window` of it and hand that to the broker; returns
        how many events there were."""
        token = next(self._tokens)
        routed = self.run(self._dispatch.route(Claim(ROWS_MAX), window, token))
        self._hand(token, routed.ids)
        return routed.events

    def lease_due(self, window: int = 1000) -> int:
        """Lease what is due again and hand it to the broker; returns how many deliveries."""
        token = next(self._tokens)
        places = self.run(self._dispatch.due())
        leased = self.run(self._dispatch.lease_due(places, window, token))
        self._hand(token, leased.ids)
        return len(leased.ids)

    def expire(self) -> int:
        """Take back leases that ran out; returns how many had started."""
        expired = self.run(self._dispatch.expire(ROWS_MAX, RelayConfig().expiries_max))
        return expired.started

    def tend(self) -> int:
        """End or hold what is due and not to be tried; returns how many deliveries."""
        return self.run(self._dispatch.tend(ROWS_MAX))

    def _hand(self, token: int, ids: Sequence[str]) -> None:
        """A message each: what can be lost or repeated alone is."""
        for delivery_id in ids:
            self.broker.send(token, [delivery_id])

    # -- the worker -----------------------------------------------------------------------------

    def take(self, message: Message) -> list[Started]:
        """Start the leases of a message; what is not to be started any more is left out."""
        leases = [(delivery_id, message.token) for delivery_id in message.ids]
        taken = self.run(self._attempts.take(leases))
        return [Started(one, work_of(one, self._endpoint)) for one in taken]

    def perform(
        self,
        work: Work,
        process: Processor,
        *,
        limit: timedelta = LIMIT,
        cut_at: int | None = None,
    ) -> Outcome | None:
        """Make one attempt, as a worker does; an exception becomes the outcome `internal`.

        With `cut_at` it is cancelled at that await (from 0) and gives None, if it gets so far.
        Raises AssertionError for what no processor may do: return anything else than an `Outcome`,
        or run past its deadline, `limit` after its beginning. `awaited` is how often it waited.
        """
        one = Attempt(process, work, cut_at)
        try:
            return self.run(one.make(limit))
        finally:
            self.awaited = one.awaited

    def perform_together(
        self, works: Sequence[Work], process: Processor, *, limit: timedelta = LIMIT
    ) -> list[Outcome]:
        """Make several attempts at the same time."""

        async def together() -> list[Outcome | None]:
            return await asyncio.gather(*(Attempt(process, work).make(limit) for work in works))

        return [outcome for outcome in self.run(together()) if outcome is not None]

    def settle(self, started: Started, outcome: Outcome) -> Settlement | None:
        """End an attempt, without jitter; returns how it ended (`verdict` is delivered, retry or
        dead), None if the delivery is not this attempt's any more."""
        settlement = settlement_of(started.taken, outcome, lambda: 0.0)
        settled = self.run(self._attempts.settle([settlement]))
        return settlement if started.id in settled else None

    # -- the operator ---------------------------------------------------------------------------

    def redrive(self, *ids: UUID) -> int:
        """Give dead letters (all, where none is named) a fresh budget; returns how many."""
        return redrive(self._connection, Selection(ids=ids or None)).redriven

    # -- looking --------------------------------------------------------------------------------

    def standing(self) -> dict[UUID, Standing]:
        """Every delivery that is live or dead, by id."""
        live = list_deliveries(self._connection, rows_max=ROWS_MAX)
        dead = list_dead(self._connection, Selection(), rows_max=ROWS_MAX)
        found = [_standing(row) for row in live] + [_standing(row, "dead") for row in dead]
        return {one.id: one for one in found}

    def story(self, delivery_id: UUID) -> dict[str, Any]:
        """A delivery with its journal, as `outbox deliveries show --json` prints it."""
        return show_delivery(self._connection, delivery_id)

    # -- all at once ----------------------------------------------------------------------------

    def round(self, process: Processor) -> list[tuple[Started, Outcome]]:
        """Do all that is due, as a daemon and a worker would; returns what was performed."""
        self.expire()
        self.tend()
        self.route()
        self.lease_due()
        done = []
        while self.broker.waiting:
            for started in self.take(self.broker.deliver()):
                outcome = self.perform(started.work, process)
                assert outcome is not None, "the processor cancelled itself"
                self.settle(started, outcome)
                done.append((started, outcome))
        return done

    def wait(self) -> bool:
        """Move the clock to when everything live is due or its lease is over; False if nothing is
        live."""
        live = [one for one in self.standing().values() if one.state != "dead"]
        due = [one.due_at - self.clock() for one in live if one.due_at is not None]
        leased = self.lease if any(one.state == "leased" for one in live) else timedelta()
        self.clock.advance(max([timedelta(milliseconds=1), leased, *due]))
        return bool(live)


async def _cancel_the_rest() -> None:
    """End what an attempt has left running."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=1)


def _standing(row: Mapping[str, Any], state: str | None = None) -> Standing:
    due_at = row.get("due_at")
    return Standing(
        id=UUID(row["id"]),
        event_id=row["event"],
        state=state or row["state"],
        attempts=row["attempts"],
        budget=row["budget"],
        due_at=None if due_at is None else datetime.fromisoformat(due_at),
        reason=row.get("reason"),
    )
