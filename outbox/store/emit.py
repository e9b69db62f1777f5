"""Emits events from Python inside the caller's own transaction.

Takes what an application already has: a SQLAlchemy 2 `Session`, `Connection`, `scoped_session` or
one of their async kinds (over psycopg or asyncpg), or a psycopg 3 connection or cursor. One
statement is sent; nothing is committed, rolled back or flushed here. The kind is told by the names
of the object's classes, so neither library is imported for the sake of the other.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import orjson

from outbox.errors import (
    OutboxError,
    PayloadTooLarge,
    PermissionRefused,
    SchemaMismatch,
    UsageError,
)
from outbox.store.statements import statement

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    SyncTarget = (
        Session | scoped_session[Any] | Connection | psycopg.Connection[Any] | psycopg.Cursor[Any]
    )
    AsyncTarget = (
        AsyncSession
        | async_scoped_session[Any]
        | AsyncConnection
        | psycopg.AsyncConnection[Any]
        | psycopg.AsyncCursor[Any]
    )

PAYLOAD_BYTES_MAX = 1_048_576
"""As `outbox.payload_bytes_max()` in SQL."""

Params = Mapping[str, object]


class Sent(NamedTuple):
    """A statement of `sql/statements/` with its parameters, and how its rows are read."""

    name: str
    params: Params
    read: Callable[[list[Any]], Any]


class _Kind(NamedTuple):
    run: Callable[[Any, Sent], Any]
    is_async: bool


@overload
def emit(
    target: SyncTarget,
    type: str,
    payload: object,
    *,
    org: str | None = ...,
    subject: str | None = ...,
    ordering_key: str | None = ...,
    headers: Mapping[str, str] | None = ...,
    deliver_at: datetime | None = ...,
    expires_at: datetime | None = ...,
    dedupe_key: str | None = ...,
    dedupe_for: timedelta | None = ...,
) -> int: ...


@overload
def emit(
    target: AsyncTarget,
    type: str,
    payload: object,
    *,
    org: str | None = ...,
    subject: str | None = ...,
    ordering_key: str | None = ...,
    headers: Mapping[str, str] | None = ...,
    deliver_at: datetime | None = ...,
    expires_at: datetime | None = ...,
    dedupe_key: str | None = ...,
    dedupe_for: timedelta | None = ...,
) -> Awaitable[int]: ...


def emit(
    target: object,
    type: str,  # noqa: A002 (the word of the event envelope)
    payload: object,
    *,
    org: str | None = None,
    subject: str | None = None,
    ordering_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    deliver_at: datetime | None = None,
    expires_at: datetime | None = None,
    dedupe_key: str | None = None,
    dedupe_for: timedelta | None = None,
) -> int | Awaitable[int]:
    """Write one event in the transaction of `target`; returns its id, or an awaitable of it.

    `payload` is anything JSON can say (Decimal keeps all its digits, datetime and UUID become
    strings), or JSON already written as `str` or `bytes`, which is passed on as it is. `deliver_at`
    and `expires_at` carry a timezone. A `dedupe_key` that this organization used within
    `dedupe_for` (7 days) yields the first event's id and no new event. Events of one
    `ordering_key` get ids in the order in which their transactions commit: a second one waits.

    Raises PayloadTooLarge above 1 MiB, UsageError, PermissionRefused or SchemaMismatch. What is
    found here, size and form of the arguments, leaves the transaction usable; what PostgreSQL
    refuses (a malformed type, JSON text that is none) aborts it, as every failed statement does.
    Every other error of the driver passes unchanged, so that an application's retry of
    serialization failures and deadlocks goes on working.
    """
    params: Params = {
        "type": plain_text("type", type),
        "payload": payload_text(payload),
        "org": plain_text("org", org),
        "subject": plain_text("subject", subject),
        "ordering_key": plain_text("ordering_key", ordering_key),
        "headers": None if headers is None else json_text("headers", dict(headers)),
        "deliver_at": plain_moment("deliver_at", deliver_at),
        "expires_at": plain_moment("expires_at", expires_at),
        "dedupe_key": plain_text("dedupe_key", dedupe_key),
        "dedupe_for_s": None if dedupe_for is None else str(dedupe_for.total_seconds()),
    }
    result: int | Awaitable[int] = kind_of(target).run(target, Sent("emit", params, _id))
    return result


async def emit_async(target: AsyncTarget, type: str, payload: object, **options: Any) -> int:  # noqa: A002
    """`emit` for async targets alone: the same arguments, always a coroutine."""
    if not kind_of(target).is_async:
        raise UsageError("emit_async takes an async session or connection; use outbox.emit")
    return await emit(target, type, payload, **options)


# --- arguments -----------------------------------------------------------------------------------


def plain_text(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a string, not {value.__class__.__name__}")
    if "\x00" in value:
        raise UsageError(f"{name} must not hold a NUL character: PostgreSQL cannot store it")
    return value


def plain_moment(name: str, value: datetime | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise UsageError(f"{name} must be a datetime with a timezone, as datetime.now(UTC) has one")
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError as error:
        raise UsageError(f"{name} is out of range") from error


def payload_text(value: object) -> str:
    text = (
        _raw(value) if isinstance(value, str | bytes | bytearray) else json_text("payload", value)
    )
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if size > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            f"payload of {size} bytes exceeds the limit of {PAYLOAD_BYTES_MAX} bytes;"
            " store the document and emit a reference to it"
        )
    return text


def _raw(value: str | bytes | bytearray) -> str:
    try:
        text = value if isinstance(value, str) else value.decode()
        text.encode()
    except UnicodeError as error:
        raise UsageError("payload must be JSON in UTF-8") from error
    plain_text("payload", text)
    return text


def json_text(name: str, value: object) -> str:
    try:
        return orjson.dumps(_exact(value), default=_exact_or_raise).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}") from error


def _exact(value: object) -> object:
    """What orjson would round, refuse or turn into null, so that it writes the exact value."""
    match value:
        case dict():
            return {key: _exact(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_exact(inner) for inner in value]
        case int() if not -(2**63) <= value < 2**64:
            return orjson.Fragment(str(int(value)))
        case float() if not isfinite(value):
            raise ValueError(f"JSON has no number {value}")
        case Decimal():
            if not value.is_finite():
                raise ValueError(f"JSON has no number {value}")
            return orjson.Fragment(str(value))
    return value


def _exact_or_raise(value: object) -> object:
    """What orjson does not know: Decimals inside dataclasses; everything else is a mistake."""
    if isinstance(value, Decimal):
        return _exact(value)
    raise TypeError(f"{value.__class__.__name__} is no JSON type")


# --- targets -------------------------------------------------------------------------------------


def kind_of(target: object) -> _Kind:
    for ancestor in target.__class__.__mro__:
        kind = _KINDS.get((ancestor.__module__.partition(".")[0], ancestor.__name__))
        if kind is not None:
            return kind
    raise UsageError(
        "emit takes a SQLAlchemy session or connection, or a psycopg 3 connection or cursor, not "
        f"{target.__class__.__module__}.{target.__class__.__qualname__}"
    )


def _with_psycopg(connection: psycopg.Connection[Any], sent: Sent) -> Any:
    import psycopg
    from psycopg.rows import tuple_row

    try:
        # A cursor of our own: the caller's may have another placeholder style or row factory.
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            return sent.read(cursor.execute(statement(sent.name), sent.params).fetchall())
    except psycopg.Error as error:
        raise _refusal(error) or error from error.__cause__


async def _with_psycopg_async(connection: psycopg.AsyncConnection[Any], sent: Sent) -> Any:
    import psycopg
    from psycopg.rows import tuple_row

    try:
        async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(statement(sent.name), sent.params)
            return sent.read(await cursor.fetchall())
    except psycopg.Error as error:
        raise _refusal(error) or error from error.__cause__


def _with_connection(connection: Connection, sent: Sent) -> Any:
    from sqlalchemy.exc import DBAPIError

    _require_postgresql(connection)
    try:
        return sent.read(list(connection.execute(_clause(sent.name), sent.params).all()))
    except DBAPIError as error:
        raise _refusal(error.orig) or error from error.orig


async def _with_connection_async(connection: AsyncConnection, sent: Sent) -> Any:
    from sqlalchemy.exc import DBAPIError

    _require_postgresql(connection)
    try:
        return sent.read(list((await connection.execute(_clause(sent.name), sent.params)).all()))
    except DBAPIError as error:
        raise _refusal(error.orig) or error from error.orig


def _with_session(session: Session | scoped_session[Any], sent: Sent) -> Any:
    # The session's connection: session.execute would run the application's ORM event hooks.
    return _with_connection(session.connection(), sent)


async def _with_session_async(session: AsyncSession | async_scoped_session[Any], sent: Sent) -> Any:
    return await _with_connection_async(await session.connection(), sent)


_KINDS: Mapping[tuple[str, str], _Kind] = {
    ("psycopg", "Connection"): _Kind(_with_psycopg, False),
    ("psycopg", "AsyncConnection"): _Kind(_with_psycopg_async, True),
    ("psycopg", "Cursor"): _Kind(lambda c, s: _with_psycopg(c.connection, s), False),
    ("psycopg", "AsyncCursor"): _Kind(lambda c, s: _with_psycopg_async(c.connection, s), True),
    ("sqlalchemy", "Connection"): _Kind(_with_connection, False),
    ("sqlalchemy", "AsyncConnection"): _Kind(_with_connection_async, True),
    ("sqlalchemy", "Session"): _Kind(_with_session, False),
    ("sqlalchemy", "scoped_session"): _Kind(_with_session, False),
    ("sqlalchemy", "AsyncSession"): _Kind(_with_session_async, True),
    ("sqlalchemy", "async_scoped_session"): _Kind(_with_session_async, True),
}


def _require_postgresql(connection: Connection | AsyncConnection) -> None:
    if connection.dialect.name != "postgresql":
        raise UsageError(f"emit needs a connection to PostgreSQL, not {connection.dialect.name}")


@cache
def _clause(name: str) -> TextClause:
    from sqlalchemy import text

    return text(re.sub(r"%\((\w+)\)s", r":\1", statement(name)))


def _id(rows: list[Any]) -> int:
    [(found,)] = rows
    return int(found)


# --- errors --------------------------------------------------------------------------------------

_REFUSALS: Mapping[str, tuple[type[OutboxError], str]] = {
    "54000": (PayloadTooLarge, "{}"),
    "42501": (PermissionRefused, "the database role may not emit: {}"),
    "3F000": (SchemaMismatch, "the schema outbox is missing; run: outbox migrate"),
    "42P01": (SchemaMismatch, "the schema outbox is missing or old; run: outbox migrate"),
    "42883": (SchemaMismatch, "the schema outbox is missing or old; run: outbox migrate"),
}


def _refusal(error: BaseException | None) -> OutboxError | None:
    """Ours, if the error is about this call; None for what concerns the whole transaction."""
    state = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
    kind, form = _REFUSALS.get(state, (UsageError, "{}"))
    if kind is UsageError and not state.startswith("22"):
        return None
    diagnosis = getattr(error, "diag", None)
    lines = str(getattr(diagnosis, "message_primary", None) or error).strip().splitlines()
    # asyncpg's wrapper in SQLAlchemy puts the class of the error first.
    first = re.sub(r"^<class '[\w.]+'>: ", "", lines[0])
    return kind(form.format(first.removeprefix("outbox: ")))
