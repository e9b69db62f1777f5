"""Following the log: every event once, also one that commits late, and little to remember."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.embedded import EmbeddedPostgres
from outbox.errors import DatabaseUnavailable
from outbox.store.migrate import migrate
from outbox.store.tail import Look, Trail, Wanted, begin, follow, look
from tests.admin.helpers import Shop

EMIT = "SELECT outbox.emit('orders.paid', '{\"n\": 1}'::json, %s, %s)"


def emit(connection: psycopg.Connection[Any], org: str = "acme", subject: str | None = None) -> int:
    row = connection.execute(EMIT, [org, subject]).fetchone()
    assert row is not None
    return int(row[0])


def ids(found: Look) -> list[int]:
    return [event["id"] for event in found.events]


@given(st.data())
def test_every_event_is_seen_once_whenever_it_commits(data: st.DataObject) -> None:
    """Transactions begin, draw ids, commit or roll back in any order, looks happen in between."""
    running: dict[int, list[int]] = {}
    committed: set[int] = set()
    shown: list[int] = []
    trail = Trail()
    next_xid, next_id = 100, 1

    def look_once(rows_max: int) -> bool:
        met = [i for i in sorted(committed) if any(a <= i <= b for a, b in trail.unseen)]
        part = met[:rows_max]
        xmin = min(running, default=next_xid)
        trail.note(
            Look([], [(i, i) for i in part], len(part) >= rows_max, next_id - 1, xmin, next_xid)
        )
        shown.extend(part)
        return len(part) >= rows_max

    for _ in range(data.draw(st.integers(0, 60))):
        step = data.draw(st.sampled_from(["begin", "draw", "commit", "roll back", "look"]))
        if step == "begin":
            running[next_xid] = []
            next_xid += 1
        elif step == "look":
            look_once(data.draw(st.integers(1, 3)))
        elif running:
            xid = data.draw(st.sampled_from(sorted(running)))
            if step == "draw":
                running[xid].append(next_id)
                next_id += 1
            else:
                drawn = running.pop(xid)
                committed |= set(drawn) if step == "commit" else set()
    running.clear()
    while look_once(3):
        pass
    assert sorted(shown) == sorted(committed)
    for _ in range(3):
        look_once(3)
    assert len(trail.unseen) == 1, "with nothing running nothing is remembered"


def test_gaps_are_bounded_and_what_is_given_up_is_counted() -> None:
    trail = Trail(gaps_max=2)
    trail.note(Look([], [(i, i) for i in (2, 4, 6, 8)], False, 8, 5, 9))
    assert [low for low, _ in trail.unseen] == [5, 7, 9]
    assert trail.given_up == 2


def test_an_event_that_commits_late_is_shown_when_it_does(shop: Shop) -> None:
    trail, before = begin(shop.connection, Wanted())
    assert before == []
    with psycopg.connect(shop.url) as slow:
        late = emit(slow)
        early = emit(shop.connection)
        assert ids(look(shop.connection, trail, Wanted())) == [early]
        for _ in range(5):
            assert ids(look(shop.connection, trail, Wanted())) == []
        slow.commit()
        assert ids(look(shop.connection, trail, Wanted())) == [late]
    assert ids(look(shop.connection, trail, Wanted())) == []


def test_an_event_drawn_before_the_start_and_committed_after_it_is_new(shop: Shop) -> None:
    emit(shop.connection)
    with psycopg.connect(shop.url) as slow:
        late = emit(slow)
        emit(shop.connection)
        trail, _ = begin(shop.connection, Wanted())
    assert ids(look(shop.connection, trail, Wanted())) == [late]


def test_what_was_rolled_back_is_forgotten_when_nothing_older_runs(shop: Shop) -> None:
    trail, _ = begin(shop.connection, Wanted())
    for _ in range(5):
        with psycopg.connect(shop.url) as other:
            emit(other)
            other.rollback()
        emit(shop.connection)
    look(shop.connection, trail, Wanted())
    assert len(trail.unseen) == 6
    for _ in range(3):
        look(shop.connection, trail, Wanted())
    assert len(trail.unseen) == 1


def test_many_events_come_in_bounded_looks_in_order(shop: Shop) -> None:
    trail, _ = begin(shop.connection, Wanted())
    expected = shop.emit(n=25)
    shown = []
    while True:
        found = look(shop.connection, trail, Wanted(), 10)
        assert len(found.events) <= 10
        shown += ids(found)
        if not found.more:
            break
    assert shown == expected


def test_a_carried_event_is_not_shown_again(shop: Shop) -> None:
    trail, _ = begin(shop.connection, Wanted())
    event_id = emit(shop.connection)
    copy = (
        "INSERT INTO outbox.event SELECT id, %s, type, org_id, subject, ordering_key, payload,"
        " headers, created_at, deliver_at, expires_at FROM outbox.event WHERE slot = 0"
    )
    shop.connection.execute(copy, [5])
    assert ids(look(shop.connection, trail, Wanted())) == [event_id]
    shop.connection.execute(copy, [6])
    assert ids(look(shop.connection, trail, Wanted())) == []


def test_only_what_is_wanted_is_shown(shop: Shop) -> None:
    trail, _ = begin(shop.connection, Wanted())
    emit(shop.connection)
    rival = emit(shop.connection, "rival", "orders/7")
    assert look(shop.connection, trail, Wanted(("users.*",))).events == []
    trail, _ = begin(shop.connection, Wanted(last=1))
    again = emit(shop.connection, "rival")
    emit(shop.connection)
    [event] = look(shop.connection, trail, Wanted(("orders.*",), "rival", payload=True)).events
    assert (event["id"], event["org"], event["payload"]) == (again, "rival", '{"n": 1}')
    wanted = Wanted(None, "rival", last=2)
    assert [event["id"] for event in begin(shop.connection, wanted)[1]] == [rival, again]


def test_those_since_a_moment_come_first(shop: Shop) -> None:
    shop.emit(n=30)
    wanted = shop.emit(n=3)
    query = "SELECT created_at FROM outbox.event WHERE id = %(id)s"
    moment = shop.one(query, id=wanted[0])
    trail, before = begin(shop.connection, Wanted(since=moment))
    assert before == []
    assert ids(look(shop.connection, trail, Wanted(since=moment))) == wanted
    later = moment + timedelta(days=1)
    trail, _ = begin(shop.connection, Wanted(since=later))
    assert ids(look(shop.connection, trail, Wanted(since=later))) == []


def test_a_restart_of_postgresql_is_survived_and_nothing_is_missed(
    own_postgres: EmbeddedPostgres,
) -> None:
    url = own_postgres.create_database("tail")
    migrate(url)
    talk: list[str] = []
    stream = follow(url, Wanted(last=1), wait=lambda _seconds: None, say=talk.append)
    with psycopg.connect(url) as connection:
        first = emit(connection)
    assert next(stream)["id"] == first
    with psycopg.connect(url) as connection:
        second = emit(connection)
    own_postgres.restart()
    with psycopg.connect(url) as connection:
        third = emit(connection)
    shown = [next(stream)["id"], next(stream)["id"]]
    assert shown == [second, third]
    assert talk[0].endswith("; trying again")
    assert talk[1:] == ["connected again"]
    stream.close()  # type: ignore[attr-defined]


def test_a_database_that_was_never_there_is_an_error() -> None:
    with pytest.raises(DatabaseUnavailable):
        next(follow("postgresql://127.0.0.1:1/x", Wanted(), lambda _s: None, lambda _t: None))


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def tail(database: str) -> Iterator[Any]:
    """Start `outbox events tail` as a process."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli", "events", "tail", *args],
            env={**os.environ, "OUTBOX_DATABASE_URL": database},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_each_event_is_a_line_and_ctrl_c_ends_it_without_a_word(shop: Shop, tail: Any) -> None:
    first = emit(shop.connection, subject="orders/1\nforged")
    process = tail("--last", "1", "--payload")
    line = process.stdout.readline()
    assert line.startswith(f"{first}  ")
    assert line.rstrip().endswith('orders.paid  acme  orders/1 forged  {"n": 1}')
    second = emit(shop.connection)
    assert process.stdout.readline().startswith(f"{second}  ")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr.read() == ""


def test_json_is_a_document_a_line_with_the_payload_to_the_last_digit(
    shop: Shop, tail: Any
) -> None:
    text = '{"n":\n 12345678901234567890.123456789}'
    shop.rows("SELECT outbox.emit('a.b', %(text)s::json, 'acme')", text=text)
    process = tail("--last", "1", "--payload", "--json")
    line = process.stdout.readline()
    assert json.loads(line)["type"] == "a.b"
    assert "12345678901234567890.123456789" in line


def test_it_ends_when_nobody_reads_any_more_though_nothing_comes(shop: Shop, tail: Any) -> None:
    emit(shop.connection)
    process = tail("--last", "1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stdout = None
