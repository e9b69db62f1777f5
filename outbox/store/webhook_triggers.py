"""Reads Supabase's database webhooks, says what they would become, and puts that in their place.

A hook becomes an endpoint of the compatible body on the events of its table, which is captured.
What cannot be kept as it is has a problem and is left alone. `replace` runs in the caller's
transaction: the trigger goes in the moment in which capture begins, under the table's lock, so that
no change is sent twice or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from outbox.errors import OutboxError
from outbox.secrets import KeyRing
from outbox.store.endpoints import TIMEOUT_MAX, AddedEndpoint, EndpointSpec, add_endpoint
from outbox.store.statements import statement
from outbox.store.subscriptions import BODY_FORMATS, Rule
from outbox.store.watching import LOCK_TIMEOUT, Watch, watch, watches

Connection = psycopg.Connection[tuple[Any, ...]]

TIMEOUT_MIN = timedelta(seconds=15)
"""A database webhook gives up after a second unless told otherwise, but never tries again. Here a
receiver that takes longer would get the same change again: it has the time of any endpoint."""

_ROW, _BEFORE, _INSTEAD = 1, 2, 64
_OPERATIONS = {"insert": 4, "update": 16, "delete": 8}
_EVENTS = {"insert": "inserted", "update": "updated", "delete": "deleted"}
_WHEN = re.compile(r" FOR EACH ROW WHEN \((.*)\) EXECUTE (?:FUNCTION|PROCEDURE) ", re.DOTALL)
_ARGUMENTS = ("url", "method", "headers", "params", "timeout")


@dataclass(frozen=True, slots=True)
class Hook:
    """One trigger and what it would become; `problem` says why it stays as it is."""

    schema: str
    table: str
    trigger: str
    operations: tuple[str, ...]
    url: str
    headers: Mapping[str, str]
    timeout: timedelta
    when: str | None = None
    prefix: str = ""
    problem: str | None = None

    @property
    def name(self) -> str:
        """Its table, as people write it."""
        return f"{_quoted(self.schema)}.{_quoted(self.table)}"

    @property
    def events(self) -> tuple[str, ...]:
        """The types of the events that it would be sent."""
        return tuple(f"{self.prefix}.{_EVENTS[operation]}" for operation in self.operations)


@dataclass(frozen=True, slots=True)
class Replaced:
    """A hook that is gone, and the endpoint in its place."""

    hook: Hook
    endpoint: AddedEndpoint


Checks = Callable[[str, Mapping[str, str]], None]
"""Judges a URL and headers; raises OutboxError."""


def read_hooks(connection: Connection, check: Checks) -> list[Hook]:
    """All database webhooks, in order of table and name. Changes nothing."""
    rows = connection.execute(statement("database_webhooks")).fetchall()
    watched = {(one.schema, one.table): one for one in watches(connection)}
    hooks = [_judge(_read(*row), check) for row in rows]
    return [_fit(hook, hooks, watched.get((hook.schema, hook.table))) for hook in hooks]


def _read(
    schema: str,
    table: str,
    trigger: str,
    kind: int,
    columns: Sequence[str],
    enabled: bool,
    arguments: bytes,
    definition: str,
) -> Hook:
    texts = [text.decode(errors="replace") for text in bytes(arguments).split(b"\0")[:-1]]
    given = dict(zip(_ARGUMENTS, texts, strict=False))
    when = _WHEN.search(definition)
    hook = Hook(
        schema=schema,
        table=table,
        trigger=trigger,
        operations=tuple(name for name, bit in _OPERATIONS.items() if kind & bit),
        url=given.get("url", ""),
        headers={},
        timeout=_read_timeout(given.get("timeout", "")),
        when=when[1] if when else None,
    )
    try:
        return replace(
            hook,
            url=_with_query(hook.url, _read_object(given.get("params", ""), "params")),
            headers=_read_headers(given.get("headers", "")),
            problem=_oddity(kind, columns, enabled, given.get("method", "")),
        )
    except ValueError as error:
        return replace(hook, problem=str(error))


def _oddity(kind: int, columns: Sequence[str], enabled: bool, method: str) -> str | None:
    """What a hook does that an endpoint does not."""
    if not enabled:
        return "it is disabled"
    if method.upper() != "POST":
        return f"it sends {method or 'by no method'}; endpoints are sent POST"
    if not kind & _ROW or kind & (_BEFORE | _INSTEAD):
        return "it does not fire after each row"
    if columns:
        return f"it fires when a statement names {', '.join(columns)}; capture knows changes only"
    return None


def _read_timeout(text: str) -> timedelta:
    milliseconds = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    return min(max(timedelta(milliseconds=milliseconds), TIMEOUT_MIN), TIMEOUT_MAX)


def _read_object(text: str, what: str) -> dict[str, str]:
    """A flat JSON object of texts; `null` and nothing are an empty one."""
    try:
        found = json.loads(text) if text.strip() else None
    except ValueError:
        found = text
    if found is None:
        return {}
    if not isinstance(found, dict) or any(isinstance(v, dict | list) for v in found.values()):
        raise ValueError(f"its {what} are no JSON object of texts")
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_headers(text: str) -> dict[str, str]:
    """The static headers; the content type that every endpoint has is left out."""
    given = _read_object(text, "headers")
    usual = ("content-type", "application/json")
    return {n: v for n, v in given.items() if (n.lower(), v.strip().lower()) != usual}


def _with_query(url: str, params: Mapping[str, str]) -> str:
    if not params:
        return url
    parts = urlsplit(url)
    query = "&".join(filter(None, [parts.query, urlencode(params)]))
    return urlunsplit(parts._replace(query=query))


def _judge(hook: Hook, check: Checks) -> Hook:
    if hook.problem is not None:
        return hook
    try:
        check(hook.url, hook.headers)
    except OutboxError as error:
        return replace(hook, problem=str(error))
    return hook


def _fit(hook: Hook, hooks: Sequence[Hook], watched: Watch | None) -> Hook:
    """Say under which types its table is captured, and whether one capture serves all its hooks."""
    prefix = _prefix(hook)
    if watched is not None:
        prefix = str(watched.options.get("type_prefix") or _sanitized(hook.table))
    hook = replace(hook, prefix=prefix)
    if hook.problem is not None:
        return hook
    same = [one for one in hooks if (one.schema, one.table) == (hook.schema, hook.table)]
    if any(one.when != hook.when for one in same):
        return replace(hook, problem="hooks of one table have different conditions (WHEN)")
    if watched is not None and (trouble := _narrow(watched, hook)):
        return replace(hook, problem=f"the table is watched already, {trouble}; unwatch it first")
    others = {_prefix(one) for one in hooks if (one.schema, one.table) != (hook.schema, hook.table)}
    if watched is None and prefix in others:
        return replace(hook, problem=f"another table's events would be named {prefix}, too")
    return hook


def _narrow(watched: Watch, hook: Hook) -> str | None:
    """Why an existing capture does not tell what the hook told."""
    options = watched.options
    if missing := sorted(set(hook.operations) - set(options["operations"])):
        return f"without {', '.join(missing)}"
    if options.get("include") or options.get("exclude"):
        return "without some of its columns"
    if not options.get("old", True):
        return "without the old record"
    if options.get("condition") != hook.when:
        return "under another condition"
    return None


def _prefix(hook: Hook) -> str:
    table = _sanitized(hook.table)
    return table if hook.schema == "public" else f"{_sanitized(hook.schema)}.{table}"


def _sanitized(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def replace_hooks(
    connection: Connection, hooks: Sequence[Hook], ring: KeyRing, org_column: str | None
) -> list[Replaced]:
    """Put capture and endpoints in the place of hooks without a problem, in one transaction.

    Raises UsageError, PermissionRefused and the like; then nothing has changed.
    """
    done = []
    with connection.transaction():
        connection.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        known = {(one.schema, one.table) for one in watches(connection)}
        for hook in hooks:  # first, so that nobody waits for a table under the dispatch lock
            connection.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(_table(hook))
            )
        for table in dict.fromkeys((hook.schema, hook.table) for hook in hooks):
            if table not in known:
                _watch(connection, [h for h in hooks if (h.schema, h.table) == table], org_column)
        for hook in hooks:
            connection.execute(
                sql.SQL("DROP TRIGGER {} ON {}").format(sql.Identifier(hook.trigger), _table(hook))
            )
            done.append(Replaced(hook, add_endpoint(connection, _spec(hook), ring)))
    return done


def _table(hook: Hook) -> sql.Identifier:
    return sql.Identifier(hook.schema, hook.table)


def _watch(connection: Connection, hooks: Sequence[Hook], org_column: str | None) -> None:
    wanted = {operation for hook in hooks for operation in hook.operations}
    first = hooks[0]
    watch(
        connection,
        first.name,
        org_column=org_column if _has_column(connection, first, org_column) else None,
        type_prefix=first.prefix,
        operations=[operation for operation in _OPERATIONS if operation in wanted],
        condition=first.when,
    )


def _has_column(connection: Connection, hook: Hook, column: str | None) -> bool:
    """Tables without an organization may stand among those that have one."""
    row = connection.execute(
        "SELECT 1 FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s"
        " AND c.relname = %s AND a.attname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        [hook.schema, hook.table, column],
    ).fetchone()
    return row is not None


def _spec(hook: Hook) -> EndpointSpec:
    rule = Rule(hook.events, body_format=BODY_FORMATS["database-webhook"])
    return EndpointSpec(
        url=hook.url, org_id=None, rule=rule, timeout=hook.timeout, headers=hook.headers
    )
