"""The programs of the previous migration level, and a database that they installed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from outbox.embedded import EmbeddedPostgres
from tests.servers import PeerPostgres
from tests.upgrade.old import Programs

PREVIOUS = Path(__file__).with_name("level_10.zip")


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The programs of the previous level, unpacked."""
    folder = tmp_path_factory.mktemp("level_10")
    with zipfile.ZipFile(PREVIOUS) as archive:
        archive.extractall(folder)
    return Programs(folder)


@pytest.fixture(scope="session")
def old_template(postgres: EmbeddedPostgres | PeerPostgres, old: Programs) -> Iterator[str]:
    """The name of a database with the schema of the previous level."""
    name = f"outbox_old_{os.getpid()}"
    old.run_ok("migrate", url=postgres.create_database(name))
    yield name
    postgres.drop_database(name)


@pytest.fixture
def old_database(make_database: Callable[[str | None], str], old_template: str) -> str:
    """The URL of a database with the schema of the previous level, which knows itself."""
    url = make_database(old_template)
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE outbox.installation SET database_oid ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    return url
