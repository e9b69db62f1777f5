"""Retention: turns the ring of slots and empties what is past its time.

The log, the journal and the e-mails live in eight slots. One is written; after a sixth of the
retention time the next one is. A slot whose last row is past retention is emptied by TRUNCATE,
oldest first; what is still owed then (unrouted, live, dead) is carried to the newest slot before,
with a fact that holds its whole state.

Promises: captured writes never wait. They lock the parent tables and the slot they write, which is
never the one emptied. A slot that a long transaction still touches is left for the next time,
without queueing for its lock; once queued, the lock is waited for 200 ms at most. Several daemons
may call this at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from psycopg import errors as pg

from outbox.store.connect import HotConnection

SLOTS = 8
SLOTTED = ("event", "journal", "email", "email_recipient")
"""The tables that live in the ring."""
TURNS = SLOTS - 2
"""Turns in one retention time: one slot is written, one is kept empty."""


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """`keep` is how long events and facts stay at least, `dead_keep` how long dead letters do.

    `rows_max` rows of a kind change in one transaction, and `rounds_max` transactions of a kind are
    run in one call: what is left waits for the next.
    """

    keep: timedelta = timedelta(days=7)
    dead_keep: timedelta = timedelta(days=30)
    rows_max: int = 500
    rounds_max: int = 200
    lock_timeout: timedelta = timedelta(milliseconds=200)


@dataclass(frozen=True, slots=True)
class Ring:
    """The ring at one moment: when each slot was opened; None for an empty one."""

    now: datetime
    current: int
    opened: tuple[datetime | None, ...]

    @property
    def next(self) -> int:
        """The slot that is written after the current one."""
        return (self.current + 1) % SLOTS

    def turn_due(self, keep: timedelta) -> bool:
        """Has the current slot been written for its share of the time, and is the next one free?"""
        opened = self.opened[self.current]
        return (
            opened is not None
            and self.opened[self.next] is None
            and self.now - opened >= keep / TURNS
        )

    def expired(self, keep: timedelta) -> list[int]:
        """Slots whose last row is past retention, oldest first.

        A slot was closed when the next one was opened. Order matters: the facts about an event lie
        in its own slot and in newer ones, so an older slot goes first or both stay.
        """
        behind = [(self.current + 1 + step) % SLOTS for step in range(SLOTS)]
        used = [slot for slot in behind if self.opened[slot] is not None or slot == self.current]
        found = []
        for slot, newer in pairwise(used):
            closed = self.opened[newer]
            if closed is None or self.now - closed < keep:
                break
            found.append(slot)
        return found


@dataclass(frozen=True, slots=True)
class Tended:
    """What one call did. `blocked` is a slot that could not be emptied yet."""

    turned_to: int | None = None
    cleared: tuple[int, ...] = ()
    blocked: int | None = None
    carried: int = 0
    discarded: int = 0
    purged: int = 0


def _tables(slot: int) -> str:
    return ", ".join(f"outbox.{table}_{slot}" for table in SLOTTED)


class _Blocked(Exception):
    """The slot cannot be emptied now."""


async def tend_retention(
    connection: HotConnection, config: RetentionConfig, now: datetime | None = None
) -> Tended:
    """Do what is due; call it every minute. Raises the driver's errors.

    `now` replaces the server's clock, for tests.
    """
    return await _Retention(connection, config, now).tend()


class _Retention:
    def __init__(
        self, connection: HotConnection, config: RetentionConfig, now: datetime | None
    ) -> None:
        self._connection = connection
        self._raw = connection.raw
        self._config = config
        self._now = now
        self._carried = 0

    async def tend(self) -> Tended:
        discarded = await self._drain("discard_dead", keep_s=self._config.dead_keep.total_seconds())
        purged = 0
        for name in ("purge_dedupe", "purge_secrets", "purge_key_use", "purge_progress"):
            purged += await self._drain(name)
        cleared: list[int] = []
        blocked = None
        for slot in (await self._ring()).expired(self._config.keep):
            try:
                if await self._clear(slot):
                    cleared.append(slot)
            except (_Blocked, pg.LockNotAvailable, pg.DeadlockDetected):
                blocked = slot
                break
        turned_to = await self._turn()
        return Tended(turned_to, tuple(cleared), blocked, self._carried, discarded, purged)

    async def _one(self, name: str, **params: Any) -> tuple[Any, ...]:
        cursor = await self._connection.send(name, {"now": self._now, **params})
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def _drain(self, name: str, **params: Any) -> int:
        """Run a batched statement until it finds nothing more; returns the rows it changed."""
        total = 0
        for _ in range(self._config.rounds_max):
            (done,) = await self._one(name, rows_max=self._config.rows_max, **params)
            total += done
            if done < self._config.rows_max:
                break
        return total

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """A transaction in which no other daemon tends to retention; else raises _Blocked."""
        async with self._raw.transaction():
            (taken,) = await self._one("retention_lock")
            if not taken:
                raise _Blocked
            yield

    async def _ring(self) -> Ring:
        now, current, opened = await self._one("ring")
        return Ring(now, current, tuple(opened))

    async def _turn(self) -> int | None:
        """Open the next slot when its time has come."""
        try:
            async with self._alone():
                ring = await self._ring()
                if ring.opened[ring.current] is None:
                    await self._one("ring_open", slot=ring.current)
                elif ring.turn_due(self._config.keep):
                    await self._one("ring_open", slot=ring.next)
                    return ring.next
        except _Blocked:
            pass
        return None

    async def _clear(self, slot: int) -> bool:
        """Empty a slot; False where another daemon was quicker. Raises _Blocked."""
        await self._refuse_long_holders(slot)
        await self._carry_most(slot)
        async with self._alone():
            if slot not in (await self._ring()).expired(self._config.keep):
                return False
            await self._lock(slot)
            carried = await self._carry_rest(slot)
            await self._raw.execute(f"TRUNCATE ONLY {_tables(slot)}".encode())
            await self._connection.send("ring_close", {"slot": slot})
        self._carried += carried
        return True

    async def _refuse_long_holders(self, slot: int) -> None:
        """Raise _Blocked where the same transaction holds the slot at two looks."""
        first = await self._holders(slot)
        if first:
            await asyncio.sleep(self._config.lock_timeout.total_seconds())
            if first & await self._holders(slot):
                raise _Blocked

    async def _holders(self, slot: int) -> set[str]:
        tables = [f"{table}_{slot}" for table in SLOTTED]
        (holders,) = await self._one("slot_holders", tables=tables)
        return set(holders)

    async def _lock(self, slot: int) -> None:
        # Zero would mean: wait for ever.
        timeout_ms = max(1, int(self._config.lock_timeout.total_seconds() * 1000))
        await self._raw.execute("SET LOCAL outbox.retention = 'on'")
        await self._raw.execute(f"SET LOCAL lock_timeout = {timeout_ms}".encode())
        await self._raw.execute(
            f"LOCK TABLE ONLY {_tables(slot)} IN ACCESS EXCLUSIVE MODE".encode()
        )

    async def _carry_most(self, slot: int) -> None:
        """Carry in short transactions, while everybody else goes on."""
        after = 0
        for _ in range(self._config.rounds_max):
            async with self._alone():
                carried, after = await self._carry(slot, after)
            self._carried += carried
            if carried == 0:
                return
        raise _Blocked

    async def _carry_rest(self, slot: int) -> int:
        """Under the lock: nobody reads the slot now, so nothing new can come to point at it."""
        total = 0
        for _ in range(3):
            (owed,) = await self._one("slot_owed", slot=slot)
            if not owed:
                return total
            total += (await self._carry(slot, 0))[0]
        raise _Blocked

    async def _carry(self, slot: int, after: int) -> tuple[int, int]:
        deliveries, dead, pending = await self._one(
            "carry_pick", slot=slot, after=after, rows_max=self._config.rows_max
        )
        if not (deliveries or dead or pending):
            return 0, after
        # A statement of its own: it must see the facts of whoever held these rows before.
        (carried,) = await self._one(
            "carry", slot=slot, deliveries=deliveries, dead=dead, pending=pending
        )
        return carried, pending[-1] if pending else after
