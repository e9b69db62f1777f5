"""The fixture of the operator's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.admin.helpers import Shop, shop_at


@pytest.fixture
def shop(database: str) -> Iterator[Shop]:
    """A fresh database with an operator's connection; what the journal tells is checked at the
    end of every test."""
    with shop_at(database) as shop:
        yield shop
        shop.check()
