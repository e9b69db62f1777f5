"""How damage is mended while others work, what is left alone, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from cli import main
from outbox.errors import ProjectionsDiffer
from outbox.store import rebuild, rebuild_mend
from outbox.store.connect import connect
from outbox.store.dead import Selection, discard
from outbox.store.rebuild import Difference, Slice
from outbox.store.rebuild_mend import Mended, apply
from tests.admin.helpers import Behind
from tests.engine.engine import Engine, seconds
from tests.rebuild.scene import Scene, applied, as_daemon, verified


def test_a_leased_row_is_left_alone_until_its_lease_ends(scene: Scene) -> None:
    [leased, *_] = scene.ids("state = 'leased' AND started_at IS NOT NULL")
    before = scene.delivery(leased)
    scene.run("UPDATE outbox.delivery SET attempts = 9 WHERE id = %s", leased)
    mended = applied(scene.url)
    assert (mended.leased, mended.left, mended.done.total()) == (1, 1, 0)
    assert scene.delivery(leased) == {**before, "attempts": 9, "queue": 1}
    scene.expire(scene.now() + seconds(40))
    mended = applied(scene.url)
    assert (mended.left, mended.done["changed"]) == (0, 1)
    assert scene.delivery(leased)["attempts"] == before["attempts"]
    scene.check()


def test_what_was_mended_is_delivered_once_and_all_of_it(scene: Scene) -> None:
    """I1: after everything was lost, exactly what is owed goes out."""
    dead = scene.one("SELECT count(*) FROM outbox.dead_letter")
    had = scene.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'")
    scene.run("DELETE FROM outbox.pending")
    scene.run("DELETE FROM outbox.delivery")
    scene.run("DELETE FROM outbox.dead_letter")
    assert applied(scene.url).left == 0
    assert scene.one("SELECT count(*) FROM outbox.dead_letter") == dead
    owed = scene.one("SELECT count(*) FROM outbox.delivery WHERE held_reason IS NULL")
    owed += scene.one("SELECT count(*) FROM outbox.pending")
    removed = scene.one(
        "SELECT count(*) FROM outbox.delivery d JOIN outbox.subscription s"
        " ON s.id = d.subscription_id WHERE s.state = 'removed'"
    )
    delivered: list[UUID] = []
    late = scene.now().replace(year=2090, month=6)  # expires_at is 2091
    scene.run("UPDATE outbox.delivery SET age_limit_at = NULL")
    scene.run("UPDATE outbox.subscription SET max_age = NULL")
    scene.run("DELETE FROM outbox.lane_health")
    for _ in range(5):
        leases = scene.leases(1000, now=late) + scene.due(now=late)
        scene.take(leases, late)
        assert scene.settle(leases, "delivered", now=late) == {lease[0] for lease in leases}
        delivered += [lease[0] for lease in leases]
        scene.tend(late)
    assert len(delivered) == len(set(delivered)) == owed - removed
    told = scene.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'")
    assert told == had + len(delivered)
    scene.check()


def stale(monkeypatch: pytest.MonkeyPatch, *differences: Difference) -> None:
    """What the reader found, though the world has gone on since."""
    part = Slice(rebuild.ID_MAX, 1, differences=differences)
    monkeypatch.setattr(rebuild_mend, "slices", lambda *_args, **_options: iter([part]))


@pytest.mark.parametrize("kind", ["missing", "extra", "misplaced", "wrong"])
def test_what_is_as_it_should_be_by_now_is_not_touched(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Judged again under the lock: what was found is a hint, no more."""
    everything = scene.rows(
        "SELECT DISTINCT event_id, delivery_id FROM outbox.journal WHERE delivery_id IS NOT NULL"
        " UNION SELECT event_id, id FROM outbox.delivery"
    )
    pending = scene.rows("SELECT id FROM outbox.event")
    stale(
        monkeypatch,
        *(Difference(kind, event, delivery) for event, delivery in everything),
        *(Difference("pending_missing", event) for (event,) in pending),
    )
    places = (
        "SELECT ctid, id FROM outbox.delivery UNION ALL SELECT ctid, id FROM outbox.dead_letter"
        " UNION ALL SELECT ctid, null FROM outbox.pending"
    )
    before = scene.rows(places)
    mended = applied(scene.url)
    assert (mended.done.total(), mended.leased) == (0, 0)
    assert scene.rows(places) == before


def test_a_row_that_was_under_a_wrong_event_when_it_was_found_is_kept(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the event it stood under no fact knows it; since then somebody has put it right."""
    [row, *_] = scene.ids("state = 'scheduled' AND attempts = 0 AND budget = 1")
    stale(monkeypatch, Difference("extra", 999_999, row))
    assert applied(scene.url).done.total() == 0
    assert scene.delivery(row)


def test_mending_waits_for_who_holds_the_row_and_believes_what_he_wrote(scene: Scene) -> None:
    letter = scene.one("SELECT min(id::text) FROM outbox.dead_letter WHERE order_key IS NULL")
    scene.run("UPDATE outbox.dead_letter SET reason = 'x' WHERE id = %s", letter)

    def mend(writer: psycopg.Connection[tuple[object, ...]]) -> Mended:
        with connect(as_daemon(scene.url), autocommit=True) as reader:
            return apply(reader, writer)

    with connect(scene.url) as operator:
        operator.execute("SELECT 1")
        discard(operator, Selection(ids=[UUID(letter)]), "not wanted")
        behind = Behind(as_daemon(scene.url), mend)
        behind.until_it_waits(scene.connection)
        operator.commit()
    assert behind.join().done.total() == 0
    assert verified(scene.url).samples == {}
    assert scene.one("SELECT count(*) FROM outbox.dead_letter WHERE id = %s", letter) == 0


def test_mending_keeps_the_order_of_locks(scene: Scene) -> None:
    """Nobody routes, leases or changes subscriptions meanwhile: it waits for the dispatch lock."""
    scene.run("DELETE FROM outbox.delivery WHERE state = 'scheduled'")

    def mend(writer: psycopg.Connection[tuple[object, ...]]) -> Mended:
        with connect(as_daemon(scene.url), autocommit=True) as reader:
            return apply(reader, writer)

    with connect(scene.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(78610002)")
        behind = Behind(as_daemon(scene.url), mend)
        behind.until_it_waits(scene.connection)
        held = "SELECT count(*) FROM pg_locks WHERE mode = 'RowShareLock' AND NOT fastpath"
        assert scene.one(held) == 0
        other.commit()
    assert behind.join().left == 0
    assert verified(scene.url).samples == {}


def test_ordered_deliveries_that_come_back_get_their_turns(scene: Scene) -> None:
    """I8: what waited for its turn waits again, and the key goes on."""
    waiting = scene.ids("held_reason = 'order'")
    assert waiting
    scene.run("DELETE FROM outbox.delivery WHERE held_reason = 'order'")
    scene.run("DELETE FROM outbox.order_signal")
    applied(scene.url)
    assert scene.ids("held_reason = 'order'") == waiting
    assert scene.one("SELECT count(*) FROM outbox.order_signal") > 0


# -- what no row can mend -------------------------------------------------------------------------


def test_facts_that_contradict_one_another_are_shown_and_nothing_is_changed(scene: Scene) -> None:
    ended = scene.one("SELECT min(delivery_id::text) FROM outbox.journal WHERE fact = 'discarded'")
    scene.run(
        "INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, charged)"
        " SELECT slot, now(), 'delivered', event_id, delivery_id, true FROM outbox.journal"
        " WHERE delivery_id = %s LIMIT 1",
        ended,
    )
    before = scene.projections()
    mended = applied(scene.url)
    assert dict(mended.report.found) == {"contradiction": 1}
    [difference] = mended.report.samples["contradiction"]
    assert "discarded delivery has no edge lease" in str(difference.why)
    assert (mended.left, mended.done.total()) == (1, 0)
    assert scene.projections() == before


def test_a_delivery_without_its_event_is_shown_and_kept(scene: Scene) -> None:
    [row, *_] = scene.ids("state = 'scheduled' AND attempts > 0 AND order_key IS NULL")
    event = scene.delivery(row)["event_id"]
    scene.run("ALTER TABLE outbox.event DISABLE TRIGGER append_only")
    scene.run("ALTER TABLE outbox.event_0 DISABLE TRIGGER append_only")
    scene.run("DELETE FROM outbox.event WHERE id = %s", event)
    mended = applied(scene.url)
    assert dict(mended.report.found) == {"bereft": 1}
    assert mended.left == 1
    assert scene.delivery(row)


def test_times_beyond_the_calendar_do_not_stop_it(bare: Scene) -> None:
    """PostgreSQL counts on after the year 9999, Python does not."""
    bare.subscribe(max_age=None)
    bare.emit(2, deliver_at="20000-01-01", expires_at="30000-01-01")
    bare.emit(1, deliver_at="0044-03-15 BC")
    bare.route()
    assert verified(bare.url).samples == {}
    bare.run("UPDATE outbox.delivery SET attempts = 1")
    assert applied(bare.url).left == 0
    assert verified(bare.url).samples == {}
    assert bare.one("SELECT max(attempts) FROM outbox.delivery") == 0
    bare.run("DELETE FROM outbox.delivery")
    assert applied(bare.url).done["inserted"] == 3
    assert verified(bare.url).samples == {}


# -- slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_max", [1, 3, 1000])
def test_slices_of_any_size_see_the_same(scene: Scene, rows_max: int) -> None:
    scene.run("DELETE FROM outbox.delivery WHERE state = 'held'")
    report = verified(scene.url, rows_max=rows_max)
    whole = verified(scene.url, rows_max=100_000)
    assert report.found == whole.found
    assert (report.events, report.facts, report.deliveries) == (
        whole.events,
        whole.facts,
        whole.deliveries,
    )
    assert report.events == scene.one("SELECT count(*) FROM outbox.event")
    assert report.facts == scene.one("SELECT count(*) FROM outbox.journal")


def test_no_slice_holds_more_than_its_share(scene: Scene) -> None:
    """Memory does not grow with the log."""
    with connect(scene.url, autocommit=True) as connection:
        parts = list(rebuild.slices(connection, rows_max=5))
    heaviest = scene.one(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM outbox.journal GROUP BY event_id) x"
    )
    assert len(parts) > 10
    assert max(part.facts for part in parts) < 5 + heaviest
    assert max(part.events for part in parts) <= 5


# -- the command ----------------------------------------------------------------------------------

Rebuild = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rebuild_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, database: str
) -> Rebuild:
    """Run `outbox rebuild`: (exit code, stdout, stderr)."""
    monkeypatch.setenv("OUTBOX_DATABASE_URL", as_daemon(database))

    def call(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["rebuild", *args])
        return code, *capfd.readouterr()

    return call


def test_verify_and_apply_tell_what_they_found_and_did(
    scene: Scene, rebuild_command: Rebuild
) -> None:
    code, out, err = rebuild_command("--verify")
    assert (code, out) == (0, "")
    assert "all as it should be" in err
    scene.run("DELETE FROM outbox.delivery WHERE state = 'held'")
    scene.run("UPDATE outbox.dead_letter SET budget = 7")
    dead = scene.one("SELECT count(*) FROM outbox.dead_letter")
    code, out, err = rebuild_command("--verify")
    assert code == ProjectionsDiffer.exit_code == 14
    assert "missing" in out
    assert "budget 7 -> 1" in out
    assert err.splitlines()[-1].endswith("differences; to mend them: outbox rebuild --apply")
    code, out, err = rebuild_command("--apply")
    assert code == 0
    assert f"{dead} changed" in err
    assert rebuild_command("--verify")[0] == 0


def test_the_json_of_both_holds_counts_and_samples(scene: Scene, rebuild_command: Rebuild) -> None:
    scene.run("UPDATE outbox.delivery SET lane = 99 WHERE state = 'held'")
    held = len(scene.ids("state = 'held'"))
    code, out, _ = rebuild_command("--verify", "--json")
    told = json.loads(out)
    assert (code, told["equal"], told["columns"]) == (14, False, {"lane": held})
    assert told["facts"] == scene.one("SELECT count(*) FROM outbox.journal")
    assert told["differences"]["wrong"]["count"] == held
    assert told["differences"]["wrong"]["sample"][0]["columns"]["lane"]["row"] == 99
    code, out, _ = rebuild_command("--apply", "--json")
    told = json.loads(out)
    assert (code, told["mended"], told["left"]) == (0, {"changed": held}, 0)
    assert json.loads(rebuild_command("--verify", "--json")[1])["equal"] is True


def test_what_is_left_ends_with_its_exit_code(scene: Scene, rebuild_command: Rebuild) -> None:
    scene.run("UPDATE outbox.delivery SET budget = 3 WHERE state = 'leased'")
    code, _, err = rebuild_command("--apply")
    assert code == 14
    assert "in use: run it again when they have ended" in err


@pytest.mark.parametrize("args", [[], ["--verify", "--apply"]])
def test_one_of_the_two_must_be_said(rebuild_command: Rebuild, args: list[str]) -> None:
    code, out, err = rebuild_command(*args)
    assert (code, out) == (2, "")
    assert "--verify (changes nothing) or --apply" in err


def test_an_empty_installation_is_as_it_should_be(bare: Engine) -> None:
    report = verified(bare.url)
    assert (report.events, report.facts, report.equal) == (0, 0, True)


def test_who_may_only_read_may_verify(scene: Scene) -> None:
    url = f"{scene.url}?options=-crole%3Doutbox_reader"
    with connect(url, autocommit=True) as connection:
        assert rebuild.verify(connection).samples == {}
