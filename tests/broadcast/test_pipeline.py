"""A committed change on the screens of its organization: table, daemon, Realtime, a real client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest

from tests.realtime.scene import SECRET, Scene, awaited, start, token
from tests.realtime.test_v1_client import Heard, client, private
from tests.system.town import Process, Town, town_over

pytestmark = pytest.mark.filterwarnings("ignore:ConnectionClosed:DeprecationWarning")

TABLE = "CREATE TABLE public.orders (id int PRIMARY KEY, org_id text, status text, secret text)"


@pytest.fixture
def town(realtime_database: str) -> Iterator[Town]:
    """A database that knows itself, a watched table, a daemon to come."""
    with psycopg.connect(realtime_database, autocommit=True) as connection:
        connection.execute(
            "UPDATE outbox.installation SET database_oid ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        connection.execute(TABLE)
        connection.execute("SELECT outbox.watch('public.orders', 'org_id')")
    with town_over(realtime_database) as made:
        yield made


@pytest.fixture
def scene(realtime_database: str) -> Iterator[Scene]:
    made = start(realtime_database)
    yield made
    made.stop()
    made.db.close()


def subscribe(town: Town, *options: str, **environ: str) -> None:
    args = ("subscriptions", "add", "--kind", "broadcast", "--events", "orders.*", "--include")
    process = Process((*args, "status", *options), {**town.environ, **environ})
    assert process.ended() == 0, process.said
    process.close()


@pytest.mark.parametrize("transport", ["sql", "http"])
@awaited
async def test_a_row_that_moves_shows_on_the_screens_of_both_organizations_and_on_no_other(
    town: Town, scene: Scene, transport: str
) -> None:
    """B gets the change, A a removal with the id only; repeated ids are one."""
    environ = {
        "OUTBOX_REALTIME_URL": scene.url,
        "OUTBOX_REALTIME_KEY": token(role="service_role", secret=SECRET),
    }
    subscribe(town, "--transport", transport, **environ)
    town.start("run", **environ)
    async with client(scene, token("alice")) as alice, client(scene, token("greta")) as greta:
        acme = await Heard(private(alice, "orders:acme")).subscribe()
        globex = await Heard(private(greta, "orders:globex")).subscribe()
        scene.db.execute("INSERT INTO public.orders VALUES (1, 'acme', 'new', 'x')")
        await acme.until(lambda: len(acme.messages) == 1)
        scene.db.execute("UPDATE public.orders SET org_id = 'globex', status = 'sold'")
        await acme.until(lambda: len(acme.messages) == 2)
        await globex.until(lambda: len(globex.messages) == 1)
    created, removed = acme.messages
    assert created["event"] == "orders.inserted"
    assert created["payload"]["record"] == {"status": "new"}
    assert removed["event"] == "orders.deleted"
    assert removed["payload"]["record"] is None
    assert removed["payload"]["subject"] == "orders/1"
    [moved] = globex.messages
    assert (moved["event"], moved["payload"]["record"]) == ("orders.inserted", {"status": "sold"})
    assert "secret" not in json.dumps([created, removed, moved])
    if transport == "sql":
        assert [m["meta"]["id"] for m in acme.messages] == [
            m["payload"]["delivery"] for m in acme.messages
        ]


@awaited
async def test_a_daemon_that_dies_sends_each_message_once(town: Town, scene: Scene) -> None:
    """Message and settle are one transaction, whatever is killed in between."""
    subscribe(town)
    for when in ("before", "after", "before"):
        daemon = town.start("run", OUTBOX_TEST_FAULT=f"{when}:broadcast_send:1")
        with scene.db.transaction():
            for n in range(20):
                emitted = "SELECT outbox.emit('orders.x', to_json(%s), 'acme')"
                scene.db.execute(emitted, [n])
        daemon.ended()
    town.start("run")
    town.wait_until_settled()
    counts = "SELECT count(*), count(DISTINCT id) FROM realtime.messages"
    assert scene.db.execute(counts).fetchone() == (60, 60)
