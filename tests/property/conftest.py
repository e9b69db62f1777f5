"""One database with our clock for all machines of a pytest process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from outbox.embedded import EmbeddedPostgres
from outbox.store.artifacts import Notes
from outbox.store.broadcasts import Broadcasts
from outbox.store.connect import connect_hot
from outbox.store.emails import Emails
from tests.property import clock
from tests.property.papers import Shop
from tests.property.world import Arena
from tests.servers import PeerPostgres


@pytest.fixture(scope="session")
def arena(postgres: EmbeddedPostgres | PeerPostgres) -> Iterator[Arena]:
    """Emptied before each example."""
    name = f"property_{os.getpid()}"
    url = postgres.create_database(name)
    clock.install(url)
    made = Arena(url)
    yield made
    made.close()
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def shop(arena: Arena) -> Iterator[Arena]:
    """The same with a table of messages, and connections of the processors."""
    arena.admin.execute(
        "CREATE SCHEMA realtime; CREATE TABLE realtime.messages (id uuid PRIMARY KEY, topic text,"
        " extension text, payload jsonb, event text, private boolean, inserted_at timestamp,"
        " updated_at timestamp)"
    )
    made = Shop(
        Emails(arena.url),
        Notes(lambda: connect_hot(arena.url, "notes")),
        Broadcasts(arena.hot),
    )
    arena.shop = made
    yield arena
    arena.run(made.emails.close())
    arena.run(made.notes.close())
