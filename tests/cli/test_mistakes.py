"""Bad input: one clear line, its exit code, no traceback, nothing half-done."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest

import cli
from outbox.embedded import EmbeddedPostgres, free_port
from outbox.secrets import KeyRing
from outbox.store.migrate import migrate
from tests.cli.helpers import Outbox, Process, Ran, Shop, wait_until


def is_one_line(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("Error: ")
    assert ran.out == ""
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, ran.err


@dataclass(frozen=True)
class Mistake:
    """A command line against a migrated database that must fail in one line."""

    args: str
    code: int
    words: tuple[str, ...]
    environ: tuple[tuple[str, str], ...] = ()


MISTAKES = [
    Mistake("nonsense", 2, ("nonsense", "outbox --help")),
    Mistake("status --nonsense", 2, ("--nonsense", "outbox status --help")),
    Mistake("watch", 2, ("SCHEMA.TABLE",)),
    Mistake("watch public.nothing", 9, ("no table public.nothing",)),
    Mistake("watch a.b.c", 2, ("'a.b.c'", "SCHEMA.TABLE")),
    Mistake("watch public.t --on insert,upsert", 2, ("upsert", "insert,update,delete,truncate")),
    Mistake("watch public.t --include a,,b", 2, ("a,,b",)),
    Mistake("watch public.t --org-column=", 2, ("--org-column is empty",)),
    Mistake("watch public.t --type-prefix=", 2, ("--type-prefix is empty",)),
    Mistake("unwatch", 2, ("--gone",)),
    Mistake("emit", 2, ("TYPE",)),
    Mistake("emit no/type", 2, ("no/type", "orders.paid")),
    Mistake("emit outbox.x", 2, ("reserved",)),
    Mistake("emit a.b {", 2, ("json",)),
    Mistake("emit a.b {} --header nonsense", 2, ("--header", "Name: value")),
    Mistake("emit a.b {} --in soon", 2, ("soon", "30s")),
    Mistake("emit a.b {} --deliver-at 2030-01-01T00:00:00", 2, ("offset", "2030-01-31T12:00:00Z")),
    Mistake("emit a.b {} --in 1s --deliver-at 2030-01-01T00:00:00Z", 2, ("exclude",)),
    Mistake("emit a.b {} --file x", 2, ("not both",)),
    Mistake("emit a.b --file no-such-file", 2, ("no-such-file", "No such file")),
    Mistake("migrate --check --sql", 2, ("exclude",)),
    Mistake("run --once --drain", 2, ("exclude",)),
    Mistake("run --workers 2", 2, ("memory://", "redis://")),
    Mistake("run --workers -1", 2, ("--workers",)),
    Mistake("run --lease soon", 2, ("--lease", "30s")),
    Mistake("worker", 3, ("OUTBOX_BROKER_URL", "redis://")),
    Mistake("worker --processes 0", 2, ("--processes",)),
    Mistake("run --once", 3, ("OUTBOX_BROKER_URL",), (("OUTBOX_BROKER_URL", "kafka://x"),)),
    Mistake("status", 3, ("OUTBOX_LEASE",), (("OUTBOX_LEASE", "x"),)),
    Mistake("status", 3, ("OUTBOX_DATABASE_URL",), (("OUTBOX_DATABASE_URL", "mysql://x/y"),)),
    Mistake("status", 3, ("libpq URL",), (("OUTBOX_DATABASE_URL", "postgresql://h:x/y z"),)),
    Mistake("status", 3, ("OUTBOX_DATABASE_URL is not set",), (("OUTBOX_DATABASE_URL", ""),)),
    Mistake("run --once", 7, ("OUTBOX_INSTANCE", "adopt"), (("OUTBOX_INSTANCE", "other"),)),
    Mistake("adopt", 2, ("nothing to adopt",)),
    Mistake("completion tcsh", 2, ("tcsh", "bash")),
    Mistake("--config no-such-file status", 3, ("no-such-file",)),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.args)
def test_a_mistake_is_one_line_with_its_exit_code(
    mistake: Mistake, outbox: Outbox, database: str
) -> None:
    environ = {"OUTBOX_DATABASE_URL": database, **dict(mistake.environ)}
    is_one_line(outbox(*mistake.args.split(), **environ), mistake.code, *mistake.words)


NEEDING_THE_SCHEMA = ["run --once", "run", "status", "emit a.b", "watches", "watch public.t"]


@pytest.mark.parametrize("args", [*NEEDING_THE_SCHEMA, "migrate", "doctor", "adopt", "uninstall"])
def test_an_unreachable_database_is_exit_4(args: str, outbox: Outbox) -> None:
    url = f"postgresql://me:hush@127.0.0.1:{free_port()}/shop"
    ran = outbox(*args.split(), OUTBOX_DATABASE_URL=url)
    is_one_line(ran, 4, "PostgreSQL is not available", "refused")
    assert "hush" not in ran.err


def test_an_unknown_database_is_exit_4(outbox: Outbox, postgres: EmbeddedPostgres) -> None:
    is_one_line(outbox("status", OUTBOX_DATABASE_URL=postgres.url("nowhere")), 4, "nowhere")


@pytest.mark.parametrize("args", ["run --once", "status", "emit a.b", "watches"])
def test_a_database_without_the_schema_is_exit_6(
    args: str, outbox: Outbox, empty_database: str
) -> None:
    ran = outbox(*args.split(), OUTBOX_DATABASE_URL=empty_database)
    is_one_line(ran, 6, "outbox migrate")


def test_a_newer_schema_is_exit_6(outbox: Outbox, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO outbox.migration VALUES (9999, 'future', 9999)")
    for args in ("run --once", "migrate"):
        is_one_line(outbox(*args.split(), OUTBOX_DATABASE_URL=database), 6, "upgrade outboxd")


def test_a_schema_named_outbox_that_is_not_ours_is_exit_6(
    outbox: Outbox, empty_database: str
) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE SCHEMA outbox")
    is_one_line(outbox("migrate", OUTBOX_DATABASE_URL=empty_database), 6, "not ours")


def test_a_copied_database_is_exit_7_until_it_is_adopted(
    outbox: Outbox, postgres: EmbeddedPostgres, make_database: Callable[[str | None], str]
) -> None:
    original = make_database(None)
    migrate(original)
    with psycopg.connect(original) as connection:
        connection.execute("SELECT outbox.emit('a.b', '{}'::json)")
    copy = make_database(original.rpartition("/")[2])
    is_one_line(outbox("run", "--once", OUTBOX_DATABASE_URL=copy), 7, "copy", "outbox adopt")
    adopted = outbox("adopt", "--json", "--instance", "staging", OUTBOX_DATABASE_URL=copy)
    assert adopted.json == {"instance": "staging", "epoch": 2, "held": 0}
    is_one_line(outbox("run", "--once", OUTBOX_DATABASE_URL=copy), 7, "staging")


def test_a_role_without_rights_is_exit_8(
    outbox: Outbox, database: str, postgres: EmbeddedPostgres
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'x'")
    try:
        url = database.replace(f"postgres:{postgres.password}@", "stranger:x@")
        is_one_line(outbox("run", "--once", OUTBOX_DATABASE_URL=url), 8, "permission denied")
        is_one_line(outbox("status", OUTBOX_DATABASE_URL=url), 8, "permission denied")
        with psycopg.connect(database) as connection:
            connection.execute("GRANT outbox_reader TO stranger")
        ran = outbox("run", "--once", OUTBOX_DATABASE_URL=url)
        is_one_line(ran, 8, "GRANT outbox_daemon TO stranger")
    finally:
        with psycopg.connect(database) as connection:
            connection.execute("DROP OWNED BY stranger; DROP ROLE stranger")


def test_row_level_security_that_hides_rows_is_exit_8(
    outbox: Outbox, database: str, postgres: EmbeddedPostgres
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE ROLE hidden_daemon LOGIN PASSWORD 'x' IN ROLE outbox_daemon")
        connection.execute("ALTER TABLE outbox.delivery ENABLE ROW LEVEL SECURITY")
    try:
        url = database.replace(f"postgres:{postgres.password}@", "hidden_daemon:x@")
        is_one_line(outbox("run", "--once", OUTBOX_DATABASE_URL=url), 8, "outbox.delivery")
    finally:
        with psycopg.connect(database) as connection:
            connection.execute("DROP OWNED BY hidden_daemon; DROP ROLE hidden_daemon")


def test_stored_secrets_without_a_key_are_exit_11(outbox: Outbox, shop: Shop) -> None:
    ran = outbox("run", "--once", OUTBOX_DATABASE_URL=shop.url)
    is_one_line(ran, 11, "OUTBOX_SECRET_KEY is not set")


def test_a_wrong_key_is_exit_11(outbox: Outbox, shop: Shop) -> None:
    environ = {**shop.environ, "OUTBOX_SECRET_KEY": KeyRing.generate_text()}
    is_one_line(outbox("run", "--once", **environ), 11, "no key in OUTBOX_SECRET_KEY opens")


def test_a_malformed_key_is_exit_3_and_is_not_repeated(outbox: Outbox, shop: Shop) -> None:
    ran = outbox("run", "--once", **{**shop.environ, "OUTBOX_SECRET_KEY": "hush"})
    is_one_line(ran, 3, "key 1 in OUTBOX_SECRET_KEY is not usable")
    assert "hush" not in ran.err


def test_a_payload_too_large_is_exit_12_and_nothing_is_emitted(
    run_outbox: Callable[..., Ran], database: str
) -> None:
    payload = '"' + "x" * 1_100_000 + '"'
    ran = run_outbox("emit", "a.b", "-", stdin=payload, OUTBOX_DATABASE_URL=database)
    is_one_line(ran, 12, "exceeds the limit")
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM outbox.event").fetchone() == (0,)


def test_several_wrong_settings_are_reported_at_once(outbox: Outbox) -> None:
    ran = outbox("status", OUTBOX_LEASE="x", OUTBOX_GRACE="y")
    assert ran.code == 3
    assert [line.split()[1] for line in ran.err.splitlines()] == ["OUTBOX_LEASE:", "OUTBOX_GRACE:"]


def broken(_argv: object = None) -> None:
    raise RuntimeError("a\nb")


def test_a_bug_is_one_line_too_and_a_traceback_when_asked_for(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_wiring", broken)
    is_one_line(outbox("status"), 1, "RuntimeError: a b", "this is a bug", "OUTBOX_DEBUG=1")
    with pytest.raises(RuntimeError):
        outbox("status", OUTBOX_DEBUG="1")


def test_a_reader_that_leaves_is_no_news(database: str) -> None:
    producer = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli", "migrate", "--sql"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert producer.stdout is not None
    producer.stdout.close()
    _, err = producer.communicate(timeout=30)
    assert (producer.returncode, err) == (1, b"")


def test_an_interrupt_is_exit_130(database: str, spawn: Callable[..., Process]) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE outbox.pending")
        process = spawn("emit", "a.b", OUTBOX_DATABASE_URL=database)

        def blocked() -> bool:
            row = connection.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            ).fetchone()
            return row == (1,)

        wait_until(blocked)
        process.signal(signal.SIGINT)
        wait_until(lambda: process.popen.poll() is not None)
    assert process.ended() == 130
    assert "Traceback" not in process.said
