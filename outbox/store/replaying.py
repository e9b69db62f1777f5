"""Carries replays out, in bounded batches behind live traffic.

One batch is a look without a lock, then one transaction under the lock of replays that changes
the deliveries, writes their facts and moves the position. Relays do not wait for it. The position
is the fence: of two daemons at one replay only one batch counts, and a crash repeats nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from outbox.store.connect import REFUSED, HotConnection
from outbox.store.replay import Plan

log = structlog.get_logger("outbox.replay")

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

PAIRS_MAX = 300
"""Pairs that one batch means to change: so long do their rows stay locked."""
EVENTS_FIRST = 50
"""Events of a replay's first batch: how many pairs an event has shows only then."""
SPAN_MAX = 20_000
"""Ids of events that one look goes over."""
SAVE_S = 1.0
"""How long a walk over events of which none matches goes on before its position is kept."""
REFRESH_S = 0.2
"""How often to ask which replays run."""
LOST_S = 2.0
"""How long a replay is left to the daemon that was quicker."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch did. `state` is that of the replay after it, None where it was not ours to
    move; `changed` pairs were enqueued, `fates` counts them all."""

    state: str | None
    changed: int = 0
    fates: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Walk:
    """One replay under way. `position` is where the database has it, `reached` where the looks
    since then came; pairs are `tokens`, and a batch may run up a debt of them."""

    id: str
    plan: Plan
    rate_per_s: float
    position: int
    ceiling: int
    reached: int
    events_max: int = EVENTS_FIRST
    span: int = 1000
    tokens: float = 0.0
    filled_at: float = 0.0
    saved_at: float = 0.0
    rest_until: float = 0.0

    @classmethod
    def of(cls, row: tuple[Any, ...], now: float) -> Walk:
        """A replay as replay_running.sql returns it."""
        replay_id, mode, org, document, rate_per_s, position, ceiling = row[:7]
        plan = Plan.of(mode, org, document)
        return cls(
            replay_id, plan, rate_per_s, position, ceiling, position,
            tokens=max(1.0, rate_per_s / 10), filled_at=now, saved_at=now,
        )  # fmt: skip

    def fill(self, now: float) -> None:
        """Tokens for the time gone by, at most those of a tenth of a second."""
        if self.rate_per_s == math.inf:
            self.tokens = math.inf
            return
        self.tokens = min(self._most, self.tokens + (now - self.filled_at) * self.rate_per_s)
        self.filled_at = now

    @property
    def _most(self) -> float:
        return max(1.0, self.rate_per_s / 10)

    def wait_s(self, now: float) -> float:
        """Seconds until its next batch may run."""
        enough = min(self._most, PAIRS_MAX)  # few large batches
        short_s = (enough - self.tokens) / self.rate_per_s - (now - self.filled_at)
        return max(self.rest_until - now, short_s, 0.0)

    def learn(self, found: int, pairs: int, looked: int) -> None:
        """Fit the next look to how many ids held how many events, and these how many pairs."""
        if found:
            fitting = int(PAIRS_MAX * found / max(pairs, 1))
            self.events_max = max(1, min(self.events_max * 2, fitting, PAIRS_MAX))
        wanted = self.events_max * 2 * max(looked, 1) // found if found else self.span * 2
        self.span = max(self.events_max, min(wanted, SPAN_MAX))


class Replayer:
    """The background work of one daemon: give `round` to `upkeep`."""

    def __init__(
        self,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        now: datetime | None = None,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self._walks: dict[str, Walk] = {}
        self._refreshed_at = -math.inf
        self._prepared: HotConnection | None = None

    async def round(self, connection: HotConnection) -> None:
        """Carry on everything that runs, until nothing does. Raises the driver's errors."""
        if connection.direct and connection is not self._prepared:
            # Should a crash undo a batch, it undoes its position too. The settle's commit, which
            # waits, makes everything before it durable.
            await connection.raw.execute("SET synchronous_commit = off")
            self._prepared = connection
        try:
            while await self._running(connection):
                for walk in list(self._walks.values()):
                    if walk.wait_s(self._clock()) <= 0:
                        await self.step(connection, walk)
                await self._sleep(min(self._pause_s(), 0.5))
        finally:
            self._walks.clear()  # the database knows better than what was left in the middle

    async def step(self, connection: HotConnection, walk: Walk) -> Batch:
        """One batch of one replay, or one look that found nothing."""
        began = self._clock()
        walk.fill(began)
        try:
            slots, events, position = await self._look(connection, walk)
        except REFUSED:
            return await self._stumble(connection, walk)
        looked, walk.reached = position - walk.reached, max(position, walk.reached)
        if not events and position < walk.ceiling and began - walk.saved_at < SAVE_S:
            walk.learn(0, 0, looked)
            walk.rest_until = began if looked > 0 else began + 0.5
            return Batch("running")
        done = await self._apply(connection, walk, slots, events)
        walk.learn(len(events), sum(done.fates.values()), looked)
        self._account(walk, done)
        return done

    # -- inside -------------------------------------------------------------------------------

    async def _running(self, connection: HotConnection) -> bool:
        """Learn now and then which replays run; whether there are any."""
        if self._walks and self._clock() - self._refreshed_at < REFRESH_S:
            return True
        self._refreshed_at = self._clock()
        rows = await (await connection.run("replay_running", {})).fetchall()
        now = self._clock()
        walks = {row[0]: self._walks.get(row[0]) or Walk.of(row, now) for row in rows}
        for row in rows:
            walk = walks[row[0]]
            if walk.position != row[5]:
                # Another daemon moved it, or our walk is stale.
                walk.position = walk.reached = row[5]
        self._walks = walks
        return bool(walks)

    async def _look(
        self, connection: HotConnection, walk: Walk
    ) -> tuple[list[int], list[int], int]:
        allowed = int(max(1.0, min(walk.events_max, walk.tokens)))
        cursor = await connection.run(
            "replay_look",
            {
                **walk.plan.look(),
                "position": walk.reached,
                "ceiling": walk.ceiling,
                "span": walk.span,
                "events_max": allowed,
            },
        )
        row = await cursor.fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    async def _apply(
        self, connection: HotConnection, walk: Walk, slots: list[int], events: list[int]
    ) -> Batch:
        cursor = await connection.run(
            "replay_batch",
            {
                **walk.plan.batch(),
                "now": self._now,
                "replay": walk.id,
                "position": walk.position,
                "position_now": walk.reached,
                "slots": slots,
                "events": events,
                "dry_run": False,
            },
            lock="replay_lock",
        )
        row = await cursor.fetchone()
        assert row is not None
        return Batch(row[0], row[1], row[2])

    def _account(self, walk: Walk, done: Batch) -> None:
        now = self._clock()
        if done.state is None:
            # Paused, or another daemon has it: look again from where it stands then.
            walk.reached = walk.position
            walk.rest_until = now + LOST_S
            return
        walk.position, walk.saved_at = walk.reached, now
        walk.tokens -= done.changed
        if done.state == "done":
            log.info("replay.done", replay=walk.id)
            self._walks.pop(walk.id, None)

    async def _stumble(self, connection: HotConnection, walk: Walk) -> Batch:
        """A look took too long, for instance over a slow filter: look at less, in the end pause."""
        if walk.span > 1 or walk.events_max > 1:
            walk.span = max(1, walk.span // 10)
            walk.events_max = max(1, walk.events_max // 10)
            return Batch("running")
        log.warning("replay.paused", replay=walk.id, error="one event takes too long to judge")
        await connection.send(
            "replay_move",
            {"id": walk.id, "org_id": None, "state": "paused", "from_states": ["running"]},
        )
        self._walks.pop(walk.id, None)
        return Batch("paused")

    def _pause_s(self) -> float:
        now = self._clock()
        waits = [walk.wait_s(now) for walk in self._walks.values()]
        return max(0.001, min(waits, default=0.0))


async def replay_once(
    connection: HotConnection,
    replay_id: str,
    *,
    events_max: int = PAIRS_MAX,
    span: int = SPAN_MAX,
    now: datetime | None = None,
) -> Batch:
    """Carry a replay on by one batch, whatever its rate; `state` is None where it does not run.
    `now` replaces the server's clock, for tests."""
    replayer = Replayer(now=now)
    rows = await (await connection.run("replay_running", {})).fetchall()
    for row in rows:
        if row[0] == replay_id:
            walk = Walk.of(row, 0.0)
            walk.events_max, walk.span = events_max, span
            walk.rate_per_s, walk.saved_at = math.inf, -math.inf
            return await replayer.step(connection, walk)
    return Batch(None)
