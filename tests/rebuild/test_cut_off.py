"""I11: commands and background work may die at any of their steps.

Each is run again and again on a database with deliveries in every state, dies one step later each
time (before or after a statement, before a commit), and comes to its end at last. After each death
what the facts tell is what the tables hold; and what is whole or not at all is so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import psycopg
import pytest

from outbox.store.connect import connect_hot
from outbox.store.dead import Selection, discard, redrive
from outbox.store.deliveries import cancel_deliveries
from outbox.store.endpoints import rotate_secret
from outbox.store.rebuild_mend import apply
from outbox.store.redaction import redact
from outbox.store.replay import Choice, create_replay, show_replay
from outbox.store.replaying import Batch, replay_once
from outbox.store.retention import tend_retention
from outbox.store.subscriptions import pause_subscription, remove_subscription, resume_subscription
from tests.engine.mortal import Died, Mortal, MortalHot
from tests.engine.running import RING, real_endpoint
from tests.rebuild.scene import Scene, verified
from tests.retention.conftest import DAY, KEEP, T0

LEFT = "SELECT count(*) FROM outbox.delivery"
DEAD = "SELECT count(*) FROM outbox.dead_letter"


@pytest.fixture
def database(make_database: Callable[[str | None], str], migrated_template: str) -> str:
    return make_database(migrated_template)


@pytest.fixture
def scene(bare: Scene) -> Scene:
    """Deliveries in every state, and no fact that lies in the future: ours come after all."""
    bare.subscribe(["orders.paid"])
    bare.emit(4)
    bare.attempt("delivered")
    bare.emit(3)
    redrive(bare.operator(), Selection(ids=bare.attempt("dead")))
    bare.attempt("dead", reason="http_500")
    bare.emit(6)
    bare.attempt("dead", reason="http_410")
    bare.emit(3)
    bare.attempt("retry", delay_s=3600)
    bare.emit(1, deliver_at="2090-01-01", expires_at="2091-01-01")
    bare.move(bare.subscribe(["invoices.*"]), "paused")
    bare.emit(2, type="invoices.sent")
    bare.route()
    bare.subscribe(["block.*"], order_mode="block")
    bare.emit(3, type="block.x", ordering_key="a")
    bare.route()
    bare.attempt("dead", bare.due())
    bare.advance()
    bare.emit(2)
    bare.take(bare.leases(1000)[:1])
    bare.emit(3)
    assert verified(bare.url).samples == {}
    return bare


@pytest.fixture
def link(scene: Scene) -> Iterator[Mortal]:
    with Mortal.connect(scene.url, autocommit=True) as connection:
        yield connection


def dies_everywhere(run: Callable[[int], None], after_each: Callable[[], None]) -> int:
    """Run it, dying one step later each time, until it ends; returns how often it died."""
    for steps in count():
        try:
            run(steps)
        except Died:
            after_each()
        else:
            after_each()
            return steps
    raise AssertionError


# -- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command, and a query that finds nothing when it is done."""

    run: Callable[[Mortal, Scene], Any]
    left: str


def first(scene: Scene) -> int:
    return int(scene.one("SELECT min(id) FROM outbox.subscription"))


def pause_and_resume(link: Mortal, scene: Scene) -> None:
    pause_subscription(link, first(scene))
    resume_subscription(link, first(scene))


def redact_all(link: Mortal, scene: Scene) -> None:
    redact(link, [row[0] for row in scene.rows("SELECT DISTINCT id FROM outbox.event")], "asked")


COMMANDS = {
    "cancel": Command(
        lambda link, scene: cancel_deliveries(link, scene.ids("true")),
        LEFT,
    ),
    "redrive": Command(
        lambda link, scene: redrive(link, Selection(), ignore_expiry=True, rows_max=3), DEAD
    ),
    "discard": Command(lambda link, scene: discard(link, Selection(), "no use", rows_max=3), DEAD),
    "pause and resume": Command(
        pause_and_resume,
        f"{LEFT} WHERE held_reason = 'paused' AND subscription_id ="
        " (SELECT min(id) FROM outbox.subscription)",
    ),
    "remove": Command(
        lambda link, scene: remove_subscription(link, first(scene)),
        f"{LEFT} d WHERE started_at IS NULL AND subscription_id ="
        " (SELECT min(id) FROM outbox.subscription)",
    ),
    "redact": Command(
        redact_all,
        "SELECT count(*) FROM outbox.event WHERE payload::text <> '{\"redacted\":true}'",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_i11_a_command_dies_at_every_step_and_ends_when_run_again(
    scene: Scene, link: Mortal, name: str
) -> None:
    command = COMMANDS[name]

    def run(steps: int) -> None:
        with link.dying(steps):
            command.run(link, scene)

    def holds() -> None:
        assert verified(scene.url, rows_max=1000).samples == {}
        assert redacted_by_halves(scene) == 0

    assert dies_everywhere(run, holds) >= 2
    assert scene.one(command.left) == 0


def redacted_by_halves(scene: Scene) -> int:
    """Events whose contents are gone without a fact that says so, or the other way."""
    return int(
        scene.one(
            "SELECT count(*) FROM outbox.event e WHERE (e.payload::text = '{\"redacted\":true}')"
            " <> EXISTS (SELECT FROM outbox.journal j WHERE j.event_id = e.id"
            " AND j.fact = 'redacted')"
        )
    )


def test_i11_a_rotation_that_dies_leaves_the_keys_as_they_were(scene: Scene, link: Mortal) -> None:
    endpoint = real_endpoint(scene, "new").id
    keys = "SELECT count(*), count(expires_at) FROM outbox.secret WHERE endpoint_id = %s"
    assert scene.rows(keys, endpoint) == [(1, 0)]

    def run(steps: int) -> None:
        with link.dying(steps):
            rotate_secret(link, endpoint, RING)

    deaths = dies_everywhere(run, lambda: None)
    assert deaths > 2
    assert scene.rows(keys, endpoint) == [(2, 1)], "none of the deaths left a key behind"


def test_i11_a_mending_dies_at_every_step_and_ends_when_run_again(
    scene: Scene, link: Mortal
) -> None:
    before = scene.projections()
    facts = scene.facts_digest()
    damage(scene)

    def run(steps: int) -> None:
        with (
            psycopg.connect(scene.url, autocommit=True) as reader,
            link.dying(steps),
        ):
            apply(reader, link)

    dies_everywhere(run, lambda: None)
    assert scene.projections() == before
    assert scene.facts_digest() == facts


def damage(scene: Scene) -> None:
    for command in (
        "DELETE FROM outbox.dead_letter",
        "DELETE FROM outbox.pending",
        "DELETE FROM outbox.delivery WHERE state = 'held'",
        "UPDATE outbox.delivery SET attempts = 7 WHERE state = 'scheduled'",
    ):
        scene.run(command)


# -- background work ------------------------------------------------------------------------------


def background(scene: Scene, work: Callable[[MortalHot], Any], steps: int | None) -> Any:
    """Do some on a connection of its own, which ends with it."""

    async def run() -> Any:
        hot = await connect_hot(scene.url, "test")
        mortal = MortalHot(hot.raw, hot.direct)
        try:
            with mortal.dying(steps):
                return await work(mortal)
        finally:
            await hot.raw.close()

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["redeliver", "re-emit", "backfill"])
def test_i11_i12_a_replay_dies_at_every_step_and_repeats_nothing(scene: Scene, mode: str) -> None:
    """What the dying daemons enqueued is what one that lives would have."""
    if mode == "backfill":
        scene.route()  # a backfill waits for what is pending
        scene.subscribe(["orders.*"])
        query = "SELECT max(id) FROM outbox.subscription"
    else:
        query = "SELECT min(id) FROM outbox.subscription"
    choice = Choice(subscription_id=scene.one(query))
    create_replay(scene.connection, choice, why="a test", mode=mode, replay_id="r")

    def batch(steps: int) -> str | None:
        done = background(scene, lambda hot: replay_once(hot, "r", events_max=2), steps)
        return cast("Batch", done).state

    def run(steps: int) -> None:
        while batch(steps) == "running":
            pass

    def holds() -> None:
        assert verified(scene.url, rows_max=1000).samples == {}

    assert dies_everywhere(run, holds) == 6, "before and after each of three statements"
    shown = show_replay(scene.connection, "r")
    assert shown["state"] == "done"
    told = scene.one(
        "SELECT count(*) FROM outbox.journal WHERE fact IN ('replayed', 'redriven')"
        " AND reason = 'r'"
    )
    fates = ("redelivered", "redriven", "due_now", "re-emitted", "backfilled")
    assert told == sum(shown["counts"].get(fate, 0) for fate in fates) > 5


def test_i11_i13_retention_dies_at_every_step_and_goes_on(scene: Scene) -> None:
    """A day passes after each death: the ring turns, slots are emptied, what is owed is carried."""
    scene.run("UPDATE outbox.ring SET opened_at = %s WHERE slot = 0", T0)
    events = scene.rows("SELECT DISTINCT event_id FROM outbox.delivery UNION"
                        " SELECT event_id FROM outbox.dead_letter UNION"
                        " SELECT id FROM outbox.pending ORDER BY 1")  # fmt: skip
    rows = scene.projections()
    for day in range(1, 7):
        tend(scene, day, None)
    steps = dies_everywhere(lambda steps: tend(scene, 7, steps), lambda: intact(scene, rows))
    assert steps > 20
    assert scene.one("SELECT count(*) FROM outbox.event_0") == 0
    assert scene.rows("SELECT DISTINCT id FROM outbox.event ORDER BY 1") == events


def tend(scene: Scene, day: int, steps: int | None) -> None:
    background(scene, lambda hot: tend_retention(hot, KEEP, T0 + day * DAY), steps)


def intact(scene: Scene, rows: dict[str, Any]) -> None:
    """Nothing differs, and nothing owed is gone."""
    assert verified(scene.url, rows_max=1000).samples == {}
    now = scene.projections()
    assert {table: len(found) for table, found in now.items()} == {
        table: len(found) for table, found in rows.items()
    }
