"""Fronts: where what waits begins, as a relay knows it, and the walks that find what it cannot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from outbox.fronts import WALK_S_MAX, Fronts, Walks
from outbox.rhythm import RelayConfig, Rhythm
from outbox.store.connect import connect_hot
from outbox.store.dispatch import Claim, Dispatch, Leased, Walk
from tests.engine.engine import Engine, seconds
from tests.engine.running import Hands, relaying, until

T = TypeVar("T")
A, B, C = (1, 0), (1, 1), (2, 0)


def with_dispatch(engine: Engine, body: Callable[[Dispatch], Awaitable[T]]) -> T:
    """Run with a relay's statements on a connection of its own."""

    async def run() -> T:
        connection = await connect_hot(engine.url, "relay")
        try:
            return await body(Dispatch(connection, 30.0))
        finally:
            await connection.raw.close()

    return asyncio.run(run())


# -- what is remembered -------------------------------------------------------------------------


def test_what_was_found_first_is_the_front_and_due_at_its_time() -> None:
    fronts = Fronts()
    fronts.walked(100.0, [(*A, 90.0), (*B, 95.0), (*C, 130.0)], 0, math.inf)
    assert fronts.due(94.0, 9) == [(*A, 90.0)]
    assert sorted(fronts.due(100.0, 9)) == [(*A, 90.0), (*B, 95.0)]
    assert (fronts.next_at(), fronts.next_at(after=100.0)) == (90.0, 130.0)


def test_what_comes_before_a_delivery_that_is_due_later_is_not_behind_the_front() -> None:
    """A front lies no later than the look that saw it: what comes after that may be due earlier."""
    fronts = Fronts()
    fronts.walked(100.0, [(*C, 130.0)], 0, math.inf)
    assert fronts.due(130.0, 9) == [(*C, 100.0)]


def test_a_front_trails_by_the_margin() -> None:
    fronts = Fronts(margin_s=2.0)
    fronts.looked(100.0, [(*A, 99.0), (*B, None)])
    assert fronts.known() == [(*B, 98.0), (*A, 98.0)]
    fronts.looked(50.0, [(*A, None)])
    assert fronts.known(places_max=1) == [(*A, 48.0)], "also where the clock was set back"


def test_a_front_that_a_float_rounds_up_hides_nothing() -> None:
    """Nine microseconds of the year 1700 are sixteen then."""
    fronts = Fronts()
    fronts.looked(100.0, [(*A, -8520336000.0 + 9.000003)])
    assert fronts.due(100.0, 9) == [(*A, -math.inf)]


def test_a_walk_forgets_what_it_no_longer_finds_where_it_was() -> None:
    fronts = Fronts()
    fronts.walked(100.0, [(*A, 90.0), (*C, 91.0), (3, 0, 92.0)], 0, math.inf)
    fronts.walked(101.0, [(*C, 91.0)], 1, 2)  # lane 1 it did not visit, nor lane 3
    assert {place[:2] for place in fronts.due(101.0, 9)} == {A, C, (3, 0)}
    fronts.walked(102.0, [], 0, 2)
    assert fronts.due(102.0, 9) == [(3, 0, 92.0)]


def test_a_walk_lowers_a_front_under_which_somebody_put_something() -> None:
    fronts = Fronts()
    fronts.looked(100.0, [(*A, None)])
    assert fronts.next_at() == math.inf
    fronts.walked(101.0, [(*A, 50.0)], 0, math.inf)
    assert fronts.due(101.0, 9) == [(*A, 50.0)]


def test_what_is_put_lowers_the_front_and_is_due_at_its_time() -> None:
    fronts = Fronts()
    fronts.looked(100.0, [(*A, None), (*B, 90.0)])
    fronts.put([(*A, 40.0), (*B, 95.0), (*C, 130.0)])
    assert sorted(fronts.due(100.0, 9)) == [(*A, 40.0), (*B, 90.0)]
    assert fronts.next_at(after=100.0) == 130.0
    assert (*C, 100.0) in fronts.known(), "and what comes before it is seen"


def test_a_place_of_which_nothing_is_known_is_looked_at_from_the_beginning() -> None:
    fronts = Fronts()
    fronts.put([(*A, 40.0)])
    assert fronts.known() == [(*A, -math.inf)]


def test_nothing_due_says_nothing_of_what_is_due_later() -> None:
    fronts = Fronts()
    fronts.looked(100.0, [(*A, 90.0), (*C, 130.0)])
    fronts.clear(101.0, [A, C])
    assert fronts.known() == [(*C, 101.0), (*A, 101.0)]
    assert fronts.next_at() == 130.0


def test_places_take_turns_where_not_all_go() -> None:
    fronts = Fronts()
    fronts.walked(100.0, [(lane, 0, 90.0) for lane in range(1, 6)], 0, math.inf)
    turns = [[lane for lane, _, _ in fronts.due(100.0, 2)] for _ in range(5)]
    assert turns == [[1, 2], [3, 4], [5, 1], [2, 3], [4, 5]]


def test_those_met_lately_are_remembered() -> None:
    fronts = Fronts(kept=100)
    fronts.looked(100.0, [(lane, 0, 90.0) for lane in range(100)])
    fronts.looked(101.0, [(0, 0, 91.0), (100, 0, 92.0)])
    kept = {lane for lane, _, _ in fronts.known()}
    assert (len(kept), kept & {0, 1, 100}) == (100, {0, 100})
    assert len(fronts.due(math.inf, 200)) == fronts.count_due(math.inf) == 100


def test_thousands_of_lanes_that_wait_have_their_turn_before_they_are_forgotten() -> None:
    """Walks and looks as a relay makes them beside lanes without permits: each is looked at."""
    fronts, lanes, beyond, seen = Fronts(), 5000, 0, set()
    for _ in range(3 * lanes // 128):
        last = min(lanes, beyond + 256)
        met = [(lane, 0, 90.0) for lane in range(beyond + 1, last + 1)]
        fronts.walked(100.0, met, beyond, last)
        beyond = 0 if last == lanes else last
        looked = fronts.due(100.0, 128)
        fronts.looked(100.0, [(lane, queue, 90.0) for lane, queue, _ in looked])
        seen |= {lane for lane, _, _ in looked}
    assert len(seen) == lanes


def test_places_that_are_blocked_are_all_looked_at_and_then_left_alone_for_a_while() -> None:
    rhythm, config = Rhythm(0.0), RelayConfig()
    full, open_ = Leased([], None, 0, blocked=True), Leased([], None, 0, blocked=False)
    pauses = [rhythm.next_due_s(found, config, 128, 300) for found in (open_, full, open_) * 2]
    soon_s = config.blocked_s_min
    assert pauses == [soon_s, soon_s, soon_s, soon_s, soon_s, 2 * soon_s]
    assert rhythm.next_due_s(open_, config, 127, 127) == config.due_s
    assert rhythm.next_due_s(Leased(["1" * 32], None, 0, blocked=True), config, 128, 300) == 0.0


def test_walks_take_their_share_of_the_time_and_are_made_all_the_same() -> None:
    walks = Walks()
    assert walks.due(-1e9)
    walks.took(100.0, 0.1)
    assert (walks.due(101.9), walks.due(102.0)) == (False, True)
    walks.took(102.0, 60.0)
    assert (walks.due(106.9), walks.due(107.0)) == (False, True)


def test_all_lanes_are_passed_in_time_however_many_parts_it_takes() -> None:
    """After ten parts of 0.1 s each waits 0.5 s, not 2."""
    walks, now, began = Walks(), 100.0, []
    for part in range(30):
        began.append(now)
        walks.took(now, 0.1, more=part % 10 < 9)
        now = walks.next_at
    assert began[20] - began[10] == pytest.approx(WALK_S_MAX)
    walks.took(now, 0.5)  # in parts or not: no more than a quarter of the time, if it can be helped
    assert walks.next_at - now == pytest.approx(2.0)
    walks.took(now, 0.5)
    assert walks.next_at - now == pytest.approx(WALK_S_MAX)


def test_walks_begin_small_and_that_take_long_are_made_over_fewer_lanes() -> None:
    walks = Walks()
    lanes = [walks.lanes(256)]
    for took_s in [*[0.01] * 7, 0.06, 0.06, 0.02, 0.01, *[9.0] * 6]:
        walks.took(100.0, took_s)
        lanes.append(walks.lanes(256))
    assert lanes[:8] == [4, 8, 16, 32, 64, 128, 256, 256]
    assert lanes[8:] == [128, 64, 64, 128, 64, 32, 16, 8, 4, 4]
    assert walks.lanes(2) == 1


def test_a_walk_that_was_cut_goes_on_as_soon_as_its_share_allows() -> None:
    config, rhythm = RelayConfig(look_s=3600.0), Rhythm(0.0)
    rhythm.looked_at = 100.0
    rhythm.walked(100.0, 0.01, 17)
    assert (rhythm.look_at(config), rhythm.walk_from(100.1)) == (100.2, None)
    assert rhythm.walk_from(100.2) == 17
    rhythm.walked(100.2, 0.01, None)
    assert (rhythm.look_at(config), rhythm.walk_from(200.0)) == (3700.0, 0)


# -- what the statements tell -------------------------------------------------------------------


def test_a_claim_tells_where_first_attempts_wait_and_where_none_do(engine: Engine) -> None:
    lane = engine.endpoint(concurrency=2)
    engine.subscribe(endpoint_id=lane)
    now = engine.now()
    engine.emit()
    routed, _ = engine.route(10, now=now)
    assert (list(routed.waits), list(routed.clear), routed.now) == ([], [lane], now.timestamp())
    engine.emit(3)
    routed, _ = engine.route(10, now=now + seconds(1))
    assert (list(routed.waits), list(routed.clear)) == ([(lane, now.timestamp() + 1)], [])
    engine.emit()
    routed, _ = engine.route(10, now=now + seconds(2))
    assert routed.waits == [(lane, now.timestamp() + 1)], "the first of all that wait"


def test_a_claim_tells_what_is_due_later_as_well(engine: Engine) -> None:
    lane = engine.endpoint()
    engine.subscribe(endpoint_id=lane)
    later = engine.now() + seconds(60)
    engine.emit(deliver_at=later)
    routed, _ = engine.route(10)
    assert (list(routed.waits), list(routed.clear)) == ([(lane, later.timestamp())], [])


def test_a_claim_sees_who_waits_from_the_front_on(engine: Engine) -> None:
    lane = engine.endpoint(concurrency=9)
    engine.subscribe(endpoint_id=lane)
    engine.emit()
    now = engine.now()
    engine.route(0, now=now)
    for front, leased in ((now.timestamp() + 0.5, 1), (now.timestamp(), 0)):
        engine.emit()
        routed, _ = engine.route(9, fronts=[(lane, front)], now=now + seconds(1))
        assert routed.leased == leased


def test_due_work_is_leased_from_the_front_on_and_the_first_of_it_told(engine: Engine) -> None:
    lane = engine.endpoint()
    engine.subscribe(endpoint_id=lane)
    now = engine.now()
    for at in range(3):
        engine.emit()
        engine.route(0, now=now + seconds(at))
    second = now.timestamp() + 1
    places = [(lane, 0, second - 0.5), (lane, 1, 0.0)]
    leased, _ = engine.lease_due(places=places, now=now + seconds(5))
    assert len(leased.ids) == 2
    assert leased.met == [(lane, 0, second), (lane, 1, None)]
    leased, _ = engine.lease_due(places=places, now=now + seconds(5))
    assert (leased.ids, leased.met[0]) == ([], (lane, 0, None))


def test_only_the_queues_that_are_given_are_leased_from(engine: Engine) -> None:
    lane = engine.endpoint()
    engine.subscribe(endpoint_id=lane)
    engine.emit(3)
    engine.route(0)
    rows = engine.rows("SELECT id FROM outbox.delivery ORDER BY id")
    engine.run("UPDATE outbox.delivery SET attempts = 1 WHERE id = %s", rows[1][0])
    engine.run("UPDATE outbox.delivery SET again = true WHERE id = %s", rows[2][0])
    for queue, (delivery,) in enumerate(rows):
        leased, _ = engine.lease_due(places=[(lane, queue, 0.0)])
        assert leased.ids == [delivery.hex]


# -- what a relay makes ready itself ------------------------------------------------------------


async def _routed(engine: Engine, dispatch: Dispatch) -> None:
    engine.emit()
    await dispatch.route(Claim(10), 0)


async def _expired(engine: Engine, dispatch: Dispatch) -> None:
    engine.emit()
    engine.route(10)
    engine.run("UPDATE outbox.delivery SET lease_until = now()")
    await dispatch.expire(10, 5)


async def _released(engine: Engine, dispatch: Dispatch) -> None:
    engine.emit()
    routed, token = engine.route(10)
    await dispatch.release(token, routed.ids)


async def _advanced(engine: Engine, dispatch: Dispatch) -> None:
    engine.emit(2, ordering_key="k")
    engine.route(0)
    first = "SELECT min(event_id) FROM outbox.delivery"
    engine.run(f"DELETE FROM outbox.delivery WHERE event_id = ({first})")
    assert (await dispatch.advance(10)).released == 1


@pytest.mark.parametrize("makes_ready", [_routed, _expired, _released, _advanced])
def test_what_a_relay_makes_ready_it_leases_without_a_walk(
    engine: Engine, makes_ready: Callable[[Engine, Dispatch], Awaitable[None]]
) -> None:
    """Also where it had seen that nothing is due there up to now."""
    lane = engine.endpoint()
    engine.subscribe(endpoint_id=lane, order_mode="block")

    async def body(dispatch: Dispatch) -> list[str]:
        ahead = engine.now().timestamp() + 1000
        dispatch.fronts.looked(ahead, [(lane, queue, None) for queue in range(3)])
        await makes_ready(engine, dispatch)
        places = dispatch.fronts.due(ahead, 10)
        return (await dispatch.lease_due(places, 10)).ids

    assert len(with_dispatch(engine, body)) == 1


def test_what_others_put_behind_a_front_is_found_by_the_next_walk(engine: Engine) -> None:
    lane = engine.endpoint()
    engine.subscribe(endpoint_id=lane)
    engine.emit()
    engine.route(0)

    async def body(dispatch: Dispatch) -> list[int]:
        ahead = engine.now().timestamp() + 1000
        dispatch.fronts.looked(ahead, [(lane, 0, None)])
        found = []
        for walk in (None, Walk()):
            await dispatch.tick(0, walk=walk)
            places = dispatch.fronts.due(ahead, 10)
            found.append(len((await dispatch.lease_due(places, 10)).ids))
        return found

    assert with_dispatch(engine, body) == [0, 1]


def test_a_look_tells_where_its_walk_was_cut(engine: Engine) -> None:
    for number in range(3):
        engine.subscribe(org=f"org{number}")
        engine.emit(org=f"org{number}")
    engine.route(0)
    lanes = [lane for lane, _, _ in engine.walk()]

    async def body(dispatch: Dispatch) -> list[int | None]:
        walks = [None, Walk(0, 2), Walk(lanes[1], 2), Walk(0, 3), Walk(0, 4)]
        return [(await dispatch.tick(0, walk=walk)).lane_last for walk in walks]

    assert with_dispatch(engine, body) == [None, lanes[1], None, lanes[2], None]


# -- a whole relay ------------------------------------------------------------------------------


def test_a_relay_goes_on_with_its_walk_until_it_has_seen_all_lanes(engine: Engine) -> None:
    """Without another reason to look."""
    for number in range(7):
        engine.subscribe(org=f"org{number}")
        engine.emit(org=f"org{number}")
    engine.route(0)

    async def run() -> None:
        hands = Hands()
        async with relaying(engine.url, hands, walk_max=2, look_s=3600.0):
            await until(lambda: len(hands.sent) == 7)

    asyncio.run(run())


def test_a_relay_looks_again_when_the_next_of_what_it_knows_is_due(engine: Engine) -> None:
    """Not when it would look anyway."""
    engine.subscribe()

    async def run() -> None:
        hands = Hands()
        async with relaying(engine.url, hands, look_s=3600.0, due_s=3600.0) as relay:
            await until(lambda: relay._rhythm.due_at == math.inf)
            engine.emit(2, deliver_at=engine.now() + seconds(0.1))
            await until(lambda: len(hands.sent) == 2)

    asyncio.run(run())
