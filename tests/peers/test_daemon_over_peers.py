"""Daemon and workers as processes over a Redis and a RabbitMQ that run apart, on a PostgreSQL of
another major version: a worker is killed in mid-flight, the broker's connections are cut, and
nothing is lost.

The brokers are not ours to restart: a proxy closes their connections. They may serve others: the
installation has a namespace of its own there, and the test leaves nothing in it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import psycopg
import pytest
import redis

from outbox.store.identity import broker_namespace
from outbox.store.migrate import migrate, uninstall
from tests.broker.helpers import Proxy, proxy_to
from tests.cli.helpers import Process, Shop, wait_until
from tests.peers.webhooks import Change, Judge, captured_shop, insert, spawning

ROWS = 40
PORTS = {"redis": 6379, "amqp": 5672}
UPDATES_WAIT = """
    SELECT NOT EXISTS (SELECT FROM outbox.delivery d JOIN outbox.event e ON e.id = d.event_id
                       WHERE e.type = 'orders.updated' AND d.state = 'leased')
"""


@pytest.fixture(params=["redis", "amqp"])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"peer_{request.param}_url"))


@pytest.fixture
def proxy(broker_url: str) -> Iterator[Proxy]:
    parts = urlsplit(broker_url)
    with proxy_to(parts.port or PORTS[parts.scheme]) as opened:
        yield opened


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as opened:
        yield opened


@pytest.fixture
def shop(peer_database: str, judge: Judge, broker_url: str, proxy: Proxy) -> Iterator[Shop]:
    """A captured table on the other PostgreSQL; its daemons reach the broker by the proxy."""
    parts = urlsplit(broker_url)
    user, at, _ = parts.netloc.rpartition("@")
    near = parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}").geturl()
    migrate(peer_database)
    try:
        shop = captured_shop(peer_database, judge)
        shop.environ |= {"OUTBOX_BROKER_URL": near, "OUTBOX_LEASE": "3s"}
        yield shop
    finally:
        uninstall(peer_database)  # the roles are the cluster's


@pytest.fixture
def spawn(shop: Shop, broker_url: str) -> Iterator[Callable[..., Process]]:
    """The installation's own namespace keeps its messages from others'; it is empty afterwards."""
    with psycopg.connect(shop.url) as connection:
        namespace = broker_namespace(connection)
    with spawning() as start:
        yield lambda *args: start(*args, **shop.environ)
    if broker_url.startswith("redis"):
        with redis.Redis.from_url(broker_url) as client:
            for key in client.scan_iter(f"{namespace}:*"):
                client.delete(key)
    else:
        broker = pika.BlockingConnection(pika.URLParameters(broker_url))
        for suffix in ("", ".DQ", ".XQ"):
            broker.channel().queue_delete(f"{namespace}.deliver{suffix}")
        broker.close()


def fact(shop: Shop, name: str, *, charged: bool = False) -> int:
    """How many facts of a name the journal holds; with `charged` only those."""
    told = f"SELECT count(*) FROM outbox.journal WHERE fact = '{name}'"
    return int(shop.one(told + (" AND charged" if charged else "")))


def change(shop: Shop, statement: str, operation: str) -> set[Change]:
    """Change every row in one statement; returns what to expect."""
    with psycopg.connect(shop.url) as connection:
        changed = connection.execute(statement.encode()).rowcount
    assert changed == ROWS
    return {(operation, number) for number in range(1, ROWS + 1)}


def test_nothing_is_lost_when_a_worker_is_killed_and_the_broker_cuts_its_connections(
    spawn: Callable[..., Process], shop: Shop, judge: Judge, proxy: Proxy
) -> None:
    daemon, victim = spawn("run"), spawn("worker")
    daemon.wait_for("relay.connected")
    judge.gate.clear()
    expected = insert(shop.url, 1, ROWS)
    wait_until(lambda: len(judge.requests) == ROWS)  # all of them in mid-flight
    victim.signal(signal.SIGKILL)
    assert victim.ended() == -signal.SIGKILL

    proxy.refuse()
    expected |= change(shop, "UPDATE public.orders SET paid = true", "update")
    daemon.wait_for("relay.broker_lost")
    # What was handed over, if anything was, is given back and not left to run out.
    wait_until(lambda: shop.one(UPDATES_WAIT))
    assert fact(shop, "lease_expired") == fact(shop, "lease_expired", charged=True)
    judge.gate.set()
    worker = spawn("worker")
    worker.wait_for("broker_unreachable")
    proxy.admit()
    daemon.wait_for("relay.broker_back")
    worker.wait_for("broker_connected")
    wait_until(lambda: fact(shop, "delivered") == 2 * ROWS)

    proxy.refuse()  # of an idle daemon and worker, too
    worker.wait_for("broker_unreachable", 2)
    proxy.admit()
    expected |= change(shop, "DELETE FROM public.orders", "delete")
    wait_until(lambda: fact(shop, "delivered") == 3 * ROWS)

    assert set(judge.changes) == expected
    assert judge.forged == 0
    # Twice came at most what was in flight at the kill: the judge had taken it, nobody settled it.
    assert judge.accepted.total() - len(judge.accepted) <= ROWS
    assert fact(shop, "lease_expired", charged=True) == ROWS
    assert [fact(shop, name) for name in ("routed", "attempt_failed", "dead")] == [3 * ROWS, 0, 0]
    assert shop.states() == []
    for process in (daemon, worker):
        process.signal(signal.SIGTERM)
    assert [daemon.ended(), worker.ended()] == [0, 0]
