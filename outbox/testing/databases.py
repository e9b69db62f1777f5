"""Fresh databases with the schema, each a copy of one migrated template.

Owns the server it starts: the embedded one (`pip install 'outboxd[embedded]'`), or, where
OUTBOX_TEST_SERVER holds the libpq URL of a superuser, one that runs already, on which it makes and
drops databases of its own. Promises that what it made is gone after `close()`.
"""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from outbox.embedded import EmbeddedPostgres
from outbox.errors import ConfigurationError
from outbox.store.connect import connect
from outbox.store.deliveries import Connection
from outbox.store.migrate import migrate
from outbox.store.statements import sql_folder

T = TypeVar("T")

VARIABLE = "OUTBOX_TEST_SERVER"


def empty(connection: Connection) -> None:
    """Take every row from a database made here; dearer ways to a fresh one are a copy of the
    template. `connection` is in autocommit mode."""
    connection.execute((sql_folder() / "testing" / "empty.sql").read_bytes())


class _Server(Protocol):
    def create_database(self, name: str, template: str | None = None) -> str: ...

    def drop_database(self, name: str) -> None: ...

    def close(self) -> None: ...


class _Running:
    """A server that runs already. Names are drawn here and need no quoting."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ConfigurationError(
                f"{VARIABLE} is neither the libpq URL of a superuser (postgresql://...) nor the"
                " version of an embedded PostgreSQL"
            )
        self._url = url

    def create_database(self, name: str, template: str | None = None) -> str:
        self._run(f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}")
        return urlsplit(self._url)._replace(path=f"/{name}").geturl()

    def drop_database(self, name: str) -> None:
        self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        """It is not ours."""

    def _run(self, text: str) -> None:
        with connect(self._url, autocommit=True) as connection:
            connection.execute(text.encode())


class Databases:
    """Makes databases that hold the schema `outbox` and nothing else, in about 30 ms each.

    `server` is None for the embedded PostgreSQL, its major version, or the libpq URL of a
    superuser. Starting takes about a second, with the first database.
    """

    def __init__(self, server: str | None = None) -> None:
        """Raises ConfigurationError (in one line) where no embedded PostgreSQL is installed."""
        self._server = _open(server)
        self._prefix = f"outbox_test_{os.getpid()}_{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)
        self._template: str | None = None
        self._kept: dict[object, Any] = {}
        self._opened = ExitStack()

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """A new database: its libpq URL. It is dropped at the end, whoever is connected."""
        template = self._template or self._make_template()
        name = f"{self._prefix}_{next(self._numbers)}"
        url = self._server.create_database(name, template)
        try:
            yield url
        finally:
            self._server.drop_database(name)

    def keep(self, key: object, make: Callable[[str], AbstractContextManager[T]]) -> T:
        """What was made, for this key, of a database of its own: open until `close`."""
        if key not in self._kept:
            url = self._opened.enter_context(self.fresh())
            self._kept[key] = self._opened.enter_context(make(url))
        kept: T = self._kept[key]
        return kept

    def close(self) -> None:
        """Remove everything, and stop the server if it was started here."""
        self._opened.close()
        self._kept.clear()
        if self._template is not None:
            self._server.drop_database(self._template)
            self._template = None
        self._server.close()

    def _make_template(self) -> str:
        name = f"{self._prefix}_template"
        migrate(self._server.create_database(name))
        self._template = name
        return name


def _open(server: str | None) -> _Server:
    if server is None:
        return EmbeddedPostgres().start()
    if server.isdecimal():
        return EmbeddedPostgres(version=int(server)).start()
    return _Running(server)


@cache
def shared() -> Databases:
    """Those of this process: started when first asked for, closed by `close_shared` or its end."""
    databases = Databases(os.environ.get(VARIABLE) or None)
    atexit.register(close_shared)
    return databases


def close_shared() -> None:
    """Close what `shared` started, if it did."""
    if shared.cache_info().currsize:
        shared().close()
        shared.cache_clear()
