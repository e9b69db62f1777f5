"""Every kind of thing `emit` takes, opened the same way: emit inside a transaction that is then
committed or rolled back by the caller, as applications do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)


@contextmanager
def opened(kind: str, url: str) -> Iterator[Any]:
    """A sync target; it has `commit` and `rollback`, or a `connection` that has."""
    if kind.startswith("psycopg"):
        with psycopg.connect(url) as connection:
            targets: dict[str, Callable[[], Any]] = {
                "psycopg": lambda: connection,
                "psycopg_cursor": connection.cursor,
                "psycopg_dict_cursor": lambda: connection.cursor(row_factory=dict_row),
                "psycopg_server_cursor": lambda: connection.cursor("named"),
                "psycopg_raw_cursor": lambda: psycopg.RawCursor(connection),
            }
            target = targets[kind]()
            yield target
            if target is not connection:
                target.close()
            connection.rollback()
        return
    engine = create_engine(with_driver(url, "psycopg"), poolclass=NullPool)
    if kind == "connection":
        with engine.connect() as sa_connection:
            yield sa_connection
    elif kind == "session":
        with Session(engine) as session:
            yield session
    else:
        assert kind == "scoped_session"
        registry = scoped_session(sessionmaker(engine))
        yield registry
        registry.remove()


@asynccontextmanager
async def opened_async(kind: str, url: str) -> AsyncIterator[Any]:
    """An async target; `commit` and `rollback` are awaited."""
    driver, _, kind = kind.partition(":")
    if not kind:
        connection = await psycopg.AsyncConnection.connect(url)
        async with connection:
            yield connection if driver == "psycopg" else connection.cursor()
            await connection.rollback()
        return
    engine = create_async_engine(with_driver(url, driver), poolclass=NullPool)
    if kind == "connection":
        async with engine.connect() as sa_connection:
            yield sa_connection
    elif kind == "session":
        async with AsyncSession(engine) as session:
            yield session
    else:
        assert kind == "scoped_session"
        registry = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: None)
        yield registry
        await registry.remove()
    await engine.dispose()


SYNC_KINDS = (
    *("psycopg", "psycopg_cursor", "psycopg_dict_cursor", "psycopg_server_cursor"),
    *("psycopg_raw_cursor", "connection", "session", "scoped_session"),
)
ASYNC_KINDS = (
    *("psycopg", "psycopg_cursor", "psycopg:connection", "psycopg:session"),
    *("psycopg:scoped_session", "asyncpg:connection", "asyncpg:session", "asyncpg:scoped_session"),
)


def transaction_of(target: Any) -> Any:
    """What commits and rolls back for a target."""
    return target.connection if isinstance(target, psycopg.Cursor | psycopg.AsyncCursor) else target


def rows(url: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query, params).fetchall()
