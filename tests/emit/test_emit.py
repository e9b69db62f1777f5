"""What emit promises, in SQL and through Python: payloads, deduplication, order, times, rights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outbox
from outbox.errors import UsageError
from tests.emit.helpers import rows

Connection = psycopg.Connection[Any]


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as made:
        yield made


def text_of(connection: Connection, event: int) -> str:
    row = connection.execute(
        "SELECT payload::text FROM outbox.event WHERE id = %s", [event]
    ).fetchone()
    assert row is not None
    return str(row[0])


# --- payloads ------------------------------------------------------------------------------------


@dataclass
class Order:
    total: Decimal
    at: datetime


EXACT: list[tuple[object, str]] = [
    (None, "null"),
    (True, "true"),
    ({"ü": "\u2028 ☃ \x01"}, '{"ü":"\u2028 ☃ \\u0001"}'),
    (Decimal("0.10000000000000000000000000001"), "0.10000000000000000000000000001"),
    (Decimal("1E+400"), "1E+400"),
    ([2**70, -(2**70), 2**63], f"[{2**70},{-(2**70)},{2**63}]"),
    ((1, (2.5, "x")), '[1,[2.5,"x"]]'),
    (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    (datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC), '"2030-01-02T03:04:05.000006+00:00"'),
    (date(2030, 1, 2), '"2030-01-02"'),
    (
        Order(Decimal("1.10"), datetime(2030, 1, 1, tzinfo=UTC)),
        '{"total":1.10,"at":"2030-01-01T00:00:00+00:00"}',
    ),
    ('{"a" : 1.0, "a": 2}', '{"a" : 1.0, "a": 2}'),
    (b'["\\u0000", 1e2]', '["\\u0000", 1e2]'),
    (bytearray(b"1"), "1"),
]


@pytest.mark.parametrize(("payload", "stored"), EXACT)
def test_a_payload_is_stored_to_the_digit(
    connection: Connection, payload: object, stored: str
) -> None:
    assert text_of(connection, outbox.emit(connection, "a", payload)) == stored


@pytest.mark.parametrize(
    "payload",
    [float("nan"), [float("inf")], Decimal("NaN"), {1: 2}, {"a": {1, 2}}, "\ud800", object()],
)
def test_what_json_cannot_say_is_refused(connection: Connection, payload: object) -> None:
    with pytest.raises(UsageError, match=r"^payload"):
        outbox.emit(connection, "a", payload)


def test_a_payload_that_holds_itself_is_refused(connection: Connection) -> None:
    payload: list[Any] = []
    payload.append(payload)
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        outbox.emit(connection, "a", payload)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON.filter(lambda value: not isinstance(value, str)))
def test_every_json_value_comes_back_equal(connection: Connection, payload: Any) -> None:
    event = outbox.emit(connection, "a", payload)
    row = connection.execute("SELECT payload FROM outbox.event WHERE id = %s", [event]).fetchone()
    assert row == (payload,)


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        ("""json '{"b":1, "a":1}'""", '{"b":1, "a":1}'),
        ("""jsonb '{"b":1, "a":1}'""", '{"a": 1, "b": 1}'),
        ("""text '{"b":1}'""", '{"b":1}'),
        ("""'{"b":1}'""", '{"b":1}'),
        ("to_json(12)", "12"),
        ("NULL::json", "null"),
    ],
)
def test_sql_takes_json_jsonb_and_text(connection: Connection, payload: str, stored: str) -> None:
    row = connection.execute(f"SELECT outbox.emit('a.b', {payload})".encode()).fetchone()
    assert row is not None
    assert text_of(connection, row[0]) == stored


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("'a', 12", "payload must be json, jsonb or text, not integer"),
        ("NULL, '1'", "event type null is not of the form"),
        ("'a..b', '1'", "event type 'a..b' is not of the form"),
        ("'a', repeat('1', 1048577)", "payload of 1048577 bytes exceeds the limit of 1048576"),
        ("'a', repeat('{', 1048577)", "payload of 1048577 bytes exceeds the limit of 1048576"),
        ("'a', '1', subject => repeat('x', 1001)", "subject, ordering_key and dedupe_key have"),
        ("'a', '1', dedupe_key => repeat('x', 1001)", "subject, ordering_key and dedupe_key have"),
        ("'a', '1', deliver_at => 'infinity'", "deliver_at and expires_at must be finite"),
        (
            "'a', '1', deliver_at => now(), expires_at => 'infinity'",
            "deliver_at and expires_at must",
        ),
        ("'a', '1', headers => '[]'", "headers must be a JSON object"),
        ("'a', '1', org_id => repeat('x', 201)", "org_id must have 1 to 200 characters"),
    ],
)
def test_sql_refuses_with_a_clear_message(connection: Connection, call: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=f"^outbox: {words}"):
        connection.execute(f"SELECT outbox.emit({call})".encode())
    assert connection.execute("SELECT count(*) FROM outbox.event").fetchone() == (0,)


# --- deduplication -------------------------------------------------------------------------------


def test_a_key_used_twice_is_one_event_with_the_first_id(connection: Connection) -> None:
    first = outbox.emit(connection, "a", 1, org="acme", dedupe_key="k")
    assert outbox.emit(connection, "b", 2, org="acme", dedupe_key="k") == first
    assert connection.execute("SELECT type FROM outbox.event").fetchall() == [("a",)]
    assert connection.execute("SELECT id FROM outbox.pending").fetchall() == [(first,)]


def test_a_key_belongs_to_its_organization(connection: Connection) -> None:
    orgs = ["acme", "other", None]
    ids = [outbox.emit(connection, "a", 1, org=org, dedupe_key="k") for org in orgs]
    assert len(set(ids)) == 3
    assert [outbox.emit(connection, "a", 1, org=org, dedupe_key="k") for org in orgs] == ids


def test_a_key_past_its_lifetime_is_free_again(connection: Connection) -> None:
    keyed: dict[str, Any] = {"dedupe_key": "k", "dedupe_for": timedelta(hours=1)}
    first = outbox.emit(connection, "a", 1, **keyed)
    connection.execute("UPDATE outbox.dedupe SET expires_at = clock_timestamp()")
    second = outbox.emit(connection, "a", 1, **keyed)
    assert second != first
    assert outbox.emit(connection, "a", 1, **keyed) == second


def test_a_key_is_kept_for_a_week_unless_told_otherwise(connection: Connection) -> None:
    outbox.emit(connection, "a", 1, dedupe_key="k")
    connection.execute("SELECT outbox.emit('a', '1', dedupe_key => 'l', dedupe_for => NULL)")
    lives = "SELECT DISTINCT date_trunc('hour', expires_at - now() + '1 min') FROM outbox.dedupe"
    assert connection.execute(lives).fetchall() == [(timedelta(days=7),)]


def test_a_key_rolled_back_was_never_used(database: str) -> None:
    with psycopg.connect(database) as connection:
        outbox.emit(connection, "a", 1, dedupe_key="k")
        connection.rollback()
        outbox.emit(connection, "b", 1, dedupe_key="k")
    assert rows(database, "SELECT type FROM outbox.event") == [("b",)]


@contextmanager
def waiting_emit(database: str, connection: Connection, **options: Any) -> Iterator[Any]:
    """An emit in another thread that has reached the point where it waits for a lock."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: outbox.emit(connection, "second", 2, **options))
        pid = connection.info.backend_pid
        blocked = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        with psycopg.connect(database, autocommit=True) as watcher:
            while watcher.execute(blocked, [pid]).fetchone() != (True,):
                assert not future.done(), future.result()
        yield future


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_second_session_waits_for_the_first_one_with_the_key(database: str, ends: str) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        first = outbox.emit(one, "first", 1, dedupe_key="k")
        with waiting_emit(database, two, dedupe_key="k") as second:
            getattr(one, ends)()
            assert (second.result() == first) is (ends == "commit")
        two.commit()
    kept = "first" if ends == "commit" else "second"
    assert rows(database, "SELECT type FROM outbox.event") == [(kept,)]


def test_under_repeatable_read_the_second_session_retries_its_transaction(database: str) -> None:
    """It may not see the first one's commit; its own retry does."""
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        two.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        two.execute("SELECT 1 FROM outbox.dedupe")
        first = outbox.emit(one, "first", 1, dedupe_key="k")
        with waiting_emit(database, two, dedupe_key="k") as second:
            one.commit()
            with pytest.raises(psycopg.errors.SerializationFailure):
                second.result()
        two.rollback()
        assert outbox.emit(two, "second", 2, dedupe_key="k") == first


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_a_key_known_before_is_found_at_every_isolation_level(database: str, level: str) -> None:
    with psycopg.connect(database) as connection:
        first = outbox.emit(connection, "a", 1, dedupe_key="k")
        connection.commit()
        connection.isolation_level = psycopg.IsolationLevel[level]
        assert outbox.emit(connection, "a", 1, dedupe_key="k") == first


# --- order and time ------------------------------------------------------------------------------


def test_ids_of_an_ordering_key_are_drawn_in_the_order_of_commits(database: str) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        outbox.emit(one, "first", 1, org="acme", ordering_key="k")
        with waiting_emit(database, two, org="acme", ordering_key="k") as second:
            later_in_one = outbox.emit(one, "first", 2, org="acme", ordering_key="k")
            one.commit()
            assert second.result() > later_in_one


def test_other_keys_and_other_organizations_do_not_wait(database: str) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        two.execute("SET lock_timeout = '1s'")
        outbox.emit(one, "a", 1, org="acme", ordering_key="k")
        outbox.emit(two, "a", 1, org="acme", ordering_key="l")
        outbox.emit(two, "a", 1, org="other", ordering_key="k")
        outbox.emit(two, "a", 1, ordering_key="k")
        outbox.emit(two, "a", 1, org="acme")


def test_times_are_kept_and_an_expiry_before_its_time_is_refused(connection: Connection) -> None:
    soon, later = (datetime(2031, 1, day, tzinfo=UTC) for day in (1, 2))
    outbox.emit(connection, "a", 1, deliver_at=soon, expires_at=later)
    kept = connection.execute("SELECT deliver_at, expires_at FROM outbox.event").fetchone()
    assert kept == (soon, later)
    with pytest.raises(UsageError, match="expires_at must be after deliver_at"):
        outbox.emit(connection, "a", 1, deliver_at=later, expires_at=soon)


# --- rights and surroundings ---------------------------------------------------------------------


def test_a_writer_can_emit_and_nothing_else(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET ROLE outbox_writer")
        outbox.emit(connection, "a", 1, org="acme", ordering_key="k", dedupe_key="k")
        for table in ("event", "pending", "dedupe", "ring_slot", "delivery"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT FROM outbox.{table}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO outbox.event (id, slot, type, payload, created_at)"
                " VALUES (1, 0, 'a', '1', now())"
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT setval('outbox.bell', 1)")


def test_a_hostile_search_path_changes_nothing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE SCHEMA evil;"
            " CREATE FUNCTION evil.length(text) RETURNS int LANGUAGE sql AS 'SELECT 1/0';"
            " CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
            " AS 'SELECT NULL::timestamptz';"
            " CREATE TEMP TABLE event (); SET search_path = evil, pg_temp, pg_catalog"
        )
        outbox.emit(connection, "a", 1, dedupe_key="k", ordering_key="k")


def test_the_bell_rings_only_for_a_sleeping_relay(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("LISTEN outbox")
        for awake in (True, False):
            connection.execute("SELECT setval('outbox.bell', %s, true)", [1 if awake else 2])
            outbox.emit(connection, "a", 1)
            rung = list(connection.notifies(timeout=0 if awake else 30, stop_after=1))
            assert len(rung) == (0 if awake else 1)


def test_whoever_rings_after_another_leaves_it_at_that_for_a_moment(database: str) -> None:
    """NOTIFY makes commits wait for each other. The clock is the server's."""
    ring = (
        "SELECT setval('outbox.bell', x.ms), outbox.ring_bell(x.ms),"
        " (SELECT last_value = x.ms FROM outbox.bell)"
        " FROM (SELECT (date_part('epoch', clock_timestamp()) * 1000)::bigint + {} AS ms) x"
    )
    with psycopg.connect(database, autocommit=True) as connection:

        def silent(offset_ms: int) -> bool:
            row = connection.execute(ring.format(offset_ms).encode()).fetchone()
            return bool(row and row[2])

        assert any(silent(-5) for _ in range(50)), "a moment may pass in between, but not each time"
        assert not silent(-1000), "it rang long ago, and nobody woke"
        assert not silent(+60_000), "a clock that was set back keeps nobody silent"
        connection.execute("SELECT setval('outbox.bell', 1)")
        outbox.emit(connection, "a", 1)
        assert rows(database, "SELECT last_value FROM outbox.bell") == [(1,)]


def test_two_async_sessions_with_one_key_agree(database: str) -> None:
    async def run() -> set[int]:
        async def one() -> int:
            async with await psycopg.AsyncConnection.connect(database) as connection:
                return await outbox.emit_async(connection, "a", 1, dedupe_key="k")

        return set(await asyncio.gather(*(one() for _ in range(8))))

    assert len(asyncio.run(run())) == 1
    assert len(rows(database, "SELECT FROM outbox.event")) == 1


def test_whoever_has_drawn_an_event_id_is_seen_in_progress(database: str) -> None:
    """I9: whatever emit waits for after that, a relay that passes the id knows whom to watch."""
    running = "SELECT backend_xid IS NOT NULL FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        pid = two.info.backend_pid
        first = outbox.emit(one, "first", 1, dedupe_key="k")
        with waiting_emit(database, two, dedupe_key="k"):
            drawn = rows(database, "SELECT last_value FROM outbox.event_id")
            seen = rows(database, running, pid)
            one.commit()  # before anything is judged: a test that fails must not wait for ever
        assert (drawn, seen) == ([(first + 1,)], [(True,)])
