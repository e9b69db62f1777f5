"""What a daemon proves before it starts, in this order: the database answers, the schema fits, the
database is not a copy, nothing is hidden or forbidden, and the keys open what is stored.

Each failure is its own error class, so that each has its own exit code. `outbox doctor` asks the
same questions and collects the answers.
"""

from __future__ import annotations

from typing import Any

import psycopg

from outbox.errors import ConfigurationError, KeyMissing, PermissionRefused
from outbox.secrets import KeyRing, secret_context
from outbox.store.connect import connect
from outbox.store.identity import broker_namespace, check_identity
from outbox.store.migrate import require_schema

Connection = psycopg.Connection[tuple[Any, ...]]

_NEEDED = {
    "event": "SELECT",
    "pending": "SELECT, DELETE",
    "delivery": "SELECT, INSERT, UPDATE, DELETE",
    "journal": "INSERT",
    "dead_letter": "SELECT, INSERT",
    "subscription": "SELECT",
    "endpoint": "SELECT",
    "secret": "SELECT",
    "node": "SELECT, INSERT, UPDATE, DELETE",
}
"""The rights without which relay and worker cannot work; `outbox_daemon` has them."""

_SEALED = """
SELECT DISTINCT ON (field, substr(sealed, 2, 4)) field, row_id, org_id, sealed,
       count(*) OVER (PARTITION BY field, substr(sealed, 2, 4)) AS alike
FROM (SELECT 'secret', s.id, e.org_id, s.sealed FROM outbox.secret s
      JOIN outbox.endpoint e ON e.id = s.endpoint_id
      WHERE e.state <> 'removed' AND coalesce(s.expires_at > clock_timestamp(), true)
      UNION ALL
      SELECT 'headers', id, org_id, headers_sealed FROM outbox.endpoint
      WHERE headers_sealed IS NOT NULL AND state <> 'removed') x (field, row_id, org_id, sealed)
ORDER BY field, substr(sealed, 2, 4), row_id
"""


def preflight(url: str, instance: str, ring: KeyRing | None, *, needs_keys: bool) -> str:
    """Returns the namespace of this installation's messages in the broker.

    Raises DatabaseUnavailable, SchemaMismatch, WrongInstance, PermissionRefused or KeyMissing.
    Without `needs_keys` (a relay that delivers nothing itself) a missing key is no error.
    """
    with connect(url) as connection:
        require_schema(connection)
        check_identity(connection, instance)
        problems = rights_problems(connection)
        if problems:
            raise PermissionRefused(problems[0])
        if ring is not None or needs_keys:
            unopened = key_problems(connection, ring)
            if unopened:
                raise KeyMissing(unopened[0])
        return broker_namespace(connection)


def rights_problems(connection: Connection) -> list[str]:
    """What row-level security hides from this role and what it may not do; empty if nothing."""
    role = _value(connection, "SELECT quote_ident(current_user)")
    hidden = connection.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND row_security_active(c.oid) ORDER BY 1"
    ).fetchall()
    problems = [
        f"row-level security hides rows of outbox.{name} from {role}; run: ALTER TABLE"
        f" outbox.{name} DISABLE ROW LEVEL SECURITY"
        for (name,) in hidden
    ]
    if _value(connection, "SELECT pg_has_role(current_user, 'outbox_daemon', 'USAGE')"):
        return problems
    missing = connection.execute(
        "SELECT t.name, p.needed FROM unnest(%s::text[], %s::text[]) AS t (name, rights),"
        " LATERAL regexp_split_to_table(t.rights, ', ') AS p (needed)"
        " WHERE NOT has_table_privilege('outbox.' || t.name, p.needed) LIMIT 1",
        [list(_NEEDED), list(_NEEDED.values())],
    ).fetchone()
    if missing is not None:
        problems.append(
            f"the database role {role} has no {missing[1]} right on outbox.{missing[0]};"
            f" run: GRANT outbox_daemon TO {role}"
        )
    return problems


def key_problems(connection: Connection, ring: KeyRing | None) -> list[str]:
    """Why stored secrets do not open, one line for each key they were sealed with."""
    problems = []
    for field, row_id, org_id, sealed, alike in connection.execute(_SEALED).fetchall():
        if ring is None:
            return ["OUTBOX_SECRET_KEY is not set, and secrets are stored; set it to their key"]
        table = "secret" if field == "secret" else "endpoint"
        try:
            ring.open(sealed, context=secret_context(org_id, str(row_id), field, table=table))
        except ConfigurationError as error:
            problems.append(f"{error} ({alike} stored {field} values, e.g. {table} {row_id})")
    return problems


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
