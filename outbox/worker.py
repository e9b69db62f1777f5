"""The worker's loop: take, run concurrently, settle in batches.

One event loop, two connections (one takes and extends, one settles), any number of attempts at
once. The broker's threads hand ids over through `accept`, which returns as soon as the ids are
taken in and blocks only while the budget is full: waiting on a receiver never holds a thread.
Every write is fenced by the lease's token; what is not ours any more is discarded and counted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import orjson
import structlog

from outbox.addressbook import AddressBook
from outbox.budget import Budget
from outbox.errors import OutboxError
from outbox.outcome import Kind, Outcome, from_exception
from outbox.secrets import KeyRing
from outbox.store.attempts import Attempts, Settlement, Taken
from outbox.store.connect import FAILED, REFUSED, HotConnection, describe
from outbox.verdict import RELEASED, Verdict, judge, policy_of
from outbox.work import Endpoint, Work

log = structlog.get_logger("outbox.worker")

Processor = Callable[[Work, float], Awaitable[Outcome]]
"""Makes one attempt. The second argument is a loop time after which nobody waits for it."""

ATTEMPT_S_MAX = 24 * 3600.0
"""No attempt lasts longer than this, however often its lease is extended."""

Lease = tuple[UUID, int]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The numbers of a worker. Times in seconds.

    `concurrency`: deliveries accepted and not settled at once, the bound on what is in flight;
    `waiting_max`: accepted and not yet taken;
    `margin_s`: how long before its lease ends a delivery is no longer begun.
    """

    lease_s: float = 30.0
    concurrency: int = 4000
    waiting_max: int = 250
    take_max: int = 250
    settle_max: int = 250
    margin_s: float = 1.0
    backoff_s_max: float = 2.0


@dataclass(slots=True, eq=False)
class _Running:
    """One attempt under way. `until` is the loop time at which its lease ends."""

    taken: Taken
    until: float
    task: asyncio.Task[None] | None = None


class Worker:
    """One worker. `processors` maps a subscription's kind to the code that performs it."""

    def __init__(
        self,
        open_connection: Callable[[str], Awaitable[HotConnection]],
        processors: Mapping[str, Processor],
        key_ring: KeyRing | None,
        config: WorkerConfig | None = None,
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_connection
        self._processors = processors
        self._config = config or WorkerConfig()
        self._jitter = jitter
        self._clock = clock
        self._book = AddressBook(key_ring, clock)
        self._budget = Budget(self._config.concurrency, self._config.waiting_max)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: list[Lease] = []
        self._refused: list[Lease] = []
        self._arrival = asyncio.Event()
        self._ended: list[Settlement] = []
        self._end = asyncio.Event()
        self._gone: dict[int, str] = {}
        self._running: dict[UUID, _Running] = {}
        self._stopping = False
        self.stale = 0

    # -- coming in ------------------------------------------------------------------------------

    def accept(self, token: int, ids: Sequence[UUID]) -> None:
        """Take in leased ids; called by the broker's threads. Blocks while the budget is full.

        Once the worker stops, what still arrives is given back to PostgreSQL at once.
        """
        admitted = self._budget.acquire(len(ids))
        leases = [(delivery_id, token) for delivery_id in ids]
        loop = self._loop
        if loop is None or loop.is_closed():
            return  # the lease brings them back
        with suppress(RuntimeError):  # the loop closed meanwhile: likewise
            loop.call_soon_threadsafe(self._arrive, leases, admitted)

    def _arrive(self, leases: list[Lease], admitted: bool) -> None:
        (self._arrived if admitted else self._refused).extend(leases)
        self._arrival.set()

    # -- life -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`, then finish what runs. Cancel to end at once."""
        self._loop = asyncio.get_running_loop()
        tasks = [
            asyncio.create_task(self._forever("take", self._take_loop)),
            asyncio.create_task(self._forever("settle", self._settle_loop)),
        ]
        guard = asyncio.create_task(self._guard())
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in [*tasks, guard]:
                task.cancel()
            for running in list(self._running.values()):
                if running.task is not None:
                    running.task.cancel()

    def stop(self) -> None:
        """Take nothing more. `run` returns when everything inside is settled."""
        self._stopping = True
        self._budget.close()
        self._arrival.set()
        self._end.set()

    def abandon(self) -> None:
        """End what still runs: given back unfinished and uncharged."""
        for running in list(self._running.values()):
            if running.task is not None:
                running.task.cancel()

    @property
    def in_flight(self) -> int:
        """Deliveries inside: accepted and not settled."""
        return self._budget.used

    async def _forever(self, name: str, body: Callable[[Attempts], Awaitable[None]]) -> None:
        """Run a loop over a connection of its own, opening a new one whenever it breaks."""
        failures = 0
        while True:
            try:
                connection = await self._open(f"worker {name}")
                try:
                    failures = 0
                    await body(Attempts(connection))
                    return
                finally:
                    await connection.raw.close()
            except FAILED as error:
                if failures == 0:
                    log.warning("worker.database_lost", loop=name, error=describe(error))
                failures += 1
                await asyncio.sleep(min(self._config.backoff_s_max, 0.05 * 2 ** min(failures, 10)))

    def _done(self) -> bool:
        return self._stopping and self._budget.used == 0 and not self._refused

    # -- taking ---------------------------------------------------------------------------------

    async def _take_loop(self, attempts: Attempts) -> None:
        extend_every = self._config.lease_s / 3
        extend_at = self._clock() + extend_every
        if self._arrived or self._refused:
            self._arrival.set()  # what the connection before this one left behind
        while not self._done():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), max(0.01, extend_at - self._clock()))
            self._arrival.clear()
            # One take a turn: however fast more arrives, what runs is extended in time.
            if self._arrived:
                await self._take(attempts)
            if self._arrived:
                self._arrival.set()
            await self._give_back(attempts)
            if self._clock() >= extend_at:
                extend_at = self._clock() + extend_every
                await self._extend(attempts)

    async def _take(self, attempts: Attempts) -> None:
        leases = self._arrived[: self._config.take_max]
        asked_at = self._clock()
        taken = await attempts.take(leases)
        # Only now: a failed statement leaves the leases here to be tried again.
        del self._arrived[: len(leases)]
        self._budget.taken(len(leases))
        if len(taken) < len(leases):
            self.stale += len(leases) - len(taken)
            self._budget.free(len(leases) - len(taken))
            log.info("worker.stale", leases=len(leases) - len(taken))
        try:
            await self._load_endpoints(attempts, taken)
        except BaseException:
            self._ended.extend(self._settlement(one, None) for one in taken)
            self._end.set()
            raise
        for one in taken:
            # Reckoned from before the statement: the lease can only be longer than we think.
            self._begin(_Running(one, asked_at + one.lease_left_s))

    async def _load_endpoints(self, attempts: Attempts, taken: Sequence[Taken]) -> None:
        wanted = {
            (t.endpoint_id, t.endpoint_revision)
            for t in taken
            if t.endpoint_id is not None and t.endpoint_revision is not None
        }
        missing = self._book.missing(wanted)
        if not missing:
            return
        for stored in await attempts.endpoints(missing):
            try:
                self._book.add(stored)
            except OutboxError as error:
                log.error("worker.secret_unusable", endpoint=stored.id, error=str(error))

    async def _give_back(self, attempts: Attempts) -> None:
        by_token: dict[int, list[UUID]] = {}
        for delivery_id, token in self._refused:
            by_token.setdefault(token, []).append(delivery_id)
        for token, ids in by_token.items():
            await attempts.release(token, ids)
        self._refused.clear()

    async def _extend(self, attempts: Attempts) -> None:
        leases = [(r.taken.id, r.taken.token) for r in self._running.values()]
        if not leases:
            return
        asked_at = self._clock()
        ours = await attempts.extend(leases, self._config.lease_s)
        for delivery_id, _ in leases:
            running = self._running.get(delivery_id)
            if running is None:
                continue
            if delivery_id in ours:
                running.until = asked_at + self._config.lease_s
            elif running.task is not None:
                running.task.cancel()

    async def _guard(self) -> None:
        """End attempts whose lease ran out unextended: somebody else may make them now."""
        while True:
            await asyncio.sleep(min(1.0, self._config.lease_s / 6))
            now = self._clock()
            for running in list(self._running.values()):
                if running.until <= now and running.task is not None:
                    running.task.cancel()

    # -- attempting -----------------------------------------------------------------------------

    def _begin(self, running: _Running) -> None:
        self._running[running.taken.id] = running
        running.task = asyncio.create_task(self._attempt(running))

    async def _attempt(self, running: _Running) -> None:
        taken = running.taken
        outcome: Outcome | None = None
        try:
            outcome = await self._perform(running)
        except asyncio.CancelledError:
            outcome = None
        except Exception as error:  # noqa: BLE001 (the one place where exceptions become outcomes)
            outcome = from_exception(error)
            log.error("worker.processor_failed", delivery=str(taken.id), error=str(error))
        self._running.pop(taken.id, None)
        self._ended.append(self._settlement(taken, outcome))
        if outcome is not None and outcome.disable_endpoint and taken.endpoint_id is not None:
            self._gone[taken.endpoint_id] = outcome.reason
        self._end.set()

    async def _perform(self, running: _Running) -> Outcome | None:
        taken = running.taken
        if self._clock() >= running.until - self._config.margin_s:
            return None
        processor = self._processors.get(taken.kind)
        if processor is None:
            return Outcome(Kind.INTERNAL, "no_processor", detail={"kind": taken.kind})
        endpoint = self._endpoint(taken)
        if endpoint is None:
            return Outcome(Kind.INTERNAL, "secret_unusable")
        # Its lease is extended while it runs, so only the endpoint's own timeout bounds it; when
        # the lease is lost all the same, `_guard` ends it.
        deadline = asyncio.get_running_loop().time() + ATTEMPT_S_MAX
        return await processor(_work(taken, endpoint), deadline)

    def _endpoint(self, taken: Taken) -> Endpoint | None:
        if taken.endpoint_id is None or taken.endpoint_revision is None:
            return None
        return self._book.find(taken.endpoint_id, taken.endpoint_revision)

    def _settlement(self, taken: Taken, outcome: Outcome | None) -> Settlement:
        verdict, detail = RELEASED, None
        if outcome is not None:
            age_left = None if taken.age_left_s is None else timedelta(seconds=taken.age_left_s)
            verdict = judge(outcome, policy_of(taken.retry), taken.attempt, age_left, self._jitter)
            detail = _detail(outcome, verdict)
        return Settlement(
            id=taken.id,
            token=taken.token,
            verdict=verdict.name,
            charged=verdict.charged,
            reason=verdict.reason,
            delay_s=None if verdict.delay is None else verdict.delay.total_seconds(),
            detail=detail,
        )

    # -- settling -------------------------------------------------------------------------------

    async def _settle_loop(self, attempts: Attempts) -> None:
        while not self._done():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), 0.5)
            self._end.clear()
            while self._ended:
                await self._settle(attempts)
            for endpoint_id, reason in list(self._gone.items()):
                await attempts.disable_endpoint(endpoint_id, reason)
                del self._gone[endpoint_id]
                log.warning("worker.endpoint_disabled", endpoint=endpoint_id, reason=reason)

    async def _settle(self, attempts: Attempts) -> None:
        batch = self._ended[: self._config.settle_max]
        try:
            ours = await attempts.settle(batch)
        except REFUSED as error:
            # A detail that jsonb refuses: the outcome counts, the detail does not.
            log.error("worker.detail_refused", error=describe(error))
            ours = await attempts.settle([replace(one, detail=None) for one in batch])
        # Only now: after a lost connection the batch is settled again, and the token tells.
        del self._ended[: len(batch)]
        self._budget.free(len(batch))
        lost = len(batch) - len(ours)
        self.stale += lost
        counts: dict[str, int] = {}
        for one in batch:
            counts[one.verdict] = counts.get(one.verdict, 0) + 1
        log.info("worker.settled", stale=lost, **counts)
        if counts.get("dead"):
            reasons = sorted({one.reason for one in batch if one.verdict == "dead"})
            log.warning("worker.dead_letters", count=counts["dead"], reasons=reasons)
        if self._stopping:
            self._arrival.set()


def _work(taken: Taken, endpoint: Endpoint) -> Work:
    return Work(
        delivery_id=taken.id,
        event_id=taken.event_id,
        type=taken.type,
        occurred_at=taken.occurred_at,
        payload=taken.payload.encode(),
        attempt=taken.attempt,
        body_format=taken.body_format,
        endpoint=endpoint,
        org_id=taken.org_id,
        subject=taken.subject,
        headers=None if taken.headers is None else orjson.loads(taken.headers),
    )


def _detail(outcome: Outcome, verdict: Verdict) -> str | None:
    detail = dict(outcome.detail)
    if verdict.ended_by is not None:
        detail["ended_by"] = verdict.ended_by
    if not detail:
        return None
    try:
        return orjson.dumps(detail, default=str).decode()
    except (orjson.JSONEncodeError, ValueError):
        # Failing to keep a response must never cost a delivery.
        return '{"error": "the detail could not be kept"}'
