"""The periodic tasks of a daemon outlive whatever happens to their connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest
from structlog.testing import capture_logs

from outbox.errors import ConfigurationError
from outbox.store.connect import HotConnection, connect_hot
from outbox.store.upkeep import upkeep

EVERY_S = 0.001


def events(logs: list[dict[str, object]]) -> list[object]:
    return [line["event"] for line in logs]


def rounds(
    url: str, body: Callable[[HotConnection, int], None], count: int, *, refuse: int = 0
) -> tuple[list[dict[str, object]], int]:
    """Run `body` so many times; what was logged, and how many connections were opened."""
    opened = [0]
    seen = [0]

    async def main() -> None:
        over = asyncio.Event()

        async def open_connection() -> HotConnection:
            opened[0] += 1
            if opened[0] <= refuse:
                raise ConfigurationError("not now")
            return await connect_hot(url, "test")

        async def step(connection: HotConnection) -> None:
            seen[0] += 1
            if seen[0] >= count:
                over.set()
            body(connection, seen[0])
            await connection.raw.execute("SELECT 1")

        task = asyncio.create_task(upkeep("look", open_connection, EVERY_S, step))
        await asyncio.wait_for(over.wait(), 60)
        task.cancel()
        await asyncio.wait([task])

    with capture_logs() as logs:
        asyncio.run(main())
    return [dict(line) for line in logs], opened[0]


def test_one_connection_serves_as_long_as_it_works(database: str) -> None:
    assert rounds(database, lambda _c, _n: None, 5) == ([], 1)


def test_a_connection_that_breaks_is_opened_anew_and_said_once_a_failure(database: str) -> None:
    def body(connection: HotConnection, number: int) -> None:
        if number in {2, 5}:
            with psycopg.connect(database, autocommit=True) as other:
                pid = connection.raw.info.backend_pid
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    logs, opened = rounds(database, body, 7)
    assert opened == 3
    assert events(logs) == ["upkeep.failed"] * 2
    assert {line["task"] for line in logs} == {"look"}


@pytest.mark.parametrize("refuse", [1, 4])
def test_a_database_that_refuses_is_asked_again_and_said_once(database: str, refuse: int) -> None:
    logs, opened = rounds(database, lambda _c, _n: None, 2, refuse=refuse)
    assert opened == refuse + 1
    assert [line["error"] for line in logs] == ["not now"]
