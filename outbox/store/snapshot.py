"""The schema as text, for the test that migrations and the committed snapshot agree.

`python -m outbox.store.snapshot` migrates a scratch database on the embedded PostgreSQL and writes
the snapshot anew.
"""

from __future__ import annotations

from pathlib import Path

from outbox.store.connect import connect
from outbox.store.migrate import migrate
from outbox.store.statements import sql_folder


def snapshot(url: str) -> str:
    """The schema of a database: one line an object, sorted, without names of the installation."""
    query = (sql_folder() / "snapshot" / "schema.sql").read_text(encoding="utf-8")
    with connect(url) as connection:
        # Types and functions of pg_catalog are then shown without their schema, ours with it.
        connection.execute("SET search_path = pg_catalog")
        rows = connection.execute(query.encode()).fetchall()
    return "".join(f"{row[0].rstrip()}\n" for row in rows)


def committed_path() -> Path:
    """Where the committed snapshot lies."""
    return sql_folder() / "snapshot" / "schema.txt"


def main() -> None:
    """Write the committed snapshot from the migrations as they are."""
    from outbox.embedded import EmbeddedPostgres

    with EmbeddedPostgres() as server:
        url = server.create_database("snapshot")
        migrate(url)
        committed_path().write_text(snapshot(url), encoding="utf-8")


if __name__ == "__main__":
    main()
