"""What ended in a worker and is not settled yet. Kept until PostgreSQL has it: after a lost
connection a batch is settled again, and the token tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog

from outbox.attempt import fitting, without_effects
from outbox.store.attempts import Attempts, Settlement
from outbox.store.connect import REFUSED, describe

log = structlog.get_logger("outbox.worker")

SETTLE_BYTES_MAX = 32 * 1024 * 1024
"""What attempts bring about that one statement writes: PostgreSQL takes no more than a gigabyte."""


class Settling:
    """Two queues, since what was delivered and brings about nothing has a statement of its own.
    `clock` is monotonic, in seconds; a batch has at most `size` settlements."""

    def __init__(self, clock: Callable[[], float], size: int) -> None:
        self._clock = clock
        self._size = size
        self._plain: list[Settlement] = []
        self._others: list[Settlement] = []
        self._queues = [self._plain, self._others]
        self._since = 0.0
        self.news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._plain) + len(self._others)

    @property
    def waits_s(self) -> float:
        """For how long outcomes have waited to be written."""
        return self._clock() - self._since if self else 0.0

    def note(self, ended: Settlement) -> None:
        """An attempt ended."""
        if not self:
            self._since = self._clock()
        plain = ended.verdict == "delivered" and ended.effects is None
        (self._plain if plain else self._others).append(ended)
        self.news.set()

    async def write(self, attempts: Attempts) -> tuple[list[Settlement], int]:
        """Settle a batch; returns it, and how many of it were not ours any more. The queues take
        turns: however fast one fills, the other's leases must not run out."""
        queue = self._queues[0] or self._queues[1]
        batch = fitting(queue[: self._size], SETTLE_BYTES_MAX)
        try:
            if queue is self._plain:
                ours = await attempts.settle_delivered(batch)
            else:
                ours = len(await attempts.settle(batch))
        except REFUSED as error:
            ours = len(await self._apart(attempts, batch, error))
        # Only now: after a lost connection the batch is settled again, and the token tells.
        del queue[: len(batch)]
        self._queues.sort(key=lambda one: one is queue)
        self._since = self._clock()
        return batch, len(batch) - ours

    async def _apart(
        self, attempts: Attempts, batch: Sequence[Settlement], error: BaseException
    ) -> set[UUID]:
        """Settle a batch that holds something PostgreSQL refuses. A detail that is no jsonb is left
        out, for the outcome counts; effects that cannot be written undo their own attempt alone."""
        log.error("worker.detail_refused", error=describe(error))
        ours = await attempts.settle([s._replace(detail=None) for s in batch if s.effects is None])
        for one in batch:
            if one.effects is None:
                continue
            try:
                ours |= await attempts.settle([one._replace(detail=None)])
            except REFUSED as refusal:
                log.error("worker.effects_refused", delivery=str(one.id), error=describe(refusal))
                ours |= await attempts.settle([without_effects(one)])
        return ours
