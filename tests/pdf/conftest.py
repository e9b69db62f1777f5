"""A database, a folder for documents, and settings that name both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.settings import Settings
from tests.engine.engine import Engine
from tests.pdf.helpers import hostile


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    made = Engine(database)
    yield made
    made.close()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return tmp_path / "documents"


@pytest.fixture
def settings(engine: Engine, documents: Path, tmp_path: Path) -> Settings:
    return Settings(
        database_url=engine.url,
        templates=str(hostile(tmp_path)),
        artifacts_url=documents.as_uri(),
    )
