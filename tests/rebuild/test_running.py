"""I13 while everything runs: under full load, across retention, beside a damaged and mended row."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import closing
from threading import Event, Thread

import psycopg
import pytest

from outbox.store.connect import connect
from outbox.store.dead import Selection, redrive
from outbox.store.deliveries import cancel_deliveries
from outbox.store.endpoints import pause_endpoint, resume_endpoint
from outbox.store.migrate import migrate
from outbox.store.rebuild import slices, verify
from outbox.store.rebuild_mend import apply
from outbox.store.statements import statement
from tests.admin.helpers import Behind
from tests.engine.engine import seconds
from tests.rebuild.scene import Scene, applied, as_daemon, verified
from tests.retention.conftest import DAY, KEEP, T0, tend_at
from tests.system.town import Town, town_over, wait_until


@pytest.fixture
def installed(empty_database: str) -> str:
    """The URL of a migrated database; one copied from the template would be refused as a copy."""
    migrate(empty_database)
    return empty_database


# -- full load ------------------------------------------------------------------------------------


def disturb(town: Town, stop: Event) -> None:
    """An operator who does not rest: pauses, resumes, redrives, cancels; and somebody who emits."""
    with connect(town.url, autocommit=True) as connection:
        lane = connection.execute("SELECT max(id) FROM outbox.endpoint").fetchone()
        assert lane is not None
        while not stop.is_set():
            town.emit(20)
            pause_endpoint(connection, lane[0])
            town.emit(20)
            rows = connection.execute("SELECT id FROM outbox.delivery LIMIT 3").fetchall()
            cancel_deliveries(connection, [row[0] for row in rows])
            resume_endpoint(connection, lane[0])
            redrive(connection, Selection())


def test_under_full_load_nothing_differs_and_nothing_is_touched(installed: str) -> None:
    """I13: one snapshot for facts and rows. And mending what is not damaged changes nothing."""
    with town_over(installed) as town:
        town.endpoint("/good")
        town.endpoint("/flaky", answer=lambda n: 500 if n % 2 else 200, disable_after=None)
        town.endpoint("/gone", answer=lambda n: 400 if n % 3 else 200, disable_after=None)
        town.endpoint("/ordered", order="park", answer=lambda n: 500 if n % 9 == 1 else 200)
        town.start("run", "--workers", "1")
        stop = Event()
        thread = Thread(target=disturb, args=(town, stop))
        thread.start()
        try:
            with (
                connect(as_daemon(installed), autocommit=True) as reader,
                connect(as_daemon(installed), autocommit=True) as writer,
            ):
                seen: set[int] = set()
                while len(seen) < 6 or max(seen) < 1000:
                    report = verify(reader, rows_max=500)
                    assert report.samples == {}
                    seen.add(report.facts)
                    mended = apply(reader, writer, rows_max=500)
                    assert (mended.report.samples, mended.done.total()) == ({}, 0)
        finally:
            stop.set()
            thread.join()


def test_damage_under_load_is_mended_and_everything_arrives(installed: str) -> None:
    """I1: rows vanish while daemon and worker run; what was owed arrives all the same."""
    with town_over(installed) as town:
        slow = town.endpoint("/slow", answer=lambda n: 503 if n < 40 else 200, circuit=False)
        town.endpoint("/good")
        town.start("run", "--workers", "1")
        with psycopg.connect(installed, autocommit=True) as damage:
            for _ in range(5):
                town.emit(40)
                damage.execute(
                    "WITH few AS (SELECT id FROM outbox.delivery WHERE state = 'scheduled'"
                    " LIMIT 20 FOR UPDATE SKIP LOCKED)"
                    " DELETE FROM outbox.delivery d USING few WHERE d.id = few.id"
                )
                applied(installed, rows_max=1000)
        wait_until(lambda: town.owed() == 0 or applied(installed).done.total() < 0)
        assert verified(installed, rows_max=1000).samples == {}
        assert len(slow.answered) == 200
        town.check(duplicates_max=0)


# -- across retention -----------------------------------------------------------------------------


def tend(scene: Scene, day: float) -> tuple[int | None, tuple[int, ...]]:
    """Tend to retention as the daemon does; (slot that could not be emptied, slots emptied)."""
    tended = asyncio.run(tend_at(scene.url, T0 + day * DAY, KEEP))
    return tended.blocked, tended.cleared


def test_across_retention_nothing_differs_and_everything_can_be_rebuilt(scene: Scene) -> None:
    """I13, also when the first facts are gone and a `carried` fact stands for them."""
    scene.run("UPDATE outbox.ring SET opened_at = %s WHERE slot = 0", T0)
    cleared = 0
    for day in range(1, 18):
        cleared += len(tend(scene, day)[1])
        # Some end soon, some days later, when their routing has long been forgotten.
        scene.emit(2)
        scene.attempt("retry", scene.leases(1000), delay_s=3600)
        later = scene.now() + seconds(7200)
        due = scene.due(2, now=later)
        scene.take(due, later)
        scene.settle(due, "delivered" if day % 2 else "dead", now=later)
        assert verified(scene.url, rows_max=1000).samples == {}, f"day {day}"
    assert cleared > 8
    assert scene.one("SELECT count(*) FROM outbox.journal WHERE fact = 'carried'") > 20
    before = scene.projections()
    scene.run("DELETE FROM outbox.dead_letter")
    scene.run("UPDATE outbox.delivery SET attempts = 7, age_limit_at = now() WHERE state = 'held'")
    scene.run("DELETE FROM outbox.delivery WHERE state = 'scheduled'")
    assert applied(scene.url).left == 0
    assert verified(scene.url).samples == {}
    assert scene.projections() == before


def test_what_is_past_retention_is_unknown_and_stays_dead(scene: Scene) -> None:
    """A delivered one whose routing is forgotten is not owed; a row of it would be one too many."""
    scene.run("UPDATE outbox.ring SET opened_at = %s WHERE slot = 0", T0)
    scene.run("DELETE FROM outbox.lane_health")
    [event] = scene.emit(1)
    leases = scene.leases(1000) + scene.due()
    [waits] = scene.ids(f"event_id = {event}")
    scene.attempt("retry", [lease for lease in leases if lease[0] == waits], delay_s=3600)
    tend(scene, 1)
    later = scene.now() + seconds(7200)
    scene.run("DELETE FROM outbox.lane_health")
    due = [lease for lease in scene.due(now=later) if lease[0] == waits]
    scene.take(due, later)
    scene.run("CREATE TABLE public.kept AS SELECT * FROM outbox.delivery WHERE id = %s", waits)
    assert scene.settle(due, "delivered", now=later) == {waits}
    for day in range(2, 8):
        tend(scene, day)
    assert scene.facts(waits) == [("delivered", "x", True, 2)]
    assert verified(scene.url).samples == {}
    columns = "id, event_id, event_slot, subscription_id, revision, lane, state, due_at"
    scene.run(
        f"INSERT INTO outbox.delivery ({columns})"
        f" SELECT {columns.replace('state', chr(39) + 'scheduled' + chr(39))} FROM public.kept"
    )
    assert dict(verified(scene.url).found) == {"extra": 1}
    assert applied(scene.url).done["deleted"] == 1
    assert verified(scene.url).samples == {}


def test_retention_waits_for_the_one_who_reads(scene: Scene) -> None:
    """TRUNCATE is seen by older snapshots: a slot that vanishes half-way would look like loss."""
    scene.run("UPDATE outbox.ring SET opened_at = %s WHERE slot = 0", T0)
    for day in range(1, 7):
        tend(scene, day)
    with connect(as_daemon(scene.url), autocommit=True) as connection:
        parts = slices(connection, rows_max=20)
        assert isinstance(parts, Generator)
        with closing(parts):
            next(parts)
            assert tend(scene, 7) == (0, ())
            assert [d for part in parts for d in part.differences] == []
        assert tend(scene, 7.1) == (None, (0,))
        assert verify(connection).samples == {}


def test_who_waits_for_an_emptying_sees_the_world_after_it(scene: Scene) -> None:
    """Locks first, then the snapshot: the other way round, what was carried would seem lost."""
    scene.run("SELECT setval('outbox.ring_slot', 1, true)")
    with psycopg.connect(scene.url) as emptying:
        emptying.execute("SET LOCAL outbox.retention = 'on'")
        emptying.execute("LOCK TABLE ONLY outbox.event_0, outbox.journal_0")
        picked = {"slot": 0, "after": 0, "rows_max": 1000}
        row = emptying.execute(statement("carry_pick"), picked).fetchone()
        assert row is not None
        owed = dict(zip(("deliveries", "dead", "pending"), row, strict=True))
        emptying.execute(statement("carry"), {"now": None, "slot": 0, **owed})
        emptying.execute("TRUNCATE ONLY outbox.event_0, outbox.journal_0")
        behind = Behind(as_daemon(scene.url), verify)
        behind.until_it_waits(scene.connection)
        emptying.commit()
    report = behind.join()
    assert report.samples == {}
    assert report.events > 10
