"""What every test may ask for: real servers, fresh databases, seeded randomness.

Each pytest process (each xdist worker) has one PostgreSQL of its own; a test's database is a copy
of a migrated template and takes about 30 ms. Redis takes 15 ms, so each test gets its own.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
from collections.abc import Callable, Iterator

import pytest

from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.profiles import register
from tests.scratch import close_scratch, open_scratch
from tests.servers import PeerPostgres, open_server, server_version

TEMPLATE = "outbox_template"

register()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the run's seed here, so that the header shows it and xdist workers share it.

    A run in the background may have SIGINT ignored; its children, which tests interrupt, must not.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scratch = open_scratch()  # an xdist worker inherits that of its parent
    if scratch is not None:
        config.add_cleanup(lambda: close_scratch(scratch))
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(secrets.randbits(32))


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: replay with --hypothesis-seed={config.getoption('--hypothesis-seed')}"


def pytest_xdist_auto_num_workers() -> int:
    """Two to four processes: each has servers of its own beside it."""
    return max(2, min(4, os.cpu_count() or 2))


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The run's seed, for tests that draw their own random numbers."""
    return int(pytestconfig.getoption("--hypothesis-seed"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, by name and reason in the marker, what the server's version cannot do."""
    version = server_version()
    too_new = [item for item in items if _needs(item) > version]
    if too_new:
        config.hook.pytest_deselected(items=too_new)
        items[:] = [item for item in items if _needs(item) <= version]


def _needs(item: pytest.Item) -> int:
    marker = item.get_closest_marker("pg_min")
    return int(marker.args[0]) if marker is not None else 0


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres | PeerPostgres]:
    """The PostgreSQL of this pytest process. Tests that crash or restart one use `own_postgres`."""
    with open_server() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL for this test alone, to crash, stop and restart (starts in half a second)."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: EmbeddedPostgres | PeerPostgres) -> Iterator[str]:
    """The name of a database that holds the schema; nobody may stay connected to it."""
    from outbox.store.migrate import migrate

    name = f"{TEMPLATE}_{os.getpid()}"
    migrate(postgres.create_database(name))
    yield name
    postgres.drop_database(name)


_numbers = itertools.count(1)


@pytest.fixture
def make_database(
    postgres: EmbeddedPostgres | PeerPostgres,
) -> Iterator[Callable[[str | None], str]]:
    """Make databases, dropped after the test: from a template by name, or empty ones for None."""
    made: list[str] = []

    def make(template: str | None) -> str:
        made.append(f"test_{os.getpid()}_{next(_numbers)}")
        return postgres.create_database(made[-1], template)

    yield make
    for name in made:
        postgres.drop_database(name)


@pytest.fixture
def database(make_database: Callable[[str | None], str], migrated_template: str) -> str:
    """The libpq URL of a fresh database with the schema `outbox`."""
    return make_database(migrated_template)


@pytest.fixture
def empty_database(make_database: Callable[[str | None], str]) -> str:
    """The libpq URL of a fresh database with nothing in it."""
    return make_database(None)


@pytest.fixture
def redis_server() -> Iterator[EmbeddedRedis]:
    """A Redis for this test alone, to flush, crash, stop and restart."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of this test's Redis."""
    return redis_server.url
