"""The fixture of the operator's tests."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.admin.helpers import Shop, shop_at


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
def shop(database: str) -> Iterator[Shop]:
    """A fresh database with an operator's connection; what the journal tells is checked at the
    end of every test."""
    with shop_at(database) as shop:
        yield shop
        shop.check()
