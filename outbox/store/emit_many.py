"""Emits many events with one statement in the caller's own transaction.

Takes the same targets as `outbox.emit`, and each event the same options.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, overload

import orjson

from outbox.errors import UsageError
from outbox.store.emit import Sent, json_text, kind_of, payload_text, plain_moment, plain_text

if TYPE_CHECKING:
    from outbox.store.emit import AsyncTarget, SyncTarget

EVENTS_MAX = 10_000
BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Emit:
    """One event of `emit_many`; the fields are those of `outbox.emit`."""

    type: str
    payload: object = field(repr=False)
    org: str | None = None
    subject: str | None = None
    ordering_key: str | None = None
    headers: Mapping[str, str] | None = None
    deliver_at: datetime | None = None
    expires_at: datetime | None = None
    dedupe_key: str | None = None
    dedupe_for: timedelta | None = None


@overload
def emit_many(target: SyncTarget, events: Iterable[Emit]) -> list[int]: ...


@overload
def emit_many(target: AsyncTarget, events: Iterable[Emit]) -> Awaitable[list[int]]: ...


def emit_many(target: object, events: Iterable[Emit]) -> list[int] | Awaitable[list[int]]:
    """Write events in the transaction of `target`; returns their ids in the order given, or an
    awaitable of them. All or none: one that is refused refuses the whole statement.

    Events of one `ordering_key` get ids in the order given. Two transactions that emit the same
    ordering or deduplication keys wait for each other as in `emit`, so events are written in order
    of those keys, not of the list: two such batches cannot deadlock.

    Raises as `emit`, and UsageError above 10,000 events or 64 MiB.
    """
    given = list(events)
    if len(given) > EVENTS_MAX:
        raise UsageError(f"emit_many takes at most {EVENTS_MAX} events, not {len(given)}")
    stated = [_stated(event) for event in given]
    order = sorted(range(len(given)), key=lambda n: _keys(given[n]))
    text = orjson.dumps([stated[n] for n in order]).decode()
    if len(text) > BYTES_MAX:
        raise UsageError(f"emit_many takes at most {BYTES_MAX} bytes at once; emit fewer events")

    def read(rows: list[Any]) -> list[int]:
        ids = [0] * len(given)
        for place, row in zip(order, rows, strict=True):
            ids[place] = int(row[0])
        return ids

    sent = Sent("emit_many", {"events": text}, read)
    result: list[int] | Awaitable[list[int]] = kind_of(target).run(target, sent)
    return result


def _keys(event: Emit) -> tuple[str, str, str]:
    return event.org or "", event.ordering_key or "", event.dedupe_key or ""


def _stated(event: Emit) -> dict[str, object]:
    if not isinstance(event, Emit):
        raise UsageError(f"emit_many takes outbox.Emit objects, not {event.__class__.__name__}")
    return {
        "type": plain_text("type", event.type),
        "payload": payload_text(event.payload),
        "org": plain_text("org", event.org),
        "subject": plain_text("subject", event.subject),
        "ordering_key": plain_text("ordering_key", event.ordering_key),
        "headers": None if event.headers is None else json_text("headers", dict(event.headers)),
        "deliver_at": plain_moment("deliver_at", event.deliver_at),
        "expires_at": plain_moment("expires_at", event.expires_at),
        "dedupe_key": plain_text("dedupe_key", event.dedupe_key),
        "dedupe_for_s": None if event.dedupe_for is None else event.dedupe_for.total_seconds(),
    }
