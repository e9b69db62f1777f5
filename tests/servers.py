"""Which PostgreSQL the tests run on: embedded, or one that runs already.

OUTBOX_TEST_SERVER is unset for the newest embedded version, a major version (`16`) for another
embedded one, or a libpq URL of a superuser on a server of any version.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from outbox.embedded import EmbeddedPostgres

NEWEST = 18


def _given() -> str:
    return os.environ.get("OUTBOX_TEST_SERVER", "")


@cache
def server_version() -> int:
    """The major version that the tests run on."""
    given = _given()
    if not given:
        return NEWEST
    if given.isdecimal():
        return int(given)
    with psycopg.connect(given) as connection:
        return connection.info.server_version // 10_000


class PeerPostgres:
    """A server that runs already; tests make and drop databases on it and touch nothing else."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.version = server_version()

    def url(self, name: str) -> str:
        """The URL of a database."""
        return urlsplit(self._url)._replace(path=f"/{name}").geturl()

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database; returns its URL."""
        copy = sql.SQL("TEMPLATE {}").format(sql.Identifier(template)) if template else sql.SQL("")
        self._run(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), copy))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def open_server() -> Iterator[EmbeddedPostgres | PeerPostgres]:
    """The server that the variable names, started if it is embedded."""
    given = _given()
    if given and not given.isdecimal():
        yield PeerPostgres(given)
        return
    with EmbeddedPostgres(version=server_version()) as server:
        yield server
