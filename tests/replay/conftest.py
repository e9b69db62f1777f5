"""A shop whose past can be replayed; afterwards every row must be what the facts say."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from outbox.store.connect import connect
from outbox.store.rebuild import verify
from tests.replay.helpers import Past


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
def past(database: str) -> Iterator[Past]:
    """I13 is checked at the end of every test."""
    with connect(database, autocommit=True) as connection:
        past = Past(database, connection)
        yield past
        assert verify(connection).samples == {}
