"""Which PostgreSQL the tests run on: embedded, or one that runs already.

OUTBOX_TEST_SERVER is unset for the newest embedded version, a major version (`16`) for another
embedded one, the folder of an installation (with `bin/postgres`), `peer` for the second server of
`make test-peers`, or a libpq URL of a superuser.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from outbox.embedded import EmbeddedPostgres

NEWEST = 18


# The first that answers is taken. The socket serves where the server trusts local users by name.
PEER_URLS = (
    "postgresql://postgres:postgres@127.0.0.1:5432/postgres",
    "postgresql:///postgres?host=/var/run/postgresql",
)


def version_of(url: str) -> int | None:
    """The major version of a server; None where nobody answers."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.info.server_version // 10_000
    except psycopg.OperationalError:
        return None


@cache
def peer_url() -> str | None:
    """The second PostgreSQL: OUTBOX_TEST_DATABASE_URL, or on a standard local port."""
    given = os.environ.get("OUTBOX_TEST_DATABASE_URL")
    for url in [given] if given else PEER_URLS:
        if version_of(url) is not None:
            return url
    return None


@cache
def _given() -> str:
    given = os.environ.get("OUTBOX_TEST_SERVER", "")
    if given != "peer":
        return given
    url = peer_url()
    if url is None:
        raise pytest.UsageError("missing peer: a PostgreSQL; set OUTBOX_TEST_DATABASE_URL")
    return url


@cache
def server_version() -> int:
    """The major version that the tests run on."""
    given = _given()
    if not given:
        return NEWEST
    if given.isdecimal():
        return int(given)
    if (folder := _folder(given)) is not None:
        return installed_version(folder)
    version = version_of(given)
    if version is None:
        raise pytest.UsageError("OUTBOX_TEST_SERVER does not answer")
    return version


def _folder(given: str) -> Path | None:
    return Path(given) if given.startswith("/") else None


def installed_version(folder: Path) -> int:
    """The major version of the PostgreSQL that is installed in a folder."""
    command = [str(folder / "bin" / "postgres"), "--version"]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise pytest.UsageError(f"no PostgreSQL that runs here is in {folder}") from None
    return int(told.split()[2].partition(".")[0])


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


class PeerPostgres:
    """A server that runs already; tests make and drop databases on it and touch nothing else."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.version = server_version()

    def url(self, name: str) -> str:
        """The URL of a database."""
        return with_database(self._url, name)

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
    folder = _folder(given)
    if given and not given.isdecimal() and folder is None:
        yield PeerPostgres(given)
        return
    with EmbeddedPostgres(version=server_version(), install=folder) as server:
        yield server
