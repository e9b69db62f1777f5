"""A database that is an installation of its own."""

from __future__ import annotations

import pytest

from outbox.store.migrate import migrate


@pytest.fixture
def installed(empty_database: str) -> str:
    """The URL of a migrated database; one copied from the template would be refused as a copy."""
    migrate(empty_database)
    return empty_database
