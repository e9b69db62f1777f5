"""Opens connections and turns the driver's errors into ours.

`connect` serves commands; `connect_hot` serves the loops of relay and worker. A hot connection
finds out whether a transaction pooler stands in between and then leaves out what a pooler breaks:
session settings, prepared statements, LISTEN.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from outbox import faults
from outbox.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    OutboxError,
    PayloadTooLarge,
    PermissionRefused,
    SchemaMismatch,
    UsageError,
)
from outbox.store.statements import statement

CONNECT_TIMEOUT_S = 5

# Plans of the polled statements must not depend on the moment: statistics taken while a polled
# table was empty would choose a scan that is ruinous under a backlog. The statements reach rows by
# the one index that fits, so that one generic plan is right for ever; planning the routing
# statement anew took longer than running it (4.2 ms against 2.0 ms for one event).
# A snapshot from before the dispatch lock was had would not show the leases that it waited for.
_SESSION = """
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off;
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET timezone = 'UTC';
    SET default_transaction_isolation = 'read committed';
    SET lock_timeout = '5s'; SET statement_timeout = '15s';
    SET idle_in_transaction_session_timeout = '15s'; SET search_path = pg_catalog
"""
# The same for one transaction, where a pooler shares the session with others.
_TRANSACTION = """
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
           set_config('enable_sort', 'off', true), set_config('jit', 'off', true),
           set_config('statement_timeout', '15s', true), set_config('lock_timeout', '5s', true)
"""
_KEEPALIVE: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


ANSWER_S_MAX = 25.0
"""How long an answer is waited for: longer than any statement may take. Where something in between
still acknowledges what a lost server does not answer, nothing else notices."""

# A process that froze, or whose host is lost, must not keep the dispatch lock. The first fires in
# the middle of a transaction, whatever the client does, and came with PostgreSQL 17; the others
# notice a host that is gone.
_TRANSACTION_LIMIT = "SET transaction_timeout = '20s'"
_GONE = """
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 20000
"""


class _Answering(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that is hung up when no answer comes. Its statement then fails like any on a
    lost connection; a cancelled task would go on waiting for the same socket."""

    async def wait(self, *args: Any, **options: Any) -> Any:
        timer = asyncio.get_running_loop().call_later(ANSWER_S_MAX, self._hang_up)
        try:
            return await super().wait(*args, **options)
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self.fileno())) as wire,
        ):
            wire.shutdown(socket.SHUT_RDWR)


Lock = Literal["dispatch_lock", "replay_lock", "config_lock"]
"""Statements that take advisory locks until the end of the transaction: each says who needs it."""


@dataclass(slots=True)
class HotConnection:
    """An autocommit connection of a loop. `direct` is false behind a transaction pooler."""

    raw: psycopg.AsyncConnection[tuple[Any, ...]]
    direct: bool

    async def run(
        self,
        name: str,
        params: dict[str, Any],
        *,
        lock: Lock | None = None,
        limit_ms: int | None = None,
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        """Run a statement of `sql/statements/` in a transaction of its own.

        It runs under `lock`; with `limit_ms` it is cancelled (one of REFUSED) when it takes longer.
        What belongs together is sent in one flight, as one implicit
        transaction without BEGIN and COMMIT: nobody waits for this process under the lock.
        """
        text = statement(name)
        faults.passing("before", name)
        if self.direct and lock is None and limit_ms is None:
            cursor = await self.raw.execute(text, params, binary=True)
            faults.passing("after", name)
            return cursor
        async with self.raw.pipeline():
            if not self.direct:
                await self.raw.execute(_TRANSACTION)
            if lock is not None:
                await self.raw.execute(statement(lock))
            if limit_ms is not None:
                await self.raw.execute(statement("route_limit"), {"limit_ms": limit_ms})
            cursor = await self.raw.execute(text, params, binary=True)
        faults.passing("after", name)
        return cursor

    async def send(
        self, name: str, params: Mapping[str, Any] | None = None
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        """Send a statement as it is: in the transaction that the caller has open, or alone."""
        faults.passing("before", name)
        cursor = await self.raw.execute(statement(name), params)
        faults.passing("after", name)
        return cursor


def _check_url(url: str) -> None:
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            "OUTBOX_DATABASE_URL is not a libpq URL such as postgresql://user@host:5432/name"
        ) from error


def place_of(url: str) -> str:
    """Where a database is, for people: `host:port/name`, as far as the URL says it."""
    _check_url(url)
    given = conninfo_to_dict(url)
    where = ":".join(str(given[name]) for name in ("host", "port") if given.get(name))
    return f"{where}/{given.get('dbname', given.get('user', ''))}"


FAILED = (psycopg.Error, OSError)
"""Everything that talking to PostgreSQL raises."""

REFUSED = (pg.QueryCanceled, psycopg.DataError)
"""A statement that one row in its batch made fail or take too long."""


def describe(error: BaseException) -> str:
    """The first line of an error, without what PostgreSQL adds for its own logs."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = primary or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("outbox: ")


def translate(error: psycopg.Error) -> OutboxError:
    """The error of our tree that stands for a driver's error."""
    text = describe(error)
    if isinstance(error, pg.InsufficientPrivilege):
        return PermissionRefused(f"the database role may not do this: {text}")
    if isinstance(error, pg.InvalidSchemaName | pg.UndefinedTable | pg.UndefinedFunction):
        return SchemaMismatch(f"the schema outbox is missing or old ({text}); run: outbox migrate")
    if isinstance(error, pg.ProgramLimitExceeded):
        return PayloadTooLarge(text)
    if isinstance(error, pg.InvalidCatalogName | pg.InvalidAuthorizationSpecification):
        return DatabaseUnavailable(f"cannot connect to PostgreSQL: {text}")
    if isinstance(error, psycopg.OperationalError) and not isinstance(error, pg.QueryCanceled):
        return DatabaseUnavailable(f"PostgreSQL is not available: {text}")
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError | psycopg.ProgrammingError):
        return UsageError(text)
    return OutboxError(text)


@contextmanager
def translated() -> Iterator[None]:
    """Inside, every error of the driver leaves as one of ours."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


@contextmanager
def connect(url: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection for a command: committed at the end, errors translated."""
    _check_url(url)
    with translated():
        connection = psycopg.connect(
            url,
            autocommit=autocommit,
            application_name="outbox",
            prepare_threshold=None,
            **_KEEPALIVE,
        )
        with connection:
            yield connection


async def connect_hot(url: str, name: str) -> HotConnection:
    """A connection for a loop. Raises psycopg errors: the loop decides when to try again."""
    _check_url(url)
    raw = await _Answering.connect(
        url,
        autocommit=True,
        application_name=f"outbox {name}",
        prepare_threshold=None,
        **_KEEPALIVE,
    )
    try:
        row = await (await raw.execute("SELECT pg_catalog.pg_backend_pid()")).fetchone()
        # A pooler hands out a key of its own, not that of the backend that answers.
        direct = row is not None and row[0] == raw.info.backend_pid
        if direct:
            await raw.execute(_SESSION)
            await raw.execute(_TRANSACTION_LIMIT if raw.info.server_version >= 170000 else _GONE)
            raw.prepare_threshold = 0
    except BaseException:
        await raw.close()
        raise
    return HotConnection(raw, direct)
