"""The engine's statements on a fresh database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.engine import Engine


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """A database driven statement by statement."""
    made = Engine(database)
    yield made
    made.close()
