"""The daemon behind PgBouncer in transaction mode: right without LISTEN, prompt with a direct URL.

The pool has two sessions, so that everything a pooler can mix up is mixed up.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import structlog

from outbox.embedded.server import Server
from outbox.errors import DatabaseUnavailable
from outbox.store.connect import connect_hot
from outbox.store.listen import Bell
from tests.cli.helpers import Process, Shop, wait_until
from tests.peers.webhooks import Judge, captured_shop, insert, spawning

ROWS = 40
SESSIONS = 2

CONFIG = """
[databases]
* = host={host} port={port} user={user} password='{password}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer(Server):
    """A pooler of our own before one PostgreSQL; root steps down, PgBouncer refuses to be root."""

    name = "PgBouncer"
    unavailable = DatabaseUnavailable
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL
    complaints = ("FATAL", "ERROR")

    def __init__(self, program: Path, target: str) -> None:
        super().__init__()
        self._program = program
        self._target = urlsplit(target)
        self.user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None

    def url(self, database_url: str) -> str:
        """The URL of the same database behind the pooler."""
        return f"postgresql://pooled@127.0.0.1:{self.port}{urlsplit(database_url).path}"

    def _fill_folder(self) -> None:
        pass  # the port stands in the file: it is written when the port is known

    def _command(self, port: int) -> list[str]:
        target, config = self._target, self.folder / "pgbouncer.ini"
        config.write_text(
            CONFIG.format(
                host=target.hostname,
                port=target.port,
                user=target.username,
                password=target.password,
                listen=port,
                sessions=SESSIONS,
            )
        )
        return [str(self._program), str(config)]

    def _ready(self, port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.fixture
def pooler(database: str) -> Iterator[PgBouncer]:
    found = shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        pytest.fail("missing peer: pgbouncer, from your system's package manager", pytrace=False)
    with PgBouncer(Path(found), database) as running:
        yield running


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as opened:
        yield opened


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    with spawning() as start:
        yield start


@pytest.fixture
def shop(database: str, judge: Judge) -> Shop:
    """A captured table in a database that knows itself. Its bell is as migrated: rung by all."""
    shop = captured_shop(database, judge)
    shop.execute(
        "UPDATE outbox.installation SET database_oid ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert bell_of(shop) == 2
    return shop


def bell_of(shop: Shop) -> int:
    """1: whoever commits need not ring, 2: a sleeping relay asked for it."""
    return int(shop.one("SELECT last_value FROM outbox.bell"))


def facts(shop: Shop) -> dict[str, int]:
    """How often the journal holds each fact."""
    told = "SELECT coalesce(json_object_agg(fact, n), '{}') FROM"
    return dict(shop.one(told + " (SELECT fact, count(*) AS n FROM outbox.journal GROUP BY 1) f"))


def sessions(shop: Shop) -> int:
    """How many others are connected to the shop's database."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return int(shop.one(others + " AND pid <> pg_backend_pid()"))


@pytest.mark.parametrize("apart", [False, True], ids=["memory", "a worker over redis"])
def test_rows_are_delivered_and_retried_through_the_pooler_without_listen(
    apart: bool,
    spawn: Callable[..., Process],
    pooler: PgBouncer,
    shop: Shop,
    judge: Judge,
    redis_url: str,
) -> None:
    judge.answer = lambda attempt: 500 if attempt == 1 else 200
    url = pooler.url(shop.url)
    broker = redis_url if apart else "memory://"
    environ = {**shop.environ, "OUTBOX_DATABASE_URL": url, "OUTBOX_BROKER_URL": broker}
    running = [spawn("run", **environ)]
    if apart:
        running.append(spawn("worker", **environ))
        running[1].wait_for("worker.started")
    assert [line["direct"] for line in running[0].wait_for("relay.connected")] == [False]
    assert len(running[0].wait_for("bell.pooled")) == 1
    expected = insert(url, 1, ROWS)
    wait_until(lambda: facts(shop).get("delivered") == ROWS)
    assert set(judge.changes) == expected
    assert set(judge.requests.values()) == {2}
    assert facts(shop) == {"routed": ROWS, "attempt_failed": ROWS, "delivered": ROWS}
    assert judge.forged == 0
    assert shop.states() == []
    assert sessions(shop) <= SESSIONS
    assert bell_of(shop) == 1, "nobody listens, but every commit rings"
    for process in running:
        process.signal(signal.SIGTERM)
    assert [process.ended() for process in running] == [0] * len(running)
    said = "".join(process.said for process in running)
    assert "database_lost" not in said, said
    assert '"level":"error"' not in said.replace(" ", ""), said


def test_with_a_direct_url_to_listen_on_a_sleeping_relay_is_rung(
    spawn: Callable[..., Process], pooler: PgBouncer, shop: Shop, judge: Judge
) -> None:
    url = pooler.url(shop.url)
    environ = {**shop.environ, "OUTBOX_DATABASE_URL": url, "OUTBOX_LISTEN_URL": shop.url}
    daemon = spawn("run", **environ)
    assert [line["direct"] for line in daemon.wait_for("relay.connected")] == [False]
    shop.execute("SELECT setval('outbox.bell', 1, true)")
    wait_until(lambda: bell_of(shop) == 2)  # it sleeps, and asks only if it hears
    ears = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox bell'"
    assert shop.one(ears + " AND datname = current_database()") == 1
    with psycopg.connect(shop.url, autocommit=True) as also:
        also.execute("LISTEN outbox")
        insert(url, 1, 1)
        assert [one.channel for one in also.notifies(timeout=30, stop_after=1)] == ["outbox"]
    wait_until(lambda: set(judge.changes) == {("insert", 1)})
    assert not daemon.events("bell.pooled")
    assert not daemon.events("bell.lost")


def test_a_pooler_that_dies_and_comes_back_loses_nothing(
    spawn: Callable[..., Process], pooler: PgBouncer, shop: Shop, judge: Judge
) -> None:
    daemon = spawn("run", **{**shop.environ, "OUTBOX_DATABASE_URL": pooler.url(shop.url)})
    daemon.wait_for("relay.connected")
    judge.gate.clear()
    expected = insert(shop.url, 1, ROWS)
    wait_until(lambda: len(judge.requests) == ROWS)
    pooler.crash()
    daemon.wait_for("relay.database_lost")
    judge.gate.set()  # the outcomes of these attempts wait for the database
    expected |= insert(shop.url, ROWS + 1, 2 * ROWS)
    pooler.start()
    wait_until(lambda: facts(shop).get("delivered") == 2 * ROWS)
    assert facts(shop) == {"routed": 2 * ROWS, "delivered": 2 * ROWS}
    assert set(judge.changes) == expected
    assert set(judge.accepted.values()) == {1}


def test_a_bell_behind_the_pooler_says_so_and_a_direct_one_hears_pooled_writers(
    pooler: PgBouncer, shop: Shop
) -> None:
    async def listen() -> None:
        deaf, bell = Bell(), Bell()
        with structlog.testing.capture_logs() as lines:
            await asyncio.wait_for(deaf.listen(pooler.url(shop.url)), 30)
        assert [line["event"] for line in lines] == ["bell.pooled"]
        assert not deaf.heard
        listening = asyncio.create_task(bell.listen(shop.url))
        while not bell.heard:
            await asyncio.sleep(0.005)
        assert not bell.rung.is_set()
        shop.execute("SELECT setval('outbox.bell', 2, true)")
        await asyncio.to_thread(insert, pooler.url(shop.url), 1, 1)
        await asyncio.wait_for(bell.rung.wait(), 30)
        listening.cancel()
        await asyncio.wait([listening])

    asyncio.run(listen())


def test_a_loop_finds_the_pooler_out_and_leaves_its_sessions_as_they_were(
    pooler: PgBouncer, shop: Shop
) -> None:
    async def look(url: str) -> tuple[bool, int | None, set[str]]:
        connection = await connect_hot(url, "relay")
        async with connection.raw:
            await connection.run(
                "tick",
                {"floor": 0, "bell": None, "leases": True, "since_s": None}
                | {"lane_from": 0, "lanes_max": 10},
            )
            await connection.run("dispatch_lock", {}, lock="dispatch_lock", limit_ms=500)
            names = ("enable_seqscan", "statement_timeout", "lock_timeout", "search_path")
            found = set()
            for name in names:
                row = await (await connection.raw.execute(f"SHOW {name}".encode())).fetchone()
                assert row is not None
                found.add(f"{name} {row[0]}")
            return connection.direct, connection.raw.prepare_threshold, found

    usual = {
        'search_path "$user", public',
        *("enable_seqscan on", "statement_timeout 0", "lock_timeout 0"),
    }
    assert asyncio.run(look(pooler.url(shop.url))) == (False, None, usual)
    direct, prepare_threshold, settings = asyncio.run(look(shop.url))
    assert (direct, prepare_threshold) == (True, 0)
    assert settings.isdisjoint(usual)
