"""Broadcasts by sql: one row for each settled delivery, whatever the database refuses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from outbox.attempt import settlement_of
from outbox.broadcast import SENT, BroadcastConfig
from outbox.store.broadcasts import Broadcasts, Sent
from processors.broadcast import SEND_S_MAX
from tests.broadcast.conftest import Station

PAYLOAD = {
    "operation": "UPDATE", "schema": "public", "table": "orders", "changed": ["status"],
    "record": {"id": 1, "status": "paid", "secret": "x"}, "old_record": {"id": 1, "status": "open"},
}  # fmt: skip


def captured(**changes: Any) -> str:
    return json.dumps(PAYLOAD | changes)


def test_a_broadcast_is_a_hint_with_the_columns_on_the_list(station: Station) -> None:
    """The row's id is the delivery's, so that clients see one stable meta.id."""
    station.subscribe_broadcast()
    [event] = station.emit(type="orders.updated", subject="orders/1", payload=captured())
    station.broadcast()
    [(delivery, fact, reason, attempt)] = station.rows(
        "SELECT delivery_id, fact, reason, attempt FROM outbox.journal WHERE fact <> 'routed'"
    )
    assert (fact, reason, attempt) == ("delivered", "broadcast", 1)
    assert station.messages() == [(
        "orders:acme", "orders.updated", {
            "id": str(event), "delivery": str(delivery), "type": "orders.updated",
            "subject": "orders/1", "operation": "UPDATE", "changed": ["status"],
            "record": {"status": "paid"},
        }, True,
    )]  # fmt: skip
    assert station.one("SELECT id FROM realtime.messages") == delivery
    assert station.states() == {}
    station.check()


def test_organizations_get_their_own_topics(station: Station) -> None:
    """One subscription for all of them; an event without organization has no topic."""
    station.subscribe_broadcast(None)
    station.emit(org="a")
    station.emit(org="b:c")
    station.emit(org=None)
    station.broadcast()
    assert [row[0] for row in station.messages()] == ["orders:a", "orders:b:c"]
    assert station.rows("SELECT reason FROM outbox.dead_letter") == [("no_organization",)]
    station.check()


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("9007199254740991", 9007199254740991),
        ("9007199254740993", "9007199254740993"),
        ("0.1", 0.1),
        ("12345678.90", 12345678.9),
        ("0.12345678901234567890", "0.12345678901234567890"),
        ("1e400", None),
    ],
)
def test_a_number_that_a_client_would_damage_is_a_string(
    station: Station, number: str, shown: object
) -> None:
    station.subscribe_broadcast()
    station.emit(payload=captured().replace('"paid"', number))
    station.broadcast()
    [(_, _, payload, _)] = station.messages()
    value = payload["record"]["status"]
    if shown is None:
        assert isinstance(value, str)
    else:
        assert value == shown
        assert type(value) is type(shown)


def test_so_is_one_within_an_array_or_a_document(station: Station) -> None:
    station.subscribe_broadcast()
    inner = '{"b": 0.12345678901234567890, "c": "9007199254740993"}'
    outer = f'{{"a": [1, 9007199254740993, {inner}], "d": {{}}}}'
    station.emit(payload=captured().replace('"paid"', outer))
    station.emit(payload=captured().replace('"paid"', "[" * 500 + "9007199254740993" + "]" * 500))
    station.broadcast()
    first, second = (payload["record"]["status"] for _, _, payload, _ in station.messages())
    assert first == {
        "a": [1, "9007199254740993", {"b": "0.12345678901234567890", "c": "9007199254740993"}],
        "d": {},
    }
    assert isinstance(second, list)  # too deep to be taken apart, and nobody else waits for it


def test_an_emitted_event_shows_the_members_on_the_list(station: Station) -> None:
    station.subscribe_broadcast(event_name="changed", private=False)
    station.emit(payload='{"status": "new", "secret": 1}')
    station.emit(payload="[1]")
    station.broadcast()
    first, second = station.messages()
    assert (first[1], first[2]["record"], first[3]) == ("changed", {"status": "new"}, False)
    assert second[2]["record"] is None


@pytest.mark.parametrize(
    ("org", "options", "reason"),
    [
        ("x" * 200, {"prefix": "p" * 56}, "topic_too_long"),
        ("acme", {"include": ["big"]}, "payload_too_large"),
    ],
)
def test_what_a_client_could_not_be_sent_is_a_dead_letter(
    station: Station, org: str, options: dict[str, Any], reason: str
) -> None:
    """The server would drop it and tell nobody."""
    station.subscribe_broadcast(org, **options)
    station.emit(org=org, payload=json.dumps({"big": "x" * 256_000}))
    station.broadcast()
    assert station.messages() == []
    assert station.rows("SELECT reason FROM outbox.dead_letter") == [(reason,)]
    station.check()


def test_what_is_routed_while_a_batch_begins_is_sent_once(station: Station) -> None:
    """The claim's snapshot is younger than its statement's, which cannot delete such a row."""
    station.subscribe_broadcast()
    station.emit(3)
    station.route(1000)
    station.run("CREATE TABLE public.kept AS SELECT * FROM outbox.delivery")
    station.run(
        "DELETE FROM outbox.delivery WHERE id <> (SELECT min(id::text)::uuid FROM public.kept)"
    )

    columns = station.one(
        "SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped"
        " AND attrelid = 'outbox.delivery'::regclass AND attgenerated = ''"
    )

    async def body(store: Broadcasts) -> tuple[Sent, Sent]:
        with psycopg.connect(station.url) as router:
            # The claim asks for this table before it takes its snapshot, the statement never does.
            router.execute("LOCK TABLE outbox.subscription_revision IN ACCESS EXCLUSIVE MODE")
            sending = asyncio.create_task(store.send(1000, (await store.due()).sql))
            while not station.one("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.005)
            router.execute(
                f"INSERT INTO outbox.delivery ({columns}) SELECT {columns} FROM public.kept"
                " WHERE id NOT IN (SELECT d.id FROM outbox.delivery d)".encode()
            )
        return await sending, await store.send(1000, (await store.due()).sql)

    assert station.hot(body) == (Sent(sent=1, late=2), Sent(sent=2))
    station.run("DROP TABLE public.kept")
    assert station.rows("SELECT count(*), count(DISTINCT id) FROM realtime.messages") == [(3, 3)]
    station.check()


def test_a_message_and_its_settle_are_one_transaction(station: Station) -> None:
    """What is rolled back with the row is the settle too: tried again, not lost."""
    station.subscribe_broadcast()
    station.emit(3)
    drop_partitions(station)
    station.broadcast()
    assert station.messages() == []
    assert (
        station.rows(
            "SELECT fact, reason, charged FROM outbox.journal WHERE delivery_id IS NOT NULL"
        )
        == [("attempt_failed", "no_partition", True)] * 3
    )
    assert station.states() == {"scheduled": 3}
    station.run("SELECT outbox.keep_realtime_partitions()")
    station.run("UPDATE outbox.delivery SET due_at = now()")
    station.broadcast()
    assert len(station.messages()) == 3
    assert station.states() == {}


def drop_partitions(station: Station) -> None:
    for (name,) in station.rows(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = 'realtime.messages'::regclass"
    ):
        station.run(f"DROP TABLE {name}")


def test_one_bad_row_does_not_sink_the_batch(station: Station) -> None:
    """Halved until it stands alone, which is a dead letter with what PostgreSQL said."""
    station.subscribe_broadcast()
    station.run(
        "ALTER TABLE realtime.messages ADD CHECK (payload -> 'record' ->> 'status' <> 'bad')"
    )
    for n in range(20):
        status = "bad" if n == 13 else "good"
        station.emit(payload=json.dumps({"status": status}))
    station.broadcast()
    assert len(station.messages()) == 19
    [(reason, error)] = station.rows("SELECT reason, detail ->> 'error' FROM outbox.dead_letter")
    assert reason == "message_refused"
    assert "violates check constraint" in error
    station.check()


def test_a_payload_that_no_jsonb_takes_is_a_dead_letter_of_its_own(station: Station) -> None:
    station.subscribe_broadcast()
    station.emit()
    station.emit(payload='{"status": "\\u0000"}')
    station.emit()
    station.broadcast()
    assert len(station.messages()) == 2
    assert station.rows("SELECT reason FROM outbox.dead_letter") == [("payload_unreadable",)]
    station.check()


def test_without_the_right_to_write_rows_the_function_sends(station: Station) -> None:
    """It costs more, and its silence is found out: the row is looked for."""
    station.subscribe_broadcast()
    station.emit(5)
    station.run("ALTER TABLE realtime.messages ADD COLUMN more text")
    station.run("ALTER TABLE realtime.messages DROP COLUMN updated_at")
    station.broadcast()
    assert len(station.messages()) == 5
    assert station.states() == {}
    station.emit(2)
    drop_partitions(station)
    station.broadcast()
    assert station.rows(
        "SELECT DISTINCT reason FROM outbox.journal WHERE fact = 'attempt_failed'"
    ) == [("not_sent",)]
    assert station.states() == {"scheduled": 2}
    station.check()


def test_who_lost_its_lease_writes_nothing(station: Station) -> None:
    """I3: what was leased to be tried one by one is written with its settle, or not at all."""
    station.subscribe_broadcast()
    station.emit(2)
    station.route()

    async def body(store: Broadcasts) -> None:
        messages = await store.lease("sql", 10, (await store.due()).sql, 7, 30.0)
        station.run("UPDATE outbox.delivery SET token = 8 WHERE id = %s", messages[0].id)
        ended = [settlement_of(message, SENT, lambda: 0.0) for message in messages]
        await store.put(messages, ended, rows=True, reads=True)

    station.hot(body)
    assert len(station.messages()) == 1
    assert station.states() == {"leased": 1}
    station.check()


def test_where_there_is_no_realtime_it_is_tried_again(station: Station) -> None:
    station.subscribe_broadcast(retry="1s")
    station.run("DROP SCHEMA realtime CASCADE")
    station.emit()
    station.broadcast()
    assert station.rows("SELECT reason FROM outbox.journal WHERE fact = 'attempt_failed'") == [
        ("no_realtime_schema",)
    ]
    station.check()


def test_a_pause_holds_broadcasts_and_workers_get_none(station: Station) -> None:
    subscription = station.subscribe_broadcast()
    station.emit()
    assert station.leases() == []
    assert station.due() == []
    station.run("UPDATE outbox.subscription SET state = 'paused' WHERE id = %s", subscription)
    station.broadcast()
    assert station.messages() == []
    station.tend()
    assert station.states() == {"held": 1}


def test_the_newest_of_a_subject_stands_for_all_within_the_window(station: Station) -> None:
    station.subscribe_broadcast(coalesce_s=60)
    for status in ("a", "b", "c"):
        station.emit(subject="orders/1", payload=json.dumps({"status": status}))
    station.emit(subject="orders/2", payload='{"status": "x"}')
    station.emit(payload='{"status": "of no subject"}')
    station.broadcast()
    assert station.messages() == []
    station.run("UPDATE outbox.delivery SET due_at = due_at - interval '61 s'")
    station.broadcast()
    assert [row[2]["record"]["status"] for row in station.messages()] == ["c", "x", "of no subject"]
    facts = (
        "SELECT reason, count(*) FROM outbox.journal WHERE fact = 'delivered' GROUP BY 1 ORDER BY 1"
    )
    assert station.rows(facts) == [("broadcast", 3), ("coalesced", 2)]
    station.check()


def test_two_daemons_send_each_once(station: Station) -> None:
    """Rows that one holds are passed over by the other."""
    station.subscribe_broadcast()
    station.emit(50)
    station.route(1000)
    with station.connection.cursor() as _, another_transaction(station) as held:
        held.execute("SELECT id FROM outbox.delivery ORDER BY id LIMIT 20 FOR UPDATE")
        station.broadcast()
        assert len(station.messages()) == 30
    station.broadcast()
    assert len(station.messages()) == 50


def another_transaction(station: Station) -> Any:
    import psycopg

    return psycopg.connect(station.url)


def test_a_daemon_that_is_cut_off_keeps_no_session_and_no_lock(station: Station) -> None:
    """PostgreSQL ends a session that asks for nothing, however alive its wire looks."""

    async def body(store: Broadcasts) -> list[tuple[object, ...]]:
        assert await store.serves_http()
        cursor = await store._connection.raw.execute("SHOW idle_session_timeout")
        return await cursor.fetchall()

    assert station.hot(body) == [("20s",)]
    config = BroadcastConfig()
    assert max(config.look_s, config.unknown_s, SEND_S_MAX) < 20
