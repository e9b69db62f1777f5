"""Subscriptions in the database: which events go where, under which policy.

Owns the rule of a subscription (type patterns, filter, retry policy, maximum age, body format)
and its checks. Every change makes a new revision that stays readable in `subscription_revision`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors as pg

from outbox.errors import NotFound, UsageError
from outbox.retry import default_policy, format_retry, parse_retry
from outbox.store.admission import admit
from outbox.store.connect import describe
from outbox.store.deliveries import Aligned, align
from outbox.store.options import NONE, Options, check_options, options_parameters
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

BODY_FORMATS = {"standard": 1, "database-webhook": 2}
ORDER_MODES = ("block", "park", "skip")
"""What happens to the later deliveries of a key when one dies: they wait for it to be redriven or
discarded, they follow it into the dead letters, they go on."""
DEFAULT_RETRY = format_retry(default_policy())
LIST_MAX = 1000
"""Rows that one listing of endpoints or subscriptions shows at most."""
PATTERNS_MAX = 100
PATTERN_CHARS_MAX = 200
FILTER_BYTES_MAX = 1024

_PATTERN = re.compile(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?")
_MARKS = re.compile(r'\$"|"(?:\\.|[^"\\])*"')
_UNREADABLE = (psycopg.DataError, psycopg.NotSupportedError, pg.SyntaxError, pg.UndefinedObject)
_TIMES = re.compile(r"\.(datetime|date|time|time_tz|timestamp|timestamp_tz)\(")


@dataclass(frozen=True, slots=True)
class Rule:
    """Which events, and how they are tried. `filter` is an SQL/JSON path predicate over the
    payload; `retry` is written as `parse_retry` reads it; `body_format` 1 is the standard body,
    2 that of database webhooks; `order` is None or what follows when an ordered delivery dies:
    block, park or skip."""

    patterns: tuple[str, ...]
    filter: str | None = None
    retry: str = DEFAULT_RETRY
    max_age: timedelta | None = None
    body_format: int = 1
    order: str | None = None
    options: Options = NONE

    def __post_init__(self) -> None:
        check_patterns(self.patterns)
        parse_retry(self.retry)
        if self.max_age is not None and self.max_age <= timedelta():
            raise UsageError("the maximum age must be above zero")
        if self.body_format not in BODY_FORMATS.values():
            raise UsageError(f"body formats are {', '.join(BODY_FORMATS)}")
        if self.order is not None and self.order not in ORDER_MODES:
            raise UsageError(f"ordered deliveries {', '.join(ORDER_MODES)} on failure")


def parse_patterns(text: str) -> tuple[str, ...]:
    """Read `orders.*,invoices.paid`. Raises UsageError."""
    patterns = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    check_patterns(patterns)
    return patterns


def check_patterns(patterns: tuple[str, ...]) -> None:
    """Raise UsageError unless every pattern is an exact type, `orders.*` or `*`."""
    if not 1 <= len(patterns) <= PATTERNS_MAX:
        raise UsageError(f"a subscription has 1 to {PATTERNS_MAX} type patterns")
    for pattern in patterns:
        if len(pattern) > PATTERN_CHARS_MAX or not _PATTERN.fullmatch(pattern):
            raise UsageError(
                f"{pattern[:80]!r} is not an event type pattern; write for example"
                " orders.paid, orders.* or *"
            )


def check_filter(connection: Connection, text: str) -> None:
    """Raise UsageError unless PostgreSQL reads `text` as a predicate that can always be judged."""
    if len(text.encode()) > FILTER_BYTES_MAX:
        raise UsageError(f"the filter is longer than {FILTER_BYTES_MAX} bytes")
    try:
        with connection.transaction():
            row = connection.execute(statement("check_filter"), {"filter": text}).fetchone()
    except _UNREADABLE as error:
        raise UsageError(
            f"the filter is not an SQL/JSON path predicate such as $.record.total > 100:"
            f" {describe(error)}"
        ) from error
    assert row is not None
    _check_canonical(str(row[0]))


def _check_canonical(canonical: str) -> None:
    """Refuse what fails only for some payloads. In canonical form every key and every string is
    quoted, so what remains without them is syntax."""
    if any(mark[0] == '$"' for mark in _MARKS.finditer(canonical)):
        raise UsageError("the filter names a variable; only $ (the payload) is known")
    if _TIMES.search(_MARKS.sub('""', canonical)):
        raise UsageError("the filter converts to a date or time; compare ISO 8601 text instead")


def rule_parameters(connection: Connection, rule: Rule) -> dict[str, Any]:
    """A rule as parameters of the statements that store it. Raises UsageError for a bad filter."""
    if rule.filter is not None:
        check_filter(connection, rule.filter)
    if rule.order is not None:
        admit(connection, 10, "ordered subscriptions")
    if rule.options != NONE:
        check_options(connection, rule.options, rule.order)
        admit(connection, 11, "these options of a subscription")
    return {
        "patterns": list(rule.patterns),
        "filter": rule.filter,
        "retry": format_retry(parse_retry(rule.retry)),
        "max_age": rule.max_age,
        "body_format": rule.body_format,
        "order_mode": rule.order,
    }


def give_options(connection: Connection, subscription_id: int, rule: Rule) -> None:
    """Write the options of a new subscription, in the transaction that adds it."""
    if rule.options != NONE:
        parameters = options_parameters(subscription_id, rule.options)
        connection.execute(statement("subscription_options"), parameters)


def draw_ids(connection: Connection, n: int) -> list[int]:
    """Ids for rows to come: what is sealed is bound to the row's id."""
    return [row[0] for row in connection.execute(statement("draw_object_ids"), {"n": n})]


def lane_of(
    endpoint_id: int | None = None, subscription_id: int | None = None
) -> dict[str, int | None]:
    """Parameters of note_revisions.sql."""
    return {"lane": endpoint_id, "subscription_id": subscription_id}


@dataclass(frozen=True, slots=True)
class Moved:
    """The state of a subscription before and after, and what became of deliveries."""

    was: str
    state: str
    deliveries: Aligned


def add_subscription(
    connection: Connection, endpoint_id: int, rule: Rule, org: str | None = None
) -> int:
    """Subscribe an existing endpoint to more events; returns the id. Raises NotFound."""
    [subscription_id] = draw_ids(connection, 1)
    parameters = {
        "id": subscription_id,
        "endpoint_id": endpoint_id,
        "org_id": org,
        **rule_parameters(connection, rule),
    }
    with connection.pipeline():
        connection.execute(statement("config_lock"))
        cursor = connection.execute(statement("subscription_add_endpoint"), parameters)
        give_options(connection, subscription_id, rule)
        connection.execute(statement("note_revisions"), lane_of(endpoint_id))
    if cursor.fetchone() is None:
        raise NotFound(f"there is no endpoint {endpoint_id}; see: outbox endpoints list")
    return subscription_id


@dataclass(frozen=True, slots=True)
class KindSpec:
    """A destination that is no endpoint: `kind` is email, pdf or broadcast with the configuration
    that it checked, or `processor` with the name of the user's code; limits of its own. `retry`
    holds where the rule has none of its own."""

    kind: str
    config: Mapping[str, Any]
    processor: str | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    timeout: timedelta | None = None
    retry: str | None = None


def add_kind(connection: Connection, spec: KindSpec, rule: Rule, org: str | None = None) -> int:
    """Subscribe a destination that is no endpoint; returns the id. Without `org` it gets events of
    all organizations."""
    [subscription_id] = draw_ids(connection, 1)
    admit(connection, 11, "subscriptions of this kind")
    parameters = {
        "id": subscription_id,
        "lane": -subscription_id if spec.kind == "broadcast" else subscription_id,
        "kind": spec.kind,
        "processor": spec.processor,
        "org_id": org,
        "config": json.dumps(spec.config),
        "concurrency": spec.concurrency,
        "rate_per_s": spec.rate_per_s,
        "timeout": spec.timeout,
        **rule_parameters(connection, rule),
    }
    with connection.pipeline():
        connection.execute(statement("config_lock"))
        connection.execute(statement("subscription_add"), parameters)
        give_options(connection, subscription_id, rule)
        connection.execute(statement("note_revisions"), lane_of(subscription_id=subscription_id))
    return subscription_id


def list_subscriptions(
    connection: Connection,
    org: str | None = None,
    endpoint_id: int | None = None,
    *,
    tag: str | None = None,
    removed: bool = False,
    after: int = 0,
) -> list[dict[str, Any]]:
    """Subscriptions in order of id, at most `LIST_MAX`, from ids above `after` on."""
    parameters = {
        "id": None,
        "endpoint_id": endpoint_id,
        "org_id": org,
        "tag": tag,
        "removed": removed,
        "after": after,
        "rows_max": LIST_MAX,
    }
    return [row[0] for row in connection.execute(statement("subscription_list"), parameters)]


def show_subscription(
    connection: Connection, subscription_id: int, org: str | None = None
) -> dict[str, Any]:
    """One subscription, removed ones too. Raises NotFound."""
    parameters = {
        "id": subscription_id,
        "endpoint_id": None,
        "org_id": org,
        "tag": None,
        "removed": True,
        "after": -1,
        "rows_max": 1,
    }
    row = connection.execute(statement("subscription_list"), parameters).fetchone()
    if row is None:
        raise _unknown(subscription_id)
    return dict(row[0])


def pause_subscription(
    connection: Connection, subscription_id: int, org: str | None = None
) -> Moved:
    """Hold what is owed and what still matches."""
    return _move(connection, subscription_id, org, "paused", ("active",))


def resume_subscription(
    connection: Connection, subscription_id: int, org: str | None = None
) -> Moved:
    """Deliver again, what was held included. Its maximum age stood still meanwhile."""
    return _move(connection, subscription_id, org, "active", ("paused", "disabled"))


def remove_subscription(
    connection: Connection, subscription_id: int, org: str | None = None
) -> Moved:
    """Remove a subscription and cancel what it is owed. The endpoint stays."""
    return _move(connection, subscription_id, org, "removed", ("active", "paused", "disabled"))


def _move(
    connection: Connection,
    subscription_id: int,
    org: str | None,
    state: str,
    sources: tuple[str, ...],
) -> Moved:
    parameters = {
        "id": subscription_id,
        "org_id": org,
        "state": state,
        "from_states": list(sources),
    }
    with connection.pipeline():
        connection.execute(statement("config_lock"))
        cursor = connection.execute(statement("subscription_state"), parameters)
        connection.execute(statement("note_revisions"), lane_of(subscription_id=subscription_id))
    row = cursor.fetchone()
    if row is None or (row[0] == "removed" and state != "removed"):
        raise _unknown(subscription_id)
    return Moved(row[0], row[1], align(connection, row[2]))


def _unknown(subscription_id: int) -> NotFound:
    return NotFound(f"there is no subscription {subscription_id}; see: outbox subscriptions list")
