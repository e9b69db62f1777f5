"""The pytest plugin `outbox`: fixtures that hand out what `outbox.testing` holds.

Every pytest run in an environment with this package loads this module, so it imports nothing but
pytest until a fixture is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox.testing.bench import Bench
    from outbox.testing.broker import RecordingBroker
    from outbox.testing.clock import Clock
    from outbox.testing.databases import Databases


def pytest_unconfigure() -> None:
    """End the server of this process, if there is one: workers of xdist run no exit handlers."""
    if databases := sys.modules.get("outbox.testing.databases"):
        databases.close_shared()


@pytest.fixture(scope="session")
def outbox_databases() -> Databases:
    """The PostgreSQL of this pytest process: an `outbox.testing.Databases`.

    The embedded one, or the server that OUTBOX_TEST_SERVER names (the libpq URL of a superuser).
    """
    from outbox.errors import OutboxError
    from outbox.testing.databases import shared

    try:
        return shared()
    except OutboxError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def outbox_database(outbox_databases: Databases) -> Iterator[str]:
    """The libpq URL of a fresh database with the schema `outbox`, dropped after the test."""
    with outbox_databases.fresh() as url:
        yield url


@pytest.fixture
def outbox_clock() -> Clock:
    """An `outbox.testing.Clock`: it moves only when it is told."""
    from outbox.testing.clock import Clock

    return Clock()


@pytest.fixture
def outbox_broker() -> Iterator[RecordingBroker]:
    """An `outbox.testing.RecordingBroker` without faults; set `faults` to give it some."""
    from outbox.testing.broker import RecordingBroker

    broker = RecordingBroker()
    yield broker
    broker.close()


@pytest.fixture
def outbox_bench(
    outbox_database: str, outbox_clock: Clock, outbox_broker: RecordingBroker
) -> Iterator[Bench]:
    """An `outbox.testing.Bench` over the three above: the real engine, step by step."""
    from outbox.testing.bench import Bench

    with Bench(outbox_database, clock=outbox_clock, broker=outbox_broker) as bench:
        yield bench
