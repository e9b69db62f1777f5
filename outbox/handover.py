"""Hands leased deliveries to the broker and keeps count of what waits there.

A broker that fails is an ordinary event: what was handed over, or may have been, is released at
once, which voids the messages; nothing is leased until the broker answers again, so nothing is
charged and nothing dies of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from outbox import faults
from outbox.errors import BrokerUnavailable
from outbox.horizon import Window
from outbox.store.dispatch import Dispatch

log = structlog.get_logger("outbox.relay")

Send = Callable[[int, Sequence[str]], None]
"""Hands the ids (32 hexadecimal digits each) leased under a token to the broker. Raises
BrokerUnavailable. Runs in a thread."""

Depth = Callable[[], int]
"""About how many ids wait in the broker. Raises BrokerUnavailable. Runs in a thread."""

MEASURE_S = 0.1
MEASURE_SHORT_S = 0.004
"""How often the broker is asked what waits: at leisure, and when there is little room left."""


class Handover:
    """The relay's side of the broker. `clock` is monotonic, in seconds."""

    def __init__(
        self, send: Send, depth: Depth, lease_s: float, clock: Callable[[], float]
    ) -> None:
        self._send = send
        self._depth = depth
        self._lease_s = lease_s
        self._clock = clock
        self._measured_at = 0.0
        self._lost_at: float | None = None
        self.window = Window(lease_s)

    @property
    def lost(self) -> bool:
        """Whether the broker failed and has not answered since."""
        return self._lost_at is not None

    def room(self) -> int:
        """How many more deliveries may be leased now."""
        return 0 if self.lost else self.window.room()

    def claimable(self, batch: int) -> int:
        """How many events to claim now at most; 0 where it is better to wait."""
        return 0 if self.lost else self.window.claimable(self._clock(), batch)

    async def measure(self, short: bool) -> None:
        """Ask the broker what waits, if it is time to; `short` says that room is scarce."""
        now = self._clock()
        if not self.window.waiting:
            return
        if now - self._measured_at < (MEASURE_SHORT_S if short else MEASURE_S):
            return
        self._measured_at = now
        try:
            self.window.measured(now, await asyncio.to_thread(self._depth))
        except BrokerUnavailable as error:
            self._fail(error)

    async def hand(self, dispatch: Dispatch, token: int, ids: Sequence[str]) -> None:
        """Hand over one lease batch, or release it."""
        if not ids:
            return
        faults.passing("before", "send")
        try:
            await asyncio.to_thread(self._send, token, ids)
        except BrokerUnavailable as error:
            self._fail(error)
            await dispatch.release(token, ids)
            return
        faults.passing("after", "send")
        self.window.sent(len(ids))

    def _fail(self, error: BrokerUnavailable) -> None:
        if self._lost_at is None:
            self._lost_at = self._clock()
            log.warning("relay.broker_lost", error=str(error))

    async def recover(
        self,
        pause: Callable[[float], Awaitable[None]],
        meanwhile: Callable[[], Awaitable[None]],
        stopped: Callable[[], bool],
        backoff_s_max: float,
    ) -> None:
        """Wait until the broker answers, backing off; `meanwhile` runs after every failed try."""
        wait_s = 0.05
        while self._lost_at is not None and not stopped():
            try:
                waiting = await asyncio.to_thread(self._depth)
            except BrokerUnavailable:
                await meanwhile()
                await pause(wait_s)
                wait_s = min(backoff_s_max, wait_s * 2)
                continue
            self.window = Window(self._lease_s)
            self.window.measured(self._clock(), waiting)
            log.info("relay.broker_back", after_s=round(self._clock() - self._lost_at, 1))
            self._lost_at = None
