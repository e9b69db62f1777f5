"""I10: a worker's wrong clock changes nothing: its wall clock moves, the tables do not notice."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.outcome import Kind, Outcome
from outbox.store.dispatch import Claim
from outbox.work import Work
from tests.engine.running import working
from tests.profiles import scaled
from tests.property.snapshot import Snapshot, read
from tests.property.world import Arena, World

ROOT = Path(__file__).parents[2] / "outbox"
TIMED = (
    *("worker", "attempt", "relay", "handover", "horizon", "rhythm", "budget", "verdict", "retry"),
    *("store/attempts", "store/dispatch", "store/retention", "store/upkeep"),
)
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


@scaled(examples=0.1)
@given(
    offset_s=st.sampled_from([-86_400.0, -3600.0, 3600.0, 10.0**8]),
    kinds=st.lists(st.sampled_from(Kind), min_size=1, max_size=4),
)
def test_i10_a_wrong_clock_changes_no_table(
    arena: Arena, offset_s: float, kinds: list[Kind]
) -> None:
    right = worked(arena, kinds)
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + offset_s)
        wrong = worked(arena, kinds)
    assert told(wrong) == told(right)
    assert wrong.rows == right.rows


def told(seen: Snapshot) -> list[str]:
    return sorted(map(repr, seen.facts.values()))


def worked(arena: Arena, kinds: Sequence[Kind]) -> Snapshot:
    """The tables after a real worker has made these attempts."""
    world = World(arena)
    lane = world.endpoint("a", 1000, None)
    world.subscribe(lane, patterns=("*",), delays_s=(5.0, 60.0))
    world.emit(len(kinds), "orders.paid", "a", 2)
    leases = world.route(Claim(100), 100)
    wanted = dict(zip(sorted(lease[0] for lease in leases), kinds, strict=True))

    async def attempt(work: Work, _deadline: float) -> Outcome:
        return Outcome(wanted[work.delivery_id], "said")

    async def run() -> None:
        async with working(arena.url, attempt) as running:
            await running.give(leases)
            await running.finish()

    asyncio.run(run())
    seen = read(arena.reader, world.now)
    assert all(row.state != "leased" for row in seen.deliveries.values())
    return seen


def test_i10_nothing_that_leases_or_settles_reads_a_wall_clock() -> None:
    for name in TIMED:
        tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
        read_clocks = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not read_clocks & WALL, f"{name}.py reads a wall clock"
