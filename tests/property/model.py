"""What must be: the life of deliveries in plain Python, written from the promises and not from SQL.

Each method says what one step of the engine may make of the tables, and what it must. `verify`
compares that with what the tables hold before and after: whatever else changed is a mistake.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from outbox.fronts import Front
from outbox.store.attempts import Settlement
from outbox.store.dispatch import Claim
from tests.property.clock import SALT
from tests.property.snapshot import Dead, Delivery, Event, Fact, Snapshot

LEASE = timedelta(seconds=30)
EXPIRIES_MAX = 3
ZERO = timedelta()

After = Delivery | Dead | None
Told = tuple[str, bool, int, int, str | None, datetime | None]
"""fact, charged, attempt, budget, reason, due_at"""
Lease = tuple[UUID, int]


def queue_of(row: Delivery) -> int:
    """First attempts, retries, what is replayed or redriven."""
    return 2 if row.again else 1 if row.attempts else 0


@dataclass
class Lane:
    """An endpoint, or a subscription that is a lane of its own: then `own`, and its state is that
    of the subscription. One below zero is of broadcasts, which no worker gets. `tokens` are those
    of its rate at `at`."""

    id: int
    org: str | None
    concurrency: int
    rate: float | None
    state: str = "active"
    revision: int = 1
    tokens: float = 0.0
    at: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    own: bool = False
    kind: str = "webhook"

    def free_tokens(self, now: datetime) -> float:
        if self.rate is None:
            return float("inf")
        most = max(1.0, self.rate / 10)
        return min(most, self.tokens + self.rate * (now - self.at).total_seconds())

    def spend(self, now: datetime, count: int) -> None:
        if self.rate is not None:
            self.tokens, self.at = self.free_tokens(now) - count, now


@dataclass
class Sub:
    """A subscription. `above` is its filter: only payloads above that number pass."""

    id: int
    lane: Lane
    org: str | None
    patterns: tuple[str, ...]
    delays_s: tuple[float, ...]
    above: int | None = None
    max_age: timedelta | None = None
    order_mode: str | None = None
    active_from: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    state: str = "active"
    revision: int = 1

    @property
    def retry(self) -> str:
        return ",".join(f"{delay:g}s" for delay in self.delays_s)

    @property
    def removed(self) -> bool:
        return "removed" in (self.state, self.lane.state)

    @property
    def stopped(self) -> str | None:
        """Why nothing of it is tried."""
        if self.removed:
            return "removed"
        return next((s for s in (self.state, self.lane.state) if s != "active"), None)

    def matches(self, event: Event) -> bool:
        if self.removed or self.active_from > event.created_at:
            return False
        if self.org is not None and self.org != event.org_id:
            return False
        if not any(_fits(pattern, event.type) for pattern in self.patterns):
            return False
        return self.above is None or int(event.payload) > self.above


def _fits(pattern: str, event_type: str) -> bool:
    if pattern == "*":
        return not event_type.startswith("outbox.")
    if pattern.endswith(".*"):
        return event_type.startswith(pattern[:-1])
    return pattern == event_type


def delivery_id(event: Event, subscription_id: int, generation: int = 0) -> UUID:
    """The idempotency key: time in milliseconds, then a hash of what the delivery is."""
    seed = UUID(SALT).bytes + b"".join(
        (
            event.id.to_bytes(8, "big"),
            subscription_id.to_bytes(8, "big"),
            generation.to_bytes(4, "big"),
        )
    )
    digest = bytearray(hashlib.sha256(seed).digest()[:10])
    digest[0] = digest[0] & 15 | 128
    digest[2] = digest[2] & 63 | 128
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    millis = (event.created_at - epoch) // timedelta(milliseconds=1)
    return UUID(bytes=millis.to_bytes(6, "big") + bytes(digest))


@dataclass
class Spec:
    """What one step may change, per delivery: the rows that may stand afterwards and the facts told
    of it. `must` is what has to change. Events: claimed ones, and new ones."""

    rows: dict[UUID, list[After]] = field(default_factory=dict)
    told: dict[UUID, list[Told]] = field(default_factory=dict)
    must: set[UUID] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)
    emitted: set[int] = field(default_factory=set)
    redacted: set[int] = field(default_factory=set)

    def change(self, row: Delivery | Dead, after: After, *told: Told, must: bool = True) -> None:
        self.rows[row.id] = [after]
        self.told[row.id] = list(told)
        if must:
            self.must.add(row.id)

    def perhaps(self) -> Spec:
        """The same, and none of it has to be done."""
        return replace(self, must=set())


def bury(row: Delivery, now: datetime, reason: str, attempts: int | None = None) -> Dead:
    """The dead letter of a delivery."""
    return Dead(
        id=row.id,
        event_id=row.event_id,
        event_slot=row.event_slot,
        subscription_id=row.subscription_id,
        revision=row.revision,
        generation=row.generation,
        lane=row.lane,
        org_id=row.org_id,
        order_key=row.order_key,
        attempts=row.attempts if attempts is None else attempts,
        budget=row.budget,
        expiries=row.expiries,
        expires_at=row.expires_at,
        reason=reason,
        died_at=now,
    )


def idle(row: Delivery, **fields: Any) -> Delivery:
    """A delivery without its lease and its hold."""
    bare = replace(
        row, token=None, lease_until=None, started_at=None, held_at=None, held_reason=None
    )
    return replace(bare, state="scheduled", **fields)


@dataclass
class Model:
    """Configuration, and what became of every delivery that ever was."""

    lanes: dict[int, Lane] = field(default_factory=dict)
    subs: dict[int, Sub] = field(default_factory=dict)
    matched: dict[UUID, tuple[int, int]] = field(default_factory=dict)
    """Every delivery ever made: its event and subscription."""
    generations: dict[UUID, int] = field(default_factory=dict)
    """Those above 0."""
    ended: dict[UUID, str] = field(default_factory=dict)
    dedupe: dict[tuple[str | None, str], tuple[int, datetime]] = field(default_factory=dict)

    def states(self) -> dict[int, tuple[str, int]]:
        """(state, revision) of endpoints and subscriptions."""
        return {thing.id: (thing.state, thing.revision) for thing in self.things.values()}

    @property
    def things(self) -> dict[int, Lane | Sub]:
        return {**self.endpoints, **self.subs}

    @property
    def endpoints(self) -> dict[int, Lane]:
        """The lanes that are endpoints."""
        return {lane.id: lane for lane in self.lanes.values() if not lane.own}

    def turn(self, thing: Lane | Sub, state: str) -> None:
        """An operator moves an endpoint or a subscription to another state."""
        thing.state, thing.revision = state, thing.revision + 1
        if isinstance(thing, Lane) and state == "removed":
            for sub in self.subs.values():
                if sub.lane is thing and sub.state != "removed":
                    self.turn(sub, "removed")

    # -- routing --------------------------------------------------------------------------------

    def claimable(self, pending: Mapping[int, tuple[int, str]], claim: Claim) -> set[int]:
        """The events that a claim takes."""
        ids = sorted(i for i in pending if claim.floor < i <= claim.ceiling)
        if claim.orgs_max == 0:
            return set(ids[: claim.events_max])
        orgs = sorted({pending[i][1] for i in ids if pending[i][1] >= claim.org_from})
        visited = [org for org in orgs[: claim.orgs_max] if org not in claim.orgs_skipped]
        each = max(1, claim.events_max // len(visited)) if visited else 0
        return {i for org in visited for i in [i for i in ids if pending[i][1] == org][:each]}

    def route(
        self,
        before: Snapshot,
        after: Snapshot,
        now: datetime,
        claim: Claim,
        window: int,
        token: int,
        fronts: Mapping[int, float],
    ) -> Spec:
        """`fronts`: of lanes, a time before which nobody looks for a first attempt."""
        spec = Spec(claimed=self.claimable(before.pending, claim))
        ready: dict[int, int] = {}
        unready: set[int] = set()
        for event_id in spec.claimed:
            event = before.events[before.pending[event_id][0], event_id]
            for sub in self.subs.values():
                if sub.matches(event):
                    row = self._born(before, after, now, sub, event)
                    spec.rows[row.id] = [row]
                    spec.told[row.id] = []
                    spec.must.add(row.id)
                    self.matched[row.id] = (event.id, sub.id)
                    workers = row.order_key is None and sub.lane.id > 0
                    if workers and self._may_go(row, now):
                        ready[sub.lane.id] = ready.get(sub.lane.id, 0) + 1
                        leased = replace(row, state="leased", token=token, lease_until=now + LEASE)
                        spec.rows[row.id].append(leased)
                    else:
                        unready.add(sub.lane.id)
        self._count(before, after, now, window, token, ready, unready, fronts)
        return spec

    def _born(
        self, before: Snapshot, after: Snapshot, now: datetime, sub: Sub, event: Event
    ) -> Delivery:
        found = after.deliveries.get(delivery_id(event, sub.id))
        why = sub.stopped
        order_key = found.order_key if found is not None and sub.order_mode is not None else None
        if order_key is not None and found is not None and found.held_reason == "order":
            why = "order"
        return Delivery(
            id=delivery_id(event, sub.id),
            event_id=event.id,
            event_slot=before.pending[event.id][0],
            subscription_id=sub.id,
            revision=sub.revision,
            generation=0,
            lane=sub.lane.id,
            org_id=event.org_id,
            order_key=order_key,
            again=False,
            state="scheduled" if why is None else "held",
            due_at=event.deliver_at or now,
            expires_at=event.expires_at,
            age_limit_at=None if sub.max_age is None else event.created_at + sub.max_age,
            held_at=None if why is None else now,
            held_reason=why,
        )

    def _may_go(self, row: Delivery, now: datetime) -> bool:
        """Is this scheduled delivery to be tried now?"""
        return (
            row.state == "scheduled"
            and row.due_at <= now
            and (row.expires_at is None or row.expires_at > now)
            and (row.age_limit_at is None or row.age_limit_at > now)
            and self.subs[row.subscription_id].stopped is None
        )

    def _used(self, before: Snapshot, lane: Lane, now: datetime) -> list[Delivery]:
        """The leases that count against a lane's permits."""
        return [
            row
            for row in before.deliveries.values()
            if row.lane == lane.id and row.lease_until is not None and row.lease_until > now
        ]

    def _count(
        self,
        before: Snapshot,
        after: Snapshot,
        now: datetime,
        window: int,
        token: int,
        ready: Mapping[int, int],
        unready: Container[int],
        fronts: Mapping[int, float],
    ) -> None:
        """Routing leases what the permits and the window allow, no more; and no less in a lane
        where nothing that came along waits for something else."""
        least = most = 0
        for lane_id, count in ready.items():
            lane = self.lanes[lane_id]
            waits = any(
                row.lane == lane_id
                and row.state == "scheduled"
                and row.attempts == 0
                and not row.again
                and fronts.get(lane_id, -math.inf) <= row.due_at.timestamp() <= now.timestamp()
                for row in before.deliveries.values()
            )
            is_open = before.health.get(lane_id, (None,))[0] is not None
            free = lane.concurrency - len(self._used(before, lane, now))
            tokens = lane.free_tokens(now)
            if waits or is_open:
                free = 0
            if lane_id not in unready:
                least += max(0, min(count, free, _whole(tokens - 1e-6)))
            most += max(0, min(count, free, _whole(tokens + 1e-6)))
        leased = [row for row in after.deliveries.values() if row.token == token]
        assert min(window, least) <= len(leased) <= min(window, most), (
            f"permits: {len(leased)} leased, between {least} and {most} within {window} are right"
        )
        self._spend(leased, now)

    def _spend(self, leased: Iterable[Delivery], now: datetime) -> None:
        counts: dict[int, int] = {}
        for row in leased:
            counts[row.lane] = counts.get(row.lane, 0) + 1
        for lane_id, count in counts.items():
            self.lanes[lane_id].spend(now, count)

    # -- leasing --------------------------------------------------------------------------------

    def lease_due(
        self,
        before: Snapshot,
        after: Snapshot,
        now: datetime,
        window: int,
        token: int,
        places: Sequence[Front],
        later_max: int,
    ) -> Spec:
        """`places`: where to look, and from when on."""
        spec = Spec()
        fronts = {(lane, queue): front for lane, queue, front in places}
        near = [
            row
            for row in before.deliveries.values()
            if fronts.get((row.lane, queue_of(row)), math.inf) <= row.due_at.timestamp()
        ]
        for row in near:
            if self._may_go(row, now):
                leased = replace(row, state="leased", token=token, lease_until=now + LEASE)
                spec.change(row, leased, must=False)
        got = [row for row in after.deliveries.values() if row.token == token]
        assert len(got) <= window, "permits: more leases than the window has"
        due = [row for row in near if row.state == "scheduled" and row.due_at <= now]
        assert sum(1 for row in got if row.attempts > 0 or row.again) <= later_max
        first = later = 0
        for lane in self.lanes.values():
            fresh, others = self._lane_share(before, now, lane, window, spec, got, due)
            first, later = first + fresh, later + min(others, later_max)
        tidy = all(row.id in spec.rows for row in due)
        if tidy:
            least = min(window, first + min(later_max, later))
            assert len(got) >= least, "permits: due work was left though it may go"
        self._spend(got, now)
        return spec

    def _lane_share(
        self,
        before: Snapshot,
        now: datetime,
        lane: Lane,
        window: int,
        spec: Spec,
        got: Sequence[Delivery],
        due: Sequence[Delivery],
    ) -> tuple[int, int]:
        """Check the leases of one lane; returns how many first attempts and how many others it must
        get where the window allows."""
        mine = [row for row in got if row.lane == lane.id]
        used = self._used(before, lane, now)
        tokens = lane.free_tokens(now)
        probe_at, _ = before.health.get(lane.id, (None, False))
        free = lane.concurrency - len(used)
        if probe_at is not None:
            free = 1 if probe_at <= now and not used else 0
        assert len(mine) <= max(0, min(free, _whole(tokens + 1e-6))), "permits: too many in a lane"
        least = max(0, min(free, _whole(tokens - 1e-6), window))
        fresh = {r.id for r in due if r.lane == lane.id and r.attempts == 0 and not r.again}
        others = {r.id for r in due if r.lane == lane.id} - fresh
        late = [row for row in mine if row.id in others]
        share = max(1, lane.concurrency * 3 // 4)
        held = sum(1 for row in used if row.attempts > 0 or row.again)
        assert len(late) + held <= max(share, held), "I15: retries took more than their share"
        left = (fresh & spec.rows.keys()) - {row.id for row in mine}
        assert not (late and left), "I15: a retry went before a first attempt"
        retries = [r for r in due if r.id in others and not r.again and r.id in spec.rows]
        missed = {row.id for row in retries} - {row.id for row in mine}
        assert not (missed and any(row.again for row in late)), "I15: a replay before a retry"
        first = min(least, len(fresh))
        return first, min(least - first, len(others), max(0, share - held))

    # -- attempts -------------------------------------------------------------------------------

    def take(self, before: Snapshot, now: datetime, leases: Iterable[Lease]) -> Spec:
        spec = Spec()
        for row in _held_by(before, leases):
            runs = row.lease_until is not None and row.lease_until > now
            if row.started_at is None and runs and self.subs[row.subscription_id].stopped is None:
                spec.change(row, replace(row, started_at=now))
        return spec

    def settle(self, before: Snapshot, now: datetime, ended: Iterable[Settlement]) -> Spec:
        spec = Spec()
        by_lease = {(s.id, s.token): s for s in ended}
        for row in _held_by(before, by_lease):
            if row.started_at is not None:
                self._settle(spec, row, now, by_lease[row.id, row.token or 0])
        return spec

    def _settle(self, spec: Spec, row: Delivery, now: datetime, how: Settlement) -> None:
        attempts = row.attempts + how.charged
        due_at = now + timedelta(seconds=how.delay_s or 0)
        names = {"retry": "attempt_failed", "release": "released"}
        fact = names.get(how.verdict, how.verdict)
        after: After
        if how.verdict == "delivered":
            after = None
        elif how.verdict == "dead":
            after = bury(row, now, how.reason, attempts)
        else:
            after = idle(row, attempts=attempts, due_at=due_at)
        told_due = due_at if how.verdict in names else None
        told = (fact, how.charged, attempts, row.budget, how.reason, told_due)
        spec.change(row, after, told)

    def extend(self, before: Snapshot, now: datetime, leases: Iterable[Lease]) -> Spec:
        spec = Spec()
        for row in _held_by(before, leases):
            if row.lease_until is not None and row.lease_until > now:
                spec.change(row, replace(row, lease_until=now + LEASE))
        return spec

    def release(self, before: Snapshot, leases: Iterable[Lease]) -> Spec:
        spec = Spec()
        for row in _held_by(before, leases):
            if row.started_at is None:
                spec.change(row, idle(row))
        return spec

    def expire(self, before: Snapshot, now: datetime, rows_max: int) -> Spec:
        spec = Spec()
        ended = [
            row
            for row in before.deliveries.values()
            if row.lease_until is not None and row.lease_until <= now
        ]
        for row in ended:
            started = row.started_at is not None
            reason = "lease_expired" if started else "lease_unstarted"
            must = len(ended) <= rows_max
            if started and row.expiries + 1 >= EXPIRIES_MAX:
                told: Told = ("dead", False, row.attempts, row.budget, reason, None)
                spec.change(row, bury(row, now, reason), told, must=must)
            else:
                told = ("lease_expired", started, row.attempts, row.budget, reason, now)
                after = idle(row, due_at=now, expiries=row.expiries + started)
                spec.change(row, after, told, must=must)
        return spec

    def broadcast(self, before: Snapshot, now: datetime) -> Spec:
        """What is due and may go is sent and settled at once."""
        spec = Spec()
        for row in before.deliveries.values():
            if row.lane < 0 and self._may_go(row, now):
                told = ("delivered", True, row.attempts + 1, row.budget, "broadcast", None)
                spec.change(row, None, told)
        return spec

    # -- tending --------------------------------------------------------------------------------

    def tend(self, before: Snapshot, now: datetime) -> Spec:
        spec = Spec()
        for row in before.deliveries.values():
            old = row.expires_at is not None and row.expires_at <= now
            if (row.state == "scheduled" and row.due_at <= now) or (row.state == "held" and old):
                self._tend(spec, row, now, old)
        return spec

    def _tend(self, spec: Spec, row: Delivery, now: datetime, old: bool) -> None:
        why = self.subs[row.subscription_id].stopped
        aged = row.age_limit_at is not None and row.age_limit_at <= now
        if why == "removed":
            spec.change(row, None, _plain("cancelled", row, "cancelled"))
        elif old:
            spec.change(row, bury(row, now, "expired"), _plain("expired", row, "expired"))
        elif row.state == "scheduled" and aged:
            spec.change(row, bury(row, now, "max_age"), _plain("dead", row, "max_age"))
        elif row.state == "scheduled" and why is not None:
            self._stop(spec, row, now, why)

    def _stop(self, spec: Spec, row: Delivery, now: datetime, why: str) -> None:
        """Hold a delivery, or cancel it where its destination is removed."""
        if why == "removed":
            spec.change(row, None, _plain("cancelled", row, why))
        else:
            held = replace(idle(row), state="held", held_at=now, held_reason=why)
            spec.change(row, held, _plain("held", row, why))

    def align(self, before: Snapshot, now: datetime, lane_id: int) -> Spec:
        """A whole lane comes into line with the state of its destinations."""
        spec = Spec()
        for row in before.deliveries.values():
            if row.lane == lane_id:
                self._align(spec, row, now)
        return spec

    def _align(self, spec: Spec, row: Delivery, now: datetime) -> None:
        why = self.subs[row.subscription_id].stopped
        waits = row.state != "held" and row.started_at is None
        if row.state == "held" and row.held_reason in ("paused", "disabled") and why is None:
            self._unhold(spec, row, now, "resumed")
        elif why == "removed" or (waits and why is not None):
            self._stop(spec, row, now, why)

    def _unhold(
        self, spec: Spec, row: Delivery, now: datetime, reason: str, must: bool = True
    ) -> None:
        """The maximum age stood still meanwhile."""
        limit = row.age_limit_at
        if limit is not None and row.held_at is not None:
            limit += max(ZERO, now - row.held_at)
        told = ("released", False, row.attempts, row.budget, reason, row.due_at)
        spec.change(row, idle(row, age_limit_at=limit), told, must=must)

    # -- operators ------------------------------------------------------------------------------

    def cancel(self, before: Snapshot, ids: Iterable[UUID], org: str | None, reason: str) -> Spec:
        spec = Spec()
        for row in before.deliveries.values():
            if row.id in ids and org in (None, row.org_id):
                spec.change(row, None, _plain("cancelled", row, reason))
        return spec

    def redrive(self, chosen: Iterable[Dead], now: datetime, *, ignore_expiry: bool) -> Spec:
        spec = Spec()
        for row in chosen:
            sub = self.subs[row.subscription_id]
            old = row.expires_at is not None and row.expires_at <= now
            if sub.removed or (old and not ignore_expiry):
                continue
            told = ("redriven", False, 0, row.budget + 1, row.reason, now)
            spec.change(row, revive(row, sub, now), told)
            if row.order_key is not None:
                self._behind(spec, row.id, now)
        return spec

    def _behind(self, spec: Spec, delivery_id: UUID, now: datetime) -> None:
        """What comes back to an ordered subscription waits for its turn."""
        [after] = spec.rows[delivery_id]
        assert isinstance(after, Delivery)
        spec.rows[delivery_id] = [replace(after, state="held", held_at=now, held_reason="order")]
        spec.told[delivery_id].append(_plain("held", after, "order"))

    def discard(self, chosen: Iterable[Dead], why: str) -> Spec:
        spec = Spec()
        for row in chosen:
            told = ("discarded", False, row.attempts, row.budget, why, None)
            spec.change(row, None, told)
        return spec

    # -- order ----------------------------------------------------------------------------------

    def advance(self, before: Snapshot, now: datetime) -> Spec:
        """What may have its turn, and what follows a dead letter of its key."""
        spec = Spec()
        for row in before.deliveries.values():
            if row.state != "held" or row.held_reason != "order":
                continue
            mode = self.subs[row.subscription_id].order_mode
            barred = mode != "skip" and any(
                d.order_key == row.order_key
                and d.subscription_id == row.subscription_id
                and d.event_id < row.event_id
                and d.reason != "expired"
                for d in before.dead.values()
            )
            first = not self.ahead(before, row)
            if barred and mode == "park":
                told = _plain("dead", row, "parked")
                spec.change(row, bury(row, now, "parked"), told, must=False)
            elif first and not barred:
                self._unhold(spec, row, now, "order", must=False)
        return spec

    def ahead(self, before: Snapshot, row: Delivery) -> list[UUID]:
        """Live deliveries of the same key and subscription that come before this one."""
        return [
            other.id
            for other in before.deliveries.values()
            if other.subscription_id == row.subscription_id
            and other.order_key == row.order_key
            and other.event_id < row.event_id
        ]


def revive(row: Dead, sub: Sub, now: datetime, **fields: Any) -> Delivery:
    """A dead letter with a fresh budget."""
    kept = None if row.expires_at is None or row.expires_at <= now else row.expires_at
    plain = Delivery(
        id=row.id,
        event_id=row.event_id,
        event_slot=row.event_slot,
        subscription_id=row.subscription_id,
        revision=row.revision,
        generation=row.generation,
        lane=row.lane,
        org_id=row.org_id,
        order_key=row.order_key,
        again=True,
        state="scheduled",
        due_at=now,
        expires_at=kept,
        age_limit_at=None if sub.max_age is None else now + sub.max_age,
        budget=row.budget + 1,
    )
    return replace(plain, **fields)


def _plain(fact: str, row: Delivery, reason: str) -> Told:
    return (fact, False, row.attempts, row.budget, reason, None)


def _held_by(before: Snapshot, leases: Iterable[Lease]) -> list[Delivery]:
    wanted = set(leases)
    rows = (before.deliveries.get(lease[0]) for lease in wanted)
    return [row for row in rows if row is not None and (row.id, row.token) in wanted]


def _whole(tokens: float) -> int:
    return 10**9 if tokens == float("inf") else int(tokens // 1)


# -- comparing ------------------------------------------------------------------------------------


def verify(before: Snapshot, after: Snapshot, spec: Spec, now: datetime) -> list[Fact]:
    """Compare two snapshots with what the step between them may and must change; returns the facts
    that are new."""
    new = _grown(before, after, spec.redacted)
    _events(before, after, spec, new, now)
    told: dict[UUID, list[Fact]] = {}
    for fact in new:
        if fact.delivery_id is not None:
            told.setdefault(fact.delivery_id, []).append(fact)
    were, are = before.rows, after.rows
    for row_id in were.keys() | are.keys() | told.keys() | spec.must:
        was, row, facts = were.get(row_id), are.get(row_id), told.get(row_id, [])
        if was == row and not facts and row_id not in spec.must:
            continue
        assert row_id in spec.rows, f"changed, and should not:\n  {was}\n  {row}\n  {facts}"
        assert row in spec.rows[row_id], (
            f"changed to what it should not:\n  was {was}\n  is  {row}\n  not {spec.rows[row_id]}"
        )
        _told(facts, spec.told[row_id], row or was, now, after.clock_slot)
    assert not before.deliveries.keys() & before.dead.keys()
    assert not after.deliveries.keys() & after.dead.keys(), "live and dead at once"
    return new


def _grown(before: Snapshot, after: Snapshot, redacted: Container[int]) -> list[Fact]:
    """I7: what was written stays, redaction takes details alone; returns what is new."""
    erased_before = [f for f in before.facts.values() if f.event_id in redacted]
    erased_after = [f for f in after.facts.values() if f.event_id in redacted]
    for fact in erased_before:
        same = [f for f in erased_after if f == replace(fact, detail=f.detail)]
        assert same, f"I7: a fact changed: {fact}"
        kept = same[0].detail
        assert kept == fact.detail or not kept or kept.items() <= fact.detail.items()
        erased_after.remove(same[0])
    for place, fact in before.facts.items():
        if fact.event_id not in redacted:
            now = after.facts.get(place)
            assert now == fact, f"I7: a fact changed:\n  was {fact}\n  is  {now}"
    rest = [(p, f) for p, f in after.facts.items() if f.event_id not in redacted]
    return erased_after + [fact for place, fact in rest if place not in before.facts]


def erased(event: Event) -> Event:
    """What redaction leaves of an event."""
    return replace(event, payload='{"redacted":true}', subject=None, ordering_key=None)


def _events(
    before: Snapshot, after: Snapshot, spec: Spec, new: Sequence[Fact], now: datetime
) -> None:
    for key, event in before.events.items():
        wanted = erased(event) if event.id in spec.redacted else event
        assert after.events.get(key) == wanted, f"I7: an event changed: {event}"
    emitted = {event_id for _, event_id in after.events.keys() - before.events.keys()}
    assert emitted == spec.emitted
    assert after.pending.keys() == (before.pending.keys() - spec.claimed) | spec.emitted, (
        f"claimed: {sorted(before.pending.keys() - after.pending.keys())},"
        f" not {sorted(spec.claimed)}"
    )
    routed = [fact for fact in new if fact.fact == "routed"]
    about_events = [fact for fact in new if fact.delivery_id is None and fact.fact != "routed"]
    assert {(fact.fact, fact.event_id) for fact in about_events} == {
        ("redacted", event_id) for event_id in spec.redacted
    }
    assert sorted(fact.event_id for fact in routed) == sorted(spec.claimed), "I1: one fact an event"
    born = spec.rows.keys() - before.rows.keys()
    rows = [r for i in born for r in spec.rows[i][:1] if isinstance(r, Delivery)]
    for fact in routed:
        listed = {(UUID(item["delivery"]), item["subscription"]) for item in fact.detail or []}
        matched = {(r.id, r.subscription_id) for r in rows if r.event_id == fact.event_id}
        assert listed == matched, "I1: the routed fact lists what matched"
        assert fact.at == now


def _told(
    facts: Sequence[Fact],
    wanted: Sequence[Told],
    row: Delivery | Dead | None,
    now: datetime,
    slot: int,
) -> None:
    found = sorted(facts, key=lambda fact: fact.at)
    said = [(f.fact, f.charged, f.attempt, f.budget, f.reason, f.due_at) for f in found]
    assert said == list(wanted), f"facts of {row}:\n  are {said}\n  not {list(wanted)}"
    for nth, fact in enumerate(found):
        assert row is not None
        assert fact.at == now + nth * timedelta(microseconds=1)
        assert fact.slot == slot
        assert (fact.event_id, fact.subscription_id, fact.org_id, fact.revision) == (
            row.event_id,
            row.subscription_id,
            row.org_id,
            row.revision,
        ), "I14: a fact names whom it is about"
