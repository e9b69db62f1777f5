"""The floor, the window and the budget: pure rules, and the relay's use of them over a simulated
log in which transactions draw ids and end in any order."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.budget import Budget
from outbox.fronts import Fronts
from outbox.horizon import (
    LATER_MAX,
    MARGIN_S,
    PERMITS_KNOWN_S,
    PERMITS_LEAST,
    PERMITS_S,
    QUEUE_S,
    SWEEP_S,
    SWEEP_SHARE,
    Floor,
    Snapshot,
    Window,
)
from outbox.relay import Relay
from outbox.rhythm import FRESH_S, TRICKLE_S, RelayConfig, Rhythm
from outbox.store.dispatch import Advanced, Claim, Leased, Routed, Tick
from tests.engine.engine import Engine, another

LOOK_S = 0.25

Step = tuple[str, float]


@dataclass
class Writer:
    """One transaction. Without `xid` it has drawn its id and written nothing yet."""

    event: int
    drawn_at: float
    xid: int | None = None
    ended: bool = False


@dataclass
class Log:
    """What a relay sees of PostgreSQL, simulated."""

    now: float = 1000.0
    next_event: int = 1
    next_xid: int = 100
    writers: list[Writer] = field(default_factory=list)
    pending: set[int] = field(default_factory=set)
    claimed: list[int] = field(default_factory=list)
    claims: int = 0
    floors: list[int] = field(default_factory=list)
    fronts: Fronts = field(default_factory=Fronts)
    waits: list[Step] = field(default_factory=list)
    """What happens while a claim waits for the dispatch lock."""

    def clock(self) -> float:
        return self.now

    def begin(self, *, writes: bool) -> None:
        self.writers.append(Writer(self.next_event, self.now))
        self.next_event += 1
        if writes:
            self.write(self.writers[-1])

    def write(self, writer: Writer) -> None:
        if writer.xid is None:
            writer.xid = self.next_xid
            self.next_xid += 1

    def end(self, writer: Writer, *, commits: bool) -> None:
        if not writer.ended:
            self.write(writer)
            writer.ended = True
            if commits:
                self.pending.add(writer.event)

    def sleep(self, seconds: float) -> None:
        """Nobody stays longer than the margin between drawing an id and the first write."""
        for writer in self.writers:
            if self.now + seconds > writer.drawn_at + MARGIN_S * 0.95:
                self.write(writer)
        self.now += seconds

    def running(self) -> list[int]:
        return [w.xid for w in self.writers if w.xid is not None and not w.ended]

    # -- as the relay's Dispatch ---------------------------------------------------------------

    async def tick(self, floor: int, bell: int | None = None, **_look: Any) -> Tick:
        running = self.running()
        snapshot = f"{min([*running, self.next_xid])}:{self.next_xid}:{','.join(map(str, running))}"
        above = any(event > floor for event in self.pending)
        return Tick(above, False, snapshot, self.next_event - 1, 2, signalled=False)

    async def route(self, claim: Claim, window: int, token: int) -> Routed:
        self.claims += 1
        self.floors.append(claim.floor)
        waits, self.waits = self.waits, []
        for step in waits:
            play(self, step)
        found = sorted(e for e in self.pending if claim.floor < e <= claim.ceiling)
        found = found[: claim.events_max]
        self.pending -= set(found)
        self.claimed += found
        return Routed([], len(found), 0, 0, 0, max(found, default=None), None, [])

    async def lease_due(self, *_args: Any) -> Leased:
        return Leased([], None, 0, blocked=False)

    async def tend(self, _rows_max: int) -> int:
        return 0

    async def advance(self, _rows_max: int, _since_s: float | None = None) -> Advanced:
        return Advanced(0, 0, 0)


def relay_over(log: Log, batch: int) -> Relay:
    async def never() -> Any:
        raise AssertionError("the simulation opens no connection")

    def send(_token: int, _ids: Any) -> None:
        raise AssertionError("the simulation leases nothing")

    config = RelayConfig(batch=batch, look_s=LOOK_S)
    return Relay(never, send, lambda: 0, config, clock=log.clock)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["draw", "begin"]), st.just(0.0)),
        st.tuples(st.sampled_from(["commit", "rollback", "write"]), st.floats(0, 1)),
        st.tuples(st.just("sleep"), st.sampled_from([0.01, 0.3, 1.0, 2.5, 7.0])),
        st.tuples(st.sampled_from(["round", "claim", "slow"]), st.just(0.0)),
    ),
    max_size=80,
)


def play(log: Log, step: Step) -> None:
    name, number = step
    open_ = [writer for writer in log.writers if not writer.ended]
    if name in ("draw", "begin"):
        log.begin(writes=name == "begin")
    elif name == "sleep":
        log.sleep(number)
    elif open_:
        writer = open_[min(len(open_) - 1, int(number * len(open_)))]
        if name == "write":
            log.write(writer)
        else:
            log.end(writer, commits=name == "commit")


@given(steps=STEPS, batch=st.sampled_from([2, 5, 500]))
def test_no_event_below_the_floor_outlives_the_end_of_its_transaction(
    steps: list[Step], batch: int
) -> None:
    """I9: what a relay finds below its floor it finds in the first look after the commit. In a slow
    round what comes next happens while the first claim waits."""
    log = Log()
    relay = relay_over(log, batch)
    rounds = ("round", "claim", "slow")

    async def round_after(seconds: float) -> None:
        log.sleep(seconds)
        await relay._round(log)  # type: ignore[arg-type]

    async def run() -> None:
        coming = list(steps)
        while coming:
            step = coming.pop(0)
            if step[0] == "claim":
                await round_after(0.01)
            elif step[0] == "slow":
                while coming and coming[0][0] not in rounds:
                    log.waits.append(coming.pop(0))
                await round_after(LOOK_S)
                while log.waits:  # nothing was claimed
                    play(log, log.waits.pop(0))
            elif step[0] == "round":
                await round_after(LOOK_S)
                below = [event for event in log.pending if event <= relay._floor.value]
                assert below == [], "committed below the floor, and not found by a look after that"
            else:
                play(log, step)
        for writer in log.writers:
            log.end(writer, commits=True)
        committed = len(log.pending)
        for _ in range(2 + 2 * committed // batch):
            log.sleep(0.01 if log.now % 1 > 0.5 else LOOK_S)
            await relay._round(log)  # type: ignore[arg-type]
        log.sleep(LOOK_S)
        await relay._round(log)  # type: ignore[arg-type]
        assert log.pending == set()
        assert len(log.claimed) == len(set(log.claimed))

    asyncio.run(run())


@pytest.mark.parametrize("has_written", [True, False])
def test_a_claim_that_waited_raises_the_floor_only_to_what_its_look_knew(
    has_written: bool,
) -> None:
    """Who began while it waited for the dispatch lock stands in no snapshot yet."""
    log = Log()
    relay = relay_over(log, 500)

    def commit_one() -> None:
        log.begin(writes=True)
        log.end(log.writers[-1], commits=True)

    async def run() -> None:
        commit_one()
        await relay._round(log)  # type: ignore[arg-type]
        log.sleep(LOOK_S - 0.02)
        if not has_written:
            log.begin(writes=False)
        commit_one()
        log.sleep(0.01)
        await relay._round(log)  # type: ignore[arg-type]
        commit_one()
        log.sleep(0.01)
        waits = [("sleep", 2 * MARGIN_S), ("begin", 0.0), ("begin", 0.0), ("commit", 1.0)]
        log.waits = waits if has_written else waits[:1]
        await relay._round(log)  # type: ignore[arg-type]
        (late,) = [writer for writer in log.writers if not writer.ended]
        log.end(late, commits=True)
        log.sleep(LOOK_S)
        await relay._round(log)  # type: ignore[arg-type]
        assert late.event in log.claimed

    asyncio.run(run())


@pytest.mark.parametrize("made", [3, 700])
def test_the_floor_rises_under_steady_traffic_and_under_a_backlog(made: int) -> None:
    """Otherwise a held snapshot would slow every claim."""
    log = Log()
    relay = relay_over(log, 500)

    async def run() -> None:
        for _ in range(60):
            for _ in range(made):
                log.begin(writes=True)
                log.end(log.writers.pop(), commits=True)
            log.sleep(LOOK_S)
            await relay._round(log)  # type: ignore[arg-type]

    asyncio.run(run())
    # It trails what is claimed by the margin and a few looks.
    looks = MARGIN_S / LOOK_S + 3
    assert max(log.claimed) - relay._floor.value <= min(made, 500) * looks
    assert relay._floor.value > 0


def test_a_large_late_commit_is_a_backlog_like_any_other() -> None:
    """I15: swept in one go, a million rows of one transaction hid all other events for 38 s."""
    log = Log()
    relay = relay_over(log, 5)

    async def rounds(count: int) -> None:
        for _ in range(count):
            log.sleep(LOOK_S)
            await relay._round(log)  # type: ignore[arg-type]

    async def run() -> None:
        late = []
        for _ in range(100):
            log.begin(writes=True)
            late.append(log.writers[-1])
        for _ in range(40):
            log.begin(writes=True)
            log.end(log.writers[-1], commits=True)
            await rounds(1)
        assert relay._floor.value > late[-1].event
        for writer in late:
            log.end(writer, commits=True)
        before = log.claims
        await rounds(1)
        assert log.claims - before <= 2, "others have their turn"
        assert relay._floor.value < min(log.pending)
        await rounds(60)
        assert log.pending == set()
        await rounds(20)
        assert relay._floor.value > late[-1].event

    asyncio.run(run())


def test_below_the_floor_is_swept_now_and_then_whatever_the_snapshots_say() -> None:
    floor = Floor(0.0)
    nobody = Snapshot.parse("10:10:")
    floor.reached(1.0, 5)
    assert floor.candidate(1.0 + MARGIN_S - 0.01) is None
    assert floor.candidate(1.0 + MARGIN_S) == 5
    assert floor.sweep_from(SWEEP_S + 1, nobody) is None, "there is nothing below"
    floor.rise(5, nobody)
    now = SWEEP_S
    for took_s in (SWEEP_S * SWEEP_SHARE / 2, SWEEP_S * SWEEP_SHARE * 3, 0.0):
        assert floor.sweep_from(now, nobody) == 0
        now += took_s
        floor.swept(now, None, all_of_it=True)
        now += max(SWEEP_S, took_s / SWEEP_SHARE)
        assert floor.sweep_from(now - 0.01, nobody) is None


def test_a_sweep_begins_where_the_floor_stood_before_the_transaction_that_ended() -> None:
    """Under a held snapshot it passes what has died since then, not all that ever did."""
    log = Log()
    relay = relay_over(log, 500)

    async def rounds(count: int) -> None:
        for _ in range(count):
            log.begin(writes=True)
            log.end(log.writers.pop(), commits=True)
            log.sleep(LOOK_S)
            await relay._round(log)  # type: ignore[arg-type]

    async def run() -> None:
        await rounds(20)
        log.begin(writes=True)
        late = log.writers[-1]
        await rounds(20)
        assert relay._floor.value > late.event
        log.end(late, commits=True)
        log.floors.clear()
        await rounds(1)
        assert late.event in log.claimed
        assert late.event - 2 - 2 * MARGIN_S / LOOK_S <= min(log.floors) < late.event

    asyncio.run(run())


def test_the_floor_never_falls_and_forgets_what_it_passed() -> None:
    floor = Floor(0.0)
    for at, event in ((0, 10), (1, 20), (2, 15), (3, 30)):
        floor.reached(float(at), event)
    assert floor.candidate(3.0) == 20
    floor.rise(20, Snapshot.parse("7:9:7,8"))
    floor.rise(15, Snapshot.parse("7:9:"))
    assert floor.value == 20
    assert floor.candidate(100.0) == 30
    assert floor.sweep_from(4.0, Snapshot.parse("7:12:7,8,11")) is None
    assert floor.sweep_from(4.1, Snapshot.parse("7:12:7,11")) == 0, "8 ended"
    assert floor.sweep_from(4.2, Snapshot.parse("7:12:7,11")) is None, "once an end"


@given(xids=st.frozensets(st.integers(1, 2**62), max_size=20))
def test_a_snapshot_is_read_as_postgresql_writes_it(xids: frozenset[int]) -> None:
    low, high = min(xids, default=5), max(xids, default=5) + 1
    text = f"{low}:{high}:{','.join(map(str, sorted(xids)))}"
    assert Snapshot.parse(text) == Snapshot(low, high, xids)


def test_the_floor_stays_where_the_list_of_who_writes_was_cut() -> None:
    """Somebody may be missing who has drawn an id below and is to be watched."""
    floor = Floor(0.0)
    floor.reached(0.0, 10)
    floor.rise(10, Snapshot.parse("7:9000:7,8:cut"))
    assert floor.value == 0
    floor.rise(10, Snapshot.parse("7:9000:7,8"))
    assert floor.value == 10


def test_a_look_says_that_its_list_of_who_writes_is_cut(engine: Engine) -> None:
    """Behind a thousand subtransactions of one that nothing has ended after: whoever comes then has
    an id that is not listed."""
    with another(engine.url) as writer, another(engine.url) as other:
        writer.execute("BEGIN")
        writer.execute("CREATE TEMP TABLE t (id int)")
        for count, cut in ((900, False), (1100, True)):
            writer.execute(
                f"DO $$ BEGIN FOR i IN 1..{count} LOOP BEGIN INSERT INTO t VALUES (i);"
                " EXCEPTION WHEN OTHERS THEN RAISE; END; END LOOP; END $$".encode()
            )
            with other.transaction(force_rollback=True):
                other.execute("SELECT outbox.emit('x', '1'::json)")
                [(xid,)] = other.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
                params = {"floor": 0, "bell": None, "leases": False, "since_s": None}
                params |= {"lane_from": None, "lanes_max": None}
                snapshot = Snapshot.parse(engine._row("tick", params)[2])
                assert (snapshot.cut, xid in snapshot.running) == (cut, not cut)
                assert snapshot.xmax > xid
            engine.run("SELECT pg_current_xact_id()")


# -- the window -----------------------------------------------------------------------------------

RATES = st.lists(st.integers(0, 20_000), min_size=1, max_size=60)


@given(rates=RATES, lease_s=st.sampled_from([0.5, 2.0, 30.0]))
def test_what_waits_is_started_within_a_quarter_of_a_lease(
    rates: list[int], lease_s: float
) -> None:
    """At the best rate of the last seconds, whatever came before."""
    window = Window(lease_s, least=1)
    now, recent = 0.0, []
    window.measured(now, 0)
    for rate in rates:
        now += 0.25
        started = rate // 4
        window.sent(started)
        window.measured(now, 0)
        if started:
            recent.append((now, started / 0.25))
        best = max((r for at, r in recent if at >= now - 3.5), default=0)
        if best:
            assert window.size() <= max(1, best * lease_s / 4)


def test_the_window_follows_the_workers_and_keeps_the_queue_short() -> None:
    window = Window(30.0)
    now = 0.0
    window.measured(now, 0)
    for _ in range(20):
        now += 0.2
        window.sent(4000)
        window.measured(now, 0)
    assert window.size() == int(20_000 * QUEUE_S)
    window.sent(200)
    assert window.room() == window.size() - 200
    window.sent(10_000)
    assert window.room() == 0


def test_unstarted_expiries_shrink_the_window_and_it_recovers() -> None:
    window = Window(30.0)
    before = window.size()
    window.measured(0.0, 0)
    window.sent(4000)
    window.measured(0.2, 0)
    full = window.size()
    window.unstarted_expired(0)
    assert window.size() == full
    for _ in range(20):
        window.unstarted_expired(7)
    assert 10 <= window.size() < full / 2
    now = 0.2
    for _ in range(100):
        now += 0.2
        window.sent(4000)
        window.measured(now, 0)
    assert window.size() == full
    assert before > 0


def test_a_broker_that_nobody_empties_gets_no_more_than_the_window() -> None:
    window, now, waiting = Window(30.0), 0.0, 0
    window.measured(now, waiting)
    for _ in range(200):
        room = window.room()
        window.sent(room)
        waiting += room
        now += 0.11
        window.measured(now, waiting)
    assert waiting <= 250


# -- the budget -----------------------------------------------------------------------------------


def test_the_budget_holds_among_threads() -> None:
    budget = Budget(100, 30)
    most = [0, 0]
    waiting = threading.Semaphore(0)
    lock = threading.Lock()
    inside = [0, 0]

    def broker() -> None:
        for _ in range(50):
            assert budget.acquire(10)
            with lock:
                inside[0] += 10
                inside[1] += 10
                most[0], most[1] = max(most[0], inside[0]), max(most[1], inside[1])
            waiting.release()

    def worker() -> None:
        for _ in range(50 * 4):
            waiting.acquire()
            with lock:
                inside[1] -= 10
            budget.taken(10)
            with lock:
                inside[0] -= 10
            budget.free(10)

    threads = [threading.Thread(target=broker) for _ in range(4)]
    threads.append(threading.Thread(target=worker))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert most[0] <= 100
    assert most[1] <= 30
    assert budget.used == 0


@pytest.mark.parametrize("count", [1, 50, 1000])
def test_an_empty_budget_lets_in_any_message(count: int) -> None:
    """Otherwise a message larger than the budget would wait for ever."""
    assert Budget(10, 5).acquire(count)


def test_closing_wakes_who_waits_and_lets_nobody_in() -> None:
    budget = Budget(10, 10)
    assert budget.acquire(10)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(budget.acquire(1)))
    thread.start()
    budget.close()
    thread.join(30)
    assert answers == [False]
    assert not budget.acquire(1)
    assert budget.used == 10


def test_ids_survive_their_packed_form() -> None:
    from outbox.store.dispatch import split_ids

    ids = [UUID(int=n) for n in (0, 1, 2**127)]
    assert split_ids(b"".join(i.bytes for i in ids)) == [i.hex for i in ids]
    assert split_ids(None) == []


def test_what_is_not_fresh_goes_freely_where_nothing_fresh_flows() -> None:
    rhythm = Rhythm(0.0)
    assert rhythm.later_max(100.0, -5, 500) == 500
    rhythm.fresh_at = 100.0
    assert rhythm.later_max(100.0, 40, 500) == 40
    assert rhythm.later_max(100.0 + FRESH_S + 0.1, 40, 500) == 500


def test_a_trickle_of_what_is_not_fresh_goes_whatever_waits() -> None:
    window, rhythm = Window(30.0), Rhythm(0.0, fresh_at=100.0)
    window.sent(LATER_MAX - 3)
    assert rhythm.later_max(100.5, window.later_room(), 500) == 3
    window.sent(4)
    assert window.later_room() == -1
    assert rhythm.later_max(101.0, -1, 500) == LATER_MAX
    assert rhythm.later_max(101.0 + TRICKLE_S / 2, -1, 500) == 0
    assert rhythm.later_max(101.0 + TRICKLE_S, 3, 500) == 3


# -- permits --------------------------------------------------------------------------------------


def fast(rate: float = 10_000.0) -> Window:
    """A window whose workers start so many a second, empty at the moment 1.0."""
    window = Window(30.0)
    window.measured(0.0, 0)
    window.sent(int(rate))
    window.measured(1.0, 0)
    return window


def test_a_claim_takes_no_more_than_there_are_permits_for() -> None:
    window = fast()
    assert window.claimable(1.0, 500) == window.room()
    window.left(1.0, PERMITS_LEAST + 22)
    assert window.claimable(1.0, 500) == PERMITS_LEAST + 22
    window.left(1.0, 2**40)
    assert window.claimable(1.0, 500) == window.room()


def test_a_claim_waits_for_permits_that_come_free_soon() -> None:
    window = fast()
    window.left(1.0, 0)
    assert window.claimable(1.0, 500) == 0
    assert window.claimable(1.0 + 0.9 * PERMITS_LEAST / 10_000, 500) == 0
    assert window.claimable(1.0 + 1.1 * PERMITS_LEAST / 10_000, 500) >= PERMITS_LEAST


def test_a_slow_destination_without_permits_does_not_hold_up_the_others() -> None:
    window = fast(100.0)
    window.left(1.0, 0)
    assert window.claimable(1.0, 500) == window.room() > 0


def test_what_a_claim_left_is_not_known_for_long() -> None:
    window = fast(PERMITS_LEAST / PERMITS_S)
    window.left(1.0, 0)
    assert window.claimable(1.0, 500) == 0
    assert window.claimable(1.0 + 1.01 * PERMITS_KNOWN_S, 500) == window.room()


def test_a_claim_waits_until_a_fair_batch_fits() -> None:
    window = fast()
    window.sent(window.room() - 10)
    assert window.room() == 10
    assert window.claimable(1.0, 500) == 0
    assert window.claimable(1.0, 2) == 10


class Full(Log):
    """A log whose every event belongs to an organization that has no permit."""

    async def route(self, claim: Claim, window: int, token: int) -> Routed:
        if claim.orgs_skipped:
            self.claims += 1
            return Routed([], 0, 0, 0, 0, None, None, [])
        routed = await super().route(claim, window, token)
        return Routed([], routed.events, 0, 0, routed.events, routed.id_max, None, ["a"])


def test_beside_an_organization_without_permits_the_relay_looks_at_leisure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Claims that found nothing followed each other as fast as they could."""
    log = Full(pending=set(range(1, 100_000)), next_event=100_000)
    relay = relay_over(log, 500)

    async def pause(seconds: float) -> None:
        log.sleep(seconds)

    monkeypatch.setattr(relay, "_pause", pause)

    async def run() -> None:
        for _ in range(400):
            if not await relay._round(log):  # type: ignore[arg-type]
                await relay._idle(log)  # type: ignore[arg-type]

    asyncio.run(run())
    assert log.now > 1001.0
    assert log.claims < 300 * (log.now - 1000.0)


def test_beside_an_organization_without_permits_the_relay_is_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise commits ring a relay that does not sleep, and turns wait for the next look."""
    log = Full(pending=set(range(1, 100)), next_event=100)
    relay = relay_over(log, 1)
    bells: list[int | None] = []
    tick = log.tick

    async def watched(floor: int, bell: int | None = None, **look: Any) -> Tick:
        bells.append(bell)
        return await tick(floor, bell, **look)

    async def pause(seconds: float) -> None:
        log.sleep(seconds)

    monkeypatch.setattr(log, "tick", watched)
    monkeypatch.setattr(relay, "_pause", pause)

    async def run() -> None:
        await relay._round(log)  # type: ignore[arg-type]
        assert relay._rhythm.resting(log.now)
        bells.clear()
        relay._rhythm.asked_to_ring = True
        relay._rhythm.bell = 2
        await relay._idle(log)  # type: ignore[arg-type]

    asyncio.run(run())
    assert bells == [1]
    assert not relay._rhythm.asked_to_ring


def test_what_is_not_fresh_is_looked_for_again_soon_only_where_some_was_due() -> None:
    log = Log()
    relay = relay_over(log, 500)
    answer = Leased([], None, 0, blocked=False)
    log.fronts.put([(1, 1, log.now)])

    async def lease_due(*_args: Any) -> Leased:
        return answer

    log.lease_due = lease_due  # type: ignore[method-assign]

    async def next_look_s() -> float:
        relay._rhythm.due_at, relay._rhythm.fresh_at = log.now, log.now
        await relay._lease_due(log, log.now)  # type: ignore[arg-type]
        return relay._rhythm.due_at - log.now

    config = RelayConfig()
    assert asyncio.run(next_look_s()) == pytest.approx(config.due_s)
    answer = Leased([], None, 0, blocked=False, later=True)
    assert asyncio.run(next_look_s()) == pytest.approx(config.blocked_s_min)
