"""A stand-in server over a database of its own, and what its clients need: tokens, members."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import wraps
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid5

import jwt
import psycopg
import pytest

from outbox.realtime.limits import Limits
from outbox.realtime.server import RealtimeServer, address_of, bind, serve
from outbox.realtime.tokens import Verifier

SECRET = "a secret for tests, as long as the longest hash of them asks: 64 bytes"
WITHIN_S = 20.0
PEOPLE = UUID("6a7b2625-55fd-4b26-8a07-8feea0875b8c")
QUICK = Limits(connect_delay_s=0.0, join_delay_s=0.0, events_per_s=100_000, joins_per_s=100_000)

MEMBERS = """
CREATE TABLE public.memberships (user_id uuid NOT NULL, org_id text NOT NULL);
GRANT SELECT ON public.memberships TO authenticated;
INSERT INTO public.memberships VALUES (%(alice)s, 'acme'), (%(greta)s, 'globex'),
    (%(both)s, 'acme'), (%(both)s, 'globex');
"""


def awaited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine function on a loop of its own."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def person(name: str) -> str:
    """The id of a user."""
    return str(uuid5(PEOPLE, name))


def token(
    name: str | None = None, *, secret: str = SECRET, lasts_s: float = 600, **claims: Any
) -> str:
    """A token of a user; without a name, the project's anonymous key."""
    said: dict[str, Any] = {"role": "anon", "exp": time.time() + lasts_s}
    if name is not None:
        said |= {"role": "authenticated", "sub": person(name)}
    said |= claims
    return jwt.encode({k: v for k, v in said.items() if v is not None}, secret, "HS256")


@dataclass
class Scene:
    """A running server and its database."""

    url: str
    database: str
    server: RealtimeServer
    stop: Callable[[], None] = field(repr=False)
    db: psycopg.Connection[Any] = field(repr=False)

    @property
    def ws(self) -> str:
        """The address for websocket clients."""
        return self.url.replace("http://", "ws://")

    def send(
        self, topic: str, event: str = "orders.updated", private: bool = True, **payload: Any
    ) -> None:
        """Broadcast from SQL, as an application does."""
        self.db.execute(
            "SELECT realtime.send(%s::jsonb, %s, %s, %s)",
            [json.dumps(payload), event, topic, private],
        )


def prepare(url: str) -> None:
    """Install the stand-in schema, two organizations and the policy between them."""
    people = {name: person(name) for name in ("alice", "greta", "both")}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT outbox.install_realtime_shim()")
        for line in filter(str.strip, MEMBERS.split(";")):
            connection.execute(line.encode(), people if "%(" in line else None)
        connection.execute(
            "SELECT outbox.install_realtime_policies('orders', 'memberships', 'user_id', 'org_id')"
        )


def start(
    database: str, limits: Limits = QUICK, verifier: Verifier | None = None, port: int = 0
) -> Scene:
    """Serve in a thread of its own, so that a client's loop is not the server's."""
    listening = bind("127.0.0.1", port)
    up = Event()
    made: list[tuple[RealtimeServer, asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        server = RealtimeServer(database, verifier or Verifier(SECRET, None), limits)
        made.append((server, asyncio.get_running_loop()))
        await serve(server, listening, up.set)

    thread = Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert up.wait(WITHIN_S)
    [(server, loop)] = made

    def stop() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(server.stop)
            thread.join(WITHIN_S)
        assert not thread.is_alive()

    db = psycopg.connect(database, autocommit=True)
    return Scene(address_of(listening), database, server, stop, db)


@pytest.fixture(scope="session")
def realtime_template(postgres: Any, migrated_template: str) -> Iterator[str]:
    """The name of a database with the stand-in, two organizations and the policy."""
    # Each conftest that names this fixture makes one of its own.
    name = f"{migrated_template}_{secrets.token_hex(4)}"
    prepare(postgres.create_database(name, migrated_template))
    yield name
    postgres.drop_database(name)


@pytest.fixture
def realtime_database(make_database: Callable[[str | None], str], realtime_template: str) -> str:
    """The URL of a fresh database with all that."""
    return make_database(realtime_template)


@pytest.fixture
def make_scene(realtime_database: str) -> Iterator[Callable[..., Scene]]:
    """Start servers with limits of one's own; stopped at the end."""
    made: list[Scene] = []

    def make(limits: Limits = QUICK, verifier: Verifier | None = None, port: int = 0) -> Scene:
        made.append(start(realtime_database, limits, verifier, port))
        return made[-1]

    yield make
    for scene in made:
        scene.stop()
        scene.db.close()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    """A server that refuses at once and limits next to nothing."""
    return make_scene()


@pytest.fixture(scope="session")
def shared(postgres: Any, realtime_template: str) -> Iterator[Scene]:
    """One server for tests that change nothing but messages."""
    name = f"{realtime_template}_shared"
    scene = start(postgres.create_database(name, realtime_template))
    yield scene
    scene.stop()
    scene.db.close()
    postgres.drop_database(name)
