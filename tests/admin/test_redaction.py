"""Redaction: no trace of the data is left in the database, and what must stay stays."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.errors import OutboxError, UsageError
from outbox.store import redaction as store
from outbox.store.attempts import Attempts, Settlement
from outbox.store.dead import Selection, redrive
from outbox.store.redaction import Choice, Toll, count, find_events, redact, sweep
from outbox.store.retention import RetentionConfig, tend_retention
from outbox.store.statements import statement
from outbox.store.subscriptions import Rule
from tests.admin.helpers import Behind, Shop
from tests.admin.test_races import open_transaction, settle_in

EMAIL = "jane.doe@example.com"
SUBJECT = "users/jane-4711"
ORDERING = "order-of-jane"
DEDUPE = "signup-jane"
HEADER = "trace-jane"
ANSWER = "hello Jane, your order"
SECRETS = ("jane", "Jane", EMAIL)
KEEP = RetentionConfig(keep=timedelta(days=6))


def emit(shop: Shop, n: int = 1, **fields: Any) -> list[int]:
    """Events about Jane; each has all that an event can have."""
    wanted = {"deliver_at": None, "expires_at": None, "org": "acme", "dedupe": True} | fields
    wanted |= {
        "payload": json.dumps({"operation": "INSERT", "record": {"email": EMAIL}}),
        "subject": SUBJECT,
        "ordering": ORDERING,
        "headers": json.dumps({"outbox-trace": HEADER}),
        "n": n,
        "key": DEDUPE,
    }
    query = (
        "SELECT outbox.emit('users.changed', %(payload)s::json, %(org)s, %(subject)s, %(ordering)s,"
        " %(headers)s::json, %(deliver_at)s, %(expires_at)s,"
        " CASE WHEN %(dedupe)s THEN %(key)s || '-' || nextval('outbox.object_id') END)"
        " FROM generate_series(1, %(n)s)"
    )
    return [row[0] for row in shop.rows(query, **wanted)]


def end(shop: Shop, verdict: str, **detail: object) -> list[UUID]:
    """Attempt everything that is there; the receiver quotes what it got."""
    leases = shop.route(1000) + shop.lease()
    shop.take(leases)
    detail |= {"status": 500, "duration_ms": 7, "response": ANSWER, "error": f"refused: {EMAIL}"}
    settled = [
        Settlement(i, token, verdict, True, "http_500", 3600.0, json.dumps(detail))
        for i, token in leases
    ]
    shop.hot(lambda c: Attempts(c).settle(settled))
    return sorted(delivery_id for delivery_id, _ in leases)


def traces(shop: Shop, *secrets: str) -> list[str]:
    """Where in the schema any of these texts stands: rows of every table, and statistics."""
    found = []
    tables = shop.rows(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace"
        " AND c.relkind IN ('r', 'p', 'm')"
    )
    for (table,) in [*tables, ("pg_stats",)]:
        for secret in secrets:
            n = shop.one(
                f"SELECT count(*) FROM {table} x WHERE x::text LIKE '%%' || %(secret)s || '%%'",
                secret=secret,
            )
            if n:
                found.append(f"{table}: {n} rows with {secret}")
    return found


def turn(shop: Shop, at: datetime) -> None:
    shop.hot(lambda c: tend_retention(c, KEEP, at))


def erase(shop: Shop, choice: Choice | None = None, **options: Any) -> Toll:
    found = find_events(shop.connection, choice or Choice(subject=SUBJECT))
    return redact(shop.connection, found.ids, "asked by letter", **options).toll


def journal(shop: Shop, event_id: int) -> list[tuple[str, str | None]]:
    query = "SELECT fact, reason FROM outbox.journal WHERE event_id = %(id)s ORDER BY at"
    return [(row[0], row[1]) for row in shop.rows(query, id=event_id)]


# -- no trace -------------------------------------------------------------------------------------


def test_no_trace_is_left_in_any_table_nor_in_the_statistics(shop: Shop) -> None:
    """Delivered, retried, dead, held, leased, pending and carried events, over several slots."""
    shop.endpoint(rule=Rule(("users.*",)))
    start = datetime.now(UTC)
    turn(shop, start)
    emit(shop, 3, deliver_at=start + timedelta(days=9))
    shop.route()
    emit(shop, 20)
    dead = end(shop, "dead")
    emit(shop, 20)
    end(shop, "retry")
    emit(shop, 20)
    end(shop, "delivered")
    for day in range(1, 8):  # the first slot is emptied: what is owed from it is carried
        turn(shop, start + timedelta(days=day, minutes=day))
    assert shop.one("SELECT count(*) FROM outbox.journal WHERE fact = 'carried'") > 0
    redrive(shop.connection, Selection(ids=dead[:5]))
    emit(shop, 20)
    end(shop, "dead")
    emit(shop, 5)
    shop.take(shop.route(2))
    emit(shop, 5)
    shop.connection.execute(
        "INSERT INTO outbox.replay (id, mode, filter, why, rate_per_s, position, ceiling) VALUES"
        " ('r', 'redeliver', jsonb_build_object('subject', %s::text, 'org', 'acme'), 'x', 1, 0, 1)",
        [SUBJECT],
    )
    shop.connection.execute(
        "INSERT INTO outbox.progress (delivery_id, note, metadata, at) SELECT id, %s,"
        " jsonb_build_object('for', %s::text), clock_timestamp() FROM outbox.delivery",
        [SECRETS[0], SECRETS[0]],
    )
    shop.connection.execute("ANALYZE")
    assert len(traces(shop, *SECRETS)) >= 12

    choice = Choice(subject=SUBJECT)
    expected = count(shop.connection, find_events(shop.connection, choice).ids)
    ids = find_events(shop.connection, choice).ids
    done = redact(shop.connection, ids, "asked by letter", subject=SUBJECT, batch_events=7)
    assert sweep(shop.connection, done.xid) == []
    assert traces(shop, *SECRETS, "hello", "refused") == []
    assert shop.states() == {}
    assert shop.one("SELECT count(*) FROM outbox.pending") == 0
    assert done.toll == Toll(**{**_fields(expected), "replays": done.toll.replays})
    assert done.toll.replays == 1
    assert (expected.events, expected.pending) == (len(ids), 5)
    assert expected.dedupe == 30  # those of before the turns were past their lifetime
    assert shop.one("SELECT filter ->> 'org' FROM outbox.replay") == "acme"


def _fields(toll: Toll) -> dict[str, int]:
    return {name: getattr(toll, name) for name in Toll.__dataclass_fields__}


def test_samples_of_an_emptied_table_leave_the_statistics_too(shop: Shop) -> None:
    """ANALYZE passes over an empty table: what it sampled before would stay for ever."""
    shop.endpoint()
    emit(shop, 50)
    end(shop, "dead")
    shop.connection.execute("ANALYZE")
    done = redact(shop.connection, find_events(shop.connection, Choice(org="acme")).ids, "x")
    assert shop.rows("SELECT FROM outbox.dedupe UNION ALL SELECT FROM outbox.dead_letter") == []
    assert sweep(shop.connection, done.xid) == []
    assert traces(shop, *SECRETS) == []


def test_the_row_versions_of_before_are_gone(shop: Shop) -> None:
    shop.endpoint()
    emit(shop, 10)
    end(shop, "dead")
    done = redact(shop.connection, find_events(shop.connection, Choice(org="acme")).ids, "x")
    assert sweep(shop.connection, done.xid) == []
    shop.connection.execute("CHECKPOINT")
    slot = shop.one("SELECT last_value FROM outbox.ring_slot")
    for table in (f"event_{slot}", f"journal_{slot}", "dead_letter", "dedupe"):
        data = shop.one(f"SELECT pg_read_binary_file(pg_relation_filepath('outbox.{table}'))")
        versions = list(row_versions(data))
        assert len(versions) == shop.one(f"SELECT count(*) FROM outbox.{table}"), table
        assert not any(secret.encode() in row for row in versions for secret in SECRETS)


def row_versions(data: bytes) -> Iterator[bytes]:
    """The row versions in a table's file, dead ones too: page header, line pointers, rows."""
    for start in range(0, len(data), 8192):
        page = data[start : start + 8192]
        (lower,) = struct.unpack_from("<H", page, 12)
        for (item,) in struct.iter_unpack("<I", page[24:lower]):
            offset, flags, length = item & 0x7FFF, item >> 15 & 3, item >> 17
            if flags == 1:
                yield page[offset : offset + length]


def test_who_keeps_old_row_versions_is_named(shop: Shop) -> None:
    shop.endpoint()
    emit(shop)
    with psycopg.connect(shop.url, application_name="report") as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1")
        done = redact(shop.connection, find_events(shop.connection, Choice(org="acme")).ids, "x")
        [warning] = sweep(shop.connection, done.xid)
        assert f"session {holder.info.backend_pid} (report)" in warning
        assert "VACUUM outbox.event" in warning


# -- what stays -----------------------------------------------------------------------------------


def test_what_stays_is_which_event_when_and_what_became_of_it(shop: Shop) -> None:
    shop.endpoint()
    [event_id] = emit(shop)
    [delivery_id] = end(shop, "retry")
    before = shop.rows("SELECT id, type, org_id, created_at FROM outbox.event")
    erase(shop)
    assert shop.rows("SELECT id, type, org_id, created_at FROM outbox.event") == before
    assert shop.rows("SELECT payload::text, headers, subject, ordering_key FROM outbox.event") == [
        ('{"redacted":true}', None, None, None)
    ]
    assert journal(shop, event_id) == [
        ("routed", None),
        ("attempt_failed", "http_500"),
        ("cancelled", "redacted"),
        ("redacted", "asked by letter"),
    ]
    details = dict(shop.rows("SELECT fact, detail FROM outbox.journal"))
    assert details["attempt_failed"] == {"status": 500, "duration_ms": 7}
    assert details["routed"][0]["delivery"] == str(delivery_id)
    assert details["redacted"] == {"by": shop.one("SELECT session_user")}


def test_a_carried_fact_keeps_the_state_that_the_fold_needs(shop: Shop) -> None:
    shop.endpoint()
    start = datetime.now(UTC)
    turn(shop, start)
    emit(shop)
    end(shop, "dead")
    for day in range(1, 8):
        turn(shop, start + timedelta(days=day, minutes=day))
    query = "SELECT detail FROM outbox.journal WHERE fact = 'carried' ORDER BY at LIMIT 1"
    before = shop.one(query)
    assert before["detail"]["response"] == ANSWER
    erase(shop)
    assert shop.one(query) == {k: v for k, v in before.items() if k not in {"detail", "order_key"}}
    assert shop.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_events_of_others_are_untouched(shop: Shop) -> None:
    shop.endpoint()
    emit(shop, 2)
    [other] = shop.emit()
    [rival] = emit(shop, org="rival")
    end(shop, "dead", note="mine")
    before = shop.rows(
        "SELECT * FROM outbox.journal WHERE event_id = ANY (%(ids)s) ORDER BY at",
        ids=[other, rival],
    )
    toll = erase(shop, Choice(subject=SUBJECT, org="acme"))
    assert (toll.events, toll.dead, toll.dedupe) == (2, 2, 2)
    assert shop.rows("SELECT event_id FROM outbox.dead_letter") == [(other,)]
    assert shop.rows("SELECT event_id FROM outbox.dedupe") == [(rival,)]
    assert before == shop.rows(
        "SELECT * FROM outbox.journal WHERE event_id = ANY (%(ids)s) ORDER BY at",
        ids=[other, rival],
    )
    assert shop.one("SELECT subject FROM outbox.event WHERE id = %(id)s", id=rival) == SUBJECT


def test_a_pending_event_is_not_routed_any_more_and_not_unaccounted_for(shop: Shop) -> None:
    shop.endpoint()
    [event_id] = emit(shop)
    assert erase(shop).pending == 1
    assert shop.route(10) == []
    assert journal(shop, event_id) == [("routed", "redacted"), ("redacted", "asked by letter")]
    assert shop.rows("SELECT detail FROM outbox.journal WHERE fact = 'routed'") == [(None,)]


def test_the_next_of_a_key_has_its_turn(shop: Shop) -> None:
    """A redacted delivery ends for good, so its key is signalled."""
    added = shop.endpoint()
    emit(shop)
    shop.route()
    shop.connection.execute("UPDATE outbox.delivery SET order_key = 5")
    erase(shop)
    signals = shop.rows("SELECT subscription_id, order_key FROM outbox.order_signal")
    assert signals == [(added.subscription_id, 5)]


def test_redacting_twice_is_redacting_once(shop: Shop) -> None:
    shop.endpoint()
    ids = emit(shop, 2)
    assert erase(shop).events == 2
    found = find_events(shop.connection, Choice(ids=ids))
    assert (found.ids, found.already) == ([], 2)
    assert redact(shop.connection, ids, "again").toll == Toll()
    assert [fact for fact, _ in journal(shop, ids[0])].count("redacted") == 1


# -- choosing -------------------------------------------------------------------------------------


def test_events_are_chosen_by_all_conditions_in_batches_of_any_size(shop: Shop) -> None:
    a, b = emit(shop), shop.emit(subject=SUBJECT)
    c = shop.emit("rival", 2)
    then = shop.one("SELECT created_at FROM outbox.event WHERE id = %(id)s", id=c[0])
    cases: list[tuple[Choice, list[int]]] = [
        (Choice(subject=SUBJECT), a + b),
        (Choice(subject=SUBJECT, patterns=("users.*",)), a),
        (Choice(org="rival"), c),
        (Choice(ids=[*c, 99999]), c),
        (Choice(ids=c, org="acme"), []),
        (Choice(since=then), c),
        (Choice(until=then), a + b),
        (Choice(where=f'$.record.email == "{EMAIL}"'), a),
        (Choice(where="$ == 2", org="rival"), c[1:]),
        (Choice(where="$ == 2", org="acme"), []),
        (Choice(), a + b + c),
    ]
    for choice, expected in cases:
        for looked_max in (1, 2, 100):
            assert find_events(shop.connection, choice, looked_max=looked_max).ids == expected


def test_a_payload_that_cannot_be_judged_is_counted_and_left(shop: Shop) -> None:
    [(event_id,)] = shop.rows("SELECT outbox.emit('a.b', '{\"email\": \"\\u0000\"}'::json, 'acme')")
    found = find_events(shop.connection, Choice(where='$.email == "x"'))
    assert (found.ids, found.unjudged) == ([], 1)
    assert find_events(shop.connection, Choice(ids=[event_id])).ids == [event_id]


@pytest.mark.parametrize("where", ["$.email", "nonsense ==", '$.at.datetime() == "x"', "$x == 1"])
def test_a_where_that_is_no_predicate_is_refused(shop: Shop, where: str) -> None:
    with pytest.raises(UsageError):
        find_events(shop.connection, Choice(where=where))


@pytest.mark.parametrize("why", ["", "x" * 201])
def test_a_reason_is_asked_for_and_is_no_novel(shop: Shop, why: str) -> None:
    with pytest.raises(UsageError):
        redact(shop.connection, [1], why)


def test_an_event_in_two_slots_is_found_once_and_redacted_in_both(shop: Shop) -> None:
    shop.endpoint()
    [event_id] = emit(shop)
    end(shop, "dead")
    shop.connection.execute(
        "INSERT INTO outbox.event SELECT id, 5, type, org_id, subject, ordering_key, payload,"
        " headers, created_at, deliver_at, expires_at FROM outbox.event"
    )
    assert find_events(shop.connection, Choice(subject=SUBJECT)).ids == [event_id]
    assert erase(shop).events == 1
    assert shop.rows("SELECT DISTINCT subject, payload::text FROM outbox.event") == [
        (None, '{"redacted":true}')
    ]


# -- races ----------------------------------------------------------------------------------------


@pytest.fixture
def started(shop: Shop) -> list[tuple[UUID, int]]:
    shop.endpoint()
    emit(shop)
    leases = shop.route(1)
    assert len(shop.take(leases)) == 1
    return leases


def test_an_attempt_under_way_settles_into_nothing(
    shop: Shop, started: list[tuple[UUID, int]]
) -> None:
    assert erase(shop).live == 1
    assert end_leases(shop, started) == set()
    assert traces(shop, *SECRETS) == []


def end_leases(shop: Shop, leases: list[tuple[UUID, int]]) -> set[UUID]:
    detail = json.dumps({"response": ANSWER})
    settled = [Settlement(i, token, "dead", True, "x", None, detail) for i, token in leases]
    return shop.hot(lambda c: Attempts(c).settle(settled))


def test_a_settle_that_comes_first_is_waited_for_and_erased(
    shop: Shop, started: list[tuple[UUID, int]]
) -> None:
    with open_transaction(shop.url) as worker:
        [delivery_id] = settle_in(worker, started, "dead")
        worker.execute("UPDATE outbox.dead_letter SET detail = %s", [json.dumps({"r": ANSWER})])
        behind = Behind(shop.url, lambda c: redact(c, [event_of(shop, delivery_id)], "x"))
        behind.until_it_waits(shop.connection)
    assert behind.join().toll.dead == 1
    assert shop.states() == {}
    assert traces(shop, *SECRETS) == []


def event_of(shop: Shop, delivery_id: UUID) -> int:
    query = "SELECT event_id FROM outbox.delivery WHERE id = %(id)s"
    return int(shop.one(query, id=delivery_id))


def test_a_settle_that_comes_second_finds_nothing(
    shop: Shop, started: list[tuple[UUID, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    event_id = event_of(shop, started[0][0])
    waiting: list[Behind] = []
    real = store._lock

    def lock_and_let_a_worker_come(connection: Any, deliveries: list[UUID]) -> None:
        real(connection, deliveries)
        waiting.append(Behind(shop.url, lambda c: settle_in(c, started, "dead")))
        waiting[0].until_it_waits(shop.connection)

    monkeypatch.setattr(store, "_lock", lock_and_let_a_worker_come)
    redact(shop.connection, [event_id], "x")
    assert waiting[0].join() == set()
    assert shop.states() == {}


def test_a_letter_that_is_redriven_meanwhile_is_found_live(shop: Shop) -> None:
    shop.endpoint()
    [event_id] = emit(shop)
    end(shop, "dead")
    with open_transaction(shop.url) as operator:
        redrive(operator, Selection())
        behind = Behind(shop.url, lambda c: redact(c, [event_id], "x"))
        behind.until_it_waits(shop.connection)
    assert behind.join().toll.live == 1
    assert shop.states() == {}


def test_an_event_that_is_carried_meanwhile_is_redacted_in_its_new_slot(shop: Shop) -> None:
    shop.endpoint()
    [event_id] = emit(shop)
    end(shop, "dead")
    slot = shop.one("SELECT last_value FROM outbox.ring_slot")
    with open_transaction(shop.url) as daemon:
        daemon.execute("SELECT nextval('outbox.ring_slot')")
        picked = daemon.execute(
            statement("carry_pick"), {"slot": slot, "after": 0, "rows_max": 10}
        ).fetchone()
        assert picked is not None
        parts = dict(zip(("deliveries", "dead", "pending"), picked, strict=True))
        daemon.execute(statement("carry"), {"now": None, "slot": slot, **parts})
        behind = Behind(shop.url, lambda c: redact(c, [event_id], "x"))
        behind.until_it_waits(shop.connection)
    assert behind.join().toll.dead == 1
    assert shop.one("SELECT count(*) FROM outbox.event") == 2
    assert traces(shop, *SECRETS) == []


def test_whoever_holds_a_row_for_long_stops_the_redaction_not_the_relays(
    shop: Shop, started: list[tuple[UUID, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT_MS", 20)
    with open_transaction(shop.url) as holder:
        holder.execute("SELECT FROM outbox.delivery FOR UPDATE")
        with pytest.raises(OutboxError, match="another session holds"):
            erase(shop)
    assert shop.states() == {"leased": 1}
    assert erase(shop).live == 1


def test_the_log_and_the_journal_stay_append_only_for_everyone_else(shop: Shop) -> None:
    shop.endpoint()
    emit(shop)
    erase(shop)
    for query in (
        "UPDATE outbox.event SET subject = NULL",
        "UPDATE outbox.journal SET detail = NULL",
        "DELETE FROM outbox.journal",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation):
            shop.connection.execute(query.encode())
