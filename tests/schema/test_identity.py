"""A copy of a database sends nothing until it is adopted, and then nothing of what was owed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from outbox.errors import SchemaMismatch, UsageError, WrongInstance
from outbox.store.connect import connect, connect_hot
from outbox.store.dispatch import Claim, Dispatch
from outbox.store.identity import (
    Adopted,
    adopt,
    check_identity,
    release_adopted,
)

Make = Callable[[str | None], str]


def rows(url: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def check(url: str, instance: str = "default") -> None:
    """As the daemon's role."""
    with connect(f"{url}?options=-crole%3Doutbox_daemon") as connection:
        check_identity(connection, instance)


def copy(url: str, make: Make) -> str:
    return make(url.rpartition("/")[2])


def with_deliveries(url: str) -> None:
    """One delivery in each live state, of one routed event."""
    subscription = rows(
        url,
        "INSERT INTO outbox.subscription (kind, lane, org_id, patterns, retry, active_from)"
        " VALUES ('pdf', 1, 'acme', '{*}', '1s', now() - interval '1 day') RETURNING id",
    )[0][0]
    event = rows(url, "SELECT outbox.emit('orders.paid', '1', 'acme')")[0][0]
    rows(url, "DELETE FROM outbox.pending")
    states = {
        "scheduled": "NULL, NULL, NULL, NULL, NULL",
        "leased": "5, now() + interval '1 h', now(), NULL, NULL",
        "held": "NULL, NULL, NULL, now(), 'paused'",
    }
    for state, rest in states.items():
        rows(
            url,
            "INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
            " lane, org_id, due_at, age_limit_at, state, token, lease_until, started_at, held_at,"
            f" held_reason) VALUES (%s, %s, 0, %s, 1, 1, 'acme', now(), now(), %s, {rest})",
            uuid4(),
            event,
            subscription,
            state,
        )


STATES = "SELECT state, held_reason FROM outbox.delivery ORDER BY 1, 2"


def test_the_original_is_itself(database: str, make_database: Make) -> None:
    url = copy(database, make_database)
    rows(url, "UPDATE outbox.installation SET database_oid = (SELECT oid FROM pg_database WHERE"
              " datname = current_database())")  # fmt: skip
    check(url)


def test_a_copy_in_the_same_cluster_is_refused_until_it_is_adopted(
    database: str, make_database: Make
) -> None:
    url = copy(database, make_database)
    with pytest.raises(WrongInstance, match=r"copy of another database.*run: outbox adopt"):
        check(url)
    assert adopt(url, "staging") == Adopted(epoch=2, held=0)
    check(url, "staging")


def test_another_instance_name_is_refused(database: str) -> None:
    itself(database)
    with pytest.raises(WrongInstance, match="instance 'default', and OUTBOX_INSTANCE is 'staging'"):
        check(database, "staging")


def itself(url: str) -> None:
    """Make a database that a test copied from the template its own original."""
    rows(url, "UPDATE outbox.installation SET database_oid = (SELECT oid FROM pg_database WHERE"
              " datname = current_database())")  # fmt: skip


def test_a_restore_in_another_cluster_is_refused(database: str) -> None:
    itself(database)
    check(database)
    rows(database, "UPDATE outbox.installation SET system_identifier = '1'")
    with pytest.raises(WrongInstance, match="another PostgreSQL cluster"):
        check(database)
    adopt(database, "default")
    check(database)


def test_a_database_without_the_schema_says_what_to_run(empty_database: str) -> None:
    for use in (check, lambda url: adopt(url, "x")):
        with pytest.raises(SchemaMismatch, match="run: outbox migrate"):
            use(empty_database)


def test_what_is_ones_own_cannot_be_adopted(database: str) -> None:
    """It would stop a healthy installation."""
    itself(database)
    with_deliveries(database)
    before = rows(database, STATES)
    with pytest.raises(UsageError, match="nothing to adopt"):
        adopt(database, "default")
    assert rows(database, STATES) == before
    assert rows(database, "SELECT count(*) FROM outbox.installation") == [(1,)]


def test_adopting_holds_everything_live_with_a_fact_each(database: str) -> None:
    with_deliveries(database)
    assert adopt(database, "staging") == Adopted(epoch=2, held=2)
    assert rows(database, STATES) == [("held", "adopted"), ("held", "adopted"), ("held", "paused")]
    facts = "SELECT fact, reason, count(*) FROM outbox.journal GROUP BY 1, 2"
    assert rows(database, facts) == [("held", "adopted", 2)]
    old, new = rows(database, "SELECT salt, first_event_id, hold_event_id FROM outbox.installation"
                              " ORDER BY epoch")  # fmt: skip
    assert old[0] != new[0]
    assert new[1] == new[2] == rows(database, "SELECT last_value FROM outbox.event_id")[0][0]


def test_the_daemons_role_is_enough(database: str) -> None:
    with_deliveries(database)
    as_daemon = f"{database}?options=-crole%3Doutbox_daemon"
    assert adopt(as_daemon, "staging").held == 2
    assert release_adopted(as_daemon) == 2


def test_what_was_captured_before_is_held_when_it_is_routed_and_later_events_flow(
    database: str,
) -> None:
    with_deliveries(database)
    rows(database, "SELECT outbox.emit('before.adoption', '1', 'acme')")
    adopt(database, "staging")
    rows(database, "SELECT outbox.emit('after.adoption', '1', 'acme')")
    assert asyncio.run(routed(database)) == 2
    states = (
        "SELECT e.type, d.state, d.held_reason FROM outbox.delivery d JOIN outbox.event e"
        " ON e.id = d.event_id WHERE e.type ~ 'adoption' ORDER BY 1"
    )
    assert rows(database, states) == [
        ("after.adoption", "leased", None),
        ("before.adoption", "held", "adopted"),
    ]


async def routed(url: str) -> int:
    connection = await connect_hot(url, "test")
    async with connection.raw:
        return (await Dispatch(connection, 30).route(Claim(100), window=100, token=1)).events


def test_release_lets_everything_go_and_the_age_stood_still(database: str) -> None:
    with_deliveries(database)
    rows(database, "SELECT outbox.emit('not.routed', '1', 'acme')")
    adopt(database, "staging")
    rows(database, "UPDATE outbox.delivery SET held_at = held_at - interval '1 day'")
    assert release_adopted(database) == 2
    assert rows(database, STATES) == [("held", "paused"), ("scheduled", None), ("scheduled", None)]
    moved = (
        "SELECT DISTINCT date_trunc('hour', age_limit_at - due_at + interval '1 min')"
        " FROM outbox.delivery WHERE state = 'scheduled'"
    )
    assert [str(row[0]) for row in rows(database, moved)] == ["1 day, 0:00:00"]
    facts = "SELECT fact, reason, count(*) FROM outbox.journal GROUP BY 1, 2 ORDER BY 1"
    assert rows(database, facts) == [("held", "adopted", 2), ("released", "adopted", 2)]
    assert release_adopted(database) == 0
    asyncio.run(routed(database))
    assert ("held", "adopted") not in rows(database, STATES)


def test_two_that_adopt_at_once_are_one_adoption(database: str) -> None:
    with_deliveries(database)

    async def both() -> list[Adopted | BaseException]:
        runs = (asyncio.to_thread(adopt, database, "staging") for _ in range(3))
        return await asyncio.gather(*runs, return_exceptions=True)

    results = asyncio.run(both())
    assert sorted(type(result).__name__ for result in results) == [
        *("Adopted", "UsageError", "UsageError")
    ]
    assert rows(database, "SELECT count(*) FROM outbox.installation") == [(2,)]


def test_a_failure_half_way_leaves_the_copy_as_it_was(database: str) -> None:
    with_deliveries(database)
    before = rows(database, STATES)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM outbox.delivery FOR UPDATE")
        with pytest.raises(Exception, match="lock timeout"):
            adopt(f"{database}?options=-clock_timeout%3D200ms", "staging")
    assert rows(database, STATES) == before
    assert rows(database, "SELECT count(*) FROM outbox.installation") == [(1,)]


def test_a_settle_that_was_quicker_comes_before_the_hold_in_the_journal(database: str) -> None:
    with_deliveries(database)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database) as settling:
        settling.execute("SELECT FROM outbox.delivery WHERE state = 'leased' FOR UPDATE")
        adopting = pool.submit(adopt, database, "staging")
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        while rows(database, waiting) != [(1,)]:
            assert not adopting.done()
        settling.execute(
            "WITH d AS (UPDATE outbox.delivery SET state = 'scheduled', token = NULL, attempts = 1,"
            " lease_until = NULL, started_at = NULL WHERE state = 'leased' RETURNING *)"
            " INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id)"
            " SELECT 0, clock_timestamp(), 'attempt_failed', event_id, id FROM d"
        )
        settling.commit()
        assert adopting.result().held == 2
    assert rows(database, STATES) == [("held", "adopted"), ("held", "adopted"), ("held", "paused")]
    facts = "SELECT fact, attempt FROM outbox.journal ORDER BY at, attempt"
    assert rows(database, facts) == [("attempt_failed", None), ("held", 0), ("held", 1)]
