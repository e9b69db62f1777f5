"""A folder of a user's own, and processors that a test writes down."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.engine.engine import Engine


@pytest.fixture
def database(database: str) -> str:
    """A database that knows itself: the template's copy would be refused as the copy it is."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE outbox.installation SET database_oid ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    return database


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """The engine on this test's database."""
    engine = Engine(database)
    yield engine
    engine.close()
