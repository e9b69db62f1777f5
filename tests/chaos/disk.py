"""A full disk for PostgreSQL, without root and without a small file system.

The limit on the size of a file (RLIMIT_FSIZE) is lowered on every process of the server, to the
size of a WAL segment, after the tables that the engine writes to were grown beyond it: from then on
no page can be added to them, and none beyond the limit can be written (EFBIG, which PostgreSQL
handles as it does ENOSPC: the statement fails, "could not extend file"). Updates and deletes in
place go on, as they do on a full disk. Linux alone has `prlimit`.
"""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import psycopg

from outbox.embedded import EmbeddedPostgres

LIMIT_BYTES = 16 * 1024 * 1024

_SLOT = "(SELECT last_value FROM outbox.ring_slot)"
_FILLING = """
    WITH filling AS MATERIALIZED (
        SELECT string_agg(md5(random()::text), '') AS text FROM generate_series(1, 58))
    INSERT INTO
"""
# Just short of what is moved out of line, and random, so that it is not compressed.
_GROW = {
    "outbox.event_{slot}": "outbox.event (id, slot, type, payload, created_at)"
    f" SELECT 4e18::bigint + i, {_SLOT}, 'filling', to_json(text), now()"
    " FROM filling, generate_series(1, 9000) i",
    "outbox.journal_{slot}": "outbox.journal (slot, at, fact, event_id, reason)"
    f" SELECT {_SLOT}, now(), 'routed', 4e18::bigint + i, text"
    " FROM filling, generate_series(1, 9000) i",
    "outbox.delivery": "outbox.delivery (id, event_id, event_slot, subscription_id,"
    " revision, lane, state, due_at, held_reason, held_at)"
    f" SELECT gen_random_uuid(), 4e18::bigint + i, {_SLOT}, 0, 1, 0, 'held', now(), text, now()"
    " FROM filling, generate_series(1, 4500) i",
}


def grow_tables(url: str) -> None:
    """Make the tables longer than the limit, with rows that never were: they are rolled back, and
    vacuum, which would take the pages back, is off."""
    with psycopg.connect(url, autocommit=True) as connection:
        slot = _one(connection, f"SELECT {_SLOT}")
        for template, insert in _GROW.items():
            table = template.format(slot=slot)
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
            while _one(connection, f"SELECT pg_relation_size('{table}')") <= LIMIT_BYTES:
                with connection.transaction(force_rollback=True):
                    connection.execute(f"{_FILLING}{insert}".encode())


def _one(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def limit_files(server: EmbeddedPostgres, size: int) -> None:
    """Set the limit of the whole server; new sessions inherit it from the postmaster."""
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    with _as_owner(server.user):
        for process in [postmaster, *postmaster.children()]:
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))


@contextmanager
def _as_owner(user: pwd.struct_passwd | None) -> Iterator[None]:
    """Limits are set by the same real user; root in a container may lack the right to set others'.
    The effective user stays."""
    if user is None:
        yield
        return
    os.setresgid(user.pw_gid, -1, -1)
    os.setresuid(user.pw_uid, -1, -1)
    try:
        yield
    finally:
        os.setresuid(0, -1, -1)
        os.setresgid(0, -1, -1)
