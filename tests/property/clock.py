"""A PostgreSQL whose clock the test turns.

`clock_timestamp()` is replaced in one database, before the schema goes in, by a function that reads
a sequence: every statement, column default and function then lives on our time, on every connection
at once and whether or not it takes an optional now. A sequence, because it obeys no snapshot.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from outbox.store.migrate import migrate

T0 = datetime(2030, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_OURS = """
    CREATE SCHEMA clock;
    CREATE SEQUENCE clock.micros AS bigint CACHE 1;
    GRANT USAGE ON SCHEMA clock TO PUBLIC;
    GRANT SELECT ON SEQUENCE clock.micros TO PUBLIC;
    ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp;
    CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
        SELECT timestamptz 'epoch'
             + interval '1 microsecond' * (SELECT last_value FROM clock.micros)::float8 $$
"""
SALT = "00000000-0000-4000-8000-000000000000"


def install(url: str) -> None:
    """Give an empty database our clock and the schema; delivery ids are the same in every run."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_OURS)
        turn(connection, T0)
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE outbox.installation SET salt = %s", [SALT])


def turn(connection: psycopg.Connection[Any], now: datetime) -> None:
    """Set the clock."""
    micros = (now - _EPOCH) // _MICROSECOND
    connection.execute("SELECT setval('clock.micros', %s)", [micros])
