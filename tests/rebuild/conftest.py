"""A furnished database: facts and rows of every kind, and nothing that differs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from outbox.embedded import EmbeddedPostgres
from tests.rebuild.scene import Scene, furnish, verified
from tests.servers import PeerPostgres


@pytest.fixture
def bare(database: str) -> Iterator[Scene]:
    """A database without anything in it."""
    made = Scene(database)
    yield made
    made.close()


@pytest.fixture(scope="session")
def furnished(postgres: EmbeddedPostgres | PeerPostgres, migrated_template: str) -> Iterator[str]:
    """The name of a database with deliveries in every state, to be copied: made once."""
    name = f"outbox_furnished_{os.getpid()}"
    url = postgres.create_database(name, migrated_template)
    scene = Scene(url)
    furnish(scene)
    scene.close()
    assert verified(url).samples == {}
    yield name
    postgres.drop_database(name)


@pytest.fixture
def database(
    make_database: Callable[[str | None], str],
    migrated_template: str,
    request: pytest.FixtureRequest,
) -> str:
    """A copy of the furnished database where the test asks for its scene, else an empty one."""
    wanted = "scene" in request.fixturenames
    return make_database(request.getfixturevalue("furnished") if wanted else migrated_template)


@pytest.fixture
def scene(bare: Scene) -> Scene:
    """Deliveries in every state; at the start nothing differs."""
    return bare
