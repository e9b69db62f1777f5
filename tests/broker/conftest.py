"""One courier a test, over each broker that needs no other program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from processors.broker import Courier, open_broker


@pytest.fixture(params=["redis", "memory"])
def courier(request: pytest.FixtureRequest) -> Iterator[Courier]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    opened = open_broker(url)
    yield opened
    opened.close()
