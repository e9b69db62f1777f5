"""What the stand-in for Supabase Realtime asks PostgreSQL: may this client, which rows, since when.

Whether a client may join or send is decided by row-level security on `realtime.messages` alone:
a probe is written or read as the client's role, with its claims, and rolled back. Whatever fails
for the client's part (a policy that raises, a role that does not exist) means no.

Rows are announced by the table's trigger at commit, so the order of messages is that of commits,
and a transaction that was open for an hour is told when it commits.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors as pg

from outbox.errors import ConfigurationError, DatabaseUnavailable, SchemaMismatch
from outbox.store.connect import FAILED, HotConnection, connect, connect_hot, describe
from outbox.store.statements import statement

CHANNEL = "outbox_realtime"
ROWS_MAX = 500
_ALIVE_S = 15.0
_ID_HEX = 32
_IDLE_S = 0.05

_NOT_OURS = "this database's schema realtime is not the stand-in; nothing is served from it"


@dataclass(frozen=True, slots=True)
class Acting:
    """A client as the database sees it: role, claims (JSON) and subject of its token."""

    role: str
    claims: str
    sub: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One committed message. What a column may hold null of, may be None here."""

    id: str
    topic: str
    event: str | None
    private: bool | None
    payload: str | None
    binary_payload: bytes | None


class PartitionMissing(Exception):
    """There is no partition for today: nothing can be probed, nothing can be sent."""


def require_shim(url: str, *, install: bool = False) -> None:
    """Raise SchemaMismatch unless the stand-in schema is there; with `install`, put it there."""
    with connect(url) as connection:
        known = connection.execute("SELECT to_regprocedure('outbox.realtime_shim_stands()')")
        if known.fetchone() == (None,):
            raise SchemaMismatch("the schema outbox is missing or old; run: outbox migrate")
        if install:
            connection.execute("SELECT outbox.install_realtime_shim()")
            return
        row = connection.execute(
            "SELECT outbox.realtime_shim_stands(), to_regnamespace('realtime') IS NULL"
        ).fetchone()
    assert row is not None
    stands, absent = row
    if not stands:
        raise SchemaMismatch(
            "the stand-in schema is not installed; run: outbox realtime --install-shim"
            if absent
            else _NOT_OURS
        )


class RealtimeStore:
    """Two connections that are made anew when they break: one to judge, one to read."""

    def __init__(self, url: str) -> None:
        self._judge = _Line(url, "realtime judge")
        self._reader = _Line(url, "realtime reader")

    async def may_read(self, acting: Acting, topic: str, extensions: Sequence[str]) -> set[str]:
        """The extensions of a topic that the client may receive. Raises DatabaseUnavailable,
        PartitionMissing."""
        async with self._judge.rolled_back() as raw:
            try:
                probe = {"topic": topic, "extensions": list(extensions)}
                cursor = await raw.execute(statement("realtime_probe"), probe)
                ids = {row[1]: row[0] for row in await cursor.fetchall()}
            except pg.CheckViolation as error:
                raise PartitionMissing from error
            except psycopg.DataError:  # a topic that is no text, such as one with a NUL
                return set()
            try:
                await raw.execute(statement("realtime_act"), _guise(acting, topic))
                wanted = {"ids": list(ids), "role": acting.role}
                cursor = await raw.execute(statement("realtime_seen"), wanted)
                return {ids[row[0]] for row in await cursor.fetchall()}
            except _DENIED:
                return set()

    async def may_write(self, acting: Acting, topic: str, extension: str) -> bool:
        """Whether the client may send. Raises DatabaseUnavailable, PartitionMissing."""
        async with self._judge.rolled_back() as raw:
            try:
                await raw.execute(statement("realtime_act"), _guise(acting, topic))
                wanted = {"topic": topic, "extension": extension, "role": acting.role}
                cursor = await raw.execute(statement("realtime_try"), wanted)
                return cursor.rowcount == 1
            except pg.CheckViolation as error:
                raise PartitionMissing from error
            except _DENIED:
                return False

    async def replay(self, topic: str, since_ms: int, limit: int) -> list[Row]:
        """The newest `limit` private messages since then, oldest first."""
        parameters = {"topic": topic, "since_ms": since_ms, "limit": limit}
        return await self._reader.rows("realtime_replay", parameters)

    async def rows(self, ids: Sequence[UUID]) -> list[Row]:
        """The messages with these ids, in this order."""
        return await self._reader.rows("realtime_rows", {"ids": list(ids)})

    async def keep_partitions(self) -> None:
        """Make the partitions of the days to come, drop those that are past."""
        await self._reader.run("SELECT outbox.keep_realtime_partitions()")

    async def close(self) -> None:
        """Close both connections."""
        await self._judge.close()
        await self._reader.close()


# A mistake in the client's token, or a policy that raises for it, is a no.
_DENIED = (
    psycopg.DataError,
    psycopg.ProgrammingError,
    psycopg.IntegrityError,
    psycopg.NotSupportedError,
    pg.RaiseException,
    pg.QueryCanceled,
)


def _guise(acting: Acting, topic: str) -> dict[str, str]:
    return {
        "role": acting.role,
        "topic": topic,
        "claims": acting.claims,
        "sub": acting.sub,
        "headers": json.dumps(dict(acting.headers)),
    }


class _Line:
    """One connection, used by one task at a time."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._lock = asyncio.Lock()
        self._connection: HotConnection | None = None
        self._used_at = 0.0

    @asynccontextmanager
    async def rolled_back(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        """Inside, a transaction that leaves nothing behind."""
        async with self._held() as raw, raw.transaction(force_rollback=True):
            yield raw

    async def rows(self, name: str, parameters: dict[str, Any]) -> list[Row]:
        """Rows of a statement that selects messages."""
        async with self._held() as raw:
            cursor = await raw.execute(statement(name), parameters)
            return [Row(*row) for row in await cursor.fetchall()]

    async def run(self, text: str) -> None:
        """Run one statement. Raises DatabaseUnavailable, whatever is wrong."""
        try:
            async with self._held() as raw:
                await raw.execute(text.encode())
        except psycopg.Error as error:
            raise DatabaseUnavailable(describe(error)) from error

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        async with self._lock:
            try:
                if self._connection is None or not await self._answers():
                    await self._drop()
                    self._connection = await connect_hot(self._url, self._name)
                yield self._connection.raw
            except (PartitionMissing, *_DENIED):
                raise
            except FAILED as error:
                await self._drop()
                raise DatabaseUnavailable(f"PostgreSQL is not available: {_text(error)}") from error
            except BaseException:
                # Cancelled in the middle of a statement: what the connection is doing is not known.
                await self._drop()
                raise

    async def _answers(self) -> bool:
        """Whether a connection that nobody used for a while still stands."""
        loop = asyncio.get_running_loop()
        idle_s, self._used_at = loop.time() - self._used_at, loop.time()
        if idle_s < _IDLE_S:
            return True
        assert self._connection is not None
        try:
            await self._connection.raw.execute("SELECT 1")
        except FAILED:
            return False
        return True

    async def _drop(self) -> None:
        if self._connection is not None:
            with suppress(*FAILED):
                await self._connection.raw.close()
            self._connection = None

    async def close(self) -> None:
        """Close it, whoever uses it."""
        await self._drop()


def _text(error: BaseException) -> str:
    return describe(error) if isinstance(error, psycopg.Error) else str(error)


async def feed(
    url: str, store: RealtimeStore, publish: Callable[[Sequence[Row]], None], up: Callable[[], None]
) -> None:
    """Hand committed messages to `publish`, in order of commit, until cancelled or the connection
    breaks: what is committed after that is not told. `up` is called when listening has begun.

    Raises DatabaseUnavailable, and ConfigurationError behind a transaction pooler.
    """
    async with AsyncExitStack() as stack:
        try:
            listener = await connect_hot(url, "realtime feed")
            stack.push_async_callback(listener.raw.close)
            if not listener.direct:
                raise ConfigurationError(
                    "a transaction pooler stands before PostgreSQL, and messages cannot be heard;"
                    " set OUTBOX_LISTEN_URL to a direct connection"
                )
            await listener.raw.execute(f"LISTEN {CHANNEL}")
            up()
            while True:
                ids: list[UUID] = []
                async for notice in listener.raw.notifies(timeout=_ALIVE_S, stop_after=1):
                    ids += read_ids(notice.payload)
                for start in range(0, len(ids), ROWS_MAX):
                    publish(await store.rows(ids[start : start + ROWS_MAX]))
                if not ids:  # also finds a connection that died without a word
                    await listener.raw.execute("SELECT 1")
        except FAILED as error:
            raise DatabaseUnavailable(f"PostgreSQL is not available: {_text(error)}") from error


def read_ids(payload: str) -> list[UUID]:
    """The ids that one notification announces."""
    return [UUID(payload[at : at + _ID_HEX]) for at in range(0, len(payload), _ID_HEX)]
