"""Hears the bell that capture rings for sleeping relays.

LISTEN needs a session of its own; behind a transaction pooler it would hear nothing, so the bell
then stays silent and relays poll. Losing the connection costs latency, never an event.
"""

from __future__ import annotations

import asyncio

import psycopg
import structlog

from outbox.store.connect import connect_hot, describe

log = structlog.get_logger("outbox.bell")

_AGAIN_S_MAX = 5.0
_ALIVE_S = 15.0


class Bell:
    """`rung` is set when capture rings; `heard` says whether anyone listens at all."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.heard = False

    async def listen(self, url: str) -> None:
        """Listen until cancelled, reconnecting as needed. Returns at once behind a pooler."""
        failures = 0
        while True:
            try:
                if not await self._listen_once(url):
                    log.warning("bell.pooled", hint="set OUTBOX_LISTEN_URL to a direct connection")
                    return
                failures = 0
            except (psycopg.Error, OSError) as error:
                if failures == 0:
                    text = describe(error) if isinstance(error, psycopg.Error) else str(error)
                    log.warning("bell.lost", error=text)
            finally:
                self.heard = False
                self.rung.set()
            await asyncio.sleep(min(_AGAIN_S_MAX, 0.1 * 2 ** min(failures, 10)))
            failures += 1

    async def _listen_once(self, url: str) -> bool:
        """Listen on one connection until it breaks; false if it is not a direct one."""
        connection = await connect_hot(url, "bell")
        try:
            if not connection.direct:
                return False
            await connection.raw.execute("LISTEN outbox")
            self.heard = True
            while True:
                async for _ in connection.raw.notifies(timeout=_ALIVE_S):
                    self.rung.set()
                # Also finds a connection that died without a word.
                await connection.raw.execute("SELECT 1")
        finally:
            await connection.raw.close()
