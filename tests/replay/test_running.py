"""Replays under way: in batches, across crashes, beside other daemons, at their rate."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import errors as pg

from outbox.errors import DatabaseUnavailable, NotFound, UsageError
from outbox.store.connect import HotConnection, connect, connect_hot
from outbox.store.deliveries import Aligned
from outbox.store.endpoints import pause_endpoint, resume_endpoint
from outbox.store.replay import (
    Choice,
    abort_replay,
    create_replay,
    list_replays,
    pause_replay,
    resume_replay,
    show_replay,
)
from outbox.store.replaying import (
    EVENTS_FIRST,
    PAIRS_MAX,
    SPAN_MAX,
    Batch,
    Replayer,
    Walk,
)
from outbox.store.statements import statement
from tests.admin.helpers import Behind, Connection
from tests.admin.test_races import open_transaction
from tests.replay.helpers import ALL, Past


def replayed(past: Past) -> Counter[Any]:
    """How often each delivery was replayed."""
    rows = past.rows("SELECT delivery_id FROM outbox.journal WHERE fact = 'replayed'")
    return Counter(row[0] for row in rows)


def position(past: Past, replay_id: str) -> tuple[int, str]:
    shown = show_replay(past.connection, replay_id)
    return shown["position"], shown["state"]


async def rows_running(connection: HotConnection) -> list[tuple[Any, ...]]:
    return await (await connection.run("replay_running", {})).fetchall()


# -- crashes --------------------------------------------------------------------------------------


def test_a_replay_goes_on_where_its_last_batch_left_it(past: Past) -> None:
    """Each batch runs on a connection of its own: nothing is remembered outside the database."""
    past.endpoint()
    ids = past.deliver(5)
    replay = past.make()
    assert past.batch(replay, events_max=2) == Batch("running", 2, {"redelivered": 2})
    assert position(past, replay)[1] == "running"
    past.carry_out(replay, events_max=2)
    assert replayed(past) == dict.fromkeys(ids, 1)
    assert show_replay(past.connection, replay)["counts"] == {"redelivered": 5, "events": 5}


def test_a_batch_that_is_cut_off_leaves_nothing_behind(past: Past) -> None:
    past.endpoint()
    ids = past.deliver(3)
    replay = past.make()
    with connect(past.url, autocommit=True) as other:
        with other.transaction():
            other.execute(statement("replay_lock"))
            batch = Behind(past.url, lambda _: past.batch(replay))
            past.until_waits()
            past.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            )
    with pytest.raises(DatabaseUnavailable):
        batch.join()
    assert position(past, replay) == (0, "running")
    assert replayed(past) == {}
    past.carry_out(replay)
    assert replayed(past) == dict.fromkeys(ids, 1)


def test_events_that_retention_clears_under_its_eyes_are_looked_for_again(past: Past) -> None:
    past.endpoint()
    past.deliver()
    replay = past.make()

    async def apply(connection: HotConnection) -> Batch:
        walk = Walk.of((await rows_running(connection))[0], 0.0)
        walk.reached = 1
        return await Replayer()._apply(connection, walk, [5], [1])  # it stands in slot 0

    assert past.hot(apply) == Batch(None)
    assert position(past, replay) == (0, "running")
    past.carry_out(replay)
    assert past.counts(replay) == {"redelivered": 1}


# -- beside relays and operators ------------------------------------------------------------------


def batch_in(connection: Connection, past: Past, replay: str) -> None:
    """A whole batch in a transaction that stays open."""
    [row] = [r for r in connection.execute(statement("replay_running")) if r[0] == replay]
    plan = Walk.of(row, 0.0).plan
    events = past.rows("SELECT slot, id FROM outbox.event ORDER BY id")
    connection.execute(statement("replay_lock"))
    connection.execute(
        statement("replay_batch"),
        {
            **plan.batch(),
            "now": None,
            "replay": replay,
            "position": row[5],
            "position_now": row[6],
            "slots": [slot for slot, _ in events],
            "events": [event for _, event in events],
            "dry_run": False,
        },
    )


def test_relays_and_replays_do_not_wait_for_each_other(past: Past) -> None:
    """A batch takes tens of milliseconds: fresh events would wait as long."""
    past.endpoint()
    past.deliver(2)
    replay = past.make()
    with open_transaction(past.url) as daemon:
        batch_in(daemon, past, replay)
        past.emit(n=2)
        assert len(past.route(2)) == 2
        assert past.lease() == []
    assert position(past, replay)[1] == "done"
    again = past.make()
    with open_transaction(past.url) as relay:
        relay.execute(statement("dispatch_lock"))
        past.carry_out(again)


def test_a_pause_waits_for_the_batch_under_way_and_holds_what_it_made(past: Past) -> None:
    """Meanwhile no relay waits for the pause."""
    added = past.endpoint()
    past.deliver(2)
    replay = past.make()
    with open_transaction(past.url) as daemon:
        batch_in(daemon, past, replay)
        operator = Behind(past.url, lambda c: pause_endpoint(c, added.id))
        operator.until_it_waits(past.connection)
        past.emit()
        past.route()
    assert operator.join().deliveries == Aligned(held=3)
    assert past.states() == {"held": 3}


def test_a_batch_behind_a_pause_makes_what_is_held(past: Past) -> None:
    added = past.endpoint()
    past.deliver(2)
    replay = past.make()
    with open_transaction(past.url) as operator:
        operator.execute(statement("config_lock"))
        operator.execute("UPDATE outbox.endpoint SET state = 'paused'")
        batch = Behind(past.url, lambda _: past.batch(replay))
        past.until_waits()
    batch.join()
    assert past.states() == {"held": 2}
    assert resume_endpoint(past.connection, added.id).deliveries == Aligned(released=2)


# -- beside others --------------------------------------------------------------------------------


def test_of_two_daemons_at_one_batch_one_is_too_late(past: Past) -> None:
    past.endpoint()
    ids = past.deliver(2)
    replay = past.make()

    async def both(connection: HotConnection) -> list[Batch]:
        [row] = await rows_running(connection)
        walks = [Walk.of(row, 0.0), Walk.of(row, 0.0)]
        daemon = Replayer()
        looks = [await daemon._look(connection, walk) for walk in walks]
        for walk, look in zip(walks, looks, strict=True):
            walk.reached = look[2]
        return [
            await daemon._apply(connection, walk, look[0], look[1])
            for walk, look in zip(walks, looks, strict=True)
        ]

    assert past.hot(both) == [Batch("done", 2, {"redelivered": 2}), Batch(None)]
    assert position(past, replay) == (2, "done")
    assert replayed(past) == dict.fromkeys(ids, 1)


def test_a_batch_that_was_overtaken_counts_for_nothing_while_the_replay_goes_on(past: Past) -> None:
    """I12: where it stands is the fence, not only that it runs."""
    past.endpoint()
    ids = past.deliver(2)
    replay = past.make()

    async def both(connection: HotConnection) -> list[Batch]:
        [row] = await rows_running(connection)
        daemon = Replayer()
        one, other = Walk.of(row, 0.0), Walk.of(row, 0.0)
        one.events_max = other.events_max = 1
        slots, events, other.reached = await daemon._look(connection, other)
        slots, events, one.reached = await daemon._look(connection, one)
        return [await daemon._apply(connection, walk, slots, events) for walk in (one, other)]

    assert past.hot(both) == [Batch("running", 1, {"redelivered": 1}), Batch(None)]
    past.carry_out(replay)
    assert past.counts(replay) == {"redelivered": 2}
    assert replayed(past) == dict.fromkeys(ids, 1)


def test_two_daemons_carry_every_pair_out_once(past: Past) -> None:
    past.endpoint()
    ids = past.deliver(60)
    replays = [past.make(rate_per_s=1e6), past.make(rate_per_s=1e6)]

    async def daemon() -> None:
        connection = await connect_hot(past.url, "replay")
        try:
            await Replayer().round(connection)
        finally:
            await connection.raw.close()

    async def both() -> None:
        await asyncio.gather(daemon(), daemon())

    asyncio.run(both())
    counts = Counter[str]()
    for replay in replays:
        assert position(past, replay)[1] == "done"
        counts.update(past.counts(replay))
    # What the one enqueued, the other found due.
    assert counts == {"redelivered": 60, "already_due": 60}
    assert replayed(past) == dict.fromkeys(ids, 1)


# -- one replay -----------------------------------------------------------------------------------


def test_the_same_id_twice_is_one_replay(past: Past) -> None:
    """I12."""
    past.endpoint()
    [delivery_id] = past.deliver()
    first = create_replay(past.connection, ALL, why="first", replay_id="july")
    assert first.new
    past.carry_out("july")
    past.attempt("delivered")
    again = create_replay(past.connection, ALL, why="again", replay_id="july")
    assert not again.new
    assert again.replay["why"] == "first"
    past.carry_out("july")
    assert replayed(past) == {delivery_id: 1}
    assert past.states() == {}
    for choice, mode in ((Choice(org="acme"), "redeliver"), (ALL, "re-emit")):
        with pytest.raises(UsageError, match="another filter"):
            create_replay(past.connection, choice, mode=mode, why="other", replay_id="july")


def test_a_paused_replay_stands_still_and_goes_on_when_resumed(past: Past) -> None:
    past.endpoint()
    past.deliver(3)
    replay = past.make()
    past.batch(replay, events_max=1)
    assert pause_replay(past.connection, replay) == "paused"
    assert past.batch(replay) == Batch(None)
    assert past.states() == {"scheduled": 1}
    assert resume_replay(past.connection, replay) == "running"
    past.carry_out(replay)
    assert past.states() == {"scheduled": 3}
    with pytest.raises(UsageError, match="is done and cannot become paused"):
        pause_replay(past.connection, replay)


def test_an_aborted_replay_has_ended_and_what_it_did_stays(past: Past) -> None:
    past.endpoint()
    past.deliver(3)
    replay = past.make()
    past.batch(replay, events_max=1)
    abort_replay(past.connection, replay)
    assert past.batch(replay) == Batch(None)
    assert past.states() == {"scheduled": 1}
    assert show_replay(past.connection, replay)["ended_at"] is not None
    with pytest.raises(UsageError, match="is aborted"):
        resume_replay(past.connection, replay)


def test_a_batch_that_a_pause_overtakes_changes_nothing(past: Past) -> None:
    past.endpoint()
    past.deliver()
    replay = past.make()

    async def overtaken(connection: HotConnection) -> Batch:
        walk = Walk.of((await rows_running(connection))[0], 0.0)
        slots, events, walk.reached = await Replayer()._look(connection, walk)
        pause_replay(past.connection, replay)
        return await Replayer()._apply(connection, walk, slots, events)

    assert past.hot(overtaken) == Batch(None)
    assert past.states() == {}


def test_a_replay_belongs_to_its_organization(past: Past) -> None:
    past.endpoint()
    past.deliver()
    replay = past.make(Choice(org="acme"))
    assert [shown["id"] for shown in list_replays(past.connection, "acme")] == [replay]
    assert list_replays(past.connection, "b") == []
    for call in (show_replay, pause_replay, abort_replay):
        with pytest.raises(NotFound):
            call(past.connection, replay, "b")


def test_a_replay_of_nothing_is_done_at_once(past: Past) -> None:
    assert show_replay(past.connection, past.make())["state"] == "done"


def test_a_copied_database_does_not_go_on_with_the_original_s_replays(past: Past) -> None:
    past.endpoint()
    past.deliver()
    replay = past.make()
    past.connection.execute(
        "INSERT INTO outbox.installation SELECT epoch + 1, 'copy', system_identifier,"
        " database_oid, gen_random_uuid(), 1000 FROM outbox.installation"
    )
    assert past.batch(replay) == Batch(None)
    assert position(past, replay) == (0, "paused")
    resume_replay(past.connection, replay)
    past.carry_out(replay)
    assert past.counts(replay) == {"redelivered": 1}


# -- the pace -------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Time that passes only while somebody sleeps."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_replay_keeps_its_rate(past: Past) -> None:
    past.endpoint()
    past.deliver(40)
    clock = Clock()
    replay = past.make(rate_per_s=10.0)
    past.hot(lambda c: Replayer(clock=clock, sleep=clock.sleep).round(c))
    assert past.counts(replay) == {"redelivered": 40}
    # The bucket holds a second's tenth at most, and its end is seen at the next look.
    assert 3.8 <= clock.now - 1000.0 <= 5.0


def test_a_batch_is_as_large_as_its_events_have_pairs() -> None:
    walk = Walk.of(("x", "redeliver", None, {}, 1e6, 0, 10**9), 0.0)
    assert walk.events_max == EVENTS_FIRST
    walk.learn(50, 50 * 20, 50)  # twenty subscriptions each
    assert walk.events_max == PAIRS_MAX // 20
    walk.learn(15, 15, 15)
    assert walk.events_max == 2 * (PAIRS_MAX // 20)
    for _ in range(20):
        walk.learn(0, 0, walk.span)  # nothing matches: look further
    assert walk.span == SPAN_MAX
    walk.learn(15, 15, 15)
    assert walk.span < 1000


def test_a_walk_over_events_that_do_not_match_keeps_its_place_now_and_then(past: Past) -> None:
    past.endpoint()
    past.deliver(6)
    replay = past.make(Choice(subject="nothing"), rate_per_s=1e6)
    clock = Clock()

    async def walk(connection: HotConnection) -> None:
        walk = Walk.of((await rows_running(connection))[0], clock())
        walk.span = 1
        daemon = Replayer(clock=clock)
        await daemon.step(connection, walk)
        assert walk.reached == 1
        assert position(past, replay) == (0, "running")
        clock.now += 1.5
        walk.span = 1
        await daemon.step(connection, walk)
        assert position(past, replay) == (2, "running")

    past.hot(walk)
    past.carry_out(replay)
    assert past.counts(replay) == {}


def test_events_that_take_too_long_to_judge_pause_the_replay(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    past.endpoint()
    past.deliver()
    replay = past.make()

    async def slow(*_args: object) -> None:
        raise pg.QueryCanceled

    monkeypatch.setattr(Replayer, "_look", slow)
    past.hot(lambda c: Replayer().round(c))
    assert position(past, replay) == (0, "paused")


def test_a_replay_takes_the_dispatch_lock_ten_times_a_second_not_for_every_pair() -> None:
    walk = Walk.of(("x", "redeliver", None, {}, 1000.0, 0, 10**9), 0.0)
    walk.fill(0.0)
    assert (walk.tokens, walk.wait_s(0.0)) == (100.0, 0.0)
    walk.tokens -= 100
    assert walk.wait_s(0.0) == pytest.approx(0.1)
    assert walk.wait_s(0.06) == pytest.approx(0.04)
    walk.tokens -= 50  # a batch whose events had more pairs than expected is paid for later
    assert walk.wait_s(0.0) == pytest.approx(0.15)
