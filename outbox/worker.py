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
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog

from outbox import faults
from outbox.attempt import settlement_of
from outbox.budget import Budget
from outbox.destinations import Destinations
from outbox.effects import HOPS_MAX, hops_of
from outbox.health import Health
from outbox.outcome import Kind, Outcome, from_exception
from outbox.secrets import KeyRing
from outbox.settling import Settling
from outbox.store.attempts import Attempts, Taken
from outbox.store.connect import FAILED, HotConnection, describe
from outbox.waiting import wait_at_most
from outbox.watch import Processor, Watch, in_time

__all__ = ["Processor", "Worker", "WorkerConfig"]

log = structlog.get_logger("outbox.worker")

REPORT_S = 0.2
"""How often a worker reports the health of its lanes."""

LOOK_S = 0.05
"""How often a worker whose outcomes cannot be written looks whether they can."""

Lease = tuple[str, int]
"""A delivery id as 32 hexadecimal digits, and the token of its lease."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The numbers of a worker. Times in seconds.

    `concurrency`: deliveries accepted and not settled at once, the bound on what is in flight;
    `waiting_max`: accepted and not yet taken;
    `margin_s`: how long before its lease ends a delivery is no longer begun, at most a quarter of
    the lease;
    `gather_s`: how long after a batch the next waits to be half full.
    """

    lease_s: float = 30.0
    concurrency: int = 4000
    waiting_max: int = 250
    take_max: int = 250
    settle_max: int = 250
    margin_s: float = 1.0
    gather_s: float = 0.004
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
        self._destinations = Destinations(key_ring, clock)
        self._budget = Budget(self._config.concurrency, self._config.waiting_max)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: list[Lease] = []
        self._refused: list[Lease] = []
        self._arrival = asyncio.Event()
        self._settling = Settling(clock, self._config.settle_max)
        self._gone: dict[int, str] = {}
        self._health = Health()
        self._watch = Watch(clock, self._arrival.set)
        self._reported_at = self._taken_at = self._settled_at = 0.0
        self._running: dict[UUID, _Running] = {}
        self._stopping = False
        self.stale = 0

    # -- coming in ------------------------------------------------------------------------------

    def accept(self, token: int, ids: Sequence[str]) -> None:
        """Take in leased ids; called by the broker's threads. Blocks while the budget is full.

        Once the worker stops, what still arrives is given back to PostgreSQL at once.
        """
        faults.passing("before", "receive")
        admitted = self._budget.acquire(len(ids))
        leases = [(delivery_id, token) for delivery_id in ids]
        loop = self._loop
        if loop is None or loop.is_closed():
            return  # the lease brings them back
        with suppress(RuntimeError):  # the loop closed meanwhile: likewise
            loop.call_soon_threadsafe(self._arrive, leases, admitted)
        faults.passing("after", "receive")

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
        self._settling.news.set()

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
            look_at = min(extend_at, self._watch.at)
            await wait_at_most(self._arrival, max(0.01, look_at - self._clock()))
            self._arrival.clear()
            # One take a turn: however fast more arrives, what runs is extended in time.
            if self._arrived and self._cannot_settle():
                await asyncio.sleep(LOOK_S)
            elif self._arrived:
                await self._gather(self._arrived, self._config.take_max, self._taken_at)
                await self._take(attempts)
                self._taken_at = self._clock()
            if self._arrived:
                self._arrival.set()
            await self._give_back(attempts)
            if self._clock() >= extend_at:
                extend_at = self._clock() + extend_every
                await self._extend(attempts)
            for lost in await self._watch.look(attempts):
                if (running := self._running.get(lost)) and running.task is not None:
                    running.task.cancel()

    async def _gather(self, batch: Sized, size: int, last_at: float) -> None:
        """Let a batch grow where one was sent just now: a statement has a price of its own."""
        left_s = last_at + self._config.gather_s - self._clock()
        if left_s > 0 and len(batch) < size // 2 and not self._stopping:
            await asyncio.sleep(left_s)

    def _cannot_settle(self) -> bool:
        """Whether outcomes have waited so long that what is begun now would be repeated by others:
        what is not begun runs out uncharged."""
        return self._settling.waits_s > self._config.lease_s / 3

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
            await self._destinations.load(attempts, taken)
        except BaseException:
            for one in taken:
                self._settling.note(settlement_of(one, None, self._jitter))
            raise
        for one in taken:
            # Reckoned from before the statement: the lease can only be longer than we think.
            self._begin(_Running(one, asked_at + one.lease_left_s))

    async def _give_back(self, attempts: Attempts) -> None:
        by_token: dict[int, list[str]] = {}
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
        assert self._loop is not None
        running.task = self._loop.create_task(self._attempt(running))

    async def _attempt(self, running: _Running) -> None:
        taken = running.taken
        try:
            outcome = self._perform(running)
            if isinstance(outcome, Awaitable):
                outcome = await outcome
                faults.passing("after", "request")
        except asyncio.CancelledError:
            outcome = None
        except Exception as error:  # noqa: BLE001 (the one place where exceptions become outcomes)
            outcome = from_exception(error)
            log.error("worker.processor_failed", delivery=str(taken.id), error=str(error))
        self._running.pop(taken.id, None)
        settlement = settlement_of(taken, outcome, self._jitter)
        self._watch.ended(settlement)
        self._settling.note(settlement)
        if outcome is not None:
            lane = taken.endpoint_id or taken.subscription_id
            self._health.note(lane, outcome.kind, taken.type)
            if outcome.disable_endpoint and taken.endpoint_id is not None:
                self._gone[taken.endpoint_id] = outcome.reason

    def _perform(self, running: _Running) -> Awaitable[Outcome] | Outcome | None:
        taken = running.taken
        margin_s = min(self._config.margin_s, self._config.lease_s / 4)
        if self._clock() >= running.until - margin_s:
            return None
        processor = self._processors.get(taken.kind)
        if processor is None:
            return Outcome(Kind.INTERNAL, "no_processor", detail={"kind": taken.kind})
        work = self._destinations.work(taken)
        if work is None:
            return Outcome(Kind.INTERNAL, "secret_unusable")
        if work.headers and hops_of(work.headers) > HOPS_MAX:
            return Outcome(Kind.REJECTED, "too_many_hops")
        faults.passing("before", "request")
        self._watch.begun(taken, work)
        return in_time(processor, work)

    # -- settling -------------------------------------------------------------------------------

    async def _settle_loop(self, attempts: Attempts) -> None:
        while not self._done():
            await wait_at_most(self._settling.news, 0.5)
            self._settling.news.clear()
            while self._settling:
                await self._gather(self._settling, self._config.settle_max, self._settled_at)
                await self._settle(attempts)
                self._settled_at = self._clock()
            for endpoint_id, reason in list(self._gone.items()):
                await attempts.disable_endpoint(endpoint_id, reason)
                del self._gone[endpoint_id]
                log.warning("worker.endpoint_disabled", endpoint=endpoint_id, reason=reason)
            await self._report(attempts)

    async def _report(self, attempts: Attempts) -> None:
        """Say how attempts went, a few times a second at most: nothing waits for it."""
        now = self._clock()
        if not self._health.lanes or now - self._reported_at < REPORT_S:
            return
        self._reported_at = now
        open_lanes = await attempts.report(self._health.take())
        if open_lanes:
            log.warning("worker.circuit_open", lanes=open_lanes)

    async def _settle(self, attempts: Attempts) -> None:
        batch, lost = await self._settling.write(attempts)
        self._budget.free(len(batch))
        self.stale += lost
        counts = Counter([one.verdict for one in batch])
        log.info("worker.settled", stale=lost, **counts)
        if counts["dead"]:
            reasons = sorted({one.reason for one in batch if one.verdict == "dead"})
            log.warning("worker.dead_letters", count=counts["dead"], reasons=reasons)
        if self._stopping:
            self._arrival.set()
