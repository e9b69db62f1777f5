"""Tries to get past the policies of Supabase Realtime, from one organization to another.

`outbox doctor` asks this. Policies are looked at as the catalogs hold them; then, for what
`outbox.install_realtime_policies` made, two members of different organizations, and somebody who
belongs to none, really try to join, to read, to forge and to make themselves members, as the role
and with the claims that Realtime would act with. Everything is rolled back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from outbox.store.watching import parse_table

Connection = psycopg.Connection[tuple[Any, ...]]
Problem = tuple[str, str]

STRANGER = "00000000-0000-0000-0000-000000000000"
_AGAIN = "SELECT outbox.install_realtime_policies(%s) once more"

_ROW_BLIND = """
SELECT p.polname FROM pg_policy p
WHERE p.polrelid = 'realtime.messages'::regclass AND p.polcmd IN ('r', '*') AND p.polpermissive
  AND (p.polroles = '{0}' OR p.polroles && ARRAY(
      SELECT r.oid FROM pg_roles r WHERE r.rolname IN ('anon', 'authenticated')))
  AND NOT EXISTS (
      SELECT FROM pg_depend d
      JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
      WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid
        AND d.refobjid = p.polrelid AND a.attname = 'topic')
ORDER BY 1
"""
_INSTALLED = """
SELECT p.topic_prefix, p.membership, p.user_column, p.org_column,
       to_regclass(p.membership) IS NOT NULL AND (
           SELECT count(*) = 2 FROM pg_attribute a WHERE a.attrelid = to_regclass(p.membership)
           AND a.attname IN (p.user_column, p.org_column) AND NOT a.attisdropped),
       EXISTS (SELECT FROM pg_policy y WHERE y.polrelid = 'realtime.messages'::regclass
               AND y.polname = 'outbox_' || p.topic_prefix)
FROM outbox.realtime_policy p ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class _Installed:
    prefix: str
    membership: str
    user_column: str
    org_column: str

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(*parse_table(self.membership))

    def topic(self, org: str) -> str:
        return f"{self.prefix}:{org}"


def realtime_problems(connection: Connection) -> Iterator[Problem]:
    """What is wrong, each with its fix. Nothing where there is no table `realtime.messages`."""
    if _one(connection, "SELECT to_regclass('realtime.messages')") is None:
        return
    if not _one(
        connection,
        "SELECT relrowsecurity FROM pg_class WHERE oid = 'realtime.messages'::regclass",
    ):
        yield (
            "row-level security on realtime.messages is off: every client reads every topic",
            "ALTER TABLE realtime.messages ENABLE ROW LEVEL SECURITY",
        )
    for (policy,) in connection.execute(_ROW_BLIND).fetchall():
        problem = (
            f"the policy {policy} on realtime.messages does not look at the row's topic: whoever"
            " may set realtime.topic in SQL reads the messages of all organizations"
        )
        yield problem, "add to its condition: topic = (SELECT realtime.topic())"
    for prefix, membership, user, org, is_there, stands in connection.execute(
        _INSTALLED
    ).fetchall():
        arguments = f"'{prefix}', '{membership}', '{user}', '{org}'"
        if not is_there or not stands:
            what = f"the table {membership}" if not is_there else f"the policy outbox_{prefix}"
            yield (
                f"{what} or a column of it is gone: nobody can join {prefix}:...",
                _AGAIN % arguments,
            )
            continue
        yield from _try_to_cross(connection, _Installed(prefix, membership, user, org))


def _try_to_cross(connection: Connection, installed: _Installed) -> Iterator[Problem]:
    """Two members who share no organization, and a stranger."""
    pair = _two_members(connection, installed)
    for index, (user, org) in enumerate(pair):
        own = installed.topic(org)
        if not _sees(connection, user, joins=own, reads=own):
            yield (
                f"a member of organization {org} cannot join {own}",
                f"let authenticated read its own rows of {installed.membership}",
            )
        if _forges(connection, user, own):
            yield (
                f"a member of organization {org} may send on {own}: clients can forge broadcasts",
                "drop the INSERT policy on realtime.messages that permits it",
            )
        for _, other_org in pair[:index] + pair[index + 1 :]:
            yield from _crossings(connection, installed, user, other_org)
    for _, org in pair[:1]:
        yield from _crossings(connection, installed, STRANGER, org)


def _crossings(
    connection: Connection, installed: _Installed, user: str, org: str
) -> Iterator[Problem]:
    topic = installed.topic(org)
    who = "a stranger" if user == STRANGER else "a member of another organization"
    fix = "see the policies on realtime.messages: one of them lets too many in"
    if _sees(connection, user, joins=topic, reads=topic):
        yield f"{who} can join {topic}", fix
    elif _sees(connection, user, joins=installed.topic("-"), reads=topic):
        yield f"{who} can read the messages of {topic} with SQL", fix
    if _forges(connection, user, topic):
        yield f"{who} can send on {topic}", fix
    if _becomes_member(connection, installed, user, org):
        yield (
            f"{who} can write a row into {installed.membership} and so join organization {org}",
            f"let nobody but your own server write {installed.membership}",
        )


def _two_members(connection: Connection, installed: _Installed) -> list[tuple[str, str]]:
    """Users of two organizations who belong to no other; fewer where there are not two."""
    query = sql.SQL(
        "SELECT a.{user}::text, a.{org}::text FROM {table} a"
        " WHERE a.{user} IS NOT NULL AND a.{org} IS NOT NULL AND NOT EXISTS ("
        " SELECT FROM {table} b WHERE b.{user} = a.{user} AND b.{org} <> a.{org}) LIMIT 1000"
    ).format(
        user=sql.Identifier(installed.user_column),
        org=sql.Identifier(installed.org_column),
        table=installed.table,
    )
    chosen: dict[str, str] = {}
    for user, org in connection.execute(query).fetchall():
        chosen.setdefault(str(org), str(user))
    return [(user, org) for org, user in chosen.items()][:2]


@contextmanager
def _acting(connection: Connection, user: str, topic: str, seed: str | None) -> Iterator[Any]:
    """Inside, be this user, as Realtime would have it; with a message on the topic `seed`."""
    with connection.transaction(force_rollback=True):
        found = None
        if seed is not None:
            found = _one(
                connection,
                "INSERT INTO realtime.messages (topic, extension) VALUES (%s, 'broadcast')"
                " RETURNING id",
                seed,
            )
        claims = json.dumps({"sub": user, "role": "authenticated"})
        connection.execute(
            "SELECT set_config('realtime.topic', %s, true),"
            " set_config('request.jwt.claims', %s, true),"
            " set_config('request.jwt.claim.sub', %s, true), set_config('role', %s, true)",
            [topic, claims, user, "authenticated"],
        )
        yield found


def _sees(connection: Connection, user: str, *, joins: str, reads: str) -> bool:
    with _acting(connection, user, joins, reads) as message:
        try:
            query = "SELECT true FROM realtime.messages WHERE id = %s"
            return bool(_one(connection, query, message))
        except psycopg.Error:
            return False  # a policy that raises lets nobody in


def _forges(connection: Connection, user: str, topic: str) -> bool:
    return _may(
        connection,
        user,
        topic,
        sql.SQL("INSERT INTO realtime.messages (topic, extension) VALUES ({}, 'broadcast')").format(
            sql.Literal(topic)
        ),
    )


def _becomes_member(connection: Connection, installed: _Installed, user: str, org: str) -> bool:
    names = {
        "table": installed.table,
        "user": sql.Identifier(installed.user_column),
        "org": sql.Identifier(installed.org_column),
        "me": sql.Literal(user),
        "there": sql.Literal(org),
    }
    # A policy that lets users write "their own" row lets them name another organization in it.
    ways = (
        "INSERT INTO {table} ({user}, {org}) VALUES ({me}, {there})",
        "UPDATE {table} SET {org} = {there} WHERE {user} = {me}",
    )
    return any(
        _may(connection, user, installed.topic(org), sql.SQL(way).format(**names)) for way in ways
    )


def _may(connection: Connection, user: str, topic: str, query: sql.Composed) -> bool:
    with _acting(connection, user, topic, None):
        try:
            return connection.execute(query).rowcount > 0
        except psycopg.Error:
            return False


def _one(connection: Connection, query: str, *parameters: object) -> Any:
    row = connection.execute(query.encode(), parameters or None).fetchone()
    return None if row is None else row[0]
