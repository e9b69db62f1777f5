"""`outbox redact` as it is called: counted first, asked about, never by accident."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import psycopg
import pytest

from tests.admin.calling import Outbox
from tests.admin.helpers import Shop

SUBJECT = "users/7"


@pytest.fixture
def events(shop: Shop) -> list[int]:
    """Two of a person, one of another."""
    shop.endpoint()
    ids = shop.emit(n=2, subject=SUBJECT)
    shop.emit(subject="users/8")
    shop.attempt("dead")
    return ids


def subjects(shop: Shop) -> list[str | None]:
    return [row[0] for row in shop.rows("SELECT subject FROM outbox.event ORDER BY id")]


def test_a_dry_run_counts_exactly_shows_a_sample_and_changes_nothing(
    outbox: Outbox, shop: Shop, events: list[int]
) -> None:
    ran = outbox("redact", "--subject", SUBJECT, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.document == {
        "events": 2,
        "pending": 0,
        "live": 0,
        "dead": 2,
        "facts": 0,
        "dedupe": 0,
        "emails": 0,
        "replays": 0,
        "artifacts": 0,
        "already": 0,
        "unjudged": 0,
        "sample": events,
        "dry_run": True,
    }
    assert subjects(shop) == [SUBJECT, SUBJECT, "users/8"]


@pytest.mark.parametrize("command", [("redact",), ("events", "redact")])
def test_with_yes_and_a_reason_it_is_done(
    outbox: Outbox, shop: Shop, events: list[int], command: tuple[str, ...]
) -> None:
    args = ("--where", "$ > 0", "--subject", SUBJECT, "--org", "acme", "--type", "orders.*")
    ran = outbox(*command, *args, "--reason", "asked by letter", "--yes", "--json")
    assert ran.code == 0, ran.err
    assert (ran.document["events"], ran.document["dead"], ran.document["warnings"]) == (2, 2, [])
    assert subjects(shop) == [None, None, "users/8"]
    again = outbox("redact", *events, "--reason", "x", "--yes", "--json").document
    assert (again["events"], again["already"]) == (0, 2)


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        ((), "say which", 2),
        (("--reason", "x", "--yes"), "say which", 2),
        (("--subject", SUBJECT), "say why with --reason", 2),
        (("--subject", SUBJECT, "--reason", "x" * 201, "--yes"), "1 to 200 characters", 2),
        (("--subject", SUBJECT, "--reason", "x"), "2 events would be redacted for good", 2),
        (("--where", "$.email", "--dry-run"), "not an SQL/JSON path predicate", 2),
        (("--type", "Bad Pattern", "--dry-run"), "is not an event type pattern", 2),
        (("99999", "--reason", "x", "--yes"), "there is no such event", 9),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(
    outbox: Outbox,
    shop: Shop,
    events: list[int],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    words: str,
    code: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: PTH123, SIM115
    ran = outbox("redact", *args)
    assert (ran.code, ran.err.count("\n")) == (code, 1)
    assert words in ran.err
    assert subjects(shop) == [SUBJECT, SUBJECT, "users/8"]
    sys.stdin.close()


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 130, SUBJECT), ("y", 0, None)])
def test_a_person_at_a_terminal_is_asked(
    shop: Shop, events: list[int], answer: str, code: int, left: str | None
) -> None:
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, *"-P -m cli redact --reason x --subject".split(), SUBJECT],
            env={**os.environ, "OUTBOX_DATABASE_URL": shop.url},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(controller, f"{answer}\n".encode())
        _, err = process.communicate(timeout=60)
    finally:
        os.close(controller)
        os.close(terminal)
    assert process.returncode == code
    assert "Redact 2 events for good?" in err
    assert subjects(shop)[:2] == [left, left]


def test_what_cannot_be_judged_is_said(outbox: Outbox, shop: Shop) -> None:
    shop.rows("SELECT outbox.emit('a.b', '{\"email\": \"\\u0000\"}'::json, 'acme')")
    ran = outbox("redact", "--where", '$.email == "x"', "--reason", "x", "--yes")
    assert "1 events hold text that --where cannot judge" in ran.err


def test_a_role_that_may_not_vacuum_is_told_what_to_run(
    outbox: Outbox, shop: Shop, events: list[int]
) -> None:
    """The daemon's role may redact; the tables are the installer's."""
    with psycopg.connect(shop.url, autocommit=True) as connection:
        name = f"redactor_{connection.info.backend_pid}"
        connection.execute(f"CREATE ROLE {name} LOGIN IN ROLE outbox_daemon".encode())
        password = connection.info.password or ""
        connection.execute(f"ALTER ROLE {name} PASSWORD '{password or 'x'}'".encode())
    try:
        url = psycopg.conninfo.make_conninfo(shop.url, user=name, password=password or "x")
        args = ("--subject", SUBJECT, "--reason", "x", "--yes", "--json")
        ran = outbox("redact", *args, OUTBOX_DATABASE_URL=url)
        assert ran.code == 0, ran.err
        assert "as the owner run: VACUUM outbox.event" in ran.document["warnings"][0]
        assert subjects(shop)[:2] == [None, None]
    finally:
        shop.connection.execute(f"DROP OWNED BY {name}".encode())
        shop.connection.execute(f"DROP ROLE {name}".encode())


def test_letters_are_chosen_by_type_subject_and_time_and_redriven_at_a_rate(
    outbox: Outbox, shop: Shop, events: list[int]
) -> None:
    listed = outbox("dead", "list", "--subject", SUBJECT, "--type", "orders.*", "--json").document
    assert sorted(row["event"] for row in listed) == events
    assert outbox("dead", "list", "--type", "users.*", "--json").document == []
    until = "2000-01-01T00:00:00Z"
    assert outbox("dead", "redrive", "--until", until, "--json").document["redriven"] == 0
    args = ("--subject", SUBJECT, "--rate", "1000", "--json")
    assert outbox("dead", "redrive", *args).document["redriven"] == 2
    discarded = outbox("dead", "discard", "--type", "orders.*", "--reason", "x", "--json").document
    assert discarded["discarded"] == 1


def test_last_and_since_exclude_each_other(outbox: Outbox) -> None:
    ran = outbox("events", "tail", "--last", "1", "--since", "2030-01-01T00:00:00Z")
    assert (ran.code, ran.out) == (2, "")
