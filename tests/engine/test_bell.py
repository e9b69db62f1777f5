"""The bell: a sleeping relay hears of every commit, whatever the interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.horizon import Snapshot
from outbox.relay import Relay
from outbox.rhythm import GATE_S_MAX, LONG_S, Gate, RelayConfig, Rhythm
from outbox.store.connect import HotConnection, connect_hot
from outbox.store.dispatch import Advanced, Dispatch, Tick
from outbox.store.listen import Bell
from tests.engine.engine import Connection, Engine, another
from tests.engine.running import until

EMIT = "SELECT outbox.emit('orders.paid', '1'::json, 'acme')"


class Watched:
    """A relay whose looks are counted, and whose fallback poll is out of reach of the test."""

    def __init__(self, url: str, **config: Any) -> None:
        self.url = url
        self.bell = Bell()
        self.ticks: list[Tick] = []
        self.asked_to_ring = 0
        self.relay = Relay(
            self._open,
            lambda _token, _ids: None,
            lambda: 0,
            RelayConfig(**{"asleep_s": 3600.0, "due_s": 3600.0, "look_s": 0.05, **config}),
            bell=self.bell,
        )

    async def _open(self) -> HotConnection:
        return await connect_hot(self.url, "relay")


@asynccontextmanager
async def relaying(
    url: str, monkeypatch: pytest.MonkeyPatch, hold: asyncio.Event | None = None, **config: Any
) -> AsyncIterator[Watched]:
    """A running relay. It waits for `hold` whenever it has asked to be rung."""
    watched = Watched(url, **config)
    plain = Dispatch.tick

    async def tick(self: Dispatch, floor: int, bell: int | None = None, **asked: Any) -> Tick:
        found = await plain(self, floor, bell, **asked)
        watched.ticks.append(found)
        if bell == 2:
            watched.asked_to_ring += 1
            if hold is not None:
                await hold.wait()
        return found

    monkeypatch.setattr(Dispatch, "tick", tick)
    listening = asyncio.create_task(watched.bell.listen(url))
    await until(lambda: watched.bell.heard)
    running = asyncio.create_task(watched.relay.run())
    try:
        yield watched
    finally:
        watched.relay.stop()
        await asyncio.wait_for(running, 30)
        listening.cancel()
        await asyncio.wait([listening])


async def asleep(engine: Engine, watched: Watched, before: int = 0) -> None:
    """Wait until it has asked to be rung and looks no more."""
    await until(lambda: watched.asked_to_ring > before)
    seen = -1
    # On a busy machine a relay that is awake may not look for a while either.
    while seen != len(watched.ticks) or engine.one("SELECT last_value FROM outbox.bell") != 2:
        seen = len(watched.ticks)
        await asyncio.sleep(0.1)


def routed(engine: Engine) -> int:
    return int(engine.one("SELECT count(*) FROM outbox.journal WHERE fact = 'routed'"))


def test_a_commit_wakes_a_sleeping_relay(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with relaying(engine.url, monkeypatch) as watched:
            for n in range(1, 4):
                await asleep(engine, watched, watched.asked_to_ring - 1)
                engine.emit()
                await until(lambda n=n: routed(engine) == n)  # type: ignore[misc]

    asyncio.run(run())


def test_a_ring_asks_for_turns_only_where_a_key_was_signalled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most rings are for events; the look that follows their claim sees a signal."""
    engine.subscribe(order_mode="block")
    asked = []
    advance = Dispatch.advance

    async def counted(self: Dispatch, rows_max: int, since_s: float | None = None) -> Advanced:
        asked.append(since_s)
        return await advance(self, rows_max, since_s)

    monkeypatch.setattr(Dispatch, "advance", counted)

    async def run() -> None:
        async with relaying(engine.url, monkeypatch, look_s=3600.0, tend_s=3600.0) as watched:
            await asleep(engine, watched)
            asked.clear()
            for n in range(1, 4):
                engine.emit()
                await until(lambda n=n: routed(engine) == n)  # type: ignore[misc]
                await asleep(engine, watched, watched.asked_to_ring - 1)
            assert asked == []
            engine.emit(2, ordering_key="k")
            await until(lambda: routed(engine) == 5)
            first = "SELECT min(event_id) FROM outbox.delivery WHERE order_key IS NOT NULL"
            await asleep(engine, watched, watched.asked_to_ring - 1)
            engine.run(f"DELETE FROM outbox.delivery WHERE event_id = ({first})")
            held = "SELECT count(*) FROM outbox.delivery WHERE held_reason = 'order'"
            await until(lambda: engine.one(held) == 0)
            assert asked

    asyncio.run(run())


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel)[1:])
def test_a_writer_that_read_awake_and_commits_after_all_sleep_is_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, isolation: psycopg.IsolationLevel
) -> None:
    """Capture reads "awake" and does not commit; the relay goes to sleep; capture commits unrung.
    The relay must not rest before that transaction has ended."""

    async def run(writer: Connection) -> None:
        engine.run("SELECT setval('outbox.bell', 1)")
        writer.execute(EMIT)
        async with relaying(engine.url, monkeypatch) as watched:
            await until(lambda: watched.asked_to_ring > 0)
            looks = len(watched.ticks)
            await until(lambda: len(watched.ticks) > looks + 2)
            assert routed(engine) == 0
            writer.execute("COMMIT")
            await until(lambda: routed(engine) == 1)

    with another(engine.url) as writer:
        writer.execute(b"BEGIN ISOLATION LEVEL " + isolation.name.replace("_", " ").encode())
        asyncio.run(run(writer))


def test_a_writer_that_commits_between_the_flag_and_the_sleep_is_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole transaction fits between the relay's last look and its sleep: it rings."""

    async def run() -> None:
        engine.run("SELECT setval('outbox.bell', 1)")
        hold = asyncio.Event()
        async with relaying(engine.url, monkeypatch, hold) as watched:
            await until(lambda: watched.asked_to_ring > 0)
            engine.emit()
            hold.set()
            await until(lambda: routed(engine) == 1)

    asyncio.run(run())


def test_a_transaction_open_for_long_does_not_keep_others_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(idle: Connection) -> None:
        async with relaying(engine.url, monkeypatch) as watched:
            await until(lambda: watched.asked_to_ring > 0)
            for n in range(1, 6):
                engine.emit()
                await until(lambda n=n: routed(engine) == n)  # type: ignore[misc]
        idle.execute("COMMIT")

    with another(engine.url) as idle:
        idle.execute("BEGIN")
        idle.execute(EMIT)
        asyncio.run(run(idle))


def test_a_transaction_open_for_long_is_looked_at_with_less_haste(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it, each time that a relay sleeps begins with looks at it: once it is open for so
    long that it may stay so, far apart."""
    gates: list[list[float | None]] = []

    class Noted(Gate):
        def __init__(self, *at: Any) -> None:
            super().__init__(*at)
            gates.append([])

        def wait(self, seen: Snapshot) -> float | None:
            gates[-1].append(super().wait(seen))
            return gates[-1][-1]

    monkeypatch.setattr("outbox.relay.Gate", Noted)

    async def run() -> None:
        async with relaying(engine.url, monkeypatch) as watched:
            await until(lambda: bool(gates) and len(gates[-1]) > 2)
            assert gates[0][:2] == [0.001, 0.002]
            while gates[-1][:1] != [GATE_S_MAX]:
                asked = watched.asked_to_ring
                engine.emit()
                await until(lambda asked=asked: watched.asked_to_ring > asked)  # type: ignore[misc]
                await until(lambda: bool(gates[-1]))

    with another(engine.url) as idle:
        idle.execute("BEGIN")
        idle.execute(EMIT)
        asyncio.run(asyncio.wait_for(run(), 60))


@given(
    begun=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=20),
    open_=st.sets(st.integers(0, 25)),
    cut=st.booleans(),
)
def test_a_gate_waits_for_all_who_were_there_and_hurries_for_those_of_late(
    begun: list[float], open_: set[int], cut: bool
) -> None:
    """Transaction n begins at the nth time; the gate is made at the last of them."""
    rhythm, now, at = Rhythm(0.0), 0.0, []
    for xid, pause_s in enumerate(begun):
        now += pause_s
        at.append(now)
        rhythm.begun(now, xid + 1)
    running = frozenset(open_)
    seen = Snapshot(min(running, default=26), 26, running, cut)
    gate = Gate(len(begun), rhythm.long_below, 0.001)
    waits = [gate.wait(seen) for _ in range(7)]
    there = [xid for xid in running if xid < len(begun)]
    if not there:
        assert waits == [None] * 7
        return
    youngest_s = now - max(at[xid] for xid in there)
    if cut or youngest_s < LONG_S:
        assert waits == [0.001, 0.002, 0.004, 0.008, 0.016, GATE_S_MAX, GATE_S_MAX]
    else:  # it is called long after one to two seconds, as it is looked at
        assert waits[-1] == GATE_S_MAX
        assert waits == sorted(waits, key=float)  # type: ignore[arg-type]
    if not cut and youngest_s >= 2 * LONG_S + 2.0:
        assert waits == [GATE_S_MAX] * 7


def test_a_ring_that_was_rolled_back_is_made_up_for_by_the_relays_own_look(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody rang and then failed; whoever came right after left it at that."""

    async def run() -> None:
        async with relaying(engine.url, monkeypatch, asleep_s=0.1) as watched:
            await asleep(engine, watched)
            engine.run("SELECT setval('outbox.bell', 1800000000000)")
            engine.run(
                "WITH e AS (INSERT INTO outbox.event (id, slot, type, payload, created_at)"
                " VALUES (nextval('outbox.event_id'), 0, 'a', '1', now()) RETURNING id, slot)"
                " INSERT INTO outbox.pending (id, slot, org) SELECT id, slot, '' FROM e"
            )
            await until(lambda: engine.one("SELECT count(*) FROM outbox.pending") == 0)
            await asleep(engine, watched, watched.asked_to_ring)

    asyncio.run(run())


def test_a_relay_that_is_awake_says_so_whatever_the_bell_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with relaying(engine.url, monkeypatch, awake_s=3600.0):
            for state in (2, 1_800_000_000_000):
                engine.run(f"SELECT setval('outbox.bell', {state})")
                await until(lambda: engine.one("SELECT last_value FROM outbox.bell") == 1)

    asyncio.run(run())


def test_a_relay_that_has_nothing_to_do_makes_one_statement_a_look(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    plain = HotConnection.run

    async def run(self: HotConnection, name: str, *args: Any, **options: Any) -> Any:
        names.append(name)
        return await plain(self, name, *args, **options)

    monkeypatch.setattr(HotConnection, "run", run)

    async def idle() -> None:
        numbers: dict[str, Any] = {"asleep_s": 0.06, "due_s": 0.06, "tend_s": 3600.0}
        async with relaying(engine.url, monkeypatch, **numbers) as watched:
            await asleep_for_looks(watched, 10)
            names.clear()
            await asleep_for_looks(watched, 10)
            assert set(names) == {"tick"}

    asyncio.run(idle())


def test_a_relay_that_had_nothing_to_do_sees_what_is_due(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery gets its due time by a worker or a command: neither rings."""

    async def run() -> None:
        engine.subscribe()
        async with relaying(engine.url, monkeypatch, asleep_s=0.06, due_s=0.06) as watched:
            engine.emit()
            await until(lambda: routed(engine) == 1)
            await asleep_for_looks(watched, 10)
            engine.run(
                "UPDATE outbox.delivery SET state = 'scheduled', due_at = now(),"
                " token = NULL, lease_until = NULL"
            )
            await until(lambda: engine.one("SELECT state FROM outbox.delivery") == "leased")

    asyncio.run(run())


async def asleep_for_looks(watched: Watched, looks: int) -> None:
    before = len(watched.ticks)
    await until(lambda: len(watched.ticks) >= before + looks)


def test_a_relay_that_loses_its_ears_polls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending the bell's session wakes the relay; it hears again later."""

    async def run() -> None:
        async with relaying(engine.url, monkeypatch) as watched:
            await asleep(engine, watched)
            engine.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'outbox bell' AND datname = current_database()"
            )
            await until(lambda: not watched.bell.heard or watched.bell.rung.is_set())
            engine.emit()
            await until(lambda: routed(engine) == 1)
            await until(lambda: watched.bell.heard)

    asyncio.run(run())
