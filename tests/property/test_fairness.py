"""I15: first attempts flow while retries of any number wait, in every lane at once."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from outbox.store.attempts import Settlement
from outbox.store.dispatch import Claim
from tests.profiles import scaled
from tests.property.world import Arena, World


@scaled(examples=0.15)
@given(
    retries=st.integers(1, 12),
    fresh=st.integers(0, 3),
    concurrency=st.sampled_from([1, 2, 4, 5, 8]),
    windows=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    later_max=st.sampled_from([1, 1000]),
)
def test_i15_first_attempts_go_first_and_retries_keep_to_their_share(
    arena: Arena, retries: int, fresh: int, concurrency: int, windows: list[int], later_max: int
) -> None:
    world = World(arena)
    for org in ("a", "b"):
        lane = world.endpoint(org, 1000, None)
        world.subscribe(lane, patterns=("*",), delays_s=(1.0, 1.0))
        world.emit(retries, "orders.paid", org, 2)
    taken = world.take(world.route(Claim(100), 1000))
    world.settle([Settlement(row[0], row[1], "retry", True, "x", 1.0, None) for row in taken])
    world.pass_time(timedelta(seconds=2))
    for lane in world.model.lanes.values():
        lane.concurrency = concurrency
        arena.reader.execute("UPDATE outbox.endpoint SET concurrency = %s", [concurrency])
        if fresh:
            world.emit(fresh, "orders.paid", lane.org, 2)
    world.route(Claim(100), 0)
    leased = {lease for window in windows for lease in world.lease_due(window, later_max=later_max)}
    rows = [world.seen.deliveries[lease[0]] for lease in leased]
    first = sum(1 for row in rows if row.attempts == 0)
    assert first >= min(windows[0], 2 * min(fresh, concurrency))
    world.finish()
