"""The daemon's loop: claim, route, lease, hand to the broker.

Owns the rhythm (when to look, when to sleep, when to sweep) and nothing else: what is true stands
in PostgreSQL, what is decided stands in the statements. Any number of relays run beside each
other. A relay outlives restarts of PostgreSQL and of the broker: it reports the change of state
once, backs off and goes on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import structlog

from outbox.errors import OutboxError
from outbox.handover import Depth, Handover, Send
from outbox.horizon import Floor, Snapshot
from outbox.rhythm import CLAIM_LEAST, SIGNAL_S, Gate, RelayConfig, Rhythm
from outbox.store.connect import FAILED, REFUSED, HotConnection, describe
from outbox.store.dispatch import Claim, Dispatch, Routed, Tick, Walk
from outbox.store.listen import Bell
from outbox.waiting import wait_at_most

log = structlog.get_logger("outbox.relay")


class Relay:
    """One relay. `open_connection` opens a hot connection; without a bell it only polls;
    `on_broadcasts` is called when it has routed deliveries that the daemon itself performs."""

    def __init__(
        self,
        open_connection: Callable[[], Awaitable[HotConnection]],
        send: Send,
        depth: Depth,
        config: RelayConfig | None = None,
        *,
        bell: Bell | None = None,
        on_broadcasts: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        token: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._open = open_connection
        self._config = config or RelayConfig()
        self._bell = bell
        self._on_broadcasts = on_broadcasts
        self._clock = clock
        self._token = token
        self._stopping = asyncio.Event()
        self.polled_at: float | None = None
        self._broker = Handover(send, depth, self._config.lease_s, clock)
        self._floor = Floor(clock())
        self._rhythm = Rhythm(clock())
        self._dispatch: Dispatch | None = None
        self._failures = 0
        self._ahead_s = 0.0  # of the server's clock before ours

    @property
    def broker_lost(self) -> bool:
        """Whether the broker failed and has not answered since."""
        return self._broker.lost

    def stop(self) -> None:
        """Stop claiming. What is leased stays with the broker and the workers."""
        self._stopping.set()
        if self._bell is not None:
            self._bell.rung.set()

    async def run(self) -> None:
        """Relay until stopped."""
        while not self._stopping.is_set():
            try:
                await self._connected()
            except (*FAILED, OutboxError) as error:
                if self._failures == 0:
                    log.warning("relay.database_lost", error=describe(error))
                wait_s = 0.05 * 2 ** min(self._failures, 10)
                self._failures += 1
                await self._pause(min(self._config.backoff_s_max, wait_s))

    async def _pause(self, seconds: float) -> None:
        await wait_at_most(self._stopping, seconds)

    async def _connected(self) -> None:
        connection = await self._open()
        try:
            self._dispatch = Dispatch(connection, self._config.lease_s)
            await self._dispatch.prepare()
            self._floor = Floor(self._clock())
            self._rhythm = Rhythm(self._clock())
            log.info("relay.connected", direct=connection.direct)
            while not self._stopping.is_set():
                await self._wait_for_broker(self._dispatch)
                busy = await self._round(self._dispatch)
                self.polled_at = self._clock()
                self._failures = 0
                if not busy:
                    await self._idle(self._dispatch)
        finally:
            self._dispatch = None
            await connection.raw.close()

    async def _wait_for_broker(self, dispatch: Dispatch) -> None:
        async def still_alive() -> None:
            await dispatch.tick(self._floor.value)
            self.polled_at = self._clock()

        await self._broker.recover(
            self._pause, still_alive, self._stopping.is_set, self._config.backoff_s_max
        )

    # -- one round ------------------------------------------------------------------------------

    async def _round(self, dispatch: Dispatch) -> bool:
        """Do what there is to do once; true if the next round should follow at once."""
        now = self._clock()
        if self._is_short():
            await self._broker.measure(short=True)
        tick = await self._look(dispatch, now)
        if tick is None or tick.pending:
            routed = await self._route(dispatch, self._broker.claimable(self._config.batch), tick)
        else:
            routed = 0
            self._raise_floor(tick, complete=True, id_max=None)
        advanced = 0
        if self._rhythm.signalled or now < self._rhythm.ordered_until:
            advanced = await self._advance(dispatch, SIGNAL_S)
        leased = await self._lease_due(dispatch, now)
        await self._broker.measure(short=False)
        if routed or leased or advanced:
            self._rhythm.worked(now, self._config)
        # What found all there was is followed by a cheap look, not by itself again.
        return bool((routed and self._rhythm.more) or leased or advanced)

    async def _look(self, dispatch: Dispatch, now: float) -> Tick | None:
        """The periodic look: expired leases, late commits, the floor."""
        rhythm, config = self._rhythm, self._config
        if now < rhythm.look_at(config):
            return None
        rhythm.looked_at = now
        since_s, walk_from = rhythm.leases_since(now), rhythm.walk_from(now)
        walk = None if walk_from is None else Walk(walk_from, rhythm.walks.lanes(config.walk_max))
        look = {"leases": True, "since_s": since_s, "walk": walk}
        began = self._clock()
        tick = await self._tick(dispatch, asleep=rhythm.asked_to_ring, **look)
        rhythm.quiet = rhythm.asked_to_ring and tick.bell_was == 2 and not tick.work
        self._ahead_s = tick.now - self._clock()
        if walk is not None:
            rhythm.walked(began, self._clock() - began, tick.lane_last)
        if tick.expired:
            expired = await dispatch.expire(config.batch, config.expiries_max, since_s)
            self._broker.window.unstarted_expired(expired.unstarted)
            log.info("relay.leases_expired", **asdict(expired))
        else:  # also none that expire() could not have: locked, or beyond its batch
            rhythm.leases_seen(now, since_s)
        rhythm.due_at = min(rhythm.due_at, self._due_at(dispatch))
        seen = Snapshot.parse(tick.snapshot)
        rhythm.begun(now, seen.xmax)
        above = self._floor.sweep_from(now, seen)
        fell = above is not None and await self._sweep(dispatch, above)
        if now >= rhythm.tend_at:
            rhythm.tend_at = now + config.tend_s
            await self._tend(dispatch)
            await self._advance(dispatch, None)
        return None if fell else tick  # which looked above the floor as it was

    async def _tick(self, dispatch: Dispatch, *, asleep: bool, **look: Any) -> Tick:
        """Look, and say whether to ring: asleep 2, awake 1 where it says something else, since a
        relay that polls makes every ring a waste."""
        rhythm = self._rhythm
        bell = 2 if asleep else 1 if rhythm.bell != 1 else None
        tick = await dispatch.tick(self._floor.value, bell, **look)
        rhythm.bell = bell or tick.bell_was
        rhythm.signalled |= tick.signalled
        return tick

    async def _advance(self, dispatch: Dispatch, since_s: float | None) -> int:
        """Give ordered keys their next turn; returns how many deliveries moved.

        Every ordered delivery that ends signals, so after a signal the next rounds look as well:
        where nothing is ordered this costs nothing.
        """
        rhythm = self._rhythm
        advanced = await dispatch.advance(self._config.batch, since_s)
        rhythm.signalled = advanced.signals >= self._config.batch
        if advanced.signals:
            rhythm.ordered_until = self._clock() + SIGNAL_S
        if advanced.released:
            rhythm.due_at = self._clock()
        if advanced.parked:
            log.warning("relay.parked", deliveries=advanced.parked)
        return advanced.released + advanced.parked

    async def _tend(self, dispatch: Dispatch) -> None:
        while await dispatch.tend(self._config.batch) >= self._config.batch:
            pass

    async def _sweep(self, dispatch: Dispatch, above: int) -> bool:
        """Claim what appeared between `above` and the floor. More than a batch is a backlog like
        any, which must not hide others' events: the floor falls to it, and true is returned."""
        claim = Claim(self._config.batch, floor=above, ceiling=self._floor.value)
        routed = await self._claim(dispatch, claim, self._broker.room())
        all_of_it = routed.events < self._config.batch
        return self._floor.swept(self._clock(), routed.id_max, all_of_it=all_of_it)

    async def _route(self, dispatch: Dispatch, room: int, tick: Tick | None) -> int:
        """Route at most `room` events; returns how many."""
        if room == 0:
            return 0
        rhythm, config = self._rhythm, self._config
        now = self._clock()
        resting = rhythm.resting(now)
        fair = (rhythm.fair or bool(resting)) and not rhythm.careful
        events_max = 1 if rhythm.careful else min(rhythm.claim_max, room)
        claim = Claim(
            events_max,
            floor=self._floor.value,
            orgs_max=config.orgs_max if fair else 0,
            org_from=rhythm.org_from,
            orgs_skipped=resting,
        )
        try:
            routed = await self._claim(dispatch, claim, self._broker.room())
        except REFUSED as error:
            await self._stumble(dispatch, error)
            return 1
        rhythm.careful = max(0, rhythm.careful - 1)
        if routed.leased:
            rhythm.fresh_at = now
        rhythm.org_from = f"{routed.org_last}\x01" if fair and routed.org_last is not None else ""
        if not fair:
            if routed.id_max is not None:
                self._floor.reached(self._clock(), routed.id_max)
            self._raise_floor(tick, complete=routed.events < events_max, id_max=routed.id_max)
        # Claims in order alternate with fair ones as long as they come back full: in order keeps
        # the floor moving, fair keeps one organization's backlog from hiding another's event.
        rhythm.more = fair or routed.events >= events_max
        rhythm.fair = not fair and rhythm.more
        rhythm.rest(routed.orgs_full, resting, now)
        if routed.waiting:
            rhythm.due_at = now
            # Where permits are what is short, claiming more would only write rows that wait.
            rhythm.claim_max = max(CLAIM_LEAST, routed.leased)
        else:
            if routed.waits:
                rhythm.due_at = min(rhythm.due_at, self._due_at(dispatch))
            rhythm.claim_max = min(config.batch, rhythm.claim_max * 2)
        return routed.events

    def _raise_floor(self, tick: Tick | None, *, complete: bool, id_max: int | None) -> None:
        """Raise the floor after a claim in order that ran after `tick`; `complete` if it found
        everything above the floor."""
        if tick is None:
            return
        candidate = self._floor.candidate(self._rhythm.looked_at)
        if candidate is not None and (complete or (id_max or 0) >= candidate):
            self._floor.rise(candidate, Snapshot.parse(tick.snapshot))
        if complete:
            self._floor.reached(self._clock(), tick.newest_id)

    async def _claim(self, dispatch: Dispatch, claim: Claim, window: int) -> Routed:
        routed = await dispatch.route(claim, window, self._token())
        if routed.leased or routed.waiting:
            self._broker.window.left(self._clock(), routed.spare)
        await self._broker.hand(dispatch, routed.token, routed.ids)
        if routed.broadcasts:
            self._on_broadcasts()
        if routed.events:
            log.debug(
                "relay.routed",
                events=routed.events,
                deliveries=routed.deliveries,
                leased=routed.leased,
            )
        return routed

    async def _stumble(self, dispatch: Dispatch, error: BaseException) -> None:
        """One event must not stop the others: go one by one for a while, and disable the filter
        that takes too long."""
        rhythm = self._rhythm
        log.error("relay.routing_failed", events_max=rhythm.claim_max, error=describe(error))
        rhythm.more = True
        if rhythm.careful == 0:
            rhythm.careful = rhythm.claim_max
            return
        slow = await dispatch.disable_slow_filters(self._floor.value)
        if not slow:
            # The moment was busy, or the event cannot be routed at all: not a filter's fault.
            raise OutboxError(f"an event cannot be routed: {describe(error)}")
        log.error("relay.filter_too_slow", subscriptions=slow, effect="disabled, deliveries held")

    async def _lease_due(self, dispatch: Dispatch, now: float) -> int:
        """Lease due deliveries, in a share of their own; returns how many."""
        rhythm, config = self._rhythm, self._config
        if now < rhythm.due_at:
            return 0
        # At least a quarter of the window is theirs and never more than half of it.
        room = self._broker.room()
        share = min(max(self._broker.window.size() // 4, room // 2), room)
        if share <= 0:
            return 0
        window = min(share, config.batch)
        places = dispatch.fronts.due(self._clock() + self._ahead_s, config.lanes_max)
        if not places:
            rhythm.due_at = self._due_at(dispatch)
            return 0
        later_max = rhythm.later_max(now, self._broker.window.later_room(), window)
        found = await dispatch.lease_due(places, window, self._token(), later_max)
        await self._broker.hand(dispatch, found.token, found.ids)
        if found.idle:
            await self._tend(dispatch)
        after = self._clock()
        in_all = dispatch.fronts.count_due(after + self._ahead_s)
        again_s = rhythm.next_due_s(found, config, len(places), in_all)
        if found.later and later_max < window:
            again_s = min(again_s, config.blocked_s_min)
        rhythm.due_at = min(after + again_s, self._due_at(dispatch, after))
        return len(found.ids)

    def _due_at(self, dispatch: Dispatch, after: float = -math.inf) -> float:
        """When something is due next, of what is known and due after `after`."""
        return dispatch.fronts.next_at(after + self._ahead_s) - self._ahead_s

    def _is_short(self) -> bool:
        window = self._broker.window
        return window.room() < window.size() // 2

    # -- rest -----------------------------------------------------------------------------------

    async def _idle(self, dispatch: Dispatch) -> None:
        """Wait for work: poll closely for a moment, then sleep until the bell or a timeout."""
        rhythm, config = self._rhythm, self._config
        if self._broker.claimable(config.batch) == 0:  # the workers are behind, or there are none
            await self._pause(rhythm.wait(config.full_s_max))
            return
        if rhythm.resting(self._clock()):  # what is pending is theirs, but for what comes now
            await self._pause(rhythm.wait(config.rest_s_max))
            await self._poll(dispatch)  # awake all the same: turns are seen, and nobody need ring
            return
        if self._clock() - rhythm.worked_at < config.awake_s:
            await self._poll(dispatch)
            return
        until = min(self._clock() + config.asleep_s, rhythm.due_at)
        if rhythm.lane_from:
            until = min(until, rhythm.look_at(config))
        if self._bell is None or not self._bell.heard:
            rhythm.asked_to_ring = False
            await self._pause(max(0.001, min(config.poll_only_s, until - self._clock())))
        elif await self._sleep(dispatch, self._bell.rung, until):
            # There is work: stay close for a while, a burst may follow. Whether a key was signalled
            # is seen by the look after the claim.
            rhythm.quiet = False
            rhythm.worked(self._clock(), config)

    async def _poll(self, dispatch: Dispatch) -> None:
        """Look with one cheap statement until there is something to do or it is time to sleep."""
        rhythm, config = self._rhythm, self._config
        sleep_at = rhythm.worked_at + config.awake_s
        wake_at = min(sleep_at, rhythm.due_at, rhythm.look_at(config))
        rhythm.asked_to_ring = rhythm.quiet = False
        while not self._stopping.is_set():
            tick = await self._tick(dispatch, asleep=False)
            self.polled_at = self._clock()
            if tick.work or self._clock() >= wake_at:
                return
            await asyncio.sleep(rhythm.wait(config.poll_s_max))

    async def _sleep(self, dispatch: Dispatch, rung: asyncio.Event, until: float) -> bool:
        """Ask capture to ring, make sure that nobody passed unheard, wait; true if there is work.

        A transaction that read "awake" before the flag was set may commit without ringing. It was
        in progress then, so the relay keeps polling until every transaction of that moment ended.
        Where the look of this round found the flag still set, nobody can have passed.
        """
        found = not self._rhythm.quiet and await self._gate(dispatch, rung, until)
        if not found:
            await wait_at_most(rung, max(0.0, until - self._clock()))
        found |= rung.is_set()
        rung.clear()  # what rings from now on is not seen by the claim that follows
        return found

    async def _gate(self, dispatch: Dispatch, rung: asyncio.Event, until: float) -> bool:
        """Set the flag and poll until all who may have missed it are through; true if there is
        work."""
        self._rhythm.asked_to_ring = True
        tick = await self._tick(dispatch, asleep=True)
        xmax = Snapshot.parse(tick.snapshot).xmax
        gate = Gate(xmax, self._rhythm.long_below, self._config.poll_s_min)
        while not (tick.work or rung.is_set()) and self._clock() < until:
            if (wait_s := gate.wait(Snapshot.parse(tick.snapshot))) is None:
                return False
            await wait_at_most(rung, wait_s)
            if not rung.is_set():
                tick = await dispatch.tick(self._floor.value)
        return tick.work or rung.is_set()
