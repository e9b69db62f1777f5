"""The options of a subscription: when its deliveries are due and expire, who goes first, and what
becomes of events that share a key.

Owns their checks. A key is a column of the event (`KEY_COLUMNS`) or an SQL/JSON path into its
payload.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from outbox.errors import UsageError
from outbox.store.connect import describe
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

KEY_COLUMNS = ("org", "type", "subject", "ordering_key")
KEY_CHARS_MAX = 500
TAGS_MAX = 20
DEBOUNCE_TIMES = 10
"""A key that never rests is delivered after so many windows, unless something else is said."""

_TAG = re.compile(r"[A-Za-z0-9._:/=-]{1,100}")


@dataclass(frozen=True, slots=True)
class Options:
    """`delay`: due that much later. `ttl`: dead as expired that long after it was due. `priority`:
    seconds ahead in the queue of its lane, a number or a path. `turn_key` with `turns`: at most so
    many deliveries of a key are under way at once. `once_key` with `once_for`: the first of a key
    in that time. `debounce_key` with `debounce`: the latest of a key, when nothing came for that
    long, or after `debounce_max`."""

    delay: timedelta | None = None
    ttl: timedelta | None = None
    priority: str | None = None
    tags: tuple[str, ...] = ()
    turn_key: str | None = None
    turns: int | None = None
    once_key: str | None = None
    once_for: timedelta | None = None
    debounce_key: str | None = None
    debounce: timedelta | None = None
    debounce_max: timedelta | None = None

    def __post_init__(self) -> None:
        if self.turns is not None and self.turn_key is None:
            raise UsageError("deliveries of a key at once need the key: give --concurrency-key")
        if (self.once_for is None) is not (self.once_key is None):
            raise UsageError("--once-key and --once-for belong together")
        if (self.debounce is None) is not (self.debounce_key is None):
            raise UsageError("--debounce and --debounce-key belong together")
        if self.debounce_max is not None and self.debounce is None:
            raise UsageError("--debounce-max needs --debounce")
        if self.debounce is not None and (self.once_key or self.turn_key):
            raise UsageError("--debounce excludes --once-key and --concurrency-key")
        if self.debounce_max is not None and self.debounce and self.debounce_max < self.debounce:
            raise UsageError("--debounce-max must not be below --debounce")
        times = (self.delay, self.ttl, self.once_for, self.debounce)
        if any(time is not None and time <= timedelta() for time in times):
            raise UsageError("a duration must be above zero")
        if len(self.tags) > TAGS_MAX or not all(_TAG.fullmatch(tag) for tag in self.tags):
            raise UsageError(
                f"a subscription has at most {TAGS_MAX} tags of letters, digits and . _ : / = -"
            )


NONE = Options()


def check_options(connection: Connection, options: Options, order: str | None) -> None:
    """Raise UsageError for keys that PostgreSQL cannot read, and for what excludes an order."""
    if order is not None and (options.turn_key or options.debounce):
        raise UsageError("--ordered excludes --concurrency-key and --debounce")
    for name, text in (
        ("--concurrency-key", options.turn_key),
        ("--once-key", options.once_key),
        ("--debounce-key", options.debounce_key),
    ):
        if text is not None and text not in KEY_COLUMNS:
            _check_path(connection, name, text, f"{', '.join(KEY_COLUMNS)} or a path")
    if options.priority is not None and not re.fullmatch(r"[0-9]{1,5}", options.priority):
        _check_path(connection, "--priority", options.priority, "a number of seconds or a path")


def _check_path(connection: Connection, option: str, text: str, forms: str) -> None:
    example = "such as $.record.customer_id"
    if not text.startswith("$") or len(text) > KEY_CHARS_MAX:
        raise UsageError(f"{option} {text[:80]!r} is not {forms} {example}")
    try:
        with connection.transaction():
            connection.execute(statement("check_path"), {"path": text})
    except (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
        raise UsageError(f"{option} is not a path {example}: {describe(error)}") from error


def options_parameters(subscription_id: int, options: Options) -> dict[str, Any]:
    """The parameters of subscription_options.sql."""
    most = options.debounce_max
    if most is None and options.debounce is not None:
        most = options.debounce * DEBOUNCE_TIMES
    return {
        "id": subscription_id,
        "delay": options.delay,
        "ttl": options.ttl,
        "priority": options.priority,
        "tags": list(options.tags),
        "key": options.turn_key,
        "key_concurrency": None if options.turn_key is None else options.turns or 1,
        "use_key": options.once_key or options.debounce_key,
        "once_for": options.once_for,
        "debounce": options.debounce,
        "debounce_max": most,
    }
