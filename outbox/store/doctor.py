"""Finds what is wrong with an installation, each finding with its fix.

Every check is one question that reads little. A check that cannot be asked (for want of a right,
say) is a finding itself; later checks still run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from outbox.errors import OutboxError, PermissionRefused
from outbox.secrets import KeyRing
from outbox.store.connect import connect, translate
from outbox.store.identity import check_identity
from outbox.store.migrate import ROLES, require_schema
from outbox.store.preflight import key_problems, rights_problems
from outbox.store.realtime_check import realtime_problems
from outbox.store.status import read_status
from outbox.store.watching import watches

Connection = psycopg.Connection[tuple[Any, ...]]

PENDING_S_MAX = 60.0
"""An event that waits for a relay longer than this is a finding."""
TRANSACTION_MAX = timedelta(minutes=5)
FAILING_MAX = timedelta(minutes=10)
DEAD_TUPLES_MAX = 200_000
HOT_TABLES = ("pending", "delivery", "dead_letter", "dedupe", "node")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and what to do about it."""

    check: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class Patient:
    """What the checks look at."""

    connection: Connection
    instance: str
    ring: KeyRing | None
    retention: timedelta


Check = Callable[[Patient], Iterator[Finding]]


def examine(
    url: str, instance: str, ring: KeyRing | None, retention: timedelta
) -> Iterator[Finding]:
    """Run all checks. Raises DatabaseUnavailable: without a database there is nothing to ask."""
    with connect(url, autocommit=True) as connection:
        connection.execute("SET statement_timeout = '15s'")
        patient = Patient(connection, instance, ring, retention)
        for name, check in CHECKS.items():
            try:
                yield from check(patient)
            except (psycopg.Error, OutboxError) as raised:
                error = translate(raised) if isinstance(raised, psycopg.Error) else raised
                if connection.closed:
                    raise error from raised
                yield _unasked(name, error)
                if name == "schema":
                    return  # nothing else can be asked


def _unasked(check: str, error: OutboxError) -> Finding:
    """What a check that raised has found. Our errors say after a semicolon what to do."""
    problem, _, fix = str(error).rpartition("; ")
    if problem:
        return Finding(check, problem, fix)
    if isinstance(error, PermissionRefused):
        return Finding(
            check, fix, "ask again as the role that installed the schema, or a superuser"
        )
    return Finding(check, fix, "remove the cause and ask again")


def _schema(patient: Patient) -> Iterator[Finding]:
    require_schema(patient.connection)
    yield from ()


def _identity(patient: Patient) -> Iterator[Finding]:
    check_identity(patient.connection, patient.instance)
    yield from ()


def _rights(patient: Patient) -> Iterator[Finding]:
    for problem in rights_problems(patient.connection):
        yield Finding("rights", problem, "grant outbox_daemon to the daemon's role")


TENANT_ROLES = ("anon", "authenticated")
"""Roles of Supabase that act for whoever holds a token: nothing in this schema is for them."""

_TENANTS_REACH = """
SELECT r.rolname, min(c.relname) FROM pg_roles r, pg_class c
WHERE r.rolname = ANY (%s)
  AND c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v')
  AND has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
  AND has_table_privilege(r.oid, c.oid, 'SELECT')
GROUP BY r.rolname ORDER BY 1
"""


def _roles(patient: Patient) -> Iterator[Finding]:
    rows = patient.connection.execute(
        "SELECT r, p.rolcanlogin FROM unnest(%s::text[]) r LEFT JOIN pg_roles p ON p.rolname = r"
        " WHERE p.rolname IS NULL OR p.rolcanlogin ORDER BY 1",
        [list(ROLES)],
    ).fetchall()
    for role, can_login in rows:
        if can_login is None:
            yield Finding("roles", f"the role {role} is missing", f"CREATE ROLE {role} NOLOGIN")
        else:
            yield Finding("roles", f"the role {role} may log in", f"ALTER ROLE {role} NOLOGIN")
    for tenant, table in patient.connection.execute(_TENANTS_REACH, [list(TENANT_ROLES)]):
        problem = f"{tenant} can read outbox.{table}, which holds every organization's rows"
        yield Finding("roles", problem, f"REVOKE outbox_reader FROM {tenant}, or what was granted")


def _watched_tables(patient: Patient) -> Iterator[Finding]:
    for watch in watches(patient.connection):
        for problem in watch.problems:
            if watch.table is None:
                yield Finding("watches", problem, "outbox unwatch --gone")
            else:
                name = f"{watch.schema}.{watch.table}"
                yield Finding("watches", f"{name}: {problem}", f"outbox watch {name}, or unwatch")


def _flow(patient: Patient) -> Iterator[Finding]:
    status = read_status(patient.connection)
    if status.relays == 0:
        since = "ever" if status.last_poll_s is None else f"for {status.last_poll_s:.0f} s"
        yield Finding("relay", f"no relay polled with success {since}", "start: outbox run")
    elif status.workers == 0:
        yield Finding("worker", "no worker is alive", "start: outbox worker")
    if (status.oldest_pending_s or 0) > PENDING_S_MAX:
        yield Finding(
            "pending",
            f"the oldest event that no relay took is {status.oldest_pending_s:.0f} s old",
            "look at the daemon's log, and for long transactions below",
        )


def _snapshots(patient: Patient) -> Iterator[Finding]:
    rows = patient.connection.execute(
        "SELECT a.pid, coalesce(a.application_name, ''), a.state,"
        " extract(epoch FROM clock_timestamp() - a.xact_start)::bigint"
        " FROM pg_stat_activity a WHERE a.datname = current_database() AND a.xact_start IS NOT NULL"
        " AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()"
        " AND a.xact_start < clock_timestamp() - %s ORDER BY a.xact_start LIMIT 5",
        [TRANSACTION_MAX],
    ).fetchall()
    for pid, application, state, age_s in rows:
        yield Finding(
            "transactions",
            f"a transaction of process {pid} ({application or 'unnamed'}, {state}) is open for "
            f"{age_s} s: dead rows cannot be removed, retention may have to wait",
            f"end it, or: SELECT pg_terminate_backend({pid})",
        )
    held = patient.connection.execute(
        "SELECT 'replication slot ' || slot_name, age(coalesce(catalog_xmin, xmin))"
        " FROM pg_replication_slots WHERE age(coalesce(xmin, catalog_xmin)) > 10000000"
        " UNION ALL SELECT 'prepared transaction ' || gid, age(transaction) FROM pg_prepared_xacts"
        " WHERE database = current_database() AND prepared < clock_timestamp() - %s LIMIT 5",
        [TRANSACTION_MAX],
    ).fetchall()
    for what, age in held:
        yield Finding(
            "transactions", f"the {what} holds back {age} transactions", f"end the {what}"
        )


def _dead_tuples(patient: Patient) -> Iterator[Finding]:
    rows = patient.connection.execute(
        "SELECT relname, n_dead_tup, coalesce(last_autovacuum::text, 'never')"
        " FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname = ANY (%s)"
        " AND n_dead_tup > %s",
        [list(HOT_TABLES), DEAD_TUPLES_MAX],
    ).fetchall()
    for table, dead, last in rows:
        yield Finding(
            "vacuum",
            f"outbox.{table} holds about {dead} dead rows (last autovacuum: {last})",
            f"see that autovacuum is on and no transaction stays open; VACUUM outbox.{table}",
        )
    if _one(patient, "SHOW autovacuum") == "off":
        yield Finding("vacuum", "autovacuum is off", "ALTER SYSTEM SET autovacuum = on")


def _keys(patient: Patient) -> Iterator[Finding]:
    for problem in key_problems(patient.connection, patient.ring):
        yield Finding("keys", problem, "set OUTBOX_SECRET_KEY to all keys in use, newest first")


def _endpoints(patient: Patient) -> Iterator[Finding]:
    rows = patient.connection.execute(
        "SELECT id, coalesce(state_reason, 'no reason kept') FROM outbox.endpoint"
        " WHERE state = 'disabled' ORDER BY id LIMIT 20"
    ).fetchall()
    for endpoint, reason in rows:
        yield Finding(
            "endpoints",
            f"endpoint {endpoint} is disabled ({reason}): its deliveries are held",
            f"outbox endpoints resume {endpoint}, or outbox endpoints remove {endpoint}",
        )


def _failing(patient: Patient) -> Iterator[Finding]:
    rows = patient.connection.execute(
        "SELECT h.lane, h.failing_since::timestamptz(0)::text, h.failures, h.probe_at IS NOT NULL"
        " FROM outbox.lane_health h JOIN outbox.endpoint n ON n.id = h.lane AND n.state = 'active'"
        " WHERE h.failed_at - h.failing_since > %s ORDER BY h.failing_since LIMIT 20",
        [FAILING_MAX],
    ).fetchall()
    for endpoint, since, failures, is_open in rows:
        probed = "; it is only probed" if is_open else ""
        yield Finding(
            "failing",
            f"endpoint {endpoint} has accepted nothing since {since} ({failures} tries){probed}",
            f"outbox endpoints test {endpoint} shows what it answers; tell its owner, or pause it",
        )


def _blocked(patient: Patient) -> Iterator[Finding]:
    rows = patient.connection.execute(
        "SELECT s.id, count(DISTINCT l.order_key) FROM outbox.subscription s"
        " JOIN outbox.dead_letter l ON l.subscription_id = s.id AND l.order_key IS NOT NULL"
        " WHERE s.order_mode IN ('block', 'park') AND s.state <> 'removed'"
        " AND l.reason <> 'expired' GROUP BY s.id ORDER BY s.id LIMIT 20"
    ).fetchall()
    for subscription, keys in rows:
        yield Finding(
            "order",
            f"{keys} key(s) of subscription {subscription} wait behind a dead letter",
            "redrive or discard them; see: outbox dead list",
        )


def _ring(patient: Patient) -> Iterator[Finding]:
    age = _one(
        patient,
        "SELECT clock_timestamp() - opened_at FROM outbox.ring"
        " WHERE slot = (SELECT last_value FROM outbox.ring_slot)",
    )
    if age is not None and age > patient.retention:
        yield Finding(
            "retention",
            f"the current slot of the log is {age.days} days old: old events are not removed",
            "see that a daemon runs, and for long transactions that touch old slots",
        )


def _realtime(patient: Patient) -> Iterator[Finding]:
    for problem, fix in realtime_problems(patient.connection):
        yield Finding("realtime", problem, fix)


def _one(patient: Patient, query: str) -> Any:
    row = patient.connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


CHECKS: dict[str, Check] = {
    "schema": _schema,
    "identity": _identity,
    "rights": _rights,
    "roles": _roles,
    "watches": _watched_tables,
    "flow": _flow,
    "transactions": _snapshots,
    "vacuum": _dead_tuples,
    "keys": _keys,
    "endpoints": _endpoints,
    "failing": _failing,
    "order": _blocked,
    "retention": _ring,
    "realtime": _realtime,
}
