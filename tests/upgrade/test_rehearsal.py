"""An upgrade under load: the programs of the previous level run on the present schema, beside the
present ones, and refuse a schema that they do not know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import sleep

import psycopg
import pytest

from outbox.errors import DatabaseUnavailable, SchemaMismatch
from outbox.store import migrate as module
from outbox.store.connect import connect
from outbox.store.migrate import Patience, migrate, pending_migrations
from outbox.store.statements import migrations
from outbox.store.subscriptions import KindSpec, Rule, add_kind
from tests.engine import test_plans
from tests.engine.engine import Engine
from tests.engine.test_plans import STATEMENTS, Backlog, touched
from tests.system.town import Receiver, Town, town_over, wait_until
from tests.upgrade.conftest import PREVIOUS
from tests.upgrade.old import Programs

LEVEL = migrations()[-1].version
BEFORE = int(PREVIOUS.stem.removeprefix("level_"))
NAMES = [f"{m.version:04d}_{m.name}" for m in migrations()]
AHEAD_MAX = 300
HURRIED = Patience(wait_ms=50, tries=3)
THEIRS = {"lane_from": 0, "lanes_max": 128}
"""Parameters that statements of the previous level want beside those of today."""


def old_endpoint(old: Programs, town: Town, path: str, org: str, *more: str) -> Receiver:
    """An endpoint that the previous level's programs add."""
    receiver = town.receivers.add(path)
    where = [
        "--url",
        f"http://127.0.0.1:{town.receivers.port}{path}",
        "--org",
        org,
        "--events",
        "*",
    ]
    told = old.run_ok(
        "endpoints", "add", *where, "--json", *more, url=town.url, environ=town.environ
    )
    receiver.secret = json.loads(told)["secret"]
    return receiver


@contextmanager
def writing(town: Town, orgs: tuple[str, ...]) -> Iterator[Callable[[], int]]:
    """Somebody writes all the time, transaction by transaction, a little ahead of the receivers;
    yields what says how many events each organization has written."""
    stop, written = Event(), [0]

    def write() -> None:
        while not stop.is_set():
            for org in orgs:
                town.emit(5, org)
            written[0] += 5
            while written[0] > AHEAD_MAX + fewest(town) and not stop.is_set():
                sleep(0.01)

    thread = Thread(target=write)
    thread.start()
    try:
        yield lambda: written[0]
    finally:
        stop.set()
        thread.join()


def fewest(town: Town) -> int:
    return min(len(receiver.answered) for receiver in town.receivers.by_path.values())


def test_the_archive_is_of_the_level_that_it_names(old_database: str) -> None:
    """When `PREVIOUS` is to be made anew: see tests/README.md."""
    [(newest,)] = rows(old_database, "SELECT max(version) FROM outbox.migration")
    assert newest == BEFORE
    assert BEFORE < LEVEL


def test_an_upgrade_under_load_loses_nothing_and_repeats_nothing(
    old_database: str, redis_url: str, old: Programs
) -> None:
    """Old daemon and worker; the migration; new ones beside the old; then the new ones alone."""
    with town_over(old_database, redis_url) as town:
        a = old_endpoint(old, town, "/a", "a")
        retry = ["--retry", "exp:base=200ms,factor=1.2,cap=1s,attempts=200"]
        b = old_endpoint(old, town, "/b", "b", *retry)
        b.answer = lambda n: 500 if n % 3 == 0 else 200
        ours = [town.start(name, **old.environ) for name in ("run", "worker")]
        with writing(town, ("a", "b")) as written:
            wait_until(lambda: len(a.answered) > 100)
            migrate(old_database)
            grown = written() + 100
            wait_until(lambda: len(a.answered) > grown)
            levels = "SELECT DISTINCT level FROM outbox.node WHERE pid <> 0 ORDER BY 1"
            assert rows(old_database, levels) == [(BEFORE,)]
            for name in ("run", "worker"):
                town.start(name)
            grown = written() + 100
            wait_until(lambda: len(a.answered) > grown)
            wait_until(lambda: rows(old_database, levels) == [(BEFORE,), (LEVEL,)])
            for process in ours:
                process.terminate()
            assert [process.ended() for process in ours] == [0, 0]
            grown = written() + 100
            wait_until(lambda: len(a.answered) > grown)
        wait_until(lambda: [len(r.answered) for r in (a, b)] == [written()] * 2)
        town.wait_until_settled()
        town.check()
        # Neither a result that changed its shape nor a deadlock: the schema changed under them.
        for process in town.processes:
            assert process.count("relay.database_lost") == 0, process.said
            assert "deadlock" not in process.said
            assert "cached plan" not in process.said


# -- the locks of the upgrade ---------------------------------------------------------------------


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@contextmanager
def half_migrated(url: str) -> Iterator[None]:
    """An upgrade that has done everything and not yet committed: it holds all of its locks."""
    with connect(url) as connection:
        assert module._locks_tables(connection, 5000)
        module._bring_up(connection, module._pending(connection), "default")
        yield
        connection.rollback()


def test_the_applications_transactions_wait_for_no_lock_of_an_upgrade(old_database: str) -> None:
    """Captured changes, emitted events, also with keys: at once, while the upgrade is under way."""
    with psycopg.connect(old_database) as connection:
        connection.execute("CREATE TABLE public.orders (id int PRIMARY KEY, org_id text)")
        connection.execute("SELECT outbox.watch('public.orders', org_column => 'org_id')")
    keys = "dedupe_key => 'k', ordering_key => 'o'"
    emit = f"SELECT outbox.emit('orders.paid', '1'::json, 'acme', {keys})"
    changes = [
        "INSERT INTO public.orders VALUES (1, 'a')",
        "UPDATE public.orders SET org_id = 'b'",
        "DELETE FROM public.orders",
        emit,
        emit,
    ]
    with half_migrated(old_database):
        with psycopg.connect(old_database) as connection:
            connection.execute("SET lock_timeout = '1ms'")
            for change in changes:
                connection.execute(change.encode())
    assert rows(old_database, "SELECT count(*) FROM outbox.pending") == [(5,)]


def test_behind_a_long_transaction_an_upgrade_gives_up_and_names_it(old_database: str) -> None:
    """Nobody queues behind it meanwhile: between two tries everything is free."""
    tried: list[float] = []
    told: list[str] = []

    def others_pass(pause_s: float) -> None:
        tried.append(pause_s)
        with psycopg.connect(old_database) as other:
            other.execute("SET lock_timeout = '1ms'")
            other.execute("SELECT outbox.emit('orders.paid', '1'::json, 'acme')")
            other.execute("UPDATE outbox.delivery SET attempts = attempts")
            other.execute("SELECT pg_advisory_xact_lock(78610002)")

    with psycopg.connect(old_database, application_name="report") as long:
        long.execute("SELECT count(*) FROM outbox.journal")
        with pytest.raises(DatabaseUnavailable, match=r"\(report\), open for 0.*outbox migrate"):
            migrate(old_database, patience=HURRIED, pause=others_pass, tell=told.append)
    assert tried == [1.0, 1.0]
    assert len(told) == 1
    assert pending_migrations(old_database) != []


def test_an_upgrade_goes_on_when_the_long_transaction_ends(old_database: str) -> None:
    with psycopg.connect(old_database) as long:
        long.execute("SELECT count(*) FROM outbox.delivery")
        done = migrate(old_database, patience=HURRIED, pause=lambda _s: long.rollback())
    assert done == [name for name in NAMES if int(name[:4]) > BEFORE]


def test_an_upgrade_keeps_the_statement_timeout_of_its_role(old_database: str) -> None:
    with connect(f"{old_database}?options=-cstatement_timeout%3D77s") as connection:
        assert module._locks_tables(connection, 50)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("77s",)


# -- the plans of old statements ------------------------------------------------------------------


def test_old_statements_cost_the_same_under_any_backlog_in_the_new_schema(
    database: str, old: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that old programs need and a migration drops would make them walk everything,
    under the dispatch lock: 2.5 s instead of 20 ms with 300,000 scheduled deliveries."""
    monkeypatch.setattr(test_plans, "statement", old.statement)
    backlog = Backlog(Engine(database))
    theirs = {name: p for name, p in STATEMENTS.items() if old.knows(name.split(maxsplit=1)[0])}
    assert len(theirs) > 5
    blocks: dict[str, list[int]] = {name: [] for name in theirs}
    for size in (1_000, 20_000):
        backlog.grow(size)
        for name, params in theirs.items():
            ids = backlog.ids()
            backlog.start(name, ids)
            names = backlog.prepare(name.split(maxsplit=1)[0])
            blocks[name].append(touched(backlog.explain(names, THEIRS | params | {"ids": ids})))
    backlog.engine.close()
    for name, (small, large) in blocks.items():
        assert large <= 2 * small + 20, f"{name}: {small} blocks at 1,000 rows, {large} at 20,000"


# -- which programs run on which schema -----------------------------------------------------------


def test_old_programs_find_the_new_schema_up_to_date(old_database: str, old: Programs) -> None:
    migrate(old_database)
    assert old.run("migrate", "--check", url=old_database).returncode == 0
    assert old.run("migrate", url=old_database).returncode == 0
    drained = old.run("run", "--once", url=old_database)
    assert drained.returncode == 0, drained.stderr


def subscribe(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Add a subscription of a kind that programs of level 10 do not know."""
    add_kind(connection, KindSpec("email", {"to": "a@example.com"}), Rule(("*",)), "acme")


def test_what_old_programs_cannot_do_waits_until_they_have_ended(
    old_database: str, old: Programs
) -> None:
    migrate(old_database)
    with town_over(old_database) as town, connect(old_database, autocommit=True) as connection:
        process = town.start("run", **old.environ)
        wait_until(lambda: town.one("SELECT count(*) FROM outbox.node WHERE kind = 'relay'") == 1)
        with pytest.raises(SchemaMismatch, match=r"upgrade (relay|worker) \d+ on "):
            subscribe(connection)
        process.terminate()
        assert process.ended() == 0
        subscribe(connection)
        assert town.one("SELECT max(compatible_from) FROM outbox.migration") == 11


@pytest.mark.parametrize(
    "command", [("run", "--once"), ("worker",), ("migrate",), ("migrate", "--check")]
)
def test_old_programs_refuse_a_schema_that_is_not_for_them(
    old_database: str, old: Programs, redis_url: str, command: tuple[str, ...]
) -> None:
    """From the first subscription of another kind on."""
    migrate(old_database)
    with connect(old_database, autocommit=True) as connection:
        subscribe(connection)
    done = old.run(*command, url=old_database, environ={"OUTBOX_BROKER_URL": redis_url})
    assert done.returncode == 6
    assert done.stderr == (
        f"Error: the schema (level {LEVEL}) is newer than this program (level {BEFORE});"
        " upgrade outboxd\n"
    )


@pytest.mark.parametrize("command", [("run", "--once"), ("migrate", "--check")])
def test_new_programs_refuse_the_old_schema(old_database: str, command: tuple[str, ...]) -> None:
    done = Programs().run(*command, url=old_database)
    assert done.returncode == 6
    assert "run: outbox migrate" in done.stderr
