"""The statements of a relay: route, lease, take back, tend. Each is one transaction.

Every transaction that leases runs under the dispatch lock, so that limits are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from outbox.fronts import Front, Fronts, zipped
from outbox.store import arrays
from outbox.store.connect import REFUSED, HotConnection, Lock

Params = dict[str, Any]

ID_MAX = 2**63 - 1

ROUTE_LIMIT_MS = 1000
"""How long one routing statement may take: some sixty times what 500 events take."""

FILTER_LIMIT_MS = 100
"""How long one filter may take over one event, twice in a row, before its subscription is disabled;
how long one event may take that is routed alone."""


OLDEST_KEPT = 128
"""Of so many lanes a relay remembers the oldest live lease, and tells a claim the front."""

WALK_MAX = 1000
"""Lanes of a walk for those who make one by themselves."""


def _by_lane(lanes: Sequence[int] | None, oldest: Sequence[int] | None) -> dict[int, int]:
    return dict(zip(lanes or (), oldest or (), strict=True))


def split_ids(packed: bytes | None) -> list[str]:
    """Delivery ids from their packed form, 16 bytes each: as 32 hexadecimal digits, since nobody
    on the way to `take.sql` looks into them, and a UUID costs 1.2 us to make and 0.2 to write."""
    digits = (packed or b"").hex()
    return [digits[i : i + 32] for i in range(0, len(digits), 32)]


@dataclass(frozen=True, slots=True)
class Claim:
    """Which pending events to claim. `orgs_max` 0 claims in order of id; otherwise fairly over at
    most that many organizations, from `org_from` on, leaving `orgs_skipped` alone."""

    events_max: int
    floor: int = 0
    ceiling: int = ID_MAX
    orgs_max: int = 0
    org_from: str = ""
    orgs_skipped: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Routed:
    """What one routing transaction did. `waiting` deliveries could go but found no permit;
    `broadcasts` are scheduled for the daemon itself; `spare` permits are left in the lanes met;
    `token` is that of the leases, `oldest` by lane a token that no live lease is older than. At
    `now` (seconds since 1970) first attempts `wait` by lane since such a time; in `clear` lanes
    there are none."""

    ids: list[str]
    events: int
    deliveries: int
    leased: int
    waiting: int
    id_max: int | None
    org_last: str | None
    orgs_full: list[str]
    broadcasts: int = 0
    spare: int = 0
    now: float = 0.0
    waits: Sequence[tuple[int, float]] = ()
    clear: Sequence[int] = ()
    token: int = 0
    oldest: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Routed:
        """What a row of `route.sql` says."""
        waits, clear = zipped(*row[11:13]), row[13] or ()
        more = [row[7] or [], *row[8:11], waits, clear, row[14], _by_lane(*row[15:])]
        return cls(split_ids(row[0]), *[*row[1:7], *more])


@dataclass(frozen=True, slots=True)
class Leased:
    """What one leasing transaction found. `idle` counts due rows that are not to be tried;
    `blocked` says that due work waits for a permit or a rate token, `later` that some of it was
    not a first attempt. `met` is what was the first of each place at `now`, before."""

    ids: list[str]
    next_due_s: float | None
    idle: int
    blocked: bool
    later: bool = False
    now: float = 0.0
    met: Sequence[tuple[int, int, float | None]] = ()
    token: int = 0
    oldest: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Leased:
        """What a row of `lease_due.sql` says."""
        met = zipped(*row[7:10])
        return cls(split_ids(row[0]), *[*row[2:7], met, row[10], _by_lane(*row[11:])])


@dataclass(frozen=True, slots=True)
class Expired:
    """Leases that ran out: started, unstarted, and how many of the started are now dead."""

    started: int
    unstarted: int
    dead: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """Signals judged, deliveries that have their turn, deliveries that follow a dead letter."""

    signals: int
    released: int
    parked: int


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk over at most `lanes_max` lanes beyond `lane_from`."""

    lane_from: int = 0
    lanes_max: int = WALK_MAX


@dataclass(frozen=True, slots=True)
class Tick:
    """One look at what a relay waits for; `snapshot` is `xmin:xmax:xip,...`, `bell_was` 1 where a
    relay was awake, 2 where all slept, else when somebody rang; `signalled` says that a key may
    have its next turn; `now` is seconds since 1970, `lane_last` where a walk was cut."""

    pending: bool
    expired: bool
    snapshot: str
    newest_id: int
    bell_was: int
    signalled: bool
    now: float = 0.0
    lane_last: int | None = None

    @property
    def work(self) -> bool:
        """Whether there is something to do now."""
        return self.pending or self.signalled


class Dispatch:
    """The relay's statements over one hot connection. `lease_s` is the length of a lease; a
    `clock` stands in for the server's, in tests."""

    def __init__(
        self,
        connection: HotConnection,
        lease_s: float,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._connection = connection
        self._lease_s = lease_s
        self._now: Callable[[], datetime | None] = clock or (lambda: None)
        self._oldest: dict[int, int] = {}
        self.fronts = Fronts()

    async def prepare(self) -> None:
        """Set what holds for the session, where there is a session of our own."""
        if self._connection.direct:
            # A crash may undo a routing transaction whose leases were already handed out: the
            # take finds no row and the event is routed again. The settle's commit, which waits,
            # makes everything before it durable.
            await self._connection.raw.execute("SET synchronous_commit = off")

    async def _one(
        self, name: str, params: Params, *, lock: Lock | None = None, limit_ms: int | None = None
    ) -> tuple[Any, ...]:
        cursor = await self._connection.run(name, params, lock=lock, limit_ms=limit_ms)
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def route(self, claim: Claim, window: int, token: int | None = None) -> Routed:
        """Claim pending events, make their deliveries, lease at most `window` of them, under the
        next token unless one is given."""
        fronts = self.fronts.known(0, OLDEST_KEPT)
        row = await self._one(
            "route",
            {
                "now": self._now(),
                "floor": claim.floor,
                "ceiling": claim.ceiling,
                "events_max": claim.events_max,
                "orgs_max": claim.orgs_max,
                "org_from": claim.org_from,
                "orgs_skipped": list(claim.orgs_skipped),
                "window": window,
                **arrays.columns([(lane, at) for lane, _, at in fronts], "front_lanes", "fronts"),
                **self._lease(token),
            },
            lock="dispatch_lock",
            limit_ms=ROUTE_LIMIT_MS if claim.events_max > 1 else FILTER_LIMIT_MS,
        )
        routed = Routed.of(row)
        self._seen(token, routed.oldest)
        self.fronts.clear(routed.now, [(lane, 0) for lane in routed.clear])
        self.fronts.put([(lane, 0, due) for lane, due in routed.waits])
        return routed

    def _lease(self, token: int | None) -> Params:
        lanes, oldest = arrays.numbers(self._oldest), arrays.numbers(self._oldest.values())
        return {"token": token, "lease_s": self._lease_s, "lanes": lanes, "oldest": oldest}

    def _seen(self, token: int | None, oldest: Mapping[int, int]) -> None:
        """Keep where to count from, for the lanes met lately: from the beginning is dear while
        somebody holds a snapshot. A token that was given proves nothing of those that follow."""
        if token is None:
            for lane in oldest:
                self._oldest.pop(lane, None)
            self._oldest.update(oldest)
            for lane in list(self._oldest)[:-OLDEST_KEPT]:
                del self._oldest[lane]

    async def lease_due(
        self,
        places: Sequence[Front],
        window: int,
        token: int | None = None,
        later_max: int | None = None,
    ) -> Leased:
        """Lease scheduled deliveries that are due there, fair over lanes, within permits; at most
        `later_max` of them retries, replays and redrives."""
        row = await self._one(
            "lease_due",
            {
                "now": self._now(),
                **arrays.columns(places, "due_lanes", "due_queues", "fronts"),
                "window": window,
                "later_max": window if later_max is None else later_max,
                **self._lease(token),
            },
            lock="dispatch_lock",
        )
        leased = Leased.of(row)
        self._seen(token, leased.oldest)
        self.fronts.looked(leased.now, leased.met)
        return leased

    async def expire(
        self, rows_max: int, expiries_max: int, since_s: float | None = None
    ) -> Expired:
        """Take back leases that ran out; `since_s` looks only at those of the last seconds."""
        params = {
            "now": self._now(),
            "since_s": since_s,
            "rows_max": rows_max,
            "expiries_max": expiries_max,
        }
        row = await self._one("expire_leases", params)
        self.fronts.put(zipped(*row[3:]))
        return Expired(*row[:3])

    async def tend(self, rows_max: int) -> int:
        """End or hold due deliveries that are not to be tried; returns how many."""
        row = await self._one(
            "tend_due", {"now": self._now(), "rows_max": rows_max}, lock="dispatch_lock"
        )
        return int(row[0])

    async def advance(self, rows_max: int, since_s: float | None = None) -> Advanced:
        """Give keys of ordered subscriptions their next turn; `since_s` looks only at the signals
        of the last seconds."""
        params = {"now": self._now(), "since_s": since_s, "rows_max": rows_max}
        row = await self._one("order_advance", params, lock="dispatch_lock")
        self.fronts.put(zipped(*row[3:]))
        return Advanced(*row[:3])

    async def release(self, token: int, ids: Sequence[str]) -> None:
        """Give back unstarted leases at once."""
        cursor = await self._connection.run("release", {"token": token, "ids": arrays.keys(ids)})
        self.fronts.put(await cursor.fetchall())

    async def tick(
        self,
        floor: int,
        bell: int | None = None,
        *,
        leases: bool = False,
        since_s: float | None = None,
        walk: Walk | None = None,
    ) -> Tick:
        """Look for work; `bell` 1 says that a relay is awake, 2 asks capture to ring; `leases`
        also looks for those that ran out, where `since_s` is given only in the last seconds;
        `walk` finds the fronts of what is scheduled."""
        params: Params = {"floor": floor, "bell": bell, "leases": leases, "since_s": since_s}
        params["lane_from"] = None if walk is None else walk.lane_from
        params["lanes_max"] = None if walk is None else walk.lanes_max
        row = await self._one("tick", params)
        now, *columns = row[6:10]
        last = None
        if walk is not None:
            found = zipped(*columns)
            lanes = {lane for lane, _, _ in found}
            last = max(lanes) if len(lanes) >= walk.lanes_max else None
            self.fronts.walked(now, found, walk.lane_from, math.inf if last is None else last)
        return Tick(*[*row[:7], last])

    async def due(self, lanes_max: int = WALK_MAX) -> list[Front]:
        """Walk, and tell everything that waits, due or not, for those who keep no time."""
        await self.tick(ID_MAX, walk=Walk(0, lanes_max))
        return self.fronts.due(math.inf, 3 * lanes_max)

    async def disable_slow_filters(self, floor: int) -> list[int]:
        """Find which filters make the first event above `floor` take too long, and disable their
        subscriptions: what they may match is held. Returns their ids."""
        cursor = await self._connection.run("peek_filters", {"floor": floor})
        slow = []
        for subscription_id, text, slot, event_id in await cursor.fetchall():
            params = {"filter": text, "slot": slot, "id": event_id}
            if not (await self._ends_in_time(params) or await self._ends_in_time(params)):
                slow.append(int(subscription_id))
        if slow:
            await self._connection.run("disable_slow", {"ids": slow}, lock="config_lock")
        return slow

    async def _ends_in_time(self, params: Params) -> bool:
        try:
            await self._connection.run("try_filter", params, limit_ms=FILTER_LIMIT_MS)
        except REFUSED:
            return False
        return True
