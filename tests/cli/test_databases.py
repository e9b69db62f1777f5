"""Several databases served by one daemon and its workers: as processes, with real servers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from outbox.embedded import free_port
from outbox.store.migrate import migrate
from tests.cli.helpers import Outbox, Process, Ran, Receiver, Shop, wait_until

Spawn = Callable[..., Process]
Make = Callable[[str | None], str]

DELIVERED = "SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'"


@dataclass(frozen=True)
class Town:
    """Two shops on one PostgreSQL, each an installation of its own, and one receiver for both."""

    east: Shop
    west: Shop
    environ: dict[str, str]

    @property
    def both(self) -> list[str]:
        """The options that name the two databases."""
        return ["--database", self.east.url, "--database", self.west.url]

    def delivered(self) -> list[int]:
        return [int(shop.one(DELIVERED)) for shop in (self.east, self.west)]


def place(shop: Shop) -> str:
    parts = urlsplit(shop.url)
    return f"{parts.hostname}:{parts.port}{parts.path}"


@contextmanager
def away(shop: Shop, beside: Shop) -> Iterator[None]:
    """A database that ends its connections and takes none, while its neighbour works."""
    name = urlsplit(shop.url).path.lstrip("/")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(beside.url, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
            [name],
        )
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(name), sql.Literal(True)))


@pytest.fixture
def town(make_database: Make, key: str, receiver: Receiver) -> Town:
    urls = [make_database(None) for _ in range(2)]
    for url in urls:
        migrate(url)
    east, west = (Shop(url, key, receiver) for url in urls)
    environ = {k: v for k, v in east.environ.items() if k != "OUTBOX_DATABASE_URL"}
    return Town(east, west, environ)


def test_one_daemon_delivers_the_events_of_two_databases(
    spawn: Spawn, town: Town, receiver: Receiver
) -> None:
    daemon = spawn("run", *town.both, **town.environ)
    town.east.emit(30)
    town.west.emit(20)
    receiver.wait_for(50)
    wait_until(lambda: town.delivered() == [30, 20])
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert len(receiver.bodies) == 50
    for name in ("run.started", "relay.connected", "worker.settled", "run.stopped"):
        told = {line["database"] for line in daemon.events(name)}
        assert told == {place(town.east), place(town.west)}, name


def test_workers_elsewhere_serve_both_over_one_broker(
    spawn: Spawn, town: Town, receiver: Receiver, redis_url: str
) -> None:
    urls = f"{town.east.url}\n{town.west.url}\n"
    environ = {**town.environ, "OUTBOX_BROKER_URL": redis_url, "OUTBOX_DATABASE_URL": urls}
    running = [spawn("run", **environ), spawn("worker", "--processes", "2", **environ)]
    running[1].wait_for("worker.started", 4)
    town.east.emit(100)
    town.west.emit(100)
    wait_until(lambda: town.delivered() == [100, 100])
    for process in running:
        process.signal(signal.SIGTERM)
    assert [process.ended() for process in running] == [0, 0]
    assert len(receiver.bodies) == 200
    # No message was brought to a worker of the other database.
    assert sum(line["stale"] for line in running[1].events("worker.settled")) == 0
    assert not running[1].events("worker.stale")


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_a_database_that_goes_away_stops_nobody_else(
    broker: str, spawn: Spawn, town: Town, receiver: Receiver, request: pytest.FixtureRequest
) -> None:
    environ, workers = {**town.environ, "OUTBOX_LEASE": "3s"}, []
    if broker == "redis":
        environ["OUTBOX_BROKER_URL"] = request.getfixturevalue("redis_url")
        workers = ["--workers", "1"]
    daemon = spawn("run", *town.both, *workers, **environ)
    town.west.emit(1)
    receiver.wait_for(1)
    with away(town.west, town.east):
        lost = daemon.wait_for("relay.database_lost")
        assert {line["database"] for line in lost} == {place(town.west)}
        town.east.emit(20)
        wait_until(lambda: town.east.one(DELIVERED) == 20)
    town.west.emit(20)
    wait_until(lambda: town.delivered() == [20, 21])
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert town.east.states() == town.west.states() == []


def test_a_database_that_is_away_at_the_start_is_served_when_it_comes(
    spawn: Spawn, town: Town
) -> None:
    town.west.emit(5)
    with away(town.west, town.east):
        daemon = spawn("run", *town.both, **town.environ)
        told = daemon.wait_for("run.database_unusable")
        assert [line["database"] for line in told] == [place(town.west)]
        town.east.emit(5)
        wait_until(lambda: town.east.one(DELIVERED) == 5)
    wait_until(lambda: town.west.one(DELIVERED) == 5)
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0


@pytest.mark.parametrize("form", ["--once", "--drain"])
def test_a_daemon_that_ends_by_itself_ends_when_both_are_done(
    form: str, run_outbox: Callable[..., Ran], town: Town, receiver: Receiver
) -> None:
    town.east.emit(3)
    town.west.emit(40)
    assert run_outbox("run", form, *town.both, **town.environ).code == 0
    assert town.delivered() == [3, 40]


def test_a_daemon_that_is_to_end_by_itself_needs_every_database(
    run_outbox: Callable[..., Ran], town: Town
) -> None:
    town.east.emit(1)
    with away(town.west, town.east):
        ran = run_outbox("run", "--drain", *town.both, **town.environ)
        assert (ran.code, ran.err.count("\n")) == (4, 1)
        assert f"Error: {place(town.west)}: " in ran.err
    assert town.delivered() == [0, 0]


def test_flags_name_the_databases_to_the_daemons_workers_too(
    spawn: Spawn, town: Town, redis_url: str
) -> None:
    environ = {**town.environ, "OUTBOX_BROKER_URL": redis_url}
    town.east.emit(1)
    town.west.emit(1)
    daemon = spawn("run", "--drain", "--workers", "1", *town.both, **environ)
    assert daemon.ended() == 0
    assert town.delivered() == [1, 1]


# -- mistakes -------------------------------------------------------------------------------------


def refused(ran: Ran, code: int, *words: str) -> None:
    assert (ran.code, ran.out) == (code, ""), ran
    lines = ran.err.splitlines()
    assert len(lines) == len(words), ran.err
    for line, word in zip(lines, words, strict=True):
        assert line.startswith("Error: ")
        assert word in line


def test_the_same_database_twice_is_refused_however_it_is_spelled(
    outbox: Outbox, town: Town
) -> None:
    url = town.east.url
    twice = ["--database", url, "--database"]
    refused(outbox("run", *twice, url, **town.environ), 2, "named twice")
    other = url.replace("127.0.0.1", "localhost")
    refused(outbox("run", *twice, other, **town.environ), 3, "this is the same database as")
    environ = {**town.environ, "OUTBOX_DATABASE_URL": f"{url}\n{other}"}
    refused(outbox("run", **environ), 3, "this is the same database as")


def test_every_database_that_cannot_be_served_is_named_in_a_line(
    outbox: Outbox, town: Town, make_database: Make
) -> None:
    empty = make_database(None)
    gone = f"postgresql://postgres@127.0.0.1:{free_port()}/gone"
    ran = outbox("run", *town.both, "--database", gone, "--database", empty, **town.environ)
    refused(ran, 6, f"{urlsplit(empty).path}: ", "/gone: ")
    assert "run: outbox migrate" in ran.err
    ran = outbox("run", "--database", gone, "--database", f"{gone}2", **town.environ)
    refused(ran, 4, "/gone: ", "/gone2: ")


def test_a_command_that_works_on_one_database_does_not_take_the_last_of_several(
    outbox: Outbox, town: Town
) -> None:
    first = ("--database-url", town.east.url)
    ran = outbox("status", *first, "--database-url", town.west.url, **town.environ)
    refused(ran, 3, "names 2 databases, and this is done in one")
    assert outbox("status", *first, **town.environ).code == 0


def test_a_database_of_another_instance_is_refused(outbox: Outbox, town: Town) -> None:
    town.west.execute("UPDATE outbox.installation SET instance = 'staging'")
    ran = outbox("run", *town.both, **town.environ)
    refused(ran, 7, f"{place(town.west)}: this database belongs to instance 'staging'")


def test_a_url_for_listening_leads_to_one_database(outbox: Outbox, town: Town) -> None:
    ran = outbox("run", *town.both, "--listen-url", town.east.url, **town.environ)
    refused(ran, 3, "OUTBOX_LISTEN_URL leads to one database")


def test_other_commands_work_on_one_database(outbox: Outbox, town: Town) -> None:
    environ = {**town.environ, "OUTBOX_DATABASE_URL": f"{town.east.url}\n{town.west.url}"}
    refused(outbox("status", **environ), 3, "names 2 databases, and this is done in one")
    assert outbox("status", "--database-url", town.west.url, **environ).code == 0
    refused(outbox("status", "--database", town.west.url, **environ), 2, "No such option")
    shown = outbox("config", "--json", **environ)
    assert "postgres:***@" in shown.out
    assert town.east.url not in shown.out
