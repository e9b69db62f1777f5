"""Attempts that may last: bounds them by their timeout, writes down once a second what they tell,
and finds out that they were called off long before their lease ends.

Short attempts, and all webhooks, never come here: an attempt is looked at when it has run for a
second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from outbox.outcome import Kind, Outcome
from outbox.pulse import Pulse
from outbox.store.attempts import Attempts, Settlement, Taken
from outbox.store.progress import Progress
from outbox.work import Work

Processor = Callable[[Work, float], Awaitable[Outcome]]
"""Makes one attempt. The second argument is a loop time after which nobody waits for it."""

ATTEMPT_S_MAX = 24 * 3600.0
"""No attempt lasts longer than this, however often its lease is extended."""

WATCH_S = 1.0
"""How often, and from which age on, an attempt is looked at."""


@dataclass(slots=True)
class _Watched:
    token: int
    pulse: Pulse
    begun_at: float
    written: bool = False


class Watch:
    """The attempts of one worker that may last. `clock` is monotonic, in seconds; `wake` is called
    when there is something to look at again."""

    def __init__(self, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._watched: dict[UUID, _Watched] = {}
        self._over: set[UUID] = set()
        self._looked_at = clock()

    @property
    def at(self) -> float:
        """When to look next."""
        if not self._watched and not self._over:
            return float("inf")
        return self._looked_at + WATCH_S

    def begun(self, taken: Taken, work: Work) -> None:
        """Watch an attempt that begins now, where it may last."""
        if work.pulse is None:
            return
        if self.at == float("inf"):
            self._looked_at = self._clock()
            self._wake()
        self._watched[taken.id] = _Watched(taken.token, work.pulse, self._clock())

    def ended(self, settlement: Settlement) -> None:
        """An attempt ended. What it told stays while the delivery is tried again."""
        watched = self._watched.pop(settlement.id, None)
        if watched is not None and watched.written and settlement.verdict in {"delivered", "dead"}:
            self._over.add(settlement.id)

    async def look(self, attempts: Attempts) -> list[UUID]:
        """Write down what is new, if it is time; returns what is no longer ours."""
        now = self._clock()
        if now < self.at:
            return []
        self._looked_at = now
        long = [(i, w) for i, w in self._watched.items() if now - w.begun_at >= WATCH_S]
        if not long and not self._over:
            return []
        told = [
            Progress(delivery_id, watched.token, watched.pulse.news())
            for delivery_id, watched in long
        ]
        for one in told:
            # Before it is written: the attempt may end while the statement is under way.
            self._watched[one.id].written |= one.news is not None
        over = list(self._over)
        held = await attempts.watch(told, over)
        self._over.difference_update(over)
        lost = [one.id for one in told if one.id not in held]
        for delivery_id in lost:
            if (watched := self._watched.get(delivery_id)) is not None:
                watched.pulse.call_off()
        return lost


def in_time(processor: Processor, work: Work) -> Awaitable[Outcome]:
    """One attempt, to be awaited at once. Its lease is extended while it runs, so only the
    destination's own timeout bounds it, which the webhook processor keeps by itself; a lost lease
    ends it too."""
    now = asyncio.get_running_loop().time()
    if work.setup is None or work.setup.timeout is None:
        return processor(work, now + ATTEMPT_S_MAX)
    return _bounded(processor, work, now + work.setup.timeout.total_seconds())


async def _bounded(processor: Processor, work: Work, deadline: float) -> Outcome:
    try:
        async with asyncio.timeout_at(deadline):
            return await processor(work, deadline)
    except TimeoutError:
        if asyncio.get_running_loop().time() < deadline:
            raise
        return Outcome(Kind.RETRY, "timeout")
