"""A post office for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mail.post import Post
from tests.mail.sink import Sink


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as opened:
        yield opened


@pytest.fixture
def post(database: str, sink: Sink) -> Iterator[Post]:
    opened = Post(database, sink)
    yield opened
    if opened.checked:
        opened.engine.check()
    opened.engine.close()
